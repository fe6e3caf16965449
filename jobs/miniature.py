#!/usr/bin/env python
"""The whole paper in miniature, in one command.

  python jobs/miniature.py --out runs/miniature-paper
  python jobs/miniature.py --scale smoke --out /tmp/smoke        # every stage at its smallest, a few minutes

A fresh world of small pictures is mined for pairs that the miniature CLIP cannot tell apart and the miniature DINO can; questions and
sentences about them make a benchmark; the encoder and small language models answer it, trained on the features of one encoder, of both
mixed, and of both side by side; images are changed to see what vectors lean on; and one page, OUT/report.html, tells it with figures and
intervals. Every stage is that of the other jobs; only the world is small. What came out when we ran it is in docs/miniature_mof.md.
Started again it goes on where it stopped. Flags override --config FILE.yaml, which overrides the defaults shown here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.pipeline.paper_config import MiniaturePaperConfig


def main() -> int:
    """Parse, run, print."""
    config = job.parse(MiniaturePaperConfig, sys.argv[1:], description=__doc__ or "")
    config.check()

    from mmvp_ray.pipeline.paper import run_paper

    return job.said(run_paper(config, say=lambda line: print(line, flush=True)))


if __name__ == "__main__":
    job.run(main)
