"""The far side of a run: for one near and one far encoder, which near pairs are blind, what is written of them, and what hygiene leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.mine import Candidates, CopyFinder, CopyGroups, Degrees, Tally, clean
from mmvp_ray.pipeline import results
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.near import FarSide, NearSide
from mmvp_ray.schema import COPIES, HUBS
from mmvp_ray.search import PairTable, PieceRef
from mmvp_ray.store import Store, key_array, write_table

MAX_CANDIDATES = 1_000_000
"""Pairs that come back from hygiene: those with the largest near minus far cosine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What came out for one near and one far encoder.

    Attributes:
        near: The near side.
        far: The far side.
        tally: Counts over all near pairs.
        candidates: Blind pairs that hygiene left, best first; the best MAX_CANDIDATES of them.
        hub_keys: Images of too high degree, largest first.
        hub_degrees: Their degrees.
    """

    near: NearSide
    far: FarSide
    tally: Tally
    candidates: Candidates
    hub_keys: NDArray[np.bytes_]
    hub_degrees: NDArray[np.int64]


def judge(
    config: MineConfig,
    store: Store,
    pieces: Sequence[PieceRef],
    near: NearSide,
    far: FarSide,
    *,
    session: Session,
    stage: Any,
    confirm: Callable[[], None],
) -> Judgement:
    """Apply the rule to all near pairs: count, write blind pairs, copies and hubs, and clean what may be selected.

    Every step streams over the pairs; none holds them all.

    Args:
        config: The run.
        store: Holds the tables.
        pieces: The run's pieces.
        near: The near side.
        far: The far side.
        session: Where tasks run.
        stage: Counts near pairs as they are looked at.
        confirm: As in results.write_blind_pairs.
    """
    table, rule = PairTable(near=near.table, far=far.space), far.rule
    tally, finder = Tally(rule), CopyFinder(floor=rule.floor)
    with Degrees(rule) as degrees:
        for batch in table.batches():
            tally.add(batch)
            finder.add(batch)
            degrees.add(batch)
            stage.advance(len(batch))
        hub_keys, hub_degrees = degrees.hubs(config.selection.hub_degree)
    copies = finder.groups()
    facts: dict[str, Any] = {"table": near.table.key, "near": near.space.name, "far": far.space.name}
    # Other images, other copies; without a gate the key is what it was before there were gates.
    if config.min_aesthetic is not None:
        facts["min_aesthetic"] = config.min_aesthetic
    _write_copies(store, configs.fingerprint(facts), copies)
    facts |= {"near_above": rule.near_above, "hub_degree": config.selection.hub_degree}
    _write_hubs(store, configs.fingerprint(facts), hub_keys, hub_degrees)
    blind = results.write_blind_pairs(
        store,
        config.out_url,
        near.spec.slug,
        far.spec.slug,
        table.batches(),
        rule,
        pieces,
        near.copies,
        session=session,
        confirm=confirm,
    )
    candidates = clean(blind.batches(), copies, np.sort(hub_keys), config.selection, limit=MAX_CANDIDATES)
    stage.found_pairs(
        near=near.spec.name, far=far.spec.name, num_near=int(tally.num_near), num_blind=int(tally.num_blind)
    )
    return Judgement(near=near, far=far, tally=tally, candidates=candidates, hub_keys=hub_keys, hub_degrees=hub_degrees)


def _write_copies(store: Store, key: str, copies: CopyGroups) -> None:
    columns = [key_array(copies.keys_M), key_array(copies.group_M), pa.array(copies.sizes(), type=pa.int64())]
    write_table(store, storage.join(store.copies(key), "copies.parquet"), pa.Table.from_arrays(columns, schema=COPIES))


def _write_hubs(store: Store, key: str, hub_keys: NDArray[np.bytes_], hub_degrees: NDArray[np.int64]) -> None:
    columns = [key_array(hub_keys), pa.array(hub_degrees, type=pa.int64())]
    write_table(store, storage.join(store.hubs(key), "hubs.parquet"), pa.Table.from_arrays(columns, schema=HUBS))
