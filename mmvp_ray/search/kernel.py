"""join_block: all pairs of two blocks of vectors above a cosine, by matrix products tile by tile; float64 decides on the candidates.

The product only proposes. Its error is bounded by the dtype's rounding and by how far the stored vectors are from unit length, both known, so
that no pair above the threshold can be missed; whether a proposed pair counts is decided by `decide.exact_cosines`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ResourceError
from mmvp_ray.search.decide import exact_cosines, squared_lengths

# Shapes: N, M vectors in the blocks, D numbers in each, P pairs; S, T rows and columns of a tile.

ROUNDING_SLACK = 1e-3
"""Bound on the error of a product of unit vectors: fp16 results near 1 are 4.9e-4 apart, fp32 sums err by less."""

TILE_ROWS = {"cpu": 1024, "cuda": 16_384}
TILE_COLUMNS = {"cpu": 4096, "cuda": 16_384}
MAX_PAIRS = 20_000_000

Product = Callable[[int, int, int, int, float], tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class JoinedPairs:
    """Pairs of rows and their cosines, ordered by row of a, then row of b."""

    rows_a_P: NDArray[np.int64]
    rows_b_P: NDArray[np.int64]
    cos_P: NDArray[np.float64]


def join_block(
    a_ND: NDArray[np.float16],
    b_MD: NDArray[np.float16] | None,
    tau: float,
    *,
    device: str = "cpu",
    max_pairs: int = MAX_PAIRS,
) -> JoinedPairs:
    """Find every pair of vectors with a cosine strictly above `tau`.

    Args:
        a_ND: Vectors of the first block, float16, about unit length (rows of zeros or NaN join with nothing).
        b_MD: Vectors of the second block, or None to join a_ND with itself: then only pairs with row a < row b.
        tau: The threshold, in [-1, 1].
        device: "cpu" (numpy) or "cuda" (torch).
        max_pairs: Limit on the result, which is held in memory.

    Returns:
        The pairs with their exact cosines; never an N x M matrix.

    Raises:
        ResourceError: more than `max_pairs` pairs.
    """
    within = b_MD is None
    b_MD = a_ND if b_MD is None else b_MD
    if not len(a_ND) or not len(b_MD):
        empty = np.empty(0, dtype=np.int64)
        return JoinedPairs(empty, empty, np.empty(0))
    slack_a = _length_slack(a_ND)
    slack_b = slack_a if within else _length_slack(b_MD)
    slack = ROUNDING_SLACK + slack_a + slack_b + slack_a * slack_b
    propose = _PRODUCTS[device](a_ND, b_MD)
    none = np.empty(0, dtype=np.int64)
    found = [(none, none)]
    num_found = 0
    for tile in _tiles(len(a_ND), len(b_MD), TILE_ROWS[device], TILE_COLUMNS[device], within=within):
        rows_a_P, rows_b_P = propose(*tile, tau - slack)
        if within:
            below = rows_a_P < rows_b_P
            rows_a_P, rows_b_P = rows_a_P[below], rows_b_P[below]
        num_found += len(rows_a_P)
        if num_found > max_pairs:
            raise ResourceError(
                f"expected at most {max_pairs:,} pairs above cosine {tau:g} between two blocks of {len(a_ND):,} and {len(b_MD):,} vectors, found more; "
                f"raise --near-above (and --floor), or remove copies from the corpus"
            )
        found.append((rows_a_P, rows_b_P))
    rows_a_P = np.concatenate([rows for rows, _ in found])
    rows_b_P = np.concatenate([rows for _, rows in found])
    cos_P = exact_cosines(a_ND, b_MD, rows_a_P, rows_b_P)
    kept = np.flatnonzero(cos_P > tau)
    kept = kept[np.lexsort((rows_b_P[kept], rows_a_P[kept]))]
    return JoinedPairs(rows_a_P[kept], rows_b_P[kept], cos_P[kept])


def _length_slack(vectors_ND: NDArray[np.float16]) -> float:
    # Rounding to fp16 moves a unit vector's length a little; the cosine divides by it, the product does not.
    lengths_N = np.sqrt(squared_lengths(vectors_ND))
    usable_N = lengths_N[np.isfinite(lengths_N) & (lengths_N > 0)]
    return float(np.max(np.abs(usable_N - 1.0), initial=0.0))


def _tiles(
    num_a: int, num_b: int, num_rows: int, num_columns: int, *, within: bool
) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, num_a, num_rows):
        bottom = min(num_a, top + num_rows)
        for left in range(0, num_b, num_columns):
            right = min(num_b, left + num_columns)
            if not within or right > top + 1:
                yield top, bottom, left, right


def _numpy_product(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16]) -> Product:
    a32_ND = np.nan_to_num(a_ND.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    b32_MD = a32_ND if b_MD is a_ND else np.nan_to_num(b_MD.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)

    def propose(
        top: int, bottom: int, left: int, right: int, above: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        product_ST = a32_ND[top:bottom] @ b32_MD[left:right].T
        # Most rows of a tile have no pair: a look at each row's largest number is cheaper than comparing every number.
        rows_S = np.flatnonzero(product_ST.max(axis=1) > above)
        hits, columns = np.nonzero(product_ST[rows_S] > above)
        return rows_S[hits] + top, columns + left

    return propose


def _torch_product(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16]) -> Product:
    import torch

    a16_ND = torch.from_numpy(np.nan_to_num(a_ND, nan=0.0, posinf=0.0, neginf=0.0)).cuda()
    b16_MD = a16_ND if b_MD is a_ND else torch.from_numpy(np.nan_to_num(b_MD, nan=0.0, posinf=0.0, neginf=0.0)).cuda()

    def propose(
        top: int, bottom: int, left: int, right: int, above: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        with torch.inference_mode():
            product_ST = a16_ND[top:bottom] @ b16_MD[left:right].T
            rows_S = torch.nonzero(product_ST.amax(dim=1) > above).flatten()
            hits_P2 = torch.nonzero(product_ST[rows_S] > above)
            rows_P, columns_P = rows_S[hits_P2[:, 0]] + top, hits_P2[:, 1] + left
            return rows_P.cpu().numpy(), columns_P.cpu().numpy()

    return propose


_PRODUCTS: dict[str, Callable[[NDArray[np.float16], NDArray[np.float16]], Product]] = {
    "cpu": _numpy_product,
    "cuda": _torch_product,
}
