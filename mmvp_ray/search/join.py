"""find_near_pairs: one table of near pairs for a set of pieces, by any engine, built on what earlier joins in the store already found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search.census import Census, content_key, take_census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.engines import ENGINES, JoinWork, Method, choose_method
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import (
    COMPLETE,
    NearTable,
    Part,
    TableFacts,
    begun_by,
    pieces_of,
    whole_tables,
    write_begun,
    write_facts,
)
from mmvp_ray.store import PieceRef, Store


def _nobody() -> NDArray[np.bytes_]:
    return np.empty(0, dtype="S16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Collapse:
    """How copies were collapsed before the join: who does not take part.

    Attributes:
        name: "none", or a fingerprint of how groups are made; joins of different names are not mixed.
        key: Key of the copies table of these pieces; None without.
        without: Ids that another image represents, sorted.
    """

    name: str = "none"
    key: str | None = None
    without: NDArray[np.bytes_] = field(default_factory=_nobody)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """What of a join is there already.

    Attributes:
        table: The whole table of exactly these pieces; None if there is none.
        parent: The whole table of the most of these pieces and no others; None if there is none.
        parent_pieces: The pieces of `parent`.
    """

    table: TableFacts | None
    parent: TableFacts | None
    parent_pieces: tuple[PieceRef, ...]


def find_lineage(
    store: Store, space: Space, pieces: Sequence[PieceRef], *, floor: float, collapse: str, method: str
) -> Lineage:
    """Look through the store for joins that one of `pieces` can reuse: as complete, and as deep.

    Args:
        store: Holds near pairs.
        space: Where near is measured.
        pieces: The pieces to be joined.
        floor: The floor of the join.
        collapse: How copies are collapsed (Collapse.name).
        method: COMPLETE, or the fingerprint of the approximation.
    """
    mine, wanted = content_key(pieces), set(pieces)
    fitting = [
        found
        for found in whole_tables(store, space)
        if found.collapse == collapse and found.floor <= floor and found.method in (COMPLETE, method)
    ]
    # Complete before approximate, then the floor that wastes least.
    fitting.sort(key=lambda found: (found.method != COMPLETE, -found.floor, found.key))
    for found in fitting:
        if found.pieces_key == mine:
            return Lineage(table=found, parent=None, parent_pieces=())
    for found in sorted(fitting, key=lambda found: -found.num_pieces):
        if found.num_pieces < len(wanted):
            earlier = pieces_of(store, space, found.key)
            if wanted.issuperset(earlier):
                return Lineage(table=None, parent=found, parent_pieces=tuple(earlier))
    return Lineage(table=None, parent=None, parent_pieces=())


def keep_method(
    store: Store,
    space: Space,
    pieces: Sequence[PieceRef],
    chosen: Method,
    *,
    floor: float,
    collapse: str,
    config: SearchConfig,
) -> Method:
    """The method that `auto` chose, or an earlier one whose work it could not take.

    That is the one by which this very join was begun, or by which most of the pieces were joined before. Cores and free disk differ from run
    to run, and from try to try of one run; what lies in the store shall serve all the same.

    Args:
        store: Holds near pairs.
        space: Where near is measured.
        pieces: The pieces to be joined.
        chosen: By `choose_method`.
        floor: The floor of the join.
        collapse: How copies are collapsed (Collapse.name).
        config: What `chosen` was chosen by; only `auto` is free to choose.
    """
    if config.engine != "auto" or config.provable:
        return chosen

    others = [
        choose_method(replace(config, engine=engine), num_images=0, device="cpu")
        for engine in ENGINES
        if engine != chosen.engine
    ]
    candidates = [
        (method, find_lineage(store, space, pieces, floor=floor, collapse=collapse, method=method.key))
        for method in (chosen, *others)
    ]
    pieces_key = content_key(pieces)
    for method, lineage in candidates:
        key = _table_key(pieces_key, floor, collapse, method, lineage.parent)
        if lineage.table is None and begun_by(store, space, key) == method.engine:
            return method if method is chosen else replace(method, reason="this join was begun so")

    def num_served(candidate: tuple[Method, Lineage]) -> int:
        method, lineage = candidate
        # A whole table serves as it is; to build on one takes the engine's work, and auto takes ivfpq where routing has no room.
        has_room = method.engine != "routed" or chosen.engine != "ivfpq"
        found = lineage.table or (lineage.parent if has_room else None)
        return found.num_pieces if found else 0

    best = max(candidates, key=num_served)
    num_joined = num_served(best)
    if best[0] is chosen or 2 * num_joined < len(pieces):
        return chosen
    return replace(best[0], reason=f"{num_joined:,} of {len(pieces):,} pieces were joined so before")


def find_near_pairs(
    store: Store,
    space: Space,
    pieces: Sequence[PieceRef],
    *,
    floor: float,
    method: Method,
    device: str,
    session: Session,
    census: Census | None = None,
    collapse: Collapse | None = None,
    copies_of_parent: Callable[[str], NDArray[np.bytes_]] = lambda key: _nobody(),
    on_start: Callable[[int], None] = lambda num_pairs: None,
    on_part: Callable[[int], None] = lambda num_compared: None,
) -> tuple[NearTable, Census]:
    """Every pair of images of `pieces` with near cosine > floor, as far as the method finds them; and the census of those images.

    A whole table of the same pieces is taken as it is. One of some of them is built upon: only pairs with an image that it does not
    know are looked for. Either way the pairs are those of a join from scratch with the same method (approximate: in the same cells).

    Args:
        store: Holds vectors and takes pairs.
        space: Where near is measured.
        pieces: Committed pieces.
        floor: Pairs at or below it are not kept.
        method: The engine and how it is set.
        device: "cuda" or "cpu".
        session: Where tasks run.
        census: That of all images of these pieces, if it was taken already; where neither copies nor an earlier join change who takes part
            it is not taken again.
        collapse: Who does not take part because another image represents it.
        copies_of_parent: For the key of a copies table, the ids that did not take part in the join that used it.
        on_start: Called with the number of pairs that an exact join would compare, before the join.
        on_part: Called with the compared pairs of each part that came to its end.

    Raises:
        ResourceError: more pairs than memory holds. DataError: a table is missing or broken.
    """
    collapse = collapse or Collapse()
    lineage = find_lineage(store, space, pieces, floor=floor, collapse=collapse.name, method=method.key)
    parent = lineage.table or lineage.parent
    late = _nobody()
    if lineage.parent is not None and lineage.parent.copies_key is not None:
        late = np.setdiff1d(copies_of_parent(lineage.parent.copies_key), collapse.without)
    census = take_census(
        store,
        space.slug,
        pieces,
        session=session,
        known=census,
        earlier=lineage.parent_pieces,
        without=collapse.without,
        late=late,
    )
    if lineage.table is not None:
        found = lineage.table
        return _table(store, space, found.key, found.parts, floor, collapse, found.facts), census
    num_new, num_old = census.num_images - census.num_old, census.num_old
    on_start(num_new * (num_new - 1) // 2 + num_new * num_old)
    key = _table_key(census.content_key, floor, collapse.name, method, parent)
    write_begun(store, space, key, method.engine)
    work = JoinWork(
        store=store,
        census=census,
        space=space,
        folder=store.near_pairs(space.name, key),
        floor=floor,
        device=device,
        parent=parent.facts if parent else {},
    )
    names, facts = ENGINES[method.engine](work, method, session, on_part)
    parts = (*(parent.parts if parent else ()), *(Part(key, name) for name in names))
    facts = {**facts, "engine": method.engine, "built_on": parent.key if parent else None}
    write_facts(
        store,
        space,
        TableFacts(
            key=key,
            pieces_key=census.content_key,
            num_pieces=len(census.pieces),
            floor=floor,
            collapse=collapse.name,
            copies_key=collapse.key,
            method=method.key,
            parts=parts,
            facts=facts,
        ),
        census.pieces,
    )
    return _table(store, space, key, parts, floor, collapse, facts), census


def _table_key(pieces_key: str, floor: float, collapse: str, method: Method, parent: TableFacts | None) -> str:
    return fingerprint(
        {
            "pieces": pieces_key,
            "floor": floor,
            "collapse": collapse,
            "method": method.key,
            # Parts of a join that builds on another hold fewer pairs.
            "parent": parent.key if parent else None,
        }
    )


def _table(
    store: Store,
    space: Space,
    key: str,
    parts: tuple[Part, ...],
    floor: float,
    collapse: Collapse,
    facts: dict[str, Any],
) -> NearTable:
    return NearTable(store=store, space=space, key=key, parts=parts, floor=floor, without=collapse.without, facts=facts)
