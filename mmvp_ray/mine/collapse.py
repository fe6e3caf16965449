"""Collapsing near-copies before the join: groups over all images of a run, kept in the store and grown with it.

copies/<key>/copies.parquet     images in groups, each with its representative, marker beside it: present means whole
copies/<key>/pieces.parquet     the pieces whose images were compared
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import DataError
from mmvp_ray.mine.copies import COPY_FAR_AT_LEAST, COPY_NEAR_AT_LEAST, CopyFinder, CopyGroups
from mmvp_ray.schema import COPIES, PIECES
from mmvp_ray.search import Census, Collapse, PieceRef, Space, take_census
from mmvp_ray.search.census import content_key
from mmvp_ray.search.copy_edges import find_copy_edges
from mmvp_ray.store import (
    DONE,
    Store,
    done_names,
    id_keys,
    id_matrix,
    key_array,
    read_marker,
    read_table,
    write_marker,
    write_table,
)

TABLE = "copies"


def collapse_copies(
    store: Store,
    near: Space,
    also: Space,
    pieces: Sequence[PieceRef],
    *,
    device: str,
    session: Session,
    census: Census | None = None,
    on_part: Callable[[int], None] = lambda num_images: None,
) -> tuple[CopyGroups, Collapse]:
    """The groups of near-copies among the images of `pieces`, and what the join needs to know of them.

    Images are copies when their cosine is at least 0.985 in the near space and 0.95 in the copy encoder's (DESIGN section 3). All pairs are
    covered, whatever the engine of the join. Groups of fewer pieces are built upon: only pairs with a new image are looked at.

    Args:
        store: Holds vectors and takes the groups.
        near: The near encoder's space.
        also: The copy encoder's space.
        pieces: Committed pieces.
        device: "cuda" or "cpu".
        session: Where tasks run.
        census: That of all images of these pieces, if it was taken already; without earlier groups to build upon it is not taken again.
        on_part: Called with the images in groups that each part found.
    """
    name = copy_rule(near, also)
    key = fingerprint({"pieces": content_key(pieces), "rule": name})
    folder = store.copies(key)
    scratch = storage.join(folder, "parts")
    if TABLE not in done_names(folder):
        try:
            groups = _find_groups(
                store, near, also, pieces, name, scratch, census, device=device, session=session, on_part=on_part
            )
            _write_groups(store, key, groups, pieces, name)
        except DataError:
            # Another run beside this one may have written the table, and then removed the working files of both.
            if TABLE not in done_names(folder):
                raise
    # Also those that a run left which ended before it came to this.
    storage.remove_folder(scratch)
    groups = read_groups(store, key)
    return groups, Collapse(name=name, key=key, without=groups.represented())


def _find_groups(
    store: Store,
    near: Space,
    also: Space,
    pieces: Sequence[PieceRef],
    name: str,
    scratch: str,
    census: Census | None,
    *,
    device: str,
    session: Session,
    on_part: Callable[[int], None],
) -> CopyGroups:
    parent = _largest_part(store, pieces, name)
    earlier = [] if parent is None else _pieces_of(store, parent)
    census = take_census(store, near.slug, pieces, session=session, known=census, earlier=earlier)
    finder = CopyFinder(floor=-1.0, earlier=None if parent is None else read_groups(store, parent))
    for ids_a, ids_b in find_copy_edges(
        store,
        census,
        near,
        also,
        # Parts of a search that builds on other groups look at other pairs.
        storage.join(scratch, parent or "from-scratch"),
        near_at_least=COPY_NEAR_AT_LEAST,
        also_at_least=COPY_FAR_AT_LEAST,
        device=device,
        session=session,
        on_part=on_part,
    ):
        finder.add_edges(ids_a, ids_b)
    return finder.groups()


def copy_rule(near: Space, also: Space) -> str:
    """Fingerprint of what makes two images copies."""
    return fingerprint([near.name, also.name, COPY_NEAR_AT_LEAST, COPY_FAR_AT_LEAST])


def read_groups(store: Store, key: str) -> CopyGroups:
    """The groups of a copies table."""
    table = read_table(storage.join(store.copies(key), f"{TABLE}.parquet"), is_large=True)
    keys, groups = (id_keys(id_matrix(table.column(name))) for name in ("image_id", "group_id"))
    order = np.argsort(keys, kind="stable")
    return CopyGroups(keys[order], groups[order])


def represented_images(store: Store, key: str) -> NDArray[np.bytes_]:
    """The images that do not take part in a join that used a copies table, sorted."""
    return read_groups(store, key).represented()


def _write_groups(store: Store, key: str, groups: CopyGroups, pieces: Sequence[PieceRef], name: str) -> None:
    folder = store.copies(key)
    members = pa.Table.from_arrays(
        [key_array(groups.keys_M), key_array(groups.group_M), pa.array(groups.sizes(), type=pa.int64())], schema=COPIES
    )
    # Sorted: runs beside each other write the same bytes, whatever order they were given.
    listed = pa.table(
        {"corpus": [piece.corpus for piece in sorted(pieces)], "piece": [piece.name for piece in sorted(pieces)]},
        schema=PIECES,
    )
    files = [
        write_table(store, storage.join(folder, f"{TABLE}.parquet"), members),
        write_table(store, storage.join(folder, "pieces.parquet"), listed),
    ]
    write_marker(storage.join(folder, TABLE + DONE), files=files, rule=name)


def _largest_part(store: Store, pieces: Sequence[PieceRef], name: str) -> str | None:
    """Key of the groups, by the same rule, over the most of these pieces and no others; None if there are none."""
    wanted, best, most = set(pieces), None, 0
    for key in storage.list_folders(store.copies("")):
        folder = store.copies(key)
        if TABLE not in done_names(folder):
            continue
        files, facts = read_marker(storage.join(folder, TABLE + DONE))
        is_larger = facts.get("rule") == name and most < files[1].num_rows < len(wanted)
        if is_larger and wanted.issuperset(_pieces_of(store, key)):
            best, most = key, files[1].num_rows
    return best


def _pieces_of(store: Store, key: str) -> list[PieceRef]:
    rows = read_table(storage.join(store.copies(key), "pieces.parquet")).to_pylist()
    return [PieceRef(row["corpus"], row["piece"]) for row in rows]
