"""IVF-PQ index shards: a codec trained on a sample, compressed vectors by cell, FAISS indexes that hold a range of cells, kept in the store.

A vector is coded as the residual to its cell, with FAISS's product quantizer: 4 bits a subspace for FAISS's fast scan on a CPU, 8 bits on a
GPU. Beside each code lies how much of its vector it kept, <b, b'>: for a query q near b, <q, b'> / <b, b'> is an unbiased estimate of the
cosine (the estimator of RaBitQ, arXiv 2405.12497), which is off by 0.01 where the plain score is off by 0.1. It only proposes; the cosine of
the stored vectors decides.

indexes/<space>/<codec>/codec.npz                what was trained
indexes/<space>/<codec>/codes/<block>.bin        the codes of a block of images, sorted by cell
indexes/<space>/<codec>/<images>/<shard>.faiss   a FAISS index of a range of cells; its ids are row numbers of the table beside it
indexes/<space>/<codec>/<images>/<shard>.rows    for each row the image id, its piece and what its code kept
indexes/<space>/<codec>/<images>/index.json      written last: present means whole
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session, own_error
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.schema import PIECES
from mmvp_ray.search.blocks import Block, cut_blocks, kept_rows
from mmvp_ray.search.census import Census
from mmvp_ray.search.decide import squared_lengths
from mmvp_ray.search.gather import Chunk, gather_chunks, lay_out
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.space import Space, read_vectors
from mmvp_ray.store import DONE, Store, done_names, id_keys, read_marker, write_marker, write_table

# Shapes: N vectors, D numbers in a stored one, R in a rotated one, L cells (FAISS's lists), H some of them, P cells probed for a vector, V visits, K neighbours asked
# for, S bytes of a code, T sampled vectors, M subspaces, W words of each.

KEPT_BYTES = 2
"""What a code kept, fp16: it counts among the bytes of a compressed vector."""
MAX_CELLS = 65_536
POINTS_PER_CELL = 32
"""Sampled vectors for each cell: 64 gave no better recall at the same work (docs/performance.md)."""
TRAINED_ON = 16_384
"""Sampled vectors that the product quantizer is trained on: 512 for each of its 4-bit words, 64 for an 8-bit one."""
CELL_ROUNDS, WORD_ROUNDS = 8, 10
SAME_CELL = 0.9995
"""Cosine above which two cells are one."""
ROTATION_GAIN = 0.98
"""The rotation is used where it leaves less than this share of the error: turning a vector costs as much as finding its cell."""
CHUNK_ROWS = 4096
SCORES_TOGETHER = 1 << 23
"""Products of vectors with all cells that are held at a time."""
MAX_KEPT_DISTANCES = 4096
"""Up to so many cells (16 million images) their distances to each other are kept: 67 MB."""
SHARD_ROWS = 8_000_000
"""Rows of a shard: 0.8 GB with ids at 64 bytes a vector."""
FAST_SUBSPACE_DIMS = (1, 2, 4, 8, 12)
"""FAISS has vectorised loops for these: 96 subspaces of 8 are scored twice as fast as 110 of 7."""
GPU_SUBSPACES = (56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)
GPU_SUBSPACE_DIMS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32)
GPU_NEIGHBOURS = 2048
"""FAISS on a GPU gives at most so many (as cells probed, too)."""

REFIT_GROWTH = 4
"""A corpus that grew to so many times the one that the codec was trained for has too few cells: a new codec is trained."""
DRIFTED_KEPT = 0.05
"""Codes that keep so much less of a vector than they kept of the sample are a reason to train anew."""
INDEXES = "indexes"
CODEC_FILE, INDEX_JSON = "codec.npz", "index.json"
CODEC_VERSION = 1
"""Raised when codes of the same sizes come to mean something else."""

ROW = np.dtype([("id", "S16"), ("piece", "<i4"), ("kept", "<f2")])


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeShape:
    """How vectors are compressed: dim numbers, turned into num_subspaces * subspace_dim, `bits` for each subspace."""

    dim: int
    num_cells: int
    num_subspaces: int
    subspace_dim: int
    bits: int

    @property
    def rotated_dim(self) -> int:
        """Numbers of a rotated vector."""
        return self.num_subspaces * self.subspace_dim

    @property
    def code_bytes(self) -> int:
        """Bytes of a code."""
        return self.num_subspaces * self.bits // 8

    @property
    def vector_bytes(self) -> int:
        """Bytes of a compressed vector: its code and what that kept."""
        return self.code_bytes + KEPT_BYTES


def shape_for(dim: int, num_images: int, *, bytes_per_vector: int, device: str) -> CodeShape:
    """As many subspaces as the bytes allow; about sqrt(N) cells, where finding cells and scanning them take equal time.

    Args:
        dim: Numbers of a vector.
        num_images: Images of the index.
        bytes_per_vector: Limit on a compressed vector.
        device: "cpu": 4-bit words. "cuda": 8-bit words, in the numbers of subspaces that FAISS's kernels are compiled for.

    Raises:
        ConfigError: vectors too long for so few bytes on a GPU.
    """
    num_cells = min(MAX_CELLS, 1 << int(np.ceil(np.log2(max(4.0, num_images**0.5)))))
    budget = max(1, bytes_per_vector - KEPT_BYTES)
    if device == "cuda":
        sizes = [(m, size) for m in GPU_SUBSPACES if m <= budget for size in GPU_SUBSPACE_DIMS if m * size >= dim]
        if not sizes:
            raise ConfigError(
                f"expected vectors of at most {min(budget, GPU_SUBSPACES[0]) * GPU_SUBSPACE_DIMS[-1]:,} numbers for codes of {bytes_per_vector} bytes "
                f"on a GPU, found {dim:,}; give more --bytes-per-vector or take another --engine"
            )
        # The finest that turns a vector into at most an eighth more numbers, else the one that adds least.
        fitting = [one for one in sizes if one[0] * one[1] <= 1.125 * dim]
        num, size = fitting[0] if fitting else min(sizes, key=lambda one: one[0] * one[1])
        return CodeShape(dim=dim, num_cells=num_cells, num_subspaces=num, subspace_dim=size, bits=8)
    size = next((size for size in FAST_SUBSPACE_DIMS if 2 * budget * size >= dim), -(-dim // (2 * budget)))
    num = -(-dim // size)
    return CodeShape(dim=dim, num_cells=num_cells, num_subspaces=num + num % 2, subspace_dim=size, bits=4)


@dataclass(frozen=True)
class Codec:
    """What was trained: the corpus' mean, a rotation, cells, and the words of the product quantizer.

    Attributes:
        shape: Sizes.
        rotation_RD: Orthonormal columns; None where turning does not help (vectors are padded with zeros).
        mean_R: Rotated mean.
        cells_LR: Rotated unit directions, as seen from the mean: a vector lies in the cell that its difference to the mean points to most.
        reach_L: How far the middle of each cell lies from the mean.
        words: The product quantizer's centroids, (num_subspaces * 2**bits * subspace_dim,) float32.
        kept_without: Mean share of a sampled vector that its code kept without the rotation.
        kept: The same with what was chosen.
    """

    shape: CodeShape
    rotation_RD: NDArray[np.float32] | None
    mean_R: NDArray[np.float32]
    cells_LR: NDArray[np.float32]
    reach_L: NDArray[np.float32]
    words: NDArray[np.float32]
    kept_without: float
    kept: float

    @cached_property
    def middles(self) -> NDArray[np.float32]:
        """What the residuals of each cell are taken from, but for the mean: (L, R) float32."""
        return self.cells_LR * self.reach_L[:, None]

    @cached_property
    def _mean_scores(self) -> NDArray[np.float32]:
        return self.cells_LR @ self.mean_R

    @cached_property
    def _finder(self) -> Any:
        import faiss

        flat = faiss.IndexFlatIP(self.shape.rotated_dim)
        flat.add(self.cells_LR)
        return flat

    @cached_property
    def _quantizer(self) -> Any:
        return _quantizer(self.shape, self.words)

    def rotate(self, vectors_ND: NDArray[np.float16]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Stored vectors as the index sees them, (N, R) float32, and which of them can have a cosine: they are finite and not zero."""
        vectors32_ND = vectors_ND.astype(np.float32)
        squares_N = np.einsum("nd,nd->n", vectors32_ND, vectors32_ND)
        usable_N: NDArray[np.bool_] = np.isfinite(squares_N) & (squares_N > 0)
        if not usable_N.all():
            vectors32_ND[~usable_N] = 0.0
        if self.rotation_RD is None:
            return _pad(vectors32_ND, self.shape.rotated_dim), usable_N
        return vectors32_ND @ self.rotation_RD.T, usable_N

    def probe(self, rotated_NR: NDArray[np.float32], num_probes: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The cells nearest to each vector, (N, P), best first, and its product with the middle of each."""
        score_NP, cell_NP = self._finder.search(rotated_NR - self.mean_R, num_probes)
        return cell_NP, self._middle_scores(score_NP, cell_NP)

    def probe_within(
        self, rotated_NR: NDArray[np.float32], margin: float, most: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Like `probe`, for the nearest cell of each vector and those whose border with it is no further than `margin`; at most `most`.

        In no order; -1 fills up.
        """
        parts = []
        step = max(1, SCORES_TOGETHER // len(self.cells_LR))
        for first in range(0, len(rotated_NR), step):
            score_NL = (rotated_NR[first : first + step] - self.mean_R) @ self.cells_LR.T
            home_N = score_NL.argmax(axis=1)[:, None]
            best_N = np.take_along_axis(score_NL, home_N, 1)
            near_NL = score_NL >= best_N - margin * self._apart(home_N[:, 0])
            np.put_along_axis(near_NL, home_N, True, 1)
            for row in np.flatnonzero(near_NL.sum(axis=1) > most):
                near = np.flatnonzero(near_NL[row])
                near_NL[row, near[np.argsort(-score_NL[row, near], kind="stable")[most:]]] = False
            row_V, cell_V = np.nonzero(near_NL)
            nth_V = np.arange(len(row_V)) - np.searchsorted(row_V, row_V)
            cell_NP = np.full((len(score_NL), most), -1, dtype=np.int64)
            score_NP = np.zeros((len(score_NL), most), dtype=np.float32)
            cell_NP[row_V, nth_V], score_NP[row_V, nth_V] = cell_V, score_NL[row_V, cell_V]
            parts.append((cell_NP, self._middle_scores(score_NP, cell_NP)))
        cells, scores = (np.concatenate([part[side] for part in parts]) for side in range(2))
        return cells, scores

    def border_distances(
        self, rotated_NR: NDArray[np.float32], most: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `most` cells nearest to each vector, (N, P), best first, and how far it lies from the border of its nearest with each."""
        score_NP, cell_NP = self._finder.search(rotated_NR - self.mean_R, most)
        home_H, which_N = np.unique(cell_NP[:, 0], return_inverse=True)
        distance_NP = np.zeros_like(score_NP)
        for number, home in enumerate(home_H):
            rows = np.flatnonzero(which_N == number)
            apart_NP = np.maximum(self._apart(np.array([home]))[0][cell_NP[rows]], 1e-6)
            distance_NP[rows] = (score_NP[rows, :1] - score_NP[rows]) / apart_NP
        distance_NP[:, 0] = 0.0
        return cell_NP, distance_NP

    def _middle_scores(self, score_NP: NDArray[np.float32], cell_NP: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.reach_L[cell_NP] * (score_NP + self._mean_scores[cell_NP])
        return found

    def _apart(self, home_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """How far the directions of all cells are from those of some: (N, L).

        The difference of a vector's products with two directions, over the distance of the directions, is how far it lies from the border of
        their cells; two vectors on either side are at least as far apart as both are from it (ClusterJoin's bisectors, research/mining.md).
        """
        if len(self.cells_LR) <= MAX_KEPT_DISTANCES:
            return self._all_apart[home_N]
        some, which_N = np.unique(home_N, return_inverse=True)
        return _distances(self.cells_LR[some], self.cells_LR)[which_N]

    @cached_property
    def _all_apart(self) -> NDArray[np.float32]:
        return _distances(self.cells_LR, self.cells_LR)

    def encode(
        self, rotated_NR: NDArray[np.float32], cell_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The codes, (N, S), and the product of each vector with what its code stands for, (N,)."""
        codes_NS = np.empty((len(rotated_NR), self.shape.code_bytes), dtype=np.uint8)
        kept_N = np.empty(len(rotated_NR), dtype=np.float32)
        for first in range(0, len(rotated_NR), CHUNK_ROWS):
            chunk = slice(first, first + CHUNK_ROWS)
            codes_NS[chunk], near_NR = self._approximate(rotated_NR[chunk], cell_N[chunk])
            kept_N[chunk] = np.einsum("nr,nr->n", rotated_NR[chunk], near_NR)
        return codes_NS, kept_N

    def approximate(
        self, rotated_NR: NDArray[np.float32], cell_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the code of each vector stands for, (N, R), and its product with the vector, (N,)."""
        _, near_NR = self._approximate(rotated_NR, cell_N)
        return near_NR, np.einsum("nr,nr->n", rotated_NR, near_NR)

    def _approximate(
        self, rotated_NR: NDArray[np.float32], cell_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        near_NR = self.mean_R + self.middles[cell_N]
        codes_NS = self._quantizer.compute_codes(rotated_NR - near_NR)
        near_NR += self._quantizer.decode(codes_NS)
        return codes_NS, near_NR

    def scan_noise(self, rotated_NR: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standard deviation of the scores that FAISS's fast scan makes of each query, (N,): it rounds its tables to 8 bits, all alike."""
        shape = self.shape
        if shape.bits != 4:
            return np.zeros(len(rotated_NR), dtype=np.float32)
        words_MWD = self.words.reshape(shape.num_subspaces, 16, shape.subspace_dim)
        tables_NMW = np.einsum(
            "nmd,mwd->nmw", rotated_NR.reshape(-1, shape.num_subspaces, shape.subspace_dim), words_MWD, optimize=True
        )
        steps_N = np.ptp(tables_NMW, axis=2).max(axis=1, initial=0.0) / 255
        noise_N: NDArray[np.float32] = steps_N * np.sqrt(shape.num_subspaces / 12)
        return noise_N

    def to_bytes(self) -> bytes:
        """The codec as the file codec.npz."""
        sink = io.BytesIO()
        turned = {} if self.rotation_RD is None else {"rotation": self.rotation_RD}
        sizes = [
            self.shape.dim,
            self.shape.num_cells,
            self.shape.num_subspaces,
            self.shape.subspace_dim,
            self.shape.bits,
        ]
        np.savez(
            sink,
            allow_pickle=False,
            shape=np.array(sizes),
            mean=self.mean_R,
            cells=self.cells_LR,
            reach=self.reach_L,
            words=self.words,
            kept=np.array([self.kept_without, self.kept]),
            **turned,
        )
        return sink.getvalue()

    @staticmethod
    def from_bytes(data: bytes, *, where: str) -> Codec:
        """The codec in a file codec.npz; DataError where it is none."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                dim, num_cells, num_subspaces, subspace_dim, bits = (int(size) for size in found["shape"])
                shape = CodeShape(
                    dim=dim, num_cells=num_cells, num_subspaces=num_subspaces, subspace_dim=subspace_dim, bits=bits
                )
                return Codec(
                    shape=shape,
                    rotation_RD=found.get("rotation"),
                    mean_R=found["mean"],
                    cells_LR=found["cells"],
                    reach_L=found["reach"],
                    words=found["words"],
                    kept_without=float(found["kept"][0]),
                    kept=float(found["kept"][1]),
                )
        except (ValueError, KeyError, OSError) as error:
            raise DataError(
                f"expected a codec, found something else in {where} ({error}); remove its folder"
            ) from error


def usable_rows(vectors_ND: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Rows that can have a cosine: finite and not zero."""
    squares_N = squared_lengths(vectors_ND)
    usable: NDArray[np.bool_] = np.isfinite(squares_N) & (squares_N > 0)
    return usable


def train_codec(shape: CodeShape, sample_TD: NDArray[np.float16]) -> Codec:
    """Fit cells, rotation and words to a sample of at least `num_cells` usable vectors; one thread, so that equal samples give equal codecs.

    Cells that fall together are one: the codec may have fewer than `shape` says.
    """
    import faiss

    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        sample32_TD = sample_TD.astype(np.float32)
        mean_D = sample32_TD.mean(axis=0, dtype=np.float64).astype(np.float32)
        # From the mean, vectors point everywhere: from the origin they lie in a cone, whose axis would draw a third of them into a few cells.
        seen_TD = sample32_TD - mean_D
        lengths_T = np.sqrt(np.einsum("td,td->t", seen_TD, seen_TD))
        seen_TD /= np.maximum(lengths_T, 1e-12)[:, None]
        fit = faiss.Clustering(shape.dim, shape.num_cells)
        fit.niter, fit.spherical, fit.seed, fit.min_points_per_centroid = CELL_ROUNDS, True, 1, 1
        fit.train(seen_TD, faiss.IndexFlatIP(shape.dim))
        cells_LD = faiss.vector_to_array(fit.centroids).reshape(shape.num_cells, shape.dim)
        # Many copies draw several cells into one place, where rounding would part them.
        same = join_block(cells_LD.astype(np.float16), None, SAME_CELL)
        cells_LD = np.delete(cells_LD, np.unique(same.rows_b_P), axis=0)
        shape = replace(shape, num_cells=len(cells_LD))
        flat = faiss.IndexFlatIP(shape.dim)
        flat.add(cells_LD)
        score_T1, cell_T1 = flat.search(seen_TD, 1)
        cell_T, along_T = cell_T1[:, 0], score_T1[:, 0] * lengths_T
        sums_L = np.bincount(cell_T, along_T, shape.num_cells)
        nums_L = np.bincount(cell_T, minlength=shape.num_cells)
        reach_L = np.where(nums_L > 0, sums_L / np.maximum(nums_L, 1), along_T.mean()).astype(np.float32)
        residual_TD = (sample32_TD - mean_D - cells_LD[cell_T] * reach_L[cell_T][:, None])[:TRAINED_ON]
        padded_TR = _pad(residual_TD, shape.rotated_dim)
        words, error = _train_words(shape, padded_TR)
        rotation_RD = _rotation(shape, residual_TD)
        turned_words, turned_error = _train_words(shape, np.ascontiguousarray(residual_TD @ rotation_RD.T))
        use = turned_error < ROTATION_GAIN * error
    finally:
        faiss.omp_set_num_threads(num_threads)

    def turn(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(rows @ rotation_RD.T) if use else _pad(rows, shape.rotated_dim)

    return Codec(
        shape=shape,
        rotation_RD=rotation_RD if use else None,
        mean_R=turn(mean_D[None])[0],
        cells_LR=turn(cells_LD),
        reach_L=reach_L,
        words=turned_words if use else words,
        kept_without=1.0 - error,
        kept=1.0 - (turned_error if use else error),
    )


def _distances(one_KR: NDArray[np.float32], other_LR: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.sqrt(np.maximum(2.0 - 2.0 * (one_KR @ other_LR.T), 0.0))
    return found


def _pad(rows_ND: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    padded = np.zeros((len(rows_ND), width), dtype=np.float32)
    padded[:, : rows_ND.shape[1]] = rows_ND
    return padded


def _rotation(shape: CodeShape, residual_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    # Parametric OPQ (Ge et al., CVPR 2013, section 3.2): principal directions, dealt out so that every subspace has the same product of
    # variances. The iterative OPQ would take longer than everything else here.
    values_D, directions_DD = np.linalg.eigh((residual_TD.T @ residual_TD).astype(np.float64))
    logs_D = np.log(np.maximum(values_D, values_D[-1] * 1e-9 + 1e-30))
    rotation_RD = np.zeros((shape.rotated_dim, shape.dim), dtype=np.float32)
    filled = np.zeros(shape.num_subspaces, dtype=np.int64)
    weight = np.zeros(shape.num_subspaces)
    for axis in range(shape.dim - 1, -1, -1):
        subspace = int(np.argmin(np.where(filled < shape.subspace_dim, weight, np.inf)))
        rotation_RD[subspace * shape.subspace_dim + filled[subspace]] = directions_DD[:, axis]
        filled[subspace] += 1
        weight[subspace] += logs_D[axis] - logs_D[0] + 1e-9
    return rotation_RD


def _quantizer(shape: CodeShape, words: NDArray[np.float32]) -> Any:
    import faiss

    quantizer = faiss.ProductQuantizer(shape.rotated_dim, shape.num_subspaces, shape.bits)
    faiss.copy_array_to_vector(words, quantizer.centroids)
    return quantizer


def _train_words(shape: CodeShape, residual_TR: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    import faiss

    quantizer = faiss.ProductQuantizer(shape.rotated_dim, shape.num_subspaces, shape.bits)
    quantizer.cp.niter, quantizer.cp.min_points_per_centroid, quantizer.cp.seed = WORD_ROUNDS, 1, 1
    quantizer.train(residual_TR)
    some_TR = residual_TR[:CHUNK_ROWS]
    # FAISS's types know only the C++ signatures.
    untyped: Any = quantizer
    lost_TR = some_TR - untyped.decode(untyped.compute_codes(some_TR))
    return faiss.vector_to_array(quantizer.centroids), float(np.einsum("tr,tr->", lost_TR, lost_TR)) / len(some_TR)


# --- codes of a block, shards of a range of cells ---


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

    def codes_uri(self, block: Block) -> str:
        """The codes of a block."""
        return storage.join(self.codec_folder, "codes", f"{block_key(block)}.bin")


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
    record = _record(codec.shape)
    records, cells, num_seen = [np.empty(0, dtype=record)], [np.empty(0, dtype=np.int64)], 0
    for piece, (ref, kept) in enumerate(zip(task.block.pieces, task.block.kept, strict=True)):
        ids_N16, vectors_ND = read_vectors(place.store, place.space, ref)
        rows = np.arange(len(ids_N16)) if kept is None else kept_rows(kept)
        num_seen += len(rows)
        rotated_NR, usable_N = codec.rotate(vectors_ND[rows])
        rows, rotated_NR = rows[usable_N], rotated_NR[usable_N]
        cell_N = codec.probe(rotated_NR, 1)[0][:, 0]
        part = np.empty(len(rows), dtype=record)
        part["id"], part["piece"] = id_keys(ids_N16)[rows], piece
        part["code"], part["kept"] = codec.encode(rotated_NR, cell_N)
        records.append(part)
        cells.append(cell_N)
    records_N, cell_N = np.concatenate(records), np.concatenate(cells)
    offsets = _offsets(cell_N, codec.shape.num_cells)
    data = offsets.tobytes() + records_N[np.argsort(cell_N, kind="stable")].tobytes()
    uri = place.codes_uri(task.block)
    storage.write_bytes(uri, data)
    write_marker(
        uri.removesuffix(".bin") + DONE,
        files=[],
        num_rows=len(records_N),
        num_unusable=num_seen - len(records_N),
        sum_kept=float(records_N["kept"].sum(dtype=np.float64)),
    )


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
    shape, record = codec.shape, _record(codec.shape)
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
    offsets = _offsets(cell_N, num_cells)
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


def _record(shape: CodeShape) -> np.dtype[np.void]:
    return np.dtype([*((name, ROW[name]) for name in ROW.names or ()), ("code", "u1", (shape.code_bytes,))])


def _offsets(cell_N: NDArray[np.int64], num_cells: int) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.bincount(cell_N, minlength=num_cells))]).astype("<i8")


# --- what a process holds ---


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


class IndexHolder:
    """What one process holds: a codec and a shard at a time. On Ray an actor, so that FAISS's CUDA and torch's never meet in a process.

    Args:
        device: "cuda": neighbours are looked for on the GPU that FAISS sees first.
        num_threads: Threads that FAISS may take; all unless given.

    Raises:
        ResourceError: FAISS sees no GPU.
    """

    def __init__(self, device: str = "cpu", *, num_threads: int | None = None) -> None:
        import faiss

        self._device = device
        self._codec: tuple[str, Codec] | None = None
        self._shard: tuple[str, Shard] | None = None
        if num_threads is not None:
            faiss.omp_set_num_threads(num_threads)
        if device == "cuda" and not faiss.get_num_gpus():
            raise ResourceError(
                f"expected a GPU for FAISS {faiss.__version__}, found none that it can use; install faiss-gpu and a driver for its CUDA, or use --device cpu"
            )

    def ready(self) -> None:
        """Answers as soon as the process is there."""

    def run(self, work: Callable[..., Any], item: Any, *shared: Any) -> Any:
        """`work(self, item, *shared)`."""
        return work(self, item, *shared)

    def codec(self, place: IndexPlace) -> Codec:
        """The codec of an index."""
        uri = storage.join(place.codec_folder, CODEC_FILE)
        if self._codec is None or self._codec[0] != uri:
            self._codec = (uri, Codec.from_bytes(storage.read_bytes(uri), where=uri))
        return self._codec[1]

    def shard(self, place: IndexPlace, name: str) -> Shard:
        """A shard of an index; DataError where its files are not what its marker says."""
        import faiss

        uri = storage.join(place.folder, name)
        if self._shard is None or self._shard[0] != uri:
            self._shard = None
            _, facts = read_marker(uri + DONE)
            data, rows = storage.read_bytes(uri + ".faiss"), storage.read_bytes(uri + ".rows")
            for what, found, expected in ((".faiss", data, "sha256"), (".rows", rows, "sha256_rows")):
                if hashlib.sha256(found).hexdigest() != facts.get(expected):
                    raise DataError(
                        f"expected the file that its marker names, found other content in {uri}{what}; remove {place.folder}"
                    )
            index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
            self._shard = (uri, Shard(index, np.frombuffer(rows, dtype=ROW), facts["first"], self._device))
        return self._shard[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a function `work(holder, item, *shared)`; calls that hold the same are given to the same process as far as it goes."""

    work: Callable[..., Any]
    item: Any
    shared: tuple[Any, ...] = ()
    holds: str = ""


class Holders:
    """The processes that hold shards: an actor for each CPU (or GPU) of the cluster; in an inline session one object here, on its CPU."""

    def __init__(self, session: Session, device: str) -> None:
        self._session, self._device = session, device
        self._here = IndexHolder() if isinstance(session, Inline) else None
        self._actors: list[Any] = []
        self._holds: list[str | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._actors:
            import ray

            for actor in self._actors:
                ray.kill(actor)
            self._actors.clear()

    def run(self, calls: Sequence[Call]) -> Iterator[Any]:
        """What the calls give, as they come to an end. A process that dies is started again, and its call repeated.

        Raises:
            MmvpError: What a call raised, as it raised it.
        """
        if self._here is not None:
            for call in calls:
                yield self._here.run(call.work, call.item, *call.shared)
        elif calls:
            yield from self._run_on_actors(calls)

    def _run_on_actors(self, calls: Sequence[Call]) -> Iterator[Any]:
        import ray

        queues: dict[str, deque[Call]] = defaultdict(deque)
        for call in calls:
            queues[call.holds].append(call)
        self._start()
        # The first answer of an actor says that it got its place: nothing is given to one that still waits for it.
        starting = {actor.ready.remote(): index for index, actor in enumerate(self._actors)}
        running: dict[Any, int] = {}
        num_left = len(calls)
        while num_left:
            (done,), _ = ray.wait([*running, *starting], num_returns=1)
            is_call = done in running
            index = running.pop(done) if is_call else starting.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayError as error:
                raise own_error(error) from error
            if queues:
                call = self._next(queues, index)
                running[self._actors[index].run.remote(call.work, call.item, *call.shared)] = index
            if is_call:
                num_left -= 1
                yield found

    def _start(self) -> None:
        if self._actors:
            return
        have = self._session.resources()
        import ray

        gpus = 1.0 if self._device == "cuda" else 0.0
        num = max(1, int(have.num_gpus if gpus else have.num_cpus))
        # One for each CPU: threads of their own would only wait for each other. A GPU is fed by the CPUs that fall to it.
        cpus = max(1, int(have.num_cpus / num))
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3, max_task_retries=3)(IndexHolder)
        self._actors = [actor.remote(self._device, num_threads=cpus) for _ in range(num)]
        self._holds = [None] * len(self._actors)

    def _next(self, queues: dict[str, deque[Call]], index: int) -> Call:
        # What the process holds already, else what nobody holds, else what most of the work is left for.
        holds = self._holds[index]
        if holds not in queues:
            free = (key for key in queues if key not in self._holds)
            holds = next(free, max(queues, key=lambda key: len(queues[key])))
        call = queues[holds].popleft()
        if not queues[holds]:
            del queues[holds]
        self._holds[index] = holds
        return call


# --- an index for a census ---


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPlan:
    """An index to be made, or kept already.

    Attributes:
        place: Where.
        shape: How vectors are compressed.
        blocks: All images of the census.
        grown_from: Images that the codec was trained for.
        pieces_key: Census.content_key.
    """

    place: IndexPlace
    shape: CodeShape
    blocks: tuple[Block, ...]
    grown_from: int
    pieces_key: str


def plan_index(
    store: Store,
    space: Space,
    census: Census,
    *,
    bytes_per_vector: int,
    device: str,
    parent: dict[str, Any] | None = None,
) -> IndexPlan:
    """Where the index of a census lies and how it is made; the codec of the join that this one builds on is kept while it fits.

    Args:
        store: Holds the vectors and takes the index.
        space: Which vectors.
        census: The images.
        bytes_per_vector: Limit on a compressed vector.
        device: "cuda" or "cpu".
        parent: Facts of the earlier join; empty for none.
    """
    # Old and new apart, so that blocks compressed for the earlier join are found again.
    rows = block_rows(census)
    blocks = (*cut_blocks(census, rows, "old"), *cut_blocks(census, rows, "new"))
    content = fingerprint([block_key(block) for block in blocks])
    shape = shape_for(space.dim, census.num_images, bytes_per_vector=bytes_per_vector, device=device)
    kept = (parent or {}).get("codec", {})
    key, grown_from = (
        fingerprint({"images": content, "shape": asdict(shape), "version": CODEC_VERSION}),
        census.num_images,
    )
    if kept and census.num_images <= REFIT_GROWTH * kept["num_images"] and kept["shape"]["bits"] == shape.bits:
        place = IndexPlace(store=store, space=space, codec_key=kept["key"], content_key=content)
        if storage.exists(storage.join(place.codec_folder, CODEC_FILE)):
            key, shape, grown_from = kept["key"], CodeShape(**kept["shape"]), kept["num_images"]
    return IndexPlan(
        place=IndexPlace(store=store, space=space, codec_key=key, content_key=content),
        shape=shape,
        blocks=blocks,
        grown_from=grown_from,
        pieces_key=census.content_key,
    )


def block_rows(census: Census) -> int:
    """Images of a block: small enough to spread over workers, and at most some 400 blocks to collect a shard from up to 1e8 images."""
    return min(262_144, max(16_384, 1 << int(np.log2(max(1, census.num_images // 256)))))


def train_index(
    holder: IndexHolder, plan_item: tuple[IndexPlace, CodeShape, NDArray[np.bytes_]], *chunks: Chunk
) -> bool:
    """Train the codec on the sampled images and keep it; False if too few of them have usable vectors."""
    place, shape, keys_T = plan_item
    sample_TD = lay_out(keys_T, chunks, shape.dim)
    sample_TD = sample_TD[usable_rows(sample_TD)]
    if len(sample_TD) < max(shape.num_cells, 1 << shape.bits):
        return False
    storage.write_bytes(storage.join(place.codec_folder, CODEC_FILE), train_codec(shape, sample_TD).to_bytes())
    return True


def train_on_draw(plan: IndexPlan, census: Census, holders: Holders, session: Session) -> bool:
    """Train the codec on images of the census' draw if it is not kept; False if too few of them have usable vectors."""
    if storage.exists(storage.join(plan.place.codec_folder, CODEC_FILE)):
        return True
    drawn = census.draw.slice(0, plan.shape.num_cells * POINTS_PER_CELL)
    keys_T = np.sort(id_keys(drawn.ids_S16))
    pieces = [census.pieces[piece] for piece in np.unique(drawn.piece_S)]
    chunks = gather_chunks(plan.place.store, plan.place.space, pieces, keys_T, session=session)
    call = Call(work=train_index, item=(plan.place, plan.shape, keys_T), shared=tuple(chunks))
    return all(holders.run([call]))


def build_index(plan: IndexPlan, holders: Holders) -> dict[str, Any]:
    """Compress what is not compressed yet, build the shards that are missing, and give what index.json says.

    Args:
        plan: Its codec is trained.
        holders: Where it is done.
    """
    place = plan.place
    index_uri = storage.join(place.folder, INDEX_JSON)
    if storage.exists(index_uri):
        found: dict[str, Any] = storage.read_json(index_uri)
        return found
    codec_uri = storage.join(place.codec_folder, CODEC_FILE)
    codec = Codec.from_bytes(storage.read_bytes(codec_uri), where=codec_uri)
    shape = codec.shape
    uris = [place.codes_uri(block) for block in plan.blocks]
    done = set(done_names(storage.join(place.codec_folder, "codes")))
    left = [block for block, uri in zip(plan.blocks, uris, strict=True) if _name_of(uri) not in done]
    for _ in holders.run([Call(work=write_codes, item=CodesTask(place=place, block=block)) for block in left]):
        pass
    counts_L = np.zeros(shape.num_cells, dtype=np.int64)
    for uri in uris:
        counts_L += np.diff(read_offsets(uri, shape.num_cells))
    firsts = np.cumsum([0, *(len(block.pieces) for block in plan.blocks)])[:-1].tolist()
    tasks = [
        ShardTask(
            place=place,
            name=f"{first:06d}-{last:06d}",
            first=first,
            last=last,
            codes=tuple(uris),
            first_pieces=tuple(firsts),
        )
        for first, last in cut_cells(counts_L, SHARD_ROWS)
    ]
    built = set(done_names(place.folder))
    for _ in holders.run([Call(work=build_shard, item=task) for task in tasks if task.name not in built]):
        pass
    markers = [read_marker(uri.removesuffix(".bin") + DONE)[1] for uri in uris]
    pieces = [piece for block in plan.blocks for piece in block.pieces]
    table = pa.table(
        {"corpus": [piece.corpus for piece in pieces], "piece": [piece.name for piece in pieces]}, schema=PIECES
    )
    entry = write_table(place.store, storage.join(place.folder, "pieces.parquet"), table)
    write_marker(storage.join(place.folder, "pieces" + DONE), files=[entry])
    num_rows = int(counts_L.sum())
    facts = {
        "pieces_key": plan.pieces_key,
        "num_rows": num_rows,
        "num_unusable": sum(facts["num_unusable"] for facts in markers),
        "mean_kept": round(sum(facts["sum_kept"] for facts in markers) / max(1, num_rows), 6),
        "sample_kept_without": round(codec.kept_without, 6),
        "sample_kept": round(codec.kept, 6),
        "rotated": codec.rotation_RD is not None,
        "shape": asdict(shape),
        "shards": [[task.name, task.first, task.last] for task in tasks],
    }
    storage.write_json(index_uri, facts)
    return facts


def index_facts(plan: IndexPlan, index: dict[str, Any]) -> dict[str, Any]:
    """What a table's facts say of the index behind it.

    Args:
        plan: How it was made.
        index: What build_index gave.
    """
    shape = CodeShape(**index["shape"])
    return {
        "index": plan.place.store.relative(plan.place.folder),
        "codec": {"key": plan.place.codec_key, "shape": asdict(shape), "num_images": plan.grown_from},
        "num_lists": shape.num_cells,
        "num_shards": len(index["shards"]),
        "num_indexed": index["num_rows"],
        "num_unusable": index["num_unusable"],
        "bytes_per_vector": shape.vector_bytes,
        "opq": index["rotated"],
        "kept_by_codes": {
            "sample_without_opq": index["sample_kept_without"],
            "sample": index["sample_kept"],
            "images": index["mean_kept"],
        },
        "drift": _drift(index),
    }


def _drift(index: dict[str, Any]) -> str:
    if index["mean_kept"] >= index["sample_kept"] - DRIFTED_KEPT:
        return ""
    return (
        f"codes keep {index['mean_kept']:.3f} of a vector, {index['sample_kept']:.3f} when the codec was trained: "
        f"--refit-cells trains it anew"
    )


def _name_of(uri: str) -> str:
    return uri.rsplit("/", 1)[-1].removesuffix(".bin")
