"""The loss curve: one row for each step, kept in every checkpoint, written as Parquet and as TensorBoard events."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.mof.data.records import table_schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One step.

    Attributes:
        step: From 1: steps done.
        epoch: Epochs done, as a fraction.
        loss: Mean over the batch's label tokens, before the step.
        learning_rate: Of the first group of parameters.
        grad_norm: Before it was shortened.
        num_rows: Rows trained on.
        num_images: Their images.
        num_label_tokens: Tokens that the loss counts.
        num_tokens: Tokens of the texts, image tokens included.
        num_padded_tokens: The same with padding.
        seconds: Of the step, waiting for its data included.
        wait_seconds: Of these, waiting for data.
        counts: Of rows cut, left out or without their image, by reason, as StepResult has them.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    num_rows: int
    num_images: int
    num_label_tokens: int
    num_tokens: int
    num_padded_tokens: int
    seconds: float
    wait_seconds: float
    counts: dict[str, int] = field(default_factory=dict)


_EVENTS_FILE = re.compile(r"events\.out\.tfevents\.(\d{8})\.mmvp-ray")
_TYPES = {"int": pa.int64(), "float": pa.float64(), "dict[str, int]": pa.string()}
CURVE = table_schema(
    "mof_loss_curve",
    [pa.field(item.name, _TYPES[str(item.type)], nullable=False) for item in dataclasses.fields(Point)],
)
"""One row for each step, ascending; `counts` is JSON."""


def to_parquet(points: Sequence[Point]) -> bytes:
    """The curve as a Parquet file."""
    sink = io.BytesIO()
    rows = [dataclasses.asdict(point) | {"counts": json.dumps(point.counts)} for point in points]
    pq.write_table(pa.Table.from_pylist(rows, schema=CURVE), sink)
    return sink.getvalue()


def from_parquet(data: bytes) -> list[Point]:
    """What `to_parquet` wrote."""
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    return [Point(**row | {"counts": json.loads(row["counts"])}) for row in rows]


def show_events(points: Sequence[Point], folder: str, *, num_shown: int) -> None:
    """The curve behind its first `num_shown` points as a further file of TensorBoard events in the folder at URL `folder`.

    An attempt shows its first file from the first step on, so that it needs none of another's. One attempt at a time writes over and
    removes nothing: TensorBoard keeps the file open that it reads, and reads on in the next by name. Each file's purge step has it
    forget what it read of these steps before.
    """
    from torch.utils.tensorboard import SummaryWriter

    new = points[num_shown:]
    if not new:
        return
    numbers = [int(found[1]) for name in storage.list_names(folder) if (found := _EVENTS_FILE.fullmatch(name))]
    with tempfile.TemporaryDirectory() as scratch:
        with SummaryWriter(log_dir=scratch, purge_step=new[0].step) as writer:
            for point in new:
                for item, value in _scalars(point).items():
                    writer.add_scalar(item, value, point.step)
        (file,) = Path(scratch).iterdir()
        storage.write_file(
            storage.join(folder, f"events.out.tfevents.{max(numbers, default=0) + 1:08d}.mmvp-ray"), file
        )


def _scalars(point: Point) -> dict[str, float]:
    scalars = {f"train/{name}": getattr(point, name) for name in ("loss", "learning_rate", "grad_norm", "epoch")}
    seconds = point.seconds or math.inf
    return scalars | {
        "speed/tokens_per_second": point.num_tokens / seconds,
        "speed/data_wait_share": point.wait_seconds / seconds,
    }
