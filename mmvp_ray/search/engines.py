"""The engines by name, what each is given, and which one `auto` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.processor import multiplies_bf16
from mmvp_ray.search import exact, ivfpq, routed
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import EngineName, SearchConfig
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import COMPLETE
from mmvp_ray.store import Store

EXACT_IMAGES = {"cpu": 70_000, "cpu with AMX": 100_000, "cuda": 20_000_000}
"""Up to so many images one core, or one GPU, compares all pairs within a minute or so, before cells and routing pay; four times the workers
allow twice the images (docs/performance_notes.md: measured on a CPU, arithmetic for GPUs)."""
ROUTED_COPIES = 12
"""Vectors that routing may write for each image, its home and its visits: what a store's disk must hold for a while."""


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


def choose_method(
    config: SearchConfig,
    *,
    num_images: int,
    device: str,
    num_workers: float = 1.0,
    dim: int = 0,
    free_bytes: int | None = None,
) -> Method:
    """The engine that --engine names, or that `auto` takes for so many images on this hardware.

    Args:
        config: The settings.
        num_images: Images to be joined.
        device: "cuda" or "cpu".
        num_workers: GPUs, or cores.
        dim: Numbers in a near vector.
        free_bytes: Room where the store lies; None where there is no such limit.
    """
    engine, reason = config.engine, "asked for"
    if engine == "auto":
        engine, reason = _choose(config, num_images, device, num_workers, dim, free_bytes)
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


def _choose(
    config: SearchConfig, num_images: int, device: str, num_workers: float, dim: int, free_bytes: int | None
) -> tuple[EngineName, str]:
    kind = "cpu with AMX" if device == "cpu" and multiplies_bf16() else device
    limit = int(EXACT_IMAGES[kind] * max(1.0, num_workers) ** 0.5)
    unit = ("GPU" if device == "cuda" else "core") + ("" if num_workers == 1 else "s")
    place = f"{num_workers:g} {unit}{' with AMX' if kind.endswith('AMX') else ''}"
    if config.provable:
        return "routed", "--provable is a way of the routed engine"
    if num_images <= limit:
        return "exact", f"{num_images:,} images: up to {limit:,} on {place} all pairs are compared soon enough"
    routed_bytes = num_images * 2 * dim * ROUTED_COPIES
    if free_bytes is not None and routed_bytes > free_bytes:
        return (
            "ivfpq",
            f"{num_images:,} images: routing may write {routed_bytes / 1e9:,.1f} GB beside the store, where {free_bytes / 1e9:,.1f} GB are free",
        )
    return "routed", f"{num_images:,} images: beyond {limit:,} on {place} routing is faster than comparing all pairs"


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


ENGINES: dict[EngineName, Engine] = {"exact": _exact, "routed": _routed, "ivfpq": ivfpq.ivfpq_join}
