"""Neighbours of one image, or of any vector: the kept index proposes, the stored vectors decide; a small corpus is looked through whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ConfigError
from mmvp_ray.schema import IMAGE_ID_BYTES
from mmvp_ray.search.blocks import load_vectors
from mmvp_ray.search.census import content_key, take_census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.index_build import build_index, restore_shards, train_on_draw
from mmvp_ray.search.index_holders import Holders, IndexHolder
from mmvp_ray.search.index_plan import plan_index
from mmvp_ray.search.index_shards import INDEX_JSON, INDEXES, IndexPlace, has_shards
from mmvp_ray.search.ivfpq import MIN_IMAGES
from mmvp_ray.search.passes import Window, pass_over, read_ids
from mmvp_ray.search.space import Space, embeddings_uri, read_vectors
from mmvp_ray.search.table import PIECES_FILE
from mmvp_ray.store import PieceRef, Store, id_keys, key_bytes, key_matrix, read_table

# Shapes: N images of a piece, D numbers in a vector, C candidates.

NUM_PROBES = 64
"""Cells that are looked through for one image: an ad-hoc question costs next to nothing, so it looks further than a join."""
COMPARED_PER_NEIGHBOUR = 8
LEAST_COMPARED = 128
"""Compared by their stored vectors. Of the ten nearest of 50,000 synthetic images in clusters this found 0.991 (of those above a cosine of 0.85
0.994); where nothing but a common axis gathers images, all above 0.85, and a tenth of the others, which are near by chance."""

Neighbour = tuple[bytes, float]


@dataclass(frozen=True, slots=True)
class _Index:
    """Where an index lies, and its index.json."""

    place: IndexPlace
    facts: dict[str, Any]


def neighbours(
    store: Store,
    space: Space,
    pieces: Sequence[PieceRef],
    image: str | bytes | NDArray[np.floating],
    *,
    num: int = 10,
    num_probes: int = NUM_PROBES,
    session: Session | None = None,
) -> list[Neighbour]:
    """The images nearest to one image, or to a vector, with their exact cosines; best first, ties by id; never the image itself.

    The index that an ivfpq join of these pieces kept is used (without the copies, if that join collapsed them). If a later join grew from
    that one, its shards are built again from the codes that are still there; without an index one is built, and kept as well. It may overlook a neighbour: the cells of the `num_probes` nearest are looked through, and the nearest by their codes are
    compared. A corpus of fewer than MIN_IMAGES images is compared whole. An image without a usable vector has no neighbours.

    Args:
        store: Holds the vectors and the index.
        space: Where near is measured.
        pieces: The corpus.
        image: An image of the corpus as 16 bytes or 32 hex digits; or a vector as the encoder gives it, (D,), of any length but 0.
        num: Neighbours asked for, at least 1.
        num_probes: Cells that are looked through.
        session: Where an index is built, and an image looked for; here unless given.

    Raises:
        ConfigError: no such image in these pieces, no usable vector, or fewer than one neighbour asked for.
    """
    if num < 1 or num_probes < 1:
        raise ConfigError(f"expected at least 1 neighbour and 1 cell, found {num} and {num_probes}; ask for more")
    session = session or Inline()
    index = _index(store, space, pieces, session)
    key, vector_D = _query(store, space, pieces, image, session)
    if index is None:
        keys_C, cos_C = _compare_all(store, space, pieces, vector_D)
    else:
        keys_C, cos_C = _compare_proposed(index, vector_D, num=num, num_probes=num_probes)
    order = np.lexsort((keys_C, -cos_C))
    order = order[np.isfinite(cos_C[order])]
    if key is not None:
        order = order[keys_C[order] != key]
    order = order[:num]
    return list(zip(key_bytes(keys_C[order]), cos_C[order].tolist(), strict=True))


def _index(store: Store, space: Space, pieces: Sequence[PieceRef], session: Session) -> _Index | None:
    """The index of the most images of exactly these pieces, its shards restored, or built where none can be; None for a small corpus."""
    for found in _kept_indexes(store, space, pieces):
        if has_shards(found.place, found.facts):
            return found
        with Holders(session, "cpu") as holders:
            if restore_shards(found.place, found.facts, holders):
                return found
    census = take_census(store, space.slug, pieces, session=session)
    if census.num_images < MIN_IMAGES:
        return None
    plan = plan_index(store, space, census, bytes_per_vector=SearchConfig().bytes_per_vector, device="cpu")
    with Holders(session, "cpu") as holders:
        if not train_on_draw(plan, census, holders, session):
            return None
        return _Index(plan.place, build_index(plan, holders))


def _kept_indexes(store: Store, space: Space, pieces: Sequence[PieceRef]) -> list[_Index]:
    """What was kept of indexes of exactly these pieces, that of the most images first."""
    wanted, root = content_key(pieces), storage.join(store.root, INDEXES, space.name)
    found = []
    for codec_key in storage.list_folders(root):
        for images_key in storage.list_folders(storage.join(root, codec_key)):
            place = IndexPlace(store=store, space=space, codec_key=codec_key, content_key=images_key)
            uri = storage.join(place.folder, INDEX_JSON)
            facts = storage.read_json(uri) if storage.exists(uri) else {}
            if facts.get("pieces_key") == wanted:
                found.append(_Index(place, facts))
    return sorted(
        found, key=lambda one: (one.facts["num_rows"], one.place.codec_key, one.place.content_key), reverse=True
    )


def _query(
    store: Store, space: Space, pieces: Sequence[PieceRef], image: str | bytes | NDArray[np.floating], session: Session
) -> tuple[np.bytes_ | None, NDArray[np.float16]]:
    if not isinstance(image, str | bytes):
        vector_D = np.asarray(image, dtype=np.float64)
        length = float(np.sqrt(np.sum(vector_D**2)))
        if vector_D.shape != (space.dim,) or not np.isfinite(length) or not length:
            raise ConfigError(
                f"expected a vector of {space.dim} finite numbers that are not all 0, found shape {vector_D.shape}; pass one embedding of {space.slug}"
            )
        return None, space.see((vector_D / length).astype(np.float16)[None])[0]
    try:
        id_16 = np.frombuffer(bytes.fromhex(image) if isinstance(image, str) else image, dtype=np.uint8)
    except ValueError as error:
        raise ConfigError(f"expected an image id as 32 hex digits, found {image!r}; ids are in pairs()") from error
    if len(id_16) != IMAGE_ID_BYTES:
        raise ConfigError(f"expected an image id of {IMAGE_ID_BYTES} bytes, found {len(id_16)}; ids are in pairs()")
    key = id_keys(id_16[None])[0]
    held = [
        piece for found in pass_over(_holding, pieces, session=session, shared=[store, space, key]) for piece in found
    ]
    if not held:
        raise ConfigError(
            f"expected an image with a vector of {space.slug} in the given {len(pieces):,} pieces, found none with id {id_16.tobytes().hex()}; "
            f"ids are in pairs() and blind_pairs()"
        )
    return key, load_vectors(store, space, sorted(held)[:1], id_16[None])[0]


def _holding(window: Window[PieceRef], store: Store, space: Space, key: np.bytes_) -> list[PieceRef]:
    """The pieces that hold a vector of an image."""
    ids = window.read(lambda piece: read_ids(embeddings_uri(store, space.slug, piece)))
    return [piece for piece, ids_N16 in zip(window.items, ids, strict=True) if (id_keys(ids_N16) == key).any()]


def _compare_all(
    store: Store, space: Space, pieces: Sequence[PieceRef], vector_D: NDArray[np.float16]
) -> tuple[NDArray[np.bytes_], NDArray[np.float64]]:
    keys, cosines = [np.empty(0, dtype="S16")], [np.empty(0)]
    for piece in sorted(pieces):
        ids_N16, vectors_ND = read_vectors(store, space, piece)
        rows_N = np.arange(len(ids_N16))
        keys.append(id_keys(ids_N16))
        cosines.append(exact_cosines(vector_D[None], vectors_ND, np.zeros_like(rows_N), rows_N))
    # Of several rows with one id the first counts.
    keys_N, first = np.unique(np.concatenate(keys), return_index=True)
    return keys_N, np.concatenate(cosines)[first]


def _compare_proposed(
    index: _Index, vector_D: NDArray[np.float16], *, num: int, num_probes: int
) -> tuple[NDArray[np.bytes_], NDArray[np.float64]]:
    place, holder = index.place, IndexHolder()
    rows = read_table(storage.join(place.folder, PIECES_FILE)).to_pylist()
    indexed = [PieceRef(row["corpus"], row["piece"]) for row in rows]
    codec = holder.codec(place)
    compared = max(LEAST_COMPARED, COMPARED_PER_NEIGHBOUR * (num + 1))
    rotated_1R, _ = codec.rotate(vector_D[None])
    cell_1P, score_1P = codec.probe(rotated_1R, min(num_probes, codec.shape.num_cells))
    keys, estimates, places = [], [], []
    for name, _, _ in index.facts["shards"]:
        shard = holder.shard(place, name)
        # FAISS ranks by the plain score: more are asked for than will be compared.
        estimate_1K, row_1K = shard.nearest(codec, rotated_1R, cell_1P, score_1P, 4 * compared)
        row_C = row_1K[0][row_1K[0] >= 0]
        keys.append(shard.ids_N[row_C])
        places.append(shard.piece_N[row_C])
        estimates.append(estimate_1K[0][row_1K[0] >= 0])
    best = np.argsort(-np.concatenate(estimates), kind="stable")[:compared]
    keys_C, piece_C = np.concatenate(keys)[best], np.concatenate(places)[best]
    pieces = [indexed[piece] for piece in np.unique(piece_C)]
    ids_C16 = key_matrix(keys_C)
    vectors_CD = load_vectors(place.store, place.space, pieces, ids_C16)
    rows_C = np.arange(len(keys_C))
    return keys_C, exact_cosines(vector_D[None], vectors_CD, np.zeros_like(rows_C), rows_C)
