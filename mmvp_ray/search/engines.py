"""The engines by name, what each is given, and which one `auto` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search import exact, routed
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import EngineName, SearchConfig
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import COMPLETE
from mmvp_ray.store import Store

EXACT_IMAGES = {"cpu": 50_000, "cuda": 20_000_000}
"""Up to so many images the exact join is done within a few minutes on one device, before cells and routing pay
(docs/performance.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """An engine and how it is set.

    Attributes:
        engine: A key of ENGINES.
        key: COMPLETE if it finds every pair, else a fingerprint of its settings: tables of different keys are not mixed.
        config: Its settings.
        reason: Why this one, for people.
    """

    engine: EngineName
    key: str
    config: SearchConfig
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinWork:
    """What an engine is asked: all pairs of the census above the floor, but for pairs of two images joined earlier.

    Attributes:
        store: Holds vectors.
        census: The images.
        space: Where near is measured.
        folder: Takes the parts (search/table.py: write_near_part).
        floor: Pairs at or below it are not kept.
        device: "cuda" or "cpu".
        parent: Facts of the join that this one builds on; empty for none.
    """

    store: Store
    census: Census
    space: Space
    folder: str
    floor: float
    device: str
    parent: dict[str, Any]


OnPart = Callable[[int], None]
Engine = Callable[[JoinWork, Method, Session, OnPart], tuple[list[str], dict[str, Any]]]
"""Gives the names of all parts, finished ones of an earlier attempt included, and facts for the table and the report."""


def choose_method(config: SearchConfig, *, num_images: int, device: str) -> Method:
    """The engine that --engine names, or that `auto` takes for so many images on this device.

    Args:
        config: The settings.
        num_images: Images to be joined.
        device: "cuda" or "cpu".
    """
    engine, reason = config.engine, "asked for"
    if engine == "auto":
        limit = EXACT_IMAGES[device]
        place = "GPUs" if device == "cuda" else "CPUs"
        if config.provable:
            engine, reason = "routed", "--provable is a way of the routed engine"
        elif num_images <= limit:
            engine, reason = (
                "exact",
                f"{num_images:,} images: up to {limit:,} on {place}, comparing all pairs is fast enough",
            )
        else:
            engine, reason = (
                "routed",
                f"{num_images:,} images: beyond {limit:,} on {place}, comparing all pairs is slower than routing",
            )
    settings: dict[str, Any] = {"engine": engine}
    if engine == "routed":
        settings |= {"target_recall": config.target_recall, "num_cells": config.num_cells}
    if engine == "ivfpq":
        settings |= {
            "num_neighbours": config.num_neighbours,
            "num_probes": config.num_probes,
            "bytes_per_vector": config.bytes_per_vector,
        }
    complete = engine == "exact" or (engine == "routed" and config.provable)
    return Method(
        engine=engine,
        key=COMPLETE if complete else fingerprint(settings),
        config=config,
        reason=reason,
    )


def _exact(work: JoinWork, method: Method, session: Session, on_part: OnPart) -> tuple[list[str], dict[str, Any]]:
    names = exact.exact_join(
        work.store,
        work.census,
        work.space,
        work.folder,
        floor=work.floor,
        device=work.device,
        session=session,
        on_part=on_part,
    )
    return names, {}


def _routed(work: JoinWork, method: Method, session: Session, on_part: OnPart) -> tuple[list[str], dict[str, Any]]:
    return routed.routed_join(
        work.store,
        work.census,
        work.space,
        work.folder,
        floor=work.floor,
        config=method.config,
        device=work.device,
        session=session,
        parent=work.parent,
        on_part=on_part,
    )


ENGINES: dict[str, Engine] = {"exact": _exact, "routed": _routed}
