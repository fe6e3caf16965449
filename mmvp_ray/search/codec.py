"""A codec: cells and a product quantizer that make 50 bytes of a vector, and what they tell of its cosines.

A vector is coded as the residual to its cell, with FAISS's product quantizer: 4 bits a subspace for FAISS's fast scan on a CPU, 8 bits on a
GPU. Beside each code lies how much of its vector it kept, <b, b'>: for a query q near b, <q, b'> / <b, b'> is an unbiased estimate of the
cosine (the estimator of RaBitQ, arXiv 2405.12497), which is off by 0.01 where the plain score is off by 0.1. It only proposes; the cosine of
the stored vectors decides.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError, DataError

# Shapes: N vectors, D numbers in a stored one, R in a rotated one, L cells (FAISS's lists), P cells probed for a vector, V visits, S bytes of a
# code, M subspaces, W words of each.

KEPT_BYTES = 2
"""What a code kept, fp16: it counts among the bytes of a compressed vector."""

MAX_CELLS = 65_536

CHUNK_ROWS = 4096

SCORES_TOGETHER = 1 << 23
"""Products of vectors with all cells that are held at a time."""

MAX_KEPT_DISTANCES = 4096
"""Up to so many cells (16 million images) their distances to each other are kept: 67 MB."""

FAST_SUBSPACE_DIMS = (1, 2, 4, 8, 12)
"""FAISS has vectorised loops for these: 96 subspaces of 8 are scored twice as fast as 110 of 7."""

GPU_SUBSPACES = (56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)

GPU_SUBSPACE_DIMS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32)


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
            return pad(vectors32_ND, self.shape.rotated_dim), usable_N
        return vectors32_ND @ self.rotation_RD.T, usable_N

    def home_cells(self, rotated_NR: NDArray[np.float32]) -> NDArray[np.int64]:
        """The nearest cell of each vector, (N,): the first that `probe` gives, in a fifth of the time that FAISS takes for one."""
        homes = [score_NL.argmax(axis=1) for score_NL in self._cell_scores(rotated_NR)]
        return np.concatenate([np.empty(0, dtype=np.int64), *homes])

    def _cell_scores(self, rotated_NR: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """The products with all cells, (N, L), of some vectors at a time."""
        step = max(1, SCORES_TOGETHER // len(self.cells_LR))
        for first in range(0, len(rotated_NR), step):
            yield np.matmul(rotated_NR[first : first + step] - self.mean_R, self.cells_LR.T)

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
        for score_NL in self._cell_scores(rotated_NR):
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


def _distances(one_KR: NDArray[np.float32], other_LR: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.sqrt(np.maximum(2.0 - 2.0 * (one_KR @ other_LR.T), 0.0))
    return found


def pad(rows_ND: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Rows with zeros at their ends, `width` numbers each."""
    padded = np.zeros((len(rows_ND), width), dtype=np.float32)
    padded[:, : rows_ND.shape[1]] = rows_ND
    return padded


def _quantizer(shape: CodeShape, words: NDArray[np.float32]) -> Any:
    import faiss

    quantizer = faiss.ProductQuantizer(shape.rotated_dim, shape.num_subspaces, shape.bits)
    faiss.copy_array_to_vector(words, quantizer.centroids)
    return quantizer
