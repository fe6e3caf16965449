#!/usr/bin/env python
"""Mine blind pairs: image pairs that one encoder cannot tell apart although another sees them as different.

Without flags it mines the built-in miniature world into runs/miniature, in about two minutes on a laptop.

  your images:  jobs/mine.py --corpus photos=./photos --near open_clip:ViT-L-14/openai --far hf:facebook/dinov2-large --out runs/photos
  a recipe:     jobs/mine.py --config configs/imagenet.yaml --out s3://bucket/runs/imagenet
  on a cluster: ray job submit --working-dir . -- python jobs/mine.py --config configs/imagenet.yaml --out s3://bucket/runs/imagenet
  every week:   jobs/mine.py --config configs/remine.yaml          (docs/remining.md)

Killed and started again, it goes on where it stopped. Flags override --config FILE.yaml, which overrides the defaults shown here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.pipeline.config import MineConfig


def main() -> int:
    """Parse, mine, print."""
    config = job.parse(MineConfig, sys.argv[1:], description=__doc__ or "")
    config.check()

    from mmvp_ray.cluster import Session
    from mmvp_ray.pipeline import Progress, mine_pairs, prepare
    from mmvp_ray.pipeline.closing import closing_lines
    from mmvp_ray.pipeline.dated_runs import change_lines, planned

    if config.plan:
        with Session(config.address) as session:
            print("\n".join(prepare(planned(config), session, Progress()).lines()))
        return 0
    run = mine_pairs(config)
    print("\n".join([*closing_lines(run), *change_lines(run.url)]))
    return 0


if __name__ == "__main__":
    job.run(main)
