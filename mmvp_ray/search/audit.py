"""The audit: what share of the true near pairs a table holds, measured on random images that were compared with all others exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.intervals import bootstrap_ratio, effective_trials, trials_needed, wilson_bounds
from mmvp_ray.search.anchors import MAX_ANCHORS, scan_until
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.table import NearTable, record_batches
from mmvp_ray.store import among, id_keys, id_matrix

# Shapes: S anchors, P pairs.


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The recall of a table of near pairs.

    Attributes:
        num_anchors: Random images that were compared with all others.
        num_images: Images of the join.
        num_true_pairs: Pairs above the floor that they have, each counted once.
        num_found: How many of them the table holds.
        recall: Their share; None without a pair.
        low: Lower end of its 95 % interval: bootstrap over anchors, but never narrower than Wilson's for `num_effective` pairs.
        high: Upper end.
        floor: The cosine above which this holds.
        target_recall: The recall that the run claims.
        num_effective: Independent pairs that the true pairs are worth: an anchor's may all be found or missed together, so at most one an anchor.
        num_needed: Effective pairs that support it if none is missed.
        by_construction: The method compares all pairs, or proves that it need not: the audit then only checks that it did.
        more_by: The options that let the audit look at more images; empty if none does.
    """

    num_anchors: int
    num_images: int
    num_true_pairs: int
    num_found: int
    recall: float | None
    low: float
    high: float
    floor: float
    target_recall: float
    num_effective: float
    num_needed: int
    by_construction: bool = False
    more_by: str = ""

    @property
    def is_supported(self) -> bool:
        """Whether there were pairs enough to support the claim at all."""
        return self.num_effective >= self.num_needed

    def warning(self) -> str:
        """One line where the audit does not bear the claim out; empty where it does."""
        if self.by_construction:
            missed = self.num_true_pairs - self.num_found
            return (
                f"expected every near pair of {self.num_anchors:,} audited images, found {missed:,} of {self.num_true_pairs:,} missing; "
                f"run verify on the store, and report this as a defect"
                if missed
                else ""
            )
        if self.high < self.target_recall:
            return (
                f"the search found {self.recall:.4f} of the near pairs ({self.low:.4f} to {self.high:.4f}), fewer than {self.target_recall:g}: "
                f"use --provable, or --engine routed with a higher --target-recall"
            )
        if not self.is_supported:
            advice = (
                f": raise {self.more_by}, or"
                if self.more_by
                else ", and no setting lets the audit look at more images:"
            )
            return (
                f"the recall of the search rests on {self.num_true_pairs:,} true pairs of {self.num_anchors:,} images, worth "
                f"{int(self.num_effective):,} independent ones; a recall of {self.target_recall:g} needs {self.num_needed:,} without a miss{advice} take the interval for what it is"
            )
        return ""


def audit_table(
    table: NearTable,
    census: Census,
    *,
    config: SearchConfig,
    target_recall: float,
    device: str,
    session: Session,
    by_construction: bool = False,
) -> Audit:
    """Measure the recall of a table above its floor.

    Args:
        table: The near pairs.
        census: The images that were joined.
        config: How many true pairs are wanted, and what share of an exact join they may cost.
        target_recall: The recall that the run claims.
        device: "cuda" or "cpu".
        session: Where tasks run.
        by_construction: The method finds every pair, so that no number of true pairs is needed to support it.
    """
    anchors, pairs = scan_until(
        table.store,
        census,
        table.space,
        from_end=True,
        num_pairs=config.audit_pairs,
        share=config.audit_share,
        independent=not by_construction,
        floor=table.floor,
        device=device,
        session=session,
    )
    # A pair of two anchors was met from both sides.
    keys_P, first_P = np.unique(
        _pair_keys(id_keys(anchors.ids_S16)[pairs.anchor_P], id_keys(pairs.ids_P16)), return_index=True
    )
    anchor_P = pairs.anchor_P[first_P]
    held_P = _held(table, anchors.ids_S16, keys_P, session=session)
    true_S = np.bincount(anchor_P, minlength=len(anchors))
    found_S = np.bincount(anchor_P[held_P], minlength=len(anchors))
    num_true, num_found = len(keys_P), int(held_P.sum())
    low, high = recall_interval(found_S, true_S)
    return Audit(
        num_anchors=len(anchors),
        num_images=census.num_images,
        num_true_pairs=num_true,
        num_found=num_found,
        recall=num_found / num_true if num_true else None,
        low=low,
        high=high,
        floor=table.floor,
        target_recall=target_recall,
        num_effective=effective_trials(true_S),
        num_needed=trials_needed(target_recall),
        by_construction=by_construction,
        more_by=_more_by(len(anchors), effective_trials(true_S), census, config),
    )


def _more_by(num_anchors: int, num_effective: float, census: Census, config: SearchConfig) -> str:
    """The options that bound the anchors of an audit; empty if it is the draw, MAX_ANCHORS, or half of the images: as many as a share of 1 pays for."""
    if num_anchors >= min(len(census.draw), MAX_ANCHORS, census.num_images // 2):
        return ""
    is_share = num_anchors >= int(config.audit_share * census.num_images / 2)
    options = ["--audit-share"] * is_share + ["--audit-pairs"] * (num_effective >= config.audit_pairs or not is_share)
    return " and ".join(options)


def recall_interval(
    found_S: NDArray[np.int64] | NDArray[np.float64], true_S: NDArray[np.int64] | NDArray[np.float64]
) -> tuple[float, float]:
    """Bounds (95 %) of the recall where an anchor's pairs, those of one dense neighbourhood, may be found or missed together.

    Args:
        found_S: Pairs of each anchor that were found.
        true_S: Pairs that it has.
    """
    low, high = bootstrap_ratio(found_S, true_S)
    # Of few neighbourhoods, or without a miss or a hit, the bootstrap knows no doubt.
    trials = effective_trials(true_S)
    if not trials:
        return low, high
    wilson_low, wilson_high = wilson_bounds(float(found_S.sum() / true_S.sum()), trials)
    return min(low, wilson_low), max(high, wilson_high)


def _held(
    table: NearTable, ids_S16: NDArray[np.uint8], keys_P: NDArray[np.bytes_], *, session: Session
) -> NDArray[np.bool_]:
    """Which of the anchors' true pairs, sorted keys of `_pair_keys`, the table holds."""
    uris = [table.near_uri(part) for part in table.parts]
    shared = [session.share(np.sort(id_keys(ids_S16)))]
    held_P = np.zeros(len(keys_P), dtype=bool)
    for found in session.run_tasks(pairs_of_anchors, uris, shared=shared):
        held_P |= among(keys_P, found)
    return held_P


def pairs_of_anchors(uri: str, anchor_keys_S: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """The pairs of one part with an anchor in them, as sorted texts of 32 bytes: the smaller id, then the larger."""
    found: list[NDArray[np.bytes_]] = [np.empty(0, dtype="S32")]
    for batch in record_batches(uri, columns=["image_id_a", "image_id_b"]):
        keys_a, keys_b = (id_keys(id_matrix(batch.column(index))) for index in range(2))
        hit = among(keys_a, anchor_keys_S) | among(keys_b, anchor_keys_S)
        found.append(_pair_keys(keys_a[hit], keys_b[hit]))
    return np.sort(np.concatenate(found))


def _pair_keys(keys_a: NDArray[np.bytes_], keys_b: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    swap = keys_a > keys_b
    both = np.stack([np.where(swap, keys_b, keys_a), np.where(swap, keys_a, keys_b)], axis=1)
    return np.ascontiguousarray(both).view("S32").reshape(-1)
