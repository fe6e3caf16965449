#!/usr/bin/env python
"""Probe models: what do their scores lean on? The image, its colours, its left and right, or the text alone?

  python jobs/probe.py --items items.jsonl --models albef:ALBEF.pth,bert-base-uncased --models open_clip:ViT-L-14/openai --out runs/probe
  on a cluster: ray job submit --working-dir . -- python jobs/probe.py --items s3://bucket/items.jsonl --out s3://bucket/runs/probe

Each image is shown as it is, blocked, grey and mirrored, its sentence with and without the context; models that match images with texts
give a probability, those with a head for masked words the probability of a word and of the one that would be right of the mirrored
image, encoders a cosine, and how far their vectors move. docs/probe.md has the protocol and the file of items.
Flags override --config FILE.yaml, which overrides the defaults shown here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.probe.run import ProbeConfig


def main() -> int:
    """Parse, probe, print."""
    config = job.parse(ProbeConfig, sys.argv[1:], description=__doc__ or "")
    config.check()

    from mmvp_ray.pipeline.probe import probe_models

    return job.said(probe_models(config))


if __name__ == "__main__":
    job.run(main)
