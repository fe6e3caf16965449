"""diff of two runs: what became of every blind pair, as a table of all, numbers with a few examples, and a page."""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ResourceError
from mmvp_ray.pipeline.changes import CODE, Changes, find_changes
from mmvp_ray.pipeline.reporting import thumbnails
from mmvp_ray.pipeline.results import DIFF_HTML, DIFF_JSON, DIFF_TABLE
from mmvp_ray.pipeline.run import Run, open_run
from mmvp_ray.pipeline.run_side import RunSide
from mmvp_ray.report.diff_data import CHANGES, FIXED, GONE, NEW_BLIND, ChangedPair, RunCard, RunDiff
from mmvp_ray.report.diff_html import render_diff_html
from mmvp_ray.schema import DIFF
from mmvp_ray.search.id_words import IdIndex
from mmvp_ray.store import id_array, read_record

# Shapes: P pairs.

TEXTS = ("uri", "member", "caption", "label", "url", "license")
NUM_EXAMPLES = 12
"""Pairs of each change that diff.json describes and diff.html shows."""
NUM_CANDIDATES = 1024
"""Pairs of each change from which the examples are taken, so that no image need be shown twice."""


def diff_runs(old: Run, new: Run) -> RunDiff:
    """What became of every blind pair between two finished runs; nothing is written.

    Args:
        old: The earlier run. Its store must still have the images tables; it may be another one than the new run's.
        new: The later run.

    Returns:
        Counts, and the best examples of each change (see RunDiff).

    Raises:
        DataError: a table or report is missing, not sorted, or not of one run.
    """
    return _Comparison(old, new, Inline()).result()


def write_diff(
    old_url: str, new: Run, *, session: Session | None = None, confirm: Callable[[], None] = lambda: None
) -> RunDiff:
    """Compare a finished run with an earlier one, and write diff.parquet, diff.json and diff.html into its folder.

    Args:
        old_url: Folder of the earlier run.
        new: The finished run.
        session: Where tasks run, if the runs have many pieces; here unless given.
        confirm: Called before files are written: raises if the folder is another run's by then.

    Raises:
        ConfigError: there is no finished run at ``old_url``. DataError: as for diff_runs. ResourceError: no space for the table.
    """
    comparison = _Comparison(open_run(old_url), new, session or Inline())
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-diff-") as scratch:
        local = Path(scratch) / DIFF_TABLE
        with pq.ParquetWriter(local, DIFF, compression="zstd") as writer:
            diff = comparison.result(lambda batch: _append(writer, batch))
        page = render_diff_html(diff, comparison.pictures(diff))
        confirm()
        storage.write_file(storage.join(new.url, DIFF_TABLE), local)
    storage.write_bytes(storage.join(new.url, DIFF_JSON), diff.to_json().encode())
    storage.write_bytes(storage.join(new.url, DIFF_HTML), page.encode())
    return diff


class _Comparison:
    def __init__(self, old: Run, new: Run, session: Session) -> None:
        self._session = session
        self.old, self.new = RunSide(old), RunSide(new)
        self._taken_down = IdIndex(read_record(self.new.side.store).keys)

    def result(self, sink: Callable[[Changes], None] = lambda batch: None) -> RunDiff:
        """Go through all pairs once, handing to ``sink`` those that may be listed: none with an image that was taken down."""
        counts, num_hidden = np.zeros(len(CHANGES), dtype=np.int64), 0
        best: dict[str, Changes] = {}
        for batch in find_changes(self.old.side, self.new.side, session=self._session):
            is_hidden = np.logical_or.reduce([self._taken_down.find(ids) >= 0 for ids in batch.ids()])
            num_hidden += int(is_hidden.sum())
            sink(batch.take(~is_hidden) if is_hidden.any() else batch)
            counts += np.bincount(batch.code_P, minlength=len(CHANGES))
            for change in CHANGES:
                rows = np.flatnonzero(batch.code_P == CODE[change])
                if change != GONE and len(rows):
                    best[change] = _best(change, [*filter(None, [best.get(change)]), batch.take(rows)])
        shown = {change: _without_repeats(pairs) for change, pairs in best.items()}
        # Of a pair that is blind in one run alone, the other run's own cosines say why it is not blind there.
        self.old.look_up(_images_of(shown, (FIXED, NEW_BLIND)), session=self._session)
        self.new.look_up(_images_of(shown, tuple(shown)), session=self._session)
        examples = {change: self._describe(change, pairs) for change, pairs in shown.items()}
        return RunDiff(
            old=RunCard.of(self.old.run.url, self.old.report),
            new=RunCard.of(self.new.run.url, self.new.report),
            **{f"num_{change}": int(counts[CODE[change]]) for change in CHANGES},
            examples={change: examples.get(change, []) for change in CHANGES if change != GONE},
            notes=[
                *_notes(self.old, self.new),
                *(
                    [f"{num_hidden:,} pairs of images that were taken down count as gone, and are listed nowhere."]
                    if num_hidden
                    else []
                ),
            ],
        )

    def pictures(self, diff: RunDiff) -> dict[str, bytes]:
        """Small pictures of the examples: of fixed pairs from the old run's shards, of all others from the new run's."""
        pictures: dict[str, bytes] = {}
        for change, cards in diff.examples.items():
            places = self._places(change)
            rows = [
                {f"image_id_{s}": bytes.fromhex(getattr(card, f"image_id_{s}")) for s in ("a", "b")} for card in cards
            ]
            pictures |= thumbnails([row for row in rows if places.keys() >= set(row.values())], places)
        return pictures

    def _places(self, change: str) -> dict[bytes, dict[str, Any]]:
        first, second = (self.old, self.new) if change == FIXED else (self.new, self.old)
        return second.places | first.places

    def _describe(self, change: str, pairs: Changes) -> list[ChangedPair]:
        near_old, far_old, near_new, far_new = pairs.near_old_P, pairs.far_old_P, pairs.near_new_P, pairs.far_new_P
        if change == FIXED:
            near_new, far_new = (self.new.cosines(card, pairs) for card in (self.new.report.near, self.new.report.far))
        if change == NEW_BLIND:
            near_old, far_old = (self.old.cosines(card, pairs) for card in (self.old.report.near, self.old.report.far))
        places = self._places(change)
        cards = []
        for index, (row_a, row_b) in enumerate(zip(*pairs.ids(), strict=True)):
            texts: dict[str, str] = {
                f"{name}_{side}": places.get(row.tobytes(), {}).get(name) or ""
                for name in TEXTS
                for side, row in (("a", row_a), ("b", row_b))
            }
            cards.append(
                ChangedPair(
                    rank=index + 1,
                    image_id_a=row_a.tobytes().hex(),
                    image_id_b=row_b.tobytes().hex(),
                    cos_near_old=_known(near_old[index]),
                    cos_far_old=_known(far_old[index]),
                    cos_near_new=_known(near_new[index]),
                    cos_far_new=_known(far_new[index]),
                    **texts,
                )
            )
        return cards


def _images_of(shown: dict[str, Changes], changes: tuple[str, ...]) -> set[bytes]:
    return {row.tobytes() for change in changes if change in shown for ids in shown[change].ids() for row in ids}


def _best(change: str, parts: Sequence[Changes]) -> Changes:
    """At most NUM_CANDIDATES pairs: those with the largest near minus far cosine (of the run in which they are blind), ties by ids."""
    names = ("keys_P", "code_P", "near_old_P", "far_old_P", "near_new_P", "far_new_P")
    pairs = Changes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    gap_P = pairs.near_old_P - pairs.far_old_P if change == FIXED else pairs.near_new_P - pairs.far_new_P
    return pairs.take(np.lexsort((pairs.keys_P, -gap_P))[:NUM_CANDIDATES])


def _without_repeats(pairs: Changes) -> Changes:
    """The first NUM_EXAMPLES pairs of which no two share an image; filled up from the others if there are fewer."""
    seen: set[bytes] = set()
    fresh: list[int] = []
    repeats: list[int] = []
    for index, (row_a, row_b) in enumerate(zip(*pairs.ids(), strict=True)):
        keys = {row_a.tobytes(), row_b.tobytes()}
        (repeats if keys & seen else fresh).append(index)
        seen |= keys
    return pairs.take(np.sort(np.array([*fresh, *repeats][:NUM_EXAMPLES], dtype=np.int64)))


def _append(writer: pq.ParquetWriter, batch: Changes) -> None:
    try:
        writer.write_table(_rows(batch))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"expected room for temporary files in {tempfile.gettempdir()}, found the disk full; free space there or set TMPDIR to a larger disk"
        ) from error


def _rows(batch: Changes) -> pa.Table:
    ids_a, ids_b = batch.ids()
    change = pa.DictionaryArray.from_arrays(pa.array(batch.code_P), pa.array(CHANGES))
    cosines = (batch.near_old_P, batch.far_old_P, batch.near_new_P, batch.far_new_P)
    return pa.Table.from_arrays(
        [id_array(ids_a), id_array(ids_b), change, *(pa.array(values, from_pandas=True) for values in cosines)],
        schema=DIFF,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _notes(before: RunSide, after: RunSide) -> list[str]:
    """What to bear in mind when one reads the counts."""
    notes = []
    old, new = before.report, after.report
    settings: tuple[tuple[str, object, object], ...] = (
        ("near encoder", old.near.fingerprint, new.near.fingerprint),
        ("far encoder", old.far.fingerprint, new.far.fingerprint),
        ("near threshold", old.rule.near_above, new.rule.near_above),
        ("far threshold", old.rule.far_below, new.rule.far_below),
        ("least aesthetic score", before.min_aesthetic, after.min_aesthetic),
        ("centre of the near vectors", before.centre(old.near), after.centre(new.near)),
        ("centre of the far vectors", before.centre(old.far), after.centre(new.far)),
    )
    changed = [name for name, one, other in settings if one != other]
    if changed:
        names = " and ".join([", ".join(changed[:-1]), changed[-1]] if len(changed) > 1 else changed)
        notes.append(f"The runs differ in the {names}: a pair may be fixed or newly blind for that reason alone.")
    if "near" in (old.rule.collapse, new.rule.collapse):
        notes.append(
            "Near-copies were collapsed: where another copy came to represent a group, its pairs count as fixed under the "
            "old name and as new under the new one."
        )
    for name, report, what in (("earlier", old, "newly blind"), ("new", new, "fixed")):
        audit = report.audit
        if audit is not None and audit.recall is not None and audit.recall < 1:
            notes.append(
                f"The {name} run found {100 * audit.recall:.3f} % of the near pairs (audited; 95 % interval {100 * audit.low:.3f} % to "
                f"{100 * audit.high:.3f} %): of the pairs that count as {what} a few may only have been missed."
            )
    return notes
