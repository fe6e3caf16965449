"""The training loop on Ray against a bare one: `python -m benchmarks.mof [--steps N] [--rounds N] [--json FILE]`.

Both train the same model on the same batches in float32 with one thread: towers of 6 blocks of width 192 at 112 px before a Llama of 4 blocks of
width 256, random weights. Bare: batches made beforehand, `train_step` after `train_step`, in a process without Ray. The loop: what jobs/train_mof.py
runs on one worker, rows from Parquet, JPEGs of 336 px fetched, decoded and tokenised by one loader beside it, while it trains. Steps before the
fifth are left out of both: caches and the loader's first blocks. On a machine with two cores the loader has the other one. Goal: 0.9 of the bare loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contest import machine
from benchmarks.ingest import picture

GOAL_SHARE = 0.9
NUM_SKIPPED = 5
BATCH_ROWS = 8
SIDE_PX = 112
SOURCE_PX = 336
TOWER = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
TEXT = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688}


def prepare(root: Path, num_steps: int) -> None:
    """Backbones, pictures and rows."""
    from mmvp_ray.mof.data.convert import ConvertConfig, convert
    from tests.integration.mof_small_models import save_llama, save_tower

    save_tower(root / "clip", "clip", image_px=SIDE_PX, patch_px=14, **TOWER)
    save_tower(root / "ssl", "dinov2", image_px=SIDE_PX, patch_px=14, **TOWER)
    save_llama(root / "llm", **TEXT)
    (root / "images").mkdir()
    records = []
    for number in range(num_steps * BATCH_ROWS):
        (root / "images" / f"{number}.jpg").write_bytes(picture(number, SOURCE_PX))
        answer = "a red cat is left . " * (1 + number % 7)
        turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": answer}]
        records.append({"id": number, "image": f"{number}.jpg", "conversations": turns})
    (root / "rows.json").write_text(json.dumps(records))
    convert(ConvertConfig(source=str(root / "rows.json"), out=str(root / "rows")))


def config_in(root: Path, out: str) -> Any:
    """The stage that both train."""
    from mmvp_ray.mof.data.collate import CollateConfig
    from mmvp_ray.mof.data.order import OrderConfig
    from mmvp_ray.mof.recipe import MoFRecipe
    from mmvp_ray.mof.training.config import TrainConfig

    return TrainConfig(
        stage="finetune",
        model=MoFRecipe(clip=str(root / "clip"), ssl=str(root / "ssl"), llm=str(root / "llm")),
        rows=str(root / "rows"),
        images=str(root / "images"),
        out=str(root / out),
        order=OrderConfig(batch_rows=BATCH_ROWS),
        collate=CollateConfig(max_tokens=512),
        precision="fp32",
    )


def bare(root: Path) -> float:
    """Tokens a second of the bare loop; in a process of its own."""
    import torch

    from mmvp_ray.mof.training.config import ScaleConfig
    from mmvp_ray.mof.training.feed import BatchMaker, feed_for
    from mmvp_ray.mof.training.ranks import Ranks
    from mmvp_ray.mof.training.spread import spread_model
    from mmvp_ray.mof.training.steps import optimizer_for, train_step

    torch.set_num_threads(1)
    config = config_in(root, "bare")
    model, processor = spread_model(config, ScaleConfig(), Ranks())
    feed = feed_for(config, num_micro_batches=1)
    maker = BatchMaker(feed, processor, rank=0, world_size=1)
    batches = [maker.make(step) for step in range(feed.num_steps())]
    optimizer = optimizer_for(model, config.optim)
    num_tokens = 0
    for step, batch in enumerate(batches):
        if step == NUM_SKIPPED:
            started = time.perf_counter()
        found = train_step(model, optimizer, [batch], ranks=Ranks(), max_grad_norm=1.0)
        num_tokens += found.num_tokens if step >= NUM_SKIPPED else 0
    return num_tokens / (time.perf_counter() - started)


def on_ray(root: Path, number: int) -> tuple[float, float]:
    """(tokens a second, share of the time spent waiting for data) of the loop on Ray."""
    from mmvp_ray.cluster import Session
    from mmvp_ray.mof.training.config import ScaleConfig
    from mmvp_ray.mof.training.run import train

    scale = ScaleConfig(device="cpu", num_threads=1, num_loaders=1)
    with Session() as session:
        points = train(config_in(root, f"ray{number}"), scale, session=session).points[NUM_SKIPPED:]
    seconds = sum(point.seconds for point in points)
    return sum(point.num_tokens for point in points) / seconds, sum(point.wait_seconds for point in points) / seconds


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare is not None:
        print(bare(given.bare))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        prepare(root, given.steps)
        rounds = []
        for number in range(given.rounds):
            alone = [sys.executable, "-m", "benchmarks.mof", "--bare", str(root)]
            before = float(subprocess.run(alone, check=True, capture_output=True, text=True).stdout.split()[-1])
            found, wait = on_ray(root, number)
            after = float(subprocess.run(alone, check=True, capture_output=True, text=True).stdout.split()[-1])
            plain = (before + after) / 2
            rounds.append(
                {
                    "bare_tokens_per_second": plain,
                    "tokens_per_second": found,
                    "wait_share": wait,
                    "ratio": found / plain,
                }
            )
            print(
                f"bare {before:,.0f} and {after:,.0f} tokens/s, on Ray {found:,.0f} ({found / plain:.2f}), waiting {wait:.1%}",
                flush=True,
            )
    ratio = statistics.median(one["ratio"] for one in rounds)
    print(f"median {ratio:.2f} of the bare loop (goal {GOAL_SHARE}); {machine()}")
    if given.json is not None:
        given.json.write_text(json.dumps({"rounds": rounds, "ratio": ratio, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
