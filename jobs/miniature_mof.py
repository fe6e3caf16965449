#!/usr/bin/env python
"""The paper's Mixture-of-Features experiment in miniature: do features of a second encoder help on pairs that mining found?

  python jobs/miniature_mof.py --out runs/miniature-mof
  a quick look: python jobs/miniature_mof.py --out runs/quick --seeds 1 --finetune-steps 100

Mines pairs of a miniature world that nothing was trained on, makes questions of what differs, trains a tiny language model with the features
of the miniature CLIP (none), of both encoders mixed (additive:RATIO) and of both side by side (interleaved), with several seeds, and prints
pairs right beside held-out instructions right. docs/miniature_mof.md has what came out and what it does not say.
Started again it goes on where it stopped. Flags override --config FILE.yaml, which overrides the defaults shown here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig


def main() -> int:
    """Parse, run, print."""
    config = job.parse(MofExperimentConfig, sys.argv[1:], description=__doc__ or "")
    config.check()

    from mmvp_ray.pipeline.mof_experiment import closing_lines, run_experiment

    print("\n".join(closing_lines(run_experiment(config), config)))
    return 0


if __name__ == "__main__":
    job.run(main)
