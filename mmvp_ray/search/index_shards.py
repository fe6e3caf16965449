"""Index shards: codes of blocks, FAISS indexes that hold a range of cells each, and asking one of them.

indexes/<space>/<codec>/codec.npz                what was trained
indexes/<space>/<codec>/codes/<block>.bin        the codes of a block of images, sorted by cell
indexes/<space>/<codec>/<images>/<shard>.faiss   a FAISS index of a range of cells; its ids are row numbers of the table beside it
indexes/<space>/<codec>/<images>/<shard>.rows    for each row the image id, its piece and what its code kept
indexes/<space>/<codec>/<images>/index.json      written last: what the index was made from, and its shards; it is whole if all their markers are there
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.config import fingerprint
from mmvp_ray.search.blocks import Block, kept_rows
from mmvp_ray.search.codec import Codec, CodeShape
from mmvp_ray.search.space import Space, read_vectors
from mmvp_ray.store import DONE, Store, done_names, id_keys, write_marker

if TYPE_CHECKING:
    from mmvp_ray.search.index_holders import IndexHolder

# Shapes: N vectors, R numbers in a rotated one, L cells, P cells probed for a vector, K neighbours asked for, S bytes of a code.

GPU_NEIGHBOURS = 2048
"""FAISS on a GPU gives at most so many (as cells probed, too)."""

INDEXES = "indexes"

CODEC_FILE, CODES, INDEX_JSON = "codec.npz", "codes", "index.json"

ROW = np.dtype([("id", "S16"), ("piece", "<i4"), ("kept", "<f2")])


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPlace:
    """An index: what it is of and where it lies. Light but for its blocks, picklable."""

    store: Store
    space: Space
    codec_key: str
    content_key: str

    @property
    def codec_folder(self) -> str:
        """Folder of the codec and of codes that were made with it."""
        return storage.join(self.store.root, INDEXES, self.space.name, self.codec_key)

    @property
    def folder(self) -> str:
        """Folder of the shards."""
        return storage.join(self.codec_folder, self.content_key)

    @property
    def codes_folder(self) -> str:
        """Folder of the codes of all blocks that were made with the codec."""
        return storage.join(self.codec_folder, CODES)

    def codes_uri(self, key: str) -> str:
        """The codes of the block of this key (block_key)."""
        return storage.join(self.codes_folder, f"{key}.bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodesTask:
    """A block to be compressed. Light and picklable."""

    place: IndexPlace
    block: Block


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Cells [first, last) to be made a shard, from the codes of blocks; `first_pieces` numbers the pieces of each block on from there."""

    place: IndexPlace
    name: str
    first: int
    last: int
    codes: tuple[str, ...]
    first_pieces: tuple[int, ...]


def block_key(block: Block) -> str:
    """16 hex digits that change with the images of a block."""
    return fingerprint(
        [
            [piece.corpus, piece.name, None if kept is None else hashlib.sha256(kept.tobytes()).hexdigest()[:16]]
            for piece, kept in zip(block.pieces, block.kept, strict=True)
        ]
    )


def write_codes(holder: IndexHolder, task: CodesTask) -> None:
    """Compress the usable vectors of a block and write them by cell: L + 1 offsets (int64), then records; then the marker."""
    place = task.place
    codec = holder.codec(place)
    record = code_record(codec.shape)
    records, cells, num_seen = [np.empty(0, dtype=record)], [np.empty(0, dtype=np.int64)], 0
    for piece, (ref, kept) in enumerate(zip(task.block.pieces, task.block.kept, strict=True)):
        ids_N16, vectors_ND = read_vectors(place.store, place.space, ref)
        rows = np.arange(len(ids_N16)) if kept is None else kept_rows(kept)
        num_seen += len(rows)
        rotated_NR, usable_N = codec.rotate(vectors_ND[rows])
        rows, rotated_NR = rows[usable_N], rotated_NR[usable_N]
        cell_N = codec.home_cells(rotated_NR)
        part = np.empty(len(rows), dtype=record)
        part["id"], part["piece"] = id_keys(ids_N16)[rows], piece
        part["code"], part["kept"] = codec.encode(rotated_NR, cell_N)
        records.append(part)
        cells.append(cell_N)
    records_N, cell_N = np.concatenate(records), np.concatenate(cells)
    offsets = cell_offsets(cell_N, codec.shape.num_cells)
    data = offsets.tobytes() + records_N[np.argsort(cell_N, kind="stable")].tobytes()
    uri = place.codes_uri(block_key(task.block))
    storage.write_bytes(uri, data)
    write_marker(
        uri.removesuffix(".bin") + DONE,
        files=[],
        num_rows=len(records_N),
        num_unusable=num_seen - len(records_N),
        sum_kept=float(records_N["kept"].sum(dtype=np.float64)),
    )


def has_shards(place: IndexPlace, index: dict[str, Any]) -> bool:
    """Whether all shards are there that index.json names; those of an index that a later one grew from are removed."""
    return {name for name, _, _ in index["shards"]} <= set(done_names(place.folder))


def cut_cells(counts_L: NDArray[np.int64], shard_rows: int) -> list[tuple[int, int]]:
    """Ranges of cells of at most `shard_rows` images each (or one cell, if it is larger), those without an image left out."""
    ranges, first, rows = [], 0, 0
    for cell, count in enumerate(counts_L.tolist()):
        if rows and rows + count > shard_rows:
            ranges.append((first, cell))
            first, rows = cell, 0
        rows += count
    return [*ranges, (first, len(counts_L))] if rows else ranges


def read_offsets(uri: str, num_cells: int) -> NDArray[np.int64]:
    """Where each cell begins among the records of a codes file, and where the last one ends."""
    return np.frombuffer(storage.read_bytes(uri, start=0, end=8 * (num_cells + 1)), dtype="<i8")


def build_shard(holder: IndexHolder, task: ShardTask) -> None:
    """Write the FAISS index of a range of cells, the table of its rows, and the marker for both."""
    import faiss

    codec = holder.codec(task.place)
    shape, record = codec.shape, code_record(codec.shape)
    parts, cells = [np.empty(0, dtype=record)], [np.empty(0, dtype=np.int64)]
    for uri, first_piece in zip(task.codes, task.first_pieces, strict=True):
        offsets = read_offsets(uri, shape.num_cells)[task.first : task.last + 1]
        start = offsets[[0, -1]] * record.itemsize + 8 * (shape.num_cells + 1)
        part = np.frombuffer(storage.read_bytes(uri, start=int(start[0]), end=int(start[1])), dtype=record).copy()
        part["piece"] += first_piece
        parts.append(part)
        cells.append(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)))
    records_N, cell_N = np.concatenate(parts), np.concatenate(cells)
    records_N = records_N[np.argsort(cell_N, kind="stable")]
    num_cells = task.last - task.first
    middles = faiss.IndexFlatIP(shape.rotated_dim)
    middles.add(np.ascontiguousarray(codec.middles[task.first : task.last]))
    index: Any = faiss.IndexIVFPQ(
        middles, shape.rotated_dim, num_cells, shape.num_subspaces, shape.bits, faiss.METRIC_INNER_PRODUCT
    )
    faiss.copy_array_to_vector(codec.words, index.pq.centroids)
    index.is_trained, index.by_residual = True, True
    offsets = cell_offsets(cell_N, num_cells)
    codes_NS, rows_N = np.ascontiguousarray(records_N["code"]), np.arange(len(records_N), dtype=np.int64)
    for cell in np.flatnonzero(np.diff(offsets)):
        some = slice(int(offsets[cell]), int(offsets[cell + 1]))
        size = some.stop - some.start
        index.invlists.add_entries(int(cell), size, faiss.swig_ptr(rows_N[some]), faiss.swig_ptr(codes_NS[some]))
    index.ntotal = len(records_N)
    # Fast scan is the CPU's: 4-bit codes of 32 vectors side by side, looked up in registers.
    kept = faiss.IndexIVFPQFastScan(index, 32) if shape.bits == 4 else index
    data = faiss.serialize_index(kept).tobytes()
    table = np.empty(len(records_N), dtype=ROW)
    for name in ROW.names or ():
        table[name] = records_N[name]
    uri = storage.join(task.place.folder, task.name)
    storage.write_bytes(uri + ".faiss", data)
    storage.write_bytes(uri + ".rows", table.tobytes())
    write_marker(
        uri + DONE,
        files=[],
        first=task.first,
        last=task.last,
        num_rows=len(table),
        sha256=hashlib.sha256(data).hexdigest(),
        sha256_rows=hashlib.sha256(table.tobytes()).hexdigest(),
    )


def code_record(shape: CodeShape) -> np.dtype[np.void]:
    """A row and its code."""
    return np.dtype([*((name, ROW[name]) for name in ROW.names or ()), ("code", "u1", (shape.code_bytes,))])


def cell_offsets(cell_N: NDArray[np.int64], num_cells: int) -> NDArray[np.int64]:
    """Where each cell begins once vectors are sorted by cell, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.bincount(cell_N, minlength=num_cells))]).astype("<i8")


class Shard:
    """A range of cells in memory, ready to be asked.

    Args:
        index: The FAISS index.
        table_N: Its rows (ROW).
        first: The first of its cells.
        device: "cuda": kNN runs on the process' GPU.
    """

    def __init__(self, index: Any, table_N: NDArray[np.void], first: int, device: str) -> None:
        import faiss

        self._index, self.first, self.last = index, first, first + index.nlist
        self._gpu: Any = None
        self.ids_N: NDArray[np.bytes_] = np.ascontiguousarray(table_N["id"])
        self.piece_N: NDArray[np.int32] = np.ascontiguousarray(table_N["piece"])
        # A code that kept next to nothing says nothing: it is proposed to everyone who looks into its cell.
        self._kept_N = np.maximum(table_N["kept"].astype(np.float32), 1e-3)
        self.sizes_L = np.array([index.invlists.list_size(cell) for cell in range(index.nlist)], dtype=np.int64)
        if device == "cuda":
            options = faiss.GpuClonerOptions()
            options.useFloat16 = True
            self._gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)

    def nearest(
        self,
        codec: Codec,
        rotated_NR: NDArray[np.float32],
        cell_NP: NDArray[np.int64],
        score_NP: NDArray[np.float32],
        num: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The rows that score best for each query within the probed cells: estimated cosines, (N, K), -inf for none, and rows.

        Args:
            codec: What the shard was coded with.
            rotated_NR: The queries (Codec.rotate).
            cell_NP: Their cells; those of other shards, and negative ones, are passed over.
            score_NP: Their products with the middles of the cells (Codec.probe).
            num: Neighbours asked for.
        """
        own_NP = self.own(cell_NP)
        index = self._gpu if self._gpu is not None and num <= GPU_NEIGHBOURS else self._index
        index.nprobe = cell_NP.shape[1]
        plain_NK, row_NK = index.search_preassigned(rotated_NR, num, own_NP, np.ascontiguousarray(score_NP))
        plain_NK[row_NK < 0] = -np.inf
        plain_NK += (rotated_NR @ codec.mean_R)[:, None]
        plain_NK /= self._kept_N[np.maximum(row_NK, 0)]
        return plain_NK, row_NK

    def own(self, cell_NP: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of cells within this shard, -1 for the cells of others."""
        return np.where((cell_NP >= self.first) & (cell_NP < self.last), cell_NP - self.first, -1)
