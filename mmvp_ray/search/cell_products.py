"""Products of vectors with all centroids, and which cells they leave to be looked at: with NumPy on a CPU, with PyTorch on a GPU.

There are thousands of cells for each vector and few that it visits. What is chosen leaves the GPU; the products stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Shapes: S vectors, K cells, D numbers in a vector, V visits that may be.

PRODUCT_SLACK = 4e-6
"""Room for rounding in the difference of two products of unit vectors in float32."""
BYTE_DISTANCE = 2.0 / 254.0
"""What one step of `Bounds.at_most_apart_KK` stands for: unit vectors are at most 2 apart."""


class Bounds(NamedTuple):
    """Upper bounds of the distances between centroids.

    Attributes:
        widest_K: How far a centroid is from its farthest, float32.
        at_most_apart_KK: How far any two are from each other, in steps of BYTE_DISTANCE, uint8; None where there are too many to keep it.
    """

    widest_K: NDArray[np.float32]
    at_most_apart_KK: NDArray[np.uint8] | None


class Maybe(NamedTuple):
    """Homes, and every cell whose bisector with its home may be within a limit.

    Attributes:
        home_S: The cell with the largest product, int32; -1 for a vector that is not finite.
        row_V: Row of the vector, ascending.
        cell_V: The cell, never its home; ascending within a row.
        gap_V: By how much its product is below the home's, float32.
    """

    home_S: NDArray[np.int32]
    row_V: NDArray[np.int64]
    cell_V: NDArray[np.int64]
    gap_V: NDArray[np.float32]


Choose = Callable[[NDArray[np.float32]], Maybe]
"""Takes unit vectors, (S, D) float32."""


def choose_on_cpu(centroids_KD: NDArray[np.float32], bounds: Bounds, limit: float) -> Choose:
    """What may be within `limit` of a bisector by the bounds; nothing that is within is left out."""
    widest_K, at_most_apart_KK = bounds

    def choose(unit_SD: NDArray[np.float32]) -> Maybe:
        products_SK = unit_SD @ centroids_KD.T
        home_S = np.argmax(products_SK, axis=1)
        own_S = products_SK[np.arange(len(home_S)), home_S]
        usable_S = np.isfinite(own_S)
        # No bisector of a home is farther apart than its farthest cell: what this lets through is looked at exactly.
        bound_S = np.where(usable_S, own_S - limit * widest_K[home_S] - PRODUCT_SLACK, np.inf)
        row_V, cell_V = np.nonzero(products_SK >= bound_S[:, None])
        other = cell_V != home_S[row_V]
        row_V, cell_V = row_V[other], cell_V[other]
        gap_V = own_S[row_V] - products_SK[row_V, cell_V]
        if at_most_apart_KK is not None:
            apart_V = BYTE_DISTANCE * at_most_apart_KK[home_S[row_V], cell_V]
            near = gap_V <= limit * apart_V + PRODUCT_SLACK
            row_V, cell_V, gap_V = row_V[near], cell_V[near], gap_V[near]
        return Maybe(np.where(usable_S, home_S, -1).astype(np.int32), row_V, cell_V, gap_V)

    return choose


def choose_on_gpu(
    centroids_KD: NDArray[np.float32], bounds: Bounds, limit: float, *, torch_device: str = "cuda"
) -> Choose:
    """The same by PyTorch on a device, where the centroids and the bounds stay."""
    import torch

    def there(array: NDArray[Any]) -> Any:
        return torch.from_numpy(np.require(array, requirements="W")).to(torch_device)

    centroids_on_KD, widest_K = there(centroids_KD), there(bounds.widest_K)
    at_most_apart_KK = None if bounds.at_most_apart_KK is None else there(bounds.at_most_apart_KK)

    def choose(unit_SD: NDArray[np.float32]) -> Maybe:
        with _whole_float32():
            products_SK = there(unit_SD) @ centroids_on_KD.T
        own_S, home_S = products_SK.max(dim=1)
        usable_S = torch.isfinite(own_S)
        bound_S = torch.where(usable_S, own_S - limit * widest_K[home_S] - PRODUCT_SLACK, torch.inf)
        row_V, cell_V = torch.nonzero(products_SK >= bound_S[:, None], as_tuple=True)
        gap_V = own_S[row_V] - products_SK[row_V, cell_V]
        near = cell_V != home_S[row_V]
        if at_most_apart_KK is not None:
            near &= gap_V <= limit * BYTE_DISTANCE * at_most_apart_KK[home_S[row_V], cell_V] + PRODUCT_SLACK
        chosen = torch.where(usable_S, home_S, -1).int(), row_V[near], cell_V[near], gap_V[near]
        return Maybe(*(values.cpu().numpy() for values in chosen))

    return choose


@contextmanager
def _whole_float32() -> Iterator[None]:
    # PRODUCT_SLACK is float32's; images of NVIDIA's set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which begins with ten bits in place of 23.
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


CHOOSE: dict[str, Callable[[NDArray[np.float32], Bounds, float], Choose]] = {
    "cpu": choose_on_cpu,
    "cuda": choose_on_gpu,
}
