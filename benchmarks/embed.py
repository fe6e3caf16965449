"""End-to-end embedding on Ray against loops without it, in the steady state: `python -m benchmarks.embed [--images DIR] [--json FILE]`.

Two ratios, both after the first wave of pieces (start-up apart), both on the same cores in the same run:

* encode: images per second of the whole pipeline with a ViT-B/16 on the CPU, over a bare loop of the same encoder, loaded the same way, on preloaded pixels.
* no-op: the pipeline with an encoder that costs nothing, over a loop in plain processes, one a core, that reads and decodes the same tars.

Without --images it makes photographs-like JPEGs of 500 x 375 px. Two cores for everything; baselines use as many threads or processes.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import machine

NUM_CORES = 2
BATCH_SIZE = 32


def make_shards(folder: Path, num_shards: int, images_per_shard: int) -> list[Path]:
    """Write tars of JPEGs with photograph-like statistics."""
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for shard in range(num_shards):
        path = folder / f"{shard:04d}.tar"
        with tarfile.open(path, "w") as tar:
            for index in range(images_per_shard):
                coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
                    (500, 375), Image.Resampling.BICUBIC
                )
                noisy = np.clip(
                    np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (375, 500, 3)), 0, 255
                ).astype(np.uint8)
                out = io.BytesIO()
                Image.fromarray(noisy).save(out, "JPEG", quality=90)
                info = tarfile.TarInfo(f"{shard:04d}{index:05d}.jpg")
                info.size = out.tell()
                tar.addfile(info, io.BytesIO(out.getvalue()))
        paths.append(path)
    return paths


def copy_shards(folder: Path, source: Path, num_shards: int) -> list[Path]:
    """Link the tars of a folder again and again, under other names, until there are `num_shards`."""
    found = sorted(source.glob("*.tar"))
    paths = []
    for shard in range(num_shards):
        path = folder / f"{shard:04d}.tar"
        path.write_bytes(found[shard % len(found)].read_bytes())
        paths.append(path)
    return paths


def pipeline_rate(paths: list[Path], encoder: str, out: Path, *, num_threads: int) -> tuple[float, dict[str, float]]:
    """Images per second after the pieces of the first wave, and the totals of the stages' own seconds."""
    from mmvp_ray.cluster import Session
    from mmvp_ray.embed import EmbedConfig, embed_corpora, plan_work
    from mmvp_ray.encoders import resolve_encoder
    from mmvp_ray.sources import list_shards
    from mmvp_ray.store import open_store

    store = open_store(str(out))
    spec = resolve_encoder(encoder, device="cpu")
    plan = plan_work(store, list_shards("b", f"{paths[0].parent}/*.tar"), [spec.slug])
    finished: list[tuple[float, int]] = []
    seconds = {"read_seconds": 0.0, "decode_seconds": 0.0, "embed_seconds": 0.0}

    def on_piece(summary: dict[str, Any]) -> None:
        finished.append((time.perf_counter(), int(summary["num_read"])))
        for name in seconds:
            seconds[name] += summary[name]

    with Session() as session:
        config = EmbedConfig(batch_size=BATCH_SIZE, num_threads=num_threads, num_actors=1)
        embed_corpora(store, plan, {spec.slug: spec}, config, device="cpu", session=session, on_piece=on_piece)
    # As many pieces as cores are under way when the first one ends; the clock starts when the last of those did.
    warm = NUM_CORES - 1
    return sum(count for _, count in finished[warm + 1 :]) / (finished[-1][0] - finished[warm][0]), seconds


def decode_tar(path: str) -> int:
    """Read and decode one tar without Ray, to the same pixels."""
    from benchmarks.noop_encoder import Noop
    from mmvp_ray.images.decode import Decoded, decode
    from mmvp_ray.images.geometry import apply_geometry
    from mmvp_ray.sources import list_shards, read_pieces

    count = 0
    for shard in list_shards("b", path):
        for piece in read_pieces(shard):
            for sample in piece.samples:
                found = decode(sample.data)
                assert isinstance(found, Decoded)
                apply_geometry(found, Noop.geometry)
                count += 1
    return count


def plain_decode_rate(paths: list[Path]) -> float:
    """Images per second of plain processes, one a core, after their start."""
    with multiprocessing.get_context("spawn").Pool(NUM_CORES) as pool:
        pool.map(decode_tar, [str(path) for path in paths[:NUM_CORES]], chunksize=1)
        started = time.perf_counter()
        count = sum(pool.imap_unordered(decode_tar, [str(path) for path in paths], chunksize=1))
        return count / (time.perf_counter() - started)


def bare_encode_rate(encoder: str, num_images: int) -> float:
    """Images per second of the encoder alone on preloaded pixels, with all cores."""
    import torch

    from mmvp_ray.embed.embed_piece import embed_pixels
    from mmvp_ray.encoders import load_for_embedding, resolve_encoder

    torch.set_num_threads(NUM_CORES)
    loaded = load_for_embedding(resolve_encoder(encoder, device="cpu"), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 3, 224, 224), dtype=np.uint8)
    embed_pixels(loaded, pixels[:BATCH_SIZE], batch_size=BATCH_SIZE)
    started = time.perf_counter()
    embed_pixels(loaded, pixels, batch_size=BATCH_SIZE)
    return num_images / (time.perf_counter() - started)


def save_vit(folder: Path) -> str:
    """A randomly initialised ViT-B/16 in the Hugging Face format; speed does not depend on the weights."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return f"hf:{folder}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of tars to use in place of made ones")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every measurement; the median is printed")
    parser.add_argument("--noop-shards", type=int, default=12)
    parser.add_argument(
        "--noop-images", type=int, default=512, help="images of a made shard (a real piece has up to 2,048)"
    )
    parser.add_argument("--encode-shards", type=int, default=8)
    parser.add_argument("--encode-images", type=int, default=64)
    parser.add_argument("--only", choices=["noop", "encode"])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    figures: dict[str, Any] = {"machine": machine(), "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)

        def shards(name: str, count: int, images: int) -> list[Path]:
            folder = root / name
            folder.mkdir()
            return copy_shards(folder, args.images, count) if args.images else make_shards(folder, count, images)

        if args.only != "encode":
            paths = shards("noop", args.noop_shards, args.noop_images)
            plain, piped = [], []
            for number in range(args.rounds):
                plain.append(plain_decode_rate(paths))
                rate, seconds = pipeline_rate(
                    paths, "python:benchmarks.noop_encoder:factory", root / f"noop-{number}", num_threads=1
                )
                piped.append(rate)
                print(
                    f"no-op round {number}: plain {plain[-1]:.1f}, pipeline {rate:.1f} images/s, stages {seconds}",
                    flush=True,
                )
            ratios = [ours / theirs for ours, theirs in zip(piped, plain, strict=True)]
            figures["noop"] = {
                "plain_per_second": plain,
                "pipeline_per_second": piped,
                "ratios": ratios,
                "ratio": statistics.median(ratios),
            }
            print(
                f"no-op encoder: pipeline / plain read-and-decode loop = {statistics.median(ratios):.2f} (goal 0.8; rounds {[f'{r:.2f}' for r in ratios]})"
            )
        if args.only != "noop":
            encoder = save_vit(root / "vit")
            paths = shards("encode", args.encode_shards, args.encode_images)
            bare, piped = [], []
            for number in range(args.rounds):
                bare.append(bare_encode_rate(encoder, 4 * BATCH_SIZE))
                rate, seconds = pipeline_rate(paths, encoder, root / f"encode-{number}", num_threads=NUM_CORES)
                piped.append(rate)
                print(
                    f"encode round {number}: bare {bare[-1]:.2f}, pipeline {rate:.2f} images/s, stages {seconds}",
                    flush=True,
                )
            ratios = [ours / theirs for ours, theirs in zip(piped, bare, strict=True)]
            figures["encode"] = {
                "bare_per_second": bare,
                "pipeline_per_second": piped,
                "ratios": ratios,
                "ratio": statistics.median(ratios),
            }
            print(
                f"ViT-B/16 on the CPU: pipeline / bare loop over preloaded pixels = {statistics.median(ratios):.2f} (goal 0.9; rounds {[f'{r:.2f}' for r in ratios]})"
            )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
