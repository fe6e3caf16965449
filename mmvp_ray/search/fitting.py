"""Fitting cells to a corpus, keeping them in the store, and noticing when a grown corpus has left them behind."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search.cells import Cells
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.gather import gather_chunks, gather_vectors
from mmvp_ray.search.kmeans import POINTS_PER_CELL, TWO_LEVEL_CELLS, fit_cells
from mmvp_ray.search.space import Space
from mmvp_ray.store import Store, id_keys

# Shapes: S sampled images, D numbers in a vector, K cells.

IMAGES_PER_CELL = 96
MAX_CELLS = 65_536
MAX_SAMPLE = 1_000_000
SHAPE_IMAGES = 32_768
"""Images that tell how large cells are and how far from their centroids images lie."""
DRIFTED_CELL = 4.0
"""A cell that grew to so many times its share at fitting (and an average cell) is a reason to fit anew."""
DRIFTED_COSINE = 0.05


@dataclass(frozen=True, slots=True)
class Fitted:
    """Cells, what is known of them, and the vectors of random images: at most SHAPE_IMAGES, (S, D) float16."""

    cells: Cells
    facts: dict[str, Any]
    sample_SD: NDArray[np.float16]


def settle_cells(
    store: Store,
    census: Census,
    space: Space,
    config: SearchConfig,
    parent: dict[str, Any],
    *,
    device: str,
    session: Session,
) -> Fitted:
    """The cells of the parent, or those fitted to this census, which are kept in the store; and what is known of them.

    Args:
        store: Holds the vectors and takes the cells.
        census: The distinct images.
        space: Where near is measured.
        config: Number of cells, and whether to fit anew.
        parent: Facts of the join that this one builds on; empty for none.
        device: "cuda" or "cpu".
        session: Where tasks run.
    """
    if "cells" in parent and not config.refit_cells:
        cells = _read_cells(store, space, parent["cells"])
        sample_SD = sample_vectors(store, census, space, SHAPE_IMAGES, session=session)
        facts = {name: parent[name] for name in ("cells", "num_cells", "fit_largest_cell", "fit_home_cosine")}
        return Fitted(cells, {**facts, "drift": _drift(census, cells, parent, sample_SD)}, sample_SD)
    num_cells = config.num_cells or max(1, min(MAX_CELLS, census.num_images // IMAGES_PER_CELL))
    key = fingerprint({"pieces": census.content_key, "num_images": census.num_images, "num_cells": num_cells})
    uri = _cells_uri(store, space, key)
    sample_SD = sample_vectors(store, census, space, SHAPE_IMAGES, session=session)
    if not storage.exists(uri):
        chunks = []
        if num_cells >= TWO_LEVEL_CELLS:
            chunks = _sample_chunks(store, census, space, num_cells * POINTS_PER_CELL, session=session)
        fitted = fit_cells(sample_SD, chunks, num_cells, session=session, gpu=device == "cuda")
        sink = io.BytesIO()
        np.save(sink, fitted.centroids_KD, allow_pickle=False)
        storage.write_bytes(uri, sink.getvalue())
    cells = _read_cells(store, space, key)
    largest, cosine = _shape_of(cells, sample_SD)
    facts = {
        "cells": key,
        "num_cells": len(cells),
        "fit_largest_cell": largest,
        "fit_home_cosine": cosine,
        "drift": "",
    }
    return Fitted(cells, facts, sample_SD)


def has_cells(store: Store, space: Space, parent: dict[str, Any]) -> bool:
    """Whether the cells of an earlier join are still in the store; a takedown removes them, and its delta holds in them alone."""
    return "cells" in parent and storage.exists(_cells_uri(store, space, parent["cells"]))


def _cells_uri(store: Store, space: Space, key: str) -> str:
    return storage.join(store.cells(space.name), f"{key}.npy")


def _read_cells(store: Store, space: Space, key: str) -> Cells:
    return Cells(np.load(io.BytesIO(storage.read_bytes(_cells_uri(store, space, key))), allow_pickle=False))


def sample_vectors(store: Store, census: Census, space: Space, count: int, *, session: Session) -> NDArray[np.float16]:
    """The vectors of at most `count` random images, (S, D) float16."""
    drawn = census.draw.slice(0, count)
    pieces = [census.pieces[piece] for piece in np.unique(drawn.piece_S)]
    return gather_vectors(store, space, pieces, drawn.ids_S16, session=session)


def _sample_chunks(store: Store, census: Census, space: Space, count: int, *, session: Session) -> list[Any]:
    drawn = census.draw.slice(0, min(count, MAX_SAMPLE))
    pieces = [census.pieces[piece] for piece in np.unique(drawn.piece_S)]
    return gather_chunks(store, space, pieces, np.sort(id_keys(drawn.ids_S16)), session=session)


def _shape_of(cells: Cells, sample_SD: NDArray[np.float16]) -> tuple[float, float]:
    """Share of the largest cell, and mean cosine of vectors with the centroid of their home."""
    if not len(sample_SD):
        return 1.0, 1.0
    home_S, cosine_S = cells.homes(sample_SD)
    finite_S = np.isfinite(cosine_S)
    largest = float(np.bincount(home_S[finite_S], minlength=1).max()) / len(home_S)
    return round(largest, 6), round(float(cosine_S[finite_S].mean()), 6) if finite_S.any() else 1.0


def _drift(census: Census, cells: Cells, parent: dict[str, Any], sample_SD: NDArray[np.float16]) -> str:
    largest, cosine = _shape_of(cells, sample_SD)
    limit = DRIFTED_CELL * max(parent["fit_largest_cell"], 1.0 / len(cells))
    if largest > limit:
        return f"the largest cell holds {largest:.2%} of the images, {parent['fit_largest_cell']:.2%} when the cells were fitted; --refit-cells joins faster"
    if cosine < parent["fit_home_cosine"] - DRIFTED_COSINE:
        return f"images lie at cosine {cosine:.3f} from their cells, {parent['fit_home_cosine']:.3f} when these were fitted; --refit-cells joins faster"
    grown = census.num_images / max(1, len(cells)) / IMAGES_PER_CELL
    if grown > DRIFTED_CELL and len(cells) < MAX_CELLS:
        return f"there are {grown:.1f} times the images that the {len(cells):,} cells are meant for; --refit-cells joins faster"
    return ""
