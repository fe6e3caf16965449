"""The ivfpq engine: neighbours of every new image from compressed vectors, as candidates; the stored vectors decide.

1. A random sample trains the codec; random anchors are compared exactly with all images (index_shards.py; both at once).
2. Calibration: as many cells are probed as the anchors' true pairs need, and candidates are cut where the estimates of true pairs end.
3. The index is built, or taken as it was kept. Shard by shard, the nearest codes of every new image are asked for; an image whose last
   answers still pass the cut is asked again for more, so that copies hide nothing.
4. Candidates are exchanged by id, so that a pair that both its images found is written once, and compared by their stored vectors, which
   are gathered in waves.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search.exact import exact_join
from mmvp_ray.search.index_build import build_index, index_facts
from mmvp_ray.search.index_calibration import settle_search
from mmvp_ray.search.index_candidates import ask_for_all
from mmvp_ray.search.index_holders import Holders
from mmvp_ray.search.index_plan import plan_index
from mmvp_ray.search.index_shards import INDEXES
from mmvp_ray.search.rerank import rerank
from mmvp_ray.search.table import Joined, join_once
from mmvp_ray.store import read_marker

if TYPE_CHECKING:
    from mmvp_ray.search.engines import JoinWork, Method, OnPart

MIN_IMAGES = 4096
"""Fewer are compared exactly, which takes seconds: an index would have too little to learn from."""


def ivfpq_join(work: JoinWork, method: Method, session: Session, on_part: OnPart) -> Joined:
    """Write the near pairs that the index finds, each once, but for pairs of two images joined earlier; parts that are done are kept.

    Args:
        work: What is joined.
        method: Its settings: num_neighbours, num_probes, bytes_per_vector.
        session: Where tasks and the holders of shards run; they run here if it is inline.
        on_part: Called with the pairs of vectors that were compared by their codes, block by block.

    Returns:
        Names of the parts, and facts: the index, how it was calibrated on how many true pairs, what was compared.

    Raises:
        ResourceError: FAISS cannot use a GPU, or more candidates than memory holds. DataError: a table is missing or broken.
    """
    own = storage.join(work.store.root, INDEXES, work.space.name, "candidates", work.folder.rsplit("/", 1)[-1])
    return join_once(work.folder, own, lambda: _join(work, method, own, session, on_part))


def _join(work: JoinWork, method: Method, own: str, session: Session, on_part: OnPart) -> Joined:
    if work.census.num_images < MIN_IMAGES:
        return _compare_all(work, session, on_part, f"fewer than {MIN_IMAGES:,} images")
    config = method.config
    plan = plan_index(
        work.store,
        work.space,
        work.census,
        bytes_per_vector=config.bytes_per_vector,
        device=work.device,
        parent=work.parent,
        refit=config.refit_cells,
    )
    if work.device == "cuda":
        # Whether FAISS can use the GPUs is known before hours are spent on what only they read.
        with Holders(session, "cuda") as holders:
            holders.ready()
    # What an attempt with another codec or index measured and found means nothing to this one.
    scratch = storage.join(own, f"{plan.place.codec_key}-{plan.place.content_key}")
    # Compressing is work for CPUs; a GPU looks for neighbours.
    with Holders(session, "cpu") as holders:
        search = settle_search(work, plan, config, scratch, holders, session)
        index = build_index(plan, holders) if search is not None else {}
        if search is not None and work.device == "cpu":
            files = ask_for_all(work, plan, index, search, scratch, holders, on_part)
    if search is None:
        return _compare_all(work, session, on_part, "too few images have usable vectors to train an index")
    if work.device == "cuda":
        with Holders(session, "cuda") as holders:
            files = ask_for_all(work, plan, index, search, scratch, holders, on_part)
    key = fingerprint([plan.place.codec_key, plan.place.content_key, asdict(search)])
    names = rerank(work, files, key, session)
    markers = [read_marker(uri)[1] for uri in files]
    num_asked = work.census.num_images - work.census.num_old
    facts = {
        **index_facts(plan, index),
        "num_neighbours": search.num_neighbours,
        "num_probes": search.num_probes,
        "margin": search.margin,
        "mean_probes": round(sum(marker["num_probed"] for marker in markers) / max(1, num_asked), 4),
        "cut": search.cut,
        "calibration": search.calibration,
        "num_codes_compared": sum(marker["num_codes"] for marker in markers),
        "num_candidates": sum(marker["num_candidates"] for marker in markers),
        "num_saturated": sum(marker["num_saturated"] for marker in markers),
    }
    return names, facts


def _compare_all(work: JoinWork, session: Session, on_part: OnPart, reason: str) -> Joined:
    names = exact_join(
        work.store,
        work.census,
        work.space,
        work.folder,
        floor=work.floor,
        device=work.device,
        session=session,
        on_part=on_part,
    )
    return names, {"compared_exactly": reason}
