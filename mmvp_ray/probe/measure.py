"""The measurement: every item under every change, with and without its context, as rows of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.images.decode import decode
from mmvp_ray.images.reasons import Rejected
from mmvp_ray.probe.changes import ORIGINAL, Pixels, change
from mmvp_ray.probe.items import ProbeItem
from mmvp_ray.probe.models import ProbeModel, WordQuestion

MATCH, WORD, SWAPPED, INVARIANCE = "match", "word", "swapped word", "cosine to the original"
MEASURES = (MATCH, WORD, SWAPPED, INVARIANCE)
NO_WORD = -1

ROWS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),
        pa.field("with_context", pa.bool_(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("word", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""One measured number: of which model and item, under which change, with the context or without, what it is (`measure`: one of
MEASURES; `kind`: probability, score or cosine), and for words which of the item's (from 0; -1 otherwise)."""


def measure(
    name: str, model: ProbeModel, items: Sequence[ProbeItem], *, changes: Sequence[str], batch_size: int
) -> pa.Table:
    """Rows of one model (schema ROWS) in the order of the items; what does not apply to it has no rows.

    Args:
        name: The model's name, as it stands in the rows.
        model: Loaded.
        items: What is probed.
        changes: Names of changes; the original is measured in any case.
        batch_size: Items at a time.

    Raises:
        DataError: an image cannot be read. ConfigError: an unknown change.
    """
    names = list(dict.fromkeys([ORIGINAL, *changes]))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        images = [read_pixels(item.image_uri) for item in batch]
        originals = model.vectors(images)
        for changed in names:
            shown = [change(changed, image) for image in images]
            for with_context in (False, True):
                rows += _texts(name, model, batch, shown, changed, with_context)
            if originals is not None and changed != ORIGINAL:
                vectors = model.vectors(shown)
                assert vectors is not None
                rows += [
                    _row(name, item, changed, False, INVARIANCE, "cosine", NO_WORD, _cosine(before, after))
                    for item, before, after in zip(batch, originals, vectors, strict=True)
                ]
    return pa.Table.from_pylist(rows, schema=ROWS)


def _texts(
    name: str, model: ProbeModel, batch: Sequence[ProbeItem], shown: Sequence[Pixels], changed: str, with_context: bool
) -> Iterator[dict[str, Any]]:
    chosen = [place for place, item in enumerate(batch) if item.context or not with_context]
    if not chosen:
        return
    images = [shown[place] for place in chosen]
    found = model.match(images, [batch[place].text(with_context=with_context) for place in chosen])
    if found is not None:
        for place, value in zip(chosen, found, strict=True):
            yield _row(name, batch[place], changed, with_context, MATCH, model.match_kind, NO_WORD, float(value))
    asked = [
        (place, number, measured, WordQuestion(batch[place], word, answer, with_context))
        for place in chosen
        for number, word in enumerate(batch[place].words)
        for measured, answer in ((WORD, word.word), (SWAPPED, word.swapped))
        if answer is not None
    ]
    for start in range(0, len(asked), len(images)):
        group = asked[start : start + len(images)]
        values = model.words([shown[place] for place, *_ in group], [question for *_, question in group])
        if values is None:
            return
        for (place, number, measured, _), value in zip(group, values, strict=True):
            yield _row(name, batch[place], changed, with_context, measured, "probability", number, float(value))


def _row(
    model: str, item: ProbeItem, changed: str, with_context: bool, measured: str, kind: str, word: int, value: float
) -> dict[str, Any]:
    if not np.isfinite(value):
        raise DataError(f"expected a finite {measured} of {model} on item {item.key!r} ({changed}), found {value}")
    return {
        "model": model,
        "key": item.key,
        "change": changed,
        "with_context": with_context,
        "measure": measured,
        "kind": kind,
        "word": word,
        "value": value,
    }


def _cosine(a_D: np.ndarray[Any, np.dtype[np.float32]], b_D: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    a, b = a_D.astype(np.float64), b_D.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def read_pixels(uri: str) -> Pixels:
    """The decoded image at `uri`: uint8 RGB, upright.

    Raises:
        DataError: no image, or one that cannot be decoded.
    """
    found = decode(storage.read_bytes(uri))
    if isinstance(found, Rejected):
        raise DataError(
            f"expected an image at {uri}, found none that can be decoded ({found.reason.value}: {found.detail})"
        )
    return found.image_HWC
