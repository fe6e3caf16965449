"""A codec is trained on a sample: cells by spherical k-means, a rotation where it helps, and the words of the product quantizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search.codec import CHUNK_ROWS, Codec, CodeShape, pad
from mmvp_ray.search.decide import squared_lengths
from mmvp_ray.search.kernel import join_block

# Shapes: T sampled vectors, D numbers in each, R in a rotated one, L cells.

POINTS_PER_CELL = 32
"""Sampled vectors for each cell: 64 gave no better recall at the same work."""

MAX_SAMPLE = 524_288
"""Sampled vectors at most: 2.4 GB of L/14 vectors, fp16 and fp32. Beyond 16 million images they are fewer for each cell."""

TRAINED_ON = 16_384
"""Sampled vectors that the product quantizer is trained on: 512 for each of its 4-bit words, 64 for an 8-bit one."""

CELL_ROUNDS, WORD_ROUNDS = 8, 10

SAME_CELL = 0.9995
"""Cosine above which two cells are one."""

ROTATION_GAIN = 0.98
"""The rotation is used where it leaves less than this share of the error: turning a vector costs as much as finding its cell."""


def num_sampled(shape: CodeShape) -> int:
    """Images that a codec is trained on."""
    return min(MAX_SAMPLE, shape.num_cells * POINTS_PER_CELL)


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
        seen_TD = sample_TD.astype(np.float32)
        mean_D = seen_TD.mean(axis=0, dtype=np.float64).astype(np.float32)
        # From the mean, vectors point everywhere: from the origin they lie in a cone, whose axis would draw a third of them into a few cells.
        seen_TD -= mean_D
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
        some = slice(0, TRAINED_ON)
        residual_TD = seen_TD[some] * lengths_T[some, None] - cells_LD[cell_T[some]] * reach_L[cell_T[some], None]
        padded_TR = pad(residual_TD, shape.rotated_dim)
        words, error = _train_words(shape, padded_TR)
        rotation_RD = _rotation(shape, residual_TD)
        turned_words, turned_error = _train_words(shape, np.ascontiguousarray(residual_TD @ rotation_RD.T))
        use = turned_error < ROTATION_GAIN * error
    finally:
        faiss.omp_set_num_threads(num_threads)

    def turn(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(rows @ rotation_RD.T) if use else pad(rows, shape.rotated_dim)

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
