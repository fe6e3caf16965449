"""The table of near pairs: files of parts in the store, what each table is complete for, and reading it as one stream of pairs.

near_pairs/<space>/<key>/begun.json         the engine that is at it: whoever goes on takes the same one
near_pairs/<space>/<key>/<part>.parquet     pairs above the floor that one task found, marker beside it
near_pairs/<space>/<key>/parts.json         names of the parts and facts of an engine that came to its end
near_pairs/<space>/<key>/pieces.parquet     the pieces whose images it joins
near_pairs/<space>/<key>/table.json         floor, method, earlier tables that it builds on; written last: present means whole
scores/<far>/<space>/<key>/<part>.parquet   cosines of the same pairs in another space, row for row

Beside each part lies its marker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.schema import NEAR_PAIRS, PIECES, check_version
from mmvp_ray.search.space import Space
from mmvp_ray.store import (
    DONE,
    PieceRef,
    Store,
    among,
    done_names,
    id_array,
    id_keys,
    id_matrix,
    read_marker,
    read_table,
    write_marker,
    write_table,
)

# Shapes: P pairs.

BEGUN_JSON = "begun.json"
TABLE_JSON = "table.json"
PARTS_JSON = "parts.json"
PIECES_FILE = "pieces.parquet"
BATCH_PAIRS = 1 << 20
COMPLETE = "complete"
"""Method of a table that holds every pair above its floor: exact and provable engines, which agree to the last pair."""

Joined = tuple[list[str], dict[str, Any]]
"""Names of an engine's parts, finished ones of an earlier attempt included, and its facts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of near pairs: the key of the table that it was written for, and its name."""

    key: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """Pairs with both cosines (float64); ids as (P, 16) uint8, a < b byte by byte; a far cosine is NaN where a far vector is missing."""

    ids_a_P16: NDArray[np.uint8]
    ids_b_P16: NDArray[np.uint8]
    cos_near_P: NDArray[np.float64]
    cos_far_P: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.cos_near_P)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> PairBatch:
        """The pairs of some rows, in their order."""
        return PairBatch(
            ids_a_P16=self.ids_a_P16[rows],
            ids_b_P16=self.ids_b_P16[rows],
            cos_near_P=self.cos_near_P[rows],
            cos_far_P=self.cos_far_P[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NearTable:
    """Every near pair that a join found, perhaps spread over earlier joins that it builds on.

    Attributes:
        store: Holds the files.
        space: Where the pairs are near.
        key: Of the newest table.
        parts: All files, those of earlier tables first.
        floor: Pairs at or below it are passed over: earlier tables may go deeper.
        without: Ids whose pairs are passed over, sorted: images that a copy came to represent since.
        facts: What the engine says of the join.
    """

    store: Store
    space: Space
    key: str
    parts: tuple[Part, ...]
    floor: float
    without: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, dtype="S16"))
    facts: dict[str, Any] = field(default_factory=dict)

    def near_uri(self, part: Part) -> str:
        """The file of a part."""
        return storage.join(self.store.near_pairs(self.space.name, part.key), f"{part.name}.parquet")

    def scores_folder(self, far: Space, part: Part) -> str:
        """Folder of a part's cosines in another space."""
        return self.store.scores(far.name, self.space.name, part.key)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTable:
    """Near pairs with their cosines in one other space; may be read any number of times."""

    near: NearTable
    far: Space

    def batches(self) -> Iterator[PairBatch]:
        """All pairs, at most BATCH_PAIRS at a time; each pair occurs once."""
        table = self.near
        for part in table.parts:
            far_uri = storage.join(table.scores_folder(self.far, part), f"{part.name}.parquet")
            for near, far in zip(
                record_batches(table.near_uri(part)), record_batches(far_uri, columns=["cos"]), strict=True
            ):
                yield _kept(
                    PairBatch(
                        ids_a_P16=id_matrix(near.column("image_id_a")),
                        ids_b_P16=id_matrix(near.column("image_id_b")),
                        cos_near_P=near.column("cos_near").to_numpy(),
                        cos_far_P=far.column("cos").to_numpy(),
                    ),
                    table,
                )


def _kept(batch: PairBatch, table: NearTable) -> PairBatch:
    kept = batch.cos_near_P > table.floor
    if len(table.without):
        for ids in (batch.ids_a_P16, batch.ids_b_P16):
            kept &= ~among(id_keys(ids), table.without)
    return batch if kept.all() else batch.take(kept)


def record_batches(uri: str, *, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a table's file, at most BATCH_PAIRS at a time.

    Raises:
        DataError: no such file, no Parquet, or another schema version.
    """
    data = storage.read_bytes(uri, is_large=True)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"expected a Parquet table, found something else in {uri} ({' '.join(str(error).split())}); run verify on the store"
        ) from error
    check_version(file.schema_arrow, where=uri)
    yield from file.iter_batches(batch_size=BATCH_PAIRS, columns=columns, use_threads=False)


def write_near_part(
    store: Store,
    folder: str,
    name: str,
    ids_a_P16: NDArray[np.uint8],
    ids_b_P16: NDArray[np.uint8],
    cos_P: NDArray[np.float64],
    *,
    num_compared: int,
) -> None:
    """Write one part, its pairs turned so that a < b and sorted, then its marker."""
    swap = id_keys(ids_a_P16) > id_keys(ids_b_P16)
    ids_a = np.where(swap[:, None], ids_b_P16, ids_a_P16)
    ids_b = np.where(swap[:, None], ids_a_P16, ids_b_P16)
    order = np.lexsort((id_keys(ids_b), id_keys(ids_a)))
    table = pa.Table.from_arrays(
        [id_array(ids_a[order]), id_array(ids_b[order]), pa.array(cos_P[order])], schema=NEAR_PAIRS
    )
    entry = write_table(store, storage.join(folder, f"{name}.parquet"), table)
    write_marker(storage.join(folder, name + DONE), files=[entry], num_compared=num_compared)


def join_once(folder: str, scratch: str, join: Callable[[], Joined]) -> Joined:
    """What `join` gives: names of parts and facts; or what it gave before, here or in another run on this store, if it came to its end.

    Runs beside each other that want the same join share its working files. Who ends first keeps what it found, then removes these files; the
    others miss them and take what was kept.

    Args:
        folder: Of the parts.
        scratch: Folder of working files, to be removed at the end.
        join: Writes the parts that are not there yet.

    Raises:
        DataError: a table is missing or broken.
    """
    found = _ended(folder)
    if found is None:
        try:
            found = join()
            storage.write_json(storage.join(folder, PARTS_JSON), {"parts": found[0], "facts": found[1]})
        except DataError:
            found = _ended(folder)
            if found is None:
                raise
    storage.remove_folder(scratch)
    return found


def _ended(folder: str) -> Joined | None:
    uri = storage.join(folder, PARTS_JSON)
    kept = storage.read_json(uri) if storage.exists(uri) else None
    if kept is None or not set(kept["parts"]) <= set(done_names(folder)):
        return None
    return kept["parts"], kept["facts"]


def num_compared(table_folder: str, names: Sequence[str]) -> int:
    """Pairs of vectors that were compared for some parts of one table, from their markers."""
    return sum(int(read_marker(storage.join(table_folder, name + DONE))[1].get("num_compared", 0)) for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFacts:
    """What table.json says of a whole table.

    Attributes:
        key: Names its folder.
        pieces_key: Fingerprint of its set of pieces.
        num_pieces: How many there are.
        floor: Every pair above it was looked for.
        collapse: How copies were collapsed before the join: "none", or a fingerprint of how; and the copies table's key.
        copies_key: Key of the copies table whose representatives were joined; None without.
        method: COMPLETE, or a fingerprint of the approximation.
        parts: Its own parts and those of the tables it builds on.
        facts: What the engine says of the join.
    """

    key: str
    pieces_key: str
    num_pieces: int
    floor: float
    collapse: str
    copies_key: str | None
    method: str
    parts: tuple[Part, ...]
    facts: dict[str, Any]


def write_begun(store: Store, space: Space, key: str, engine: str) -> None:
    """Note which engine is at a table that is not whole."""
    uri = storage.join(store.near_pairs(space.name, key), BEGUN_JSON)
    if begun_by(store, space, key) != engine:
        storage.write_json(uri, {"engine": engine})


def begun_by(store: Store, space: Space, key: str) -> str | None:
    """The engine that was at a table last; None where none ever was."""
    uri = storage.join(store.near_pairs(space.name, key), BEGUN_JSON)
    found = storage.read_json(uri) if storage.exists(uri) else None
    return found.get("engine") if isinstance(found, dict) else None


def write_facts(store: Store, space: Space, facts: TableFacts, pieces: Sequence[PieceRef]) -> None:
    """Write the list of pieces, then table.json: from now on the table is whole."""
    folder = store.near_pairs(space.name, facts.key)
    table = pa.table(
        {"corpus": [piece.corpus for piece in pieces], "piece": [piece.name for piece in pieces]}, schema=PIECES
    )
    write_table(store, storage.join(folder, PIECES_FILE), table)
    storage.write_json(
        storage.join(folder, TABLE_JSON),
        {
            "pieces_key": facts.pieces_key,
            "num_pieces": facts.num_pieces,
            "floor": facts.floor,
            "collapse": facts.collapse,
            "copies_key": facts.copies_key,
            "method": facts.method,
            "parts": [[part.key, part.name] for part in facts.parts],
            "facts": facts.facts,
        },
    )


def whole_tables(store: Store, space: Space) -> list[TableFacts]:
    """The whole tables of a space, sorted by key."""
    root = store.near_pairs(space.name, "")
    found = []
    for key in storage.list_folders(root):
        uri = storage.join(root, key, TABLE_JSON)
        if not storage.exists(uri):
            continue
        facts = storage.read_json(uri)
        try:
            parts = tuple(Part(one, name) for one, name in facts.pop("parts"))
            found.append(TableFacts(key=key, parts=parts, **facts))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"expected the facts of a table, found something else in {uri} ({error}); remove it to join again"
            ) from error
    return found


def pieces_of(store: Store, space: Space, key: str) -> list[PieceRef]:
    """The pieces whose images a whole table joins."""
    rows = read_table(storage.join(store.near_pairs(space.name, key), PIECES_FILE)).to_pylist()
    return [PieceRef(row["corpus"], row["piece"]) for row in rows]
