"""Our embedding pass beside clip-retrieval's inference: `python -m benchmarks.clip_retrieval --python PATH [--images N] [--rounds N] [--json FILE]`.

PATH is the Python of an environment of clip-retrieval's own (`pip install clip-retrieval`): its dependencies are older than ours. Both get the same
tars, the same open_clip architecture and weights (random: speed does not depend on them), fp32 on the CPU and the same cores, and run in turns.
A round is the whole command, from the start of the process to its end, as a user waits for it; a second figure leaves the start out. Memory is
the most that all processes of a side hold together at one moment (sum of PSS, looked at twice a second). Vectors of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import machine
from benchmarks.embed import make_shards

ARCHITECTURE = "ViT-B-32"
NUM_CORES, BATCH_SIZE, IMAGES_PER_SHARD = 2, 32, 128
POLL_SECONDS = 0.5


def their_command(python: str, tars: str, out: Path, model: str) -> list[str]:
    """clip-retrieval's own command line, as its users call it."""
    flags = {
        "input_dataset": tars,
        "output_folder": str(out),
        "input_format": "webdataset",
        "enable_text": "False",
        "enable_metadata": "False",
        "clip_model": model,
        "batch_size": str(BATCH_SIZE),
        "num_prepro_workers": str(NUM_CORES),
        "output_partition_count": "1",
    }
    script = Path(python).with_name("clip-retrieval")
    return [str(script), "inference", *(f"--{name}={value}" for name, value in flags.items())]


def save_weights(folder: Path) -> Path:
    """Random weights of the architecture, as both sides read them."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE, pretrained=None)
    path = folder / "weights.pt"
    torch.save(model.state_dict(), path)
    return path


def ours(tars: str, out: str, encoder: str) -> None:
    """Embed the tars into a store, as jobs/mine.py does before it searches."""
    from mmvp_ray.cluster import Session
    from mmvp_ray.embed import EmbedConfig, embed_corpora, plan_work, start_early
    from mmvp_ray.encoders import resolve_encoders
    from mmvp_ray.sources import list_shards
    from mmvp_ray.store import open_store

    store = open_store(out)
    with Session() as session:
        spec = resolve_encoders([encoder], device="cpu", meanwhile=lambda: start_early(session))[encoder]
        plan = plan_work(store, list_shards("b", tars), [spec.slug])
        config = EmbedConfig(batch_size=BATCH_SIZE, num_threads=NUM_CORES, num_actors=1)
        embed_corpora(
            store, plan, {spec.slug: spec}, config, device="cpu", session=session, on_piece=lambda summary: None
        )


class Watch:
    """The most memory that a process and all it started hold together."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> int:
        """End, and give the peak in bytes."""
        self._ends.set()
        self._thread.join()
        return self.peak_bytes

    def _look(self) -> None:
        import psutil

        while not self._ends.wait(POLL_SECONDS):
            try:
                family = [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]
            except psutil.Error:
                continue
            held = 0
            for process in family:
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, held)


def run(command: list[str], log: Path) -> dict[str, float]:
    """Seconds and peak memory of a command.

    Raises:
        RuntimeError: it failed; the end of what it said is in the message.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(NUM_CORES),
        "RAY_worker_niceness": "0",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        watch = Watch(process.pid)
        code = process.wait()
        seconds = time.perf_counter() - started
        peak = watch.stop()
    if code:
        raise RuntimeError(f"expected {command[0]} to end well, found exit code {code}: {log.read_text()[-2000:]}")
    return {"seconds": seconds, "peak_gb": peak / 1e9}


def vectors_of_ours(out: Path) -> dict[str, np.ndarray]:
    """By the image's file name, the vectors of our store."""
    import pyarrow.parquet as pq

    names = {}
    for path in out.rglob("corpora/*/images/*.parquet"):
        for row in pq.read_table(path, columns=["image_id", "member"]).to_pylist():
            names[row["image_id"]] = Path(row["member"]).stem
    found = {}
    for path in out.rglob("embeddings/*/*/*.parquet"):
        table = pq.read_table(path)
        for image_id, vector in zip(table["image_id"].to_pylist(), table["vector"].to_pylist(), strict=True):
            found[names[image_id]] = np.asarray(vector, dtype=np.float64)
    return found


def least_cosine(theirs: Path, mine: Path) -> float:
    """The smallest cosine between both sides' vectors of the same image."""
    import pyarrow.parquet as pq

    vectors = np.concatenate([np.load(path) for path in sorted((theirs / "img_emb").glob("*.npy"))]).astype(np.float64)
    names = [
        name
        for path in sorted((theirs / "metadata").glob("*.parquet"))
        for name in pq.read_table(path)["image_path"].to_pylist()
    ]
    found = vectors_of_ours(mine)
    assert len(names) == len(found) == len(vectors), (len(names), len(found), len(vectors))
    cosines = [
        float(found[Path(name).stem] @ vector / np.linalg.norm(found[Path(name).stem]) / np.linalg.norm(vector))
        for name, vector in zip(names, vectors, strict=True)
    ]
    return min(cosines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of clip-retrieval's environment")
    parser.add_argument("--images", type=int, default=1024, help=f"rounded up to whole tars of {IMAGES_PER_SHARD}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ours", nargs=3, metavar=("TARS", "OUT", "ENCODER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        ours(*given.ours)
        return
    if not given.python:
        parser.error("expected --python PATH of an environment with clip-retrieval")
    num_shards = -(-given.images // IMAGES_PER_SHARD)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        weights = save_weights(root)
        folders = {}
        # clip-retrieval wants a tar for each of its readers.
        for name, shards in (("all", num_shards), ("few", NUM_CORES)):
            folders[name] = root / name
            folders[name].mkdir()
            make_shards(folders[name], shards, IMAGES_PER_SHARD)
        model = f"open_clip:{ARCHITECTURE}/{weights}"
        for number in range(given.rounds):
            found: dict[str, Any] = {}
            for name, shards in (("few", NUM_CORES), ("all", num_shards)):
                theirs, mine = root / f"theirs-{name}-{number}", root / f"ours-{name}-{number}"
                braces = f"{folders[name]}/{{0000..{shards - 1:04d}}}.tar"
                found[f"theirs_{name}"] = run(their_command(given.python, braces, theirs, model), root / "theirs.log")
                command = [sys.executable, "-m", "benchmarks.clip_retrieval"]
                command += ["--ours", f"{folders[name]}/*.tar", str(mine), model]
                found[f"ours_{name}"] = run(command, root / "ours.log")
                if name == "all":
                    found["least_cosine"] = least_cosine(theirs, mine)
            more = (num_shards - NUM_CORES) * IMAGES_PER_SHARD
            for side in ("theirs", "ours"):
                spent = found[f"{side}_all"]["seconds"] - found[f"{side}_few"]["seconds"]
                found[f"{side}_per_second"] = more / spent if more else None
            rounds.append(found)
            print(f"round {number}: {json.dumps(found, default=str)}", flush=True)
    whole = statistics.median(one["theirs_all"]["seconds"] / one["ours_all"]["seconds"] for one in rounds)
    print(
        f"{num_shards * IMAGES_PER_SHARD} images, whole command: {whole:.2f} times as fast as clip-retrieval (goal 1.3)"
    )
    result: dict[str, Any] = {"rounds": rounds, "whole": whole, "machine": machine()}
    if num_shards > NUM_CORES:
        steady = statistics.median(one["ours_per_second"] / one["theirs_per_second"] for one in rounds)
        print(f"without the start: {steady:.2f} times as fast")
        result["steady"] = steady
    peaks = [statistics.median(one[f"{side}_all"]["peak_gb"] for one in rounds) for side in ("ours", "theirs")]
    print(
        f"peak memory {peaks[0]:.2f} GB against {peaks[1]:.2f} GB; least cosine of the vectors {min(one['least_cosine'] for one in rounds):.5f}"
    )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
