"""What the user of a run may want to do next, from its counts."""

from __future__ import annotations

import numpy as np

from mmvp_ray.mine.rule import PAPER_FAR_BELOW, PAPER_NEAR_ABOVE
from mmvp_ray.pipeline.findings import Findings, is_stand_in


def advise(found: Findings) -> list[str]:
    """A sentence or two for each thing that stands out; none where nothing does."""
    first = found.first
    tally, rule, random_P = first.tally, first.far.rule, first.far.sample.cos_near_P
    advice: list[str] = []
    papers = (rule.near_above, rule.far_below) == (PAPER_NEAR_ABOVE, PAPER_FAR_BELOW)
    if is_stand_in(first.near.spec, first.far.spec) and rule.near_source == "given" and papers:
        advice.append(
            "The thresholds 0.95 and 0.6 belong to CLIP ViT-L/14 and DINOv2 ViT-L/14. For other encoders compare them with the distributions of "
            "random pairs in this report, or set them as quantiles: --near-quantile 0.9999 --far-quantile 0.5."
        )
    if tally.num_blind == 0:
        if tally.num_near == 0:
            highest = float(np.max(random_P, initial=-1.0))
            advice.append(
                f"No pair is near: the highest cosine among {len(random_P):,} random pairs is {highest:.3f}. Mine more images, or lower --near-above."
            )
        else:
            advice.append(
                "Pairs are near, but the far encoder sees them as alike too. Raise --far-below to the count you want in the sensitivity table, or mine more images."
            )
        advice.append("The nearest misses below are the pairs that came closest to the rule.")
    if found.hubs:
        advice.append(
            f"{len(found.hubs):,} images are near to more than {found.config.selection.hub_degree:,} others each: placeholders or blank pictures, as a rule. They are not selected."
        )
    if len(found.selected) < found.config.select and tally.num_blind:
        is_limited = len(found.selected) < first.candidates.num_pairs
        advice.append(
            f"{len(found.selected):,} of the {found.config.select:,} pairs asked for could be selected; more images"
            + (", or a larger --max-pairs-per-image, give more." if is_limited else " give more.")
        )
    return advice
