#!/usr/bin/env python
"""Bring images to where they can be mined: webdataset shards out of LAION's metadata or ImageNet's archives, scores of what is stored.

  laion      LAION metadata (Parquet) -> filters -> images from the web, politely -> webdataset shards
  imagenet   ImageNet's archives, class folders or Hugging Face Parquet -> webdataset shards with wnid and label
  score      aesthetic scores of images from their stored CLIP vectors

  python jobs/ingest.py laion --config configs/ingest/laion_aesthetics.yaml --contact you@example.org --out s3://bucket/laion-aesthetics
  python jobs/ingest.py laion --help
  on a cluster: ray job submit --working-dir . -- python jobs/ingest.py laion --config ... --out s3://bucket/laion-aesthetics
  afterwards:   python jobs/mine.py --corpus laion=s3://bucket/laion-aesthetics/shards --out ...

Killed and started again, each goes on where it stopped. Flags override --config FILE.yaml, which overrides the defaults.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job


def laion(argv: list[str]) -> int:
    """LAION's metadata to webdataset shards.

    Reads and filters the metadata, drops URLs that stand twice, and downloads the rest with img2dataset's Downloader behind a guarded
    opener. OUT/shards holds the tars, OUT/urls a row for every URL with the reason why it gave no image, OUT/ingest.json all counts.
    docs/ingest.md explains filters, manners and safety.
    """
    from mmvp_ray.ingest.laion_config import LaionConfig

    config = job.parse_checked(LaionConfig, argv, laion)

    from mmvp_ray.cluster import Session
    from mmvp_ray.ingest.laion import ingest_laion
    from mmvp_ray.ingest.laion_plan import plan_laion
    from mmvp_ray.pipeline import Progress

    progress = Progress()
    with Session(config.address) as session:
        with progress.stage("plan", total=None, unit="rows") as stage:
            plan = plan_laion(config, session, on_file=lambda facts: stage.advance(int(facts["num_rows"])))
        if config.plan:
            return job.said(plan.lines())
        with progress.stage("download", total=plan.num_urls, unit="URLs") as stage:
            summary = ingest_laion(config, session, on_shard=lambda outcome: stage.advance(outcome.num_urls))
    return job.said(summary.lines())


def imagenet(argv: list[str]) -> int:
    """ImageNet's official archives, class folders or Hugging Face Parquet to webdataset shards; see docs/ingest_imagenet.md."""
    from mmvp_ray.ingest.imagenet import ImagenetConfig, ingest_imagenet

    config = job.parse(ImagenetConfig, argv, description=inspect.getdoc(imagenet) or "")

    from mmvp_ray.cluster import Session
    from mmvp_ray.pipeline import Progress

    progress = Progress()
    with Session(config.address) as session, progress.stage("imagenet", total=None, unit="shards") as stage:
        summary = ingest_imagenet(config, session, on_shard=lambda *_: stage.advance(1))
    return job.said(summary.lines())


def score(argv: list[str]) -> int:
    """Aesthetic scores of images from their stored CLIP vectors."""
    from mmvp_ray.ingest.aesthetic import AestheticConfig, score_images

    config = job.parse(AestheticConfig, argv, description=inspect.getdoc(score) or "")

    from mmvp_ray.cluster import Session
    from mmvp_ray.pipeline import Progress

    progress = Progress()
    with Session(config.address) as session, progress.stage("score", total=None, unit="pieces") as stage:
        summary = score_images(config, session, on_piece=lambda *_: stage.advance(1))
    return job.said(summary.lines())


COMMANDS: dict[str, job.Command] = {"laion": laion, "imagenet": imagenet, "score": score}


if __name__ == "__main__":
    job.run(lambda: job.choose(COMMANDS, sys.argv[1:], description=__doc__ or ""))
