"""What a run leaves in OUT: blind_pairs, pieces.parquet, pairs.parquet, the reports, and the manifest that makes them count."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.errors import ConfigError
from mmvp_ray.mine import CopyGroups, Rule
from mmvp_ray.mine.counted_pairs import IdFilter, sorted_with_places, wanted_places
from mmvp_ray.mine.pair_rows import batch_of
from mmvp_ray.pipeline.places import Places, images_uris, read_image_ids
from mmvp_ray.schema import BLIND_PAIRS, PAIRS, PIECES
from mmvp_ray.search import PairBatch, PieceRef, Window, pass_over
from mmvp_ray.search.table import record_batches
from mmvp_ray.sources.piece import PIECE_MEMBERS
from mmvp_ray.store import Store, id_array, id_matrix, write_table

# Shapes: P pairs, as rows of 6 words (mine/pair_rows.py) or, with both numbers of places, of 8.

PAIRS_PER_FILE = 1 << 20
MANIFEST = "manifest.json"
BEGUN = "begun.json"
"""Names the run that writes to OUT; gone when it has ended."""
PIECES_FILE = "pieces.parquet"
BLIND_PAIRS_FOLDER = "blind_pairs"
SELECTION = "pairs.parquet"
REPORT_HTML = "report.html"
REPORT_JSON = "report.json"
DIFF_TABLE, DIFF_JSON, DIFF_HTML = DIFF_FILES = ("diff.parquet", "diff.json", "diff.html")


def blind_folder(out: str, near: str, far: str) -> str:
    """Folder of the blind pairs of two encoders (their slugs)."""
    return storage.join(out, BLIND_PAIRS_FOLDER, f"{near}--{far}")


def begin(out: str) -> str:
    """Give what tells this run from any other that begins in OUT; an earlier one's results stay until `clear`."""
    token = secrets.token_hex(16)
    storage.write_json(storage.join(out, BEGUN), {"run": token})
    return token


def clear(out: str) -> None:
    """Take away what an earlier run wrote to OUT, its manifest first: from now until the new manifest there is no run."""
    storage.remove(storage.join(out, MANIFEST))
    storage.remove_folder(storage.join(out, BLIND_PAIRS_FOLDER))
    for name in (REPORT_HTML, REPORT_JSON, SELECTION, PIECES_FILE, *DIFF_FILES):
        storage.remove(storage.join(out, name))


def check_alone(out: str, token: str) -> None:
    """Raise ConfigError if another run was begun in OUT since `begin` gave the token."""
    uri = storage.join(out, BEGUN)
    if not storage.exists(uri) or storage.read_json(uri) != {"run": token}:
        raise ConfigError(
            f"expected no other run in {out}, found that one was begun there after this one; give each run an --out of its own"
        )


def write_manifest(out: str, token: str, manifest: dict[str, Any]) -> None:
    """Make a run whole.

    Raises:
        ConfigError: another run was begun in OUT meanwhile.
    """
    check_alone(out, token)
    storage.remove(storage.join(out, BEGUN))
    storage.write_json(storage.join(out, MANIFEST), manifest)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindPairs:
    """The blind pairs that a run has written; may be read any number of times.

    Attributes:
        folder: Holds their files.
        num_pairs: How many there are.
    """

    folder: str
    num_pairs: int

    def batches(self) -> Iterator[PairBatch]:
        """All of them sorted by ids, at most BATCH_PAIRS at a time."""
        return read_blind_pairs(self.folder)


def read_blind_pairs(folder: str) -> Iterator[PairBatch]:
    """The blind pairs in a folder (`blind_folder`) sorted by ids, at most BATCH_PAIRS at a time.

    Raises:
        DataError: a file is missing or broken.
    """
    for name in storage.list_names(folder):
        if name.endswith(".parquet"):
            for rows in record_batches(storage.join(folder, name), columns=BLIND_PAIRS.names[:4]):
                yield PairBatch(
                    ids_a_P16=id_matrix(rows.column("image_id_a")),
                    ids_b_P16=id_matrix(rows.column("image_id_b")),
                    cos_near_P=rows.column("cos_near").to_numpy(),
                    cos_far_P=rows.column("cos_far").to_numpy(),
                )


def _nothing() -> None:
    """What is confirmed where no other run can write."""


def write_blind_pairs(
    store: Store,
    out: str,
    near: str,
    far: str,
    batches: Iterable[PairBatch],
    rule: Rule,
    pieces: Sequence[PieceRef],
    copies: CopyGroups,
    *,
    session: Session,
    confirm: Callable[[], None] = _nothing,
) -> BlindPairs:
    """Write every pair that meets the rule, sorted by ids.

    Memory and temporary files: those of mine.sorted_with_places, and one file of PAIRS_PER_FILE pairs.

    Args:
        store: Holds the images tables, for the numbers of copies.
        out: The run's folder.
        near: Slug of the near encoder.
        far: Slug of the far encoder.
        batches: Near pairs with both cosines, each once, in any order.
        rule: The rule.
        pieces: The run's pieces.
        copies: Groups whose places count for their representative; none unless the run collapsed near-copies.
        session: Where tasks run, if there are many pieces.
        confirm: Called before each file, which may be long after the first pair was read: raises if OUT is another run's by then.

    Raises:
        ResourceError: the disk with the temporary files is full.
    """
    blind = (batch.take(rule.blind(batch.cos_near_P, batch.cos_far_P)) for batch in batches)
    folder = blind_folder(out, near, far)

    def places(wanted: IdFilter) -> Iterator[NDArray[np.uint64]]:
        return pass_over(_wanted_places, images_uris(store, pieces), session=session, shared=[wanted, copies])

    found = sorted_with_places(blind, places, num_places=len(pieces) * PIECE_MEMBERS)
    num_pairs = 0
    for number, rows_P8 in enumerate(_in_files(found)):
        pairs = batch_of(rows_P8)
        columns = [
            id_array(pairs.ids_a_P16),
            id_array(pairs.ids_b_P16),
            pa.array(pairs.cos_near_P),
            pa.array(pairs.cos_far_P),
            pa.array(rows_P8[:, 6].astype(np.int64)),
            pa.array(rows_P8[:, 7].astype(np.int64)),
        ]
        table = pa.Table.from_arrays(columns, schema=BLIND_PAIRS)
        confirm()
        write_table(Store(out), storage.join(folder, f"part-{number:06d}.parquet"), table)
        num_pairs += len(pairs)
    return BlindPairs(folder=folder, num_pairs=num_pairs)


def _wanted_places(window: Window[str], wanted: IdFilter, copies: CopyGroups) -> NDArray[np.uint64]:
    return wanted_places(np.concatenate(window.read(read_image_ids)), wanted, copies)


def _in_files(parts: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
    """The same rows in arrays of PAIRS_PER_FILE, the last one with what is left; one without rows if there are none."""
    held = [np.empty((0, 8), dtype=np.uint64)]
    num_held, num_files = 0, 0
    for rows_P8 in parts:
        held.append(rows_P8)
        num_held += len(rows_P8)
        if num_held >= PAIRS_PER_FILE:
            whole_P8 = np.concatenate(held)
            for first in range(0, num_held - PAIRS_PER_FILE + 1, PAIRS_PER_FILE):
                yield whole_P8[first : first + PAIRS_PER_FILE]
                num_files += 1
            held = [whole_P8[num_held - num_held % PAIRS_PER_FILE :].copy()]
            num_held = len(held[0])
    if num_held or not num_files:
        yield np.concatenate(held)


def write_pieces(out: str, pieces: Sequence[PieceRef]) -> None:
    """Write the list of the run's pieces, by which its images are found again."""
    table = pa.table(
        {
            "corpus": [piece.corpus for piece in pieces],
            "piece": [piece.name for piece in pieces],
        },
        schema=PIECES,
    )
    write_table(Store(out), storage.join(out, PIECES_FILE), table)


def describe_pairs(
    pairs: PairBatch, places: Places, cluster_P: NDArray[np.int64] | None = None
) -> list[dict[str, Any]]:
    """The rows of schema.PAIRS for some pairs in the order of their rank, with what the images tables say of both images.

    Args:
        pairs: Few pairs, best first.
        places: Where their images were seen (see images_of).
        cluster_P: For each the cluster that it was selected from.
    """
    keys_a, keys_b = ([row.tobytes() for row in ids_P16] for ids_P16 in (pairs.ids_a_P16, pairs.ids_b_P16))
    rows: list[dict[str, Any]] = []
    for rank, (key_a, key_b) in enumerate(zip(keys_a, keys_b, strict=True), start=1):
        row: dict[str, Any] = {
            "rank": rank,
            "image_id_a": key_a,
            "image_id_b": key_b,
            "cos_near": float(pairs.cos_near_P[rank - 1]),
            "cos_far": float(pairs.cos_far_P[rank - 1]),
            "cluster": 0 if cluster_P is None else int(cluster_P[rank - 1]),
        }
        for side, key in (("a", key_a), ("b", key_b)):
            for name in ("uri", "member", "caption", "label", "url", "license"):
                row[f"{name}_{side}"] = places.rows[key][name]
            row[f"num_copies_{side}"] = places.counts[key]
        rows.append(row)
    return rows


def images_of(*batches: PairBatch) -> set[bytes]:
    """The ids of all images of some pairs."""
    return {row.tobytes() for pairs in batches for ids in (pairs.ids_a_P16, pairs.ids_b_P16) for row in ids}


def write_selection(out: str, rows: list[dict[str, Any]]) -> None:
    """Write pairs.parquet."""
    write_table(
        Store(out),
        storage.join(out, SELECTION),
        pa.Table.from_pylist(rows, schema=PAIRS),
    )
