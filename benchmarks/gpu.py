"""What a GPU makes of the kernels, without Ray: `python -m benchmarks.gpu [--parts peak,embed,...] [--json FILE]`.

Needs torch, torchvision, transformers, numpy, pillow, safetensors, pyarrow, fsspec, PyYAML, psutil and tqdm, but neither
Ray, FAISS, open_clip, timm nor peft. Each part checks first and measures then; a check that fails ends the run with one
line and exit code 1. Weights are random, of the published sizes: speed does not depend on them.

* peak: square matrix products. Shares are of the best of them in the same run; without this part there are none.
* embed: CLIP ViT-L/14 and DINOv2-L/14 through mmvp_ray.encoders, by batch size, from pinned and pageable memory, with
  and without compile.
* pipeline: tars of JPEGs, read, decoded by processes and embedded by both encoders, decoding and copying beside the
  GPU's work.
* join: mmvp_ray.search.kernel.join_block against float64, then by size; a + b N^2 is fitted on all sizes but the
  largest, and its error shown there.
* mof: training steps of an interleaved Mixture-of-Features model: fp32 against bf16, then tokens a second.

On a CPU (--device cpu) it says whether all of it runs; its figures are none of a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("peak", "embed", "pipeline", "join", "mof")
ROUNDS = 5
PEAK_SIZES = {"full": (4096, 8192, 12288, 16384), "smoke": (128, 256)}
PEAK_DTYPES = {"cuda": ("float16", "bfloat16"), "cpu": ("float32", "bfloat16")}


class CheckError(Exception):
    """A result is wrong; its speed does not matter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where it is measured, and how much.

    Attributes:
        device: cuda or cpu.
        scale: full or smoke.
        peaks: Operations per second of the best matrix product, by dtype; empty where they were not measured.
        join_vectors: Also join so many vectors, block by block; 0: do not.
        decoders: Processes that decode.
    """

    device: str
    scale: str
    peaks: dict[str, float] = field(default_factory=dict)
    join_vectors: int = 0
    decoders: int = 1

    @property
    def is_full(self) -> bool:
        """Whether the published sizes are measured."""
        return self.scale == "full"

    def share(self, flop_per_second: float, dtype: str) -> float | None:
        """Share of the measured peak; None without one."""
        return flop_per_second / self.peaks[dtype] if dtype in self.peaks else None

    def synchronise(self) -> None:
        """Wait until the device has done what it was told."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Median seconds of a call, after warm-up, of rounds of as many calls as fill 0.3 s, the device's queue emptied."""
        work()
        self.synchronise()
        started = time.perf_counter()
        work()
        self.synchronise()
        calls = 1 + int((0.3 if self.is_full else 0.02) / max(1e-6, time.perf_counter() - started))
        rounds = []
        for _ in range(ROUNDS if self.is_full else 3):
            started = time.perf_counter()
            for _ in range(calls):
                work()
            self.synchronise()
            rounds.append((time.perf_counter() - started) / calls)
        return statistics.median(rounds)


def percent(share: float | None) -> str:
    """A share in words."""
    return (
        "share of the peak not known (part peak was left out)" if share is None else f"{share:.1%} of the measured peak"
    )


def machine_facts(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch
    import transformers

    from benchmarks.contest import machine

    facts = machine() | {"transformers": transformers.__version__, "cuda": torch.version.cuda, "gpu": None}
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        facts |= {"gpu": found.name, "gpu_gib": round(found.total_memory / 2**30, 1)}
    return facts


def measure_peak(bench: Bench) -> dict[str, Any]:
    """Operations per second of square products of random numbers, by dtype and size, and the best of each dtype."""
    import torch

    figures: dict[str, Any] = {}
    for dtype in PEAK_DTYPES[bench.device]:
        rates: dict[int, float] = {}
        for size in PEAK_SIZES[bench.scale]:
            # Not zeros: with fewer bits that change, a GPU draws less power and keeps a higher clock.
            a, b = (torch.randn(size, size, device=bench.device).to(getattr(torch, dtype)) for _ in range(2))
            rates[size] = 2 * size**3 / bench.seconds(lambda a=a, b=b: a @ b)
        figures[dtype] = {"best": max(rates.values()), "by_size": rates}
        shown = ", ".join(f"{size}: {rate / 1e12:.2f}" for size, rate in rates.items())
        print(f"peak {dtype}: {figures[dtype]['best'] / 1e12:.2f} TFLOP/s ({shown})", flush=True)
    return figures


def run(bench: Bench, parts: list[str], figures: dict[str, Any]) -> None:
    """Measure the parts into `figures`.

    Raises:
        CheckError: something was computed wrong.
    """
    if "peak" in parts:
        figures["peak"] = measure_peak(bench)
        bench.peaks.update({dtype: found["best"] for dtype, found in figures["peak"].items()})
    if "embed" in parts or "pipeline" in parts:
        from benchmarks.gpu_embed import measure_embed, open_towers
        from benchmarks.gpu_pipeline import measure_pipeline

        with _scratch() as root:
            towers = open_towers(root, bench)
            if "embed" in parts:
                figures["embed"] = measure_embed(towers, bench)
            if "pipeline" in parts:
                figures["pipeline"] = measure_pipeline(towers, bench, root, figures.get("embed"))
        del towers
        _free(bench)
    if "join" in parts:
        from benchmarks.gpu_join import measure_join

        with _scratch() as root:
            figures["join"] = measure_join(bench, root)
        _free(bench)
    if "mof" in parts:
        from benchmarks.gpu_mof import measure_mof

        figures["mof"] = measure_mof(bench)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-gpu-") as folder:
        yield Path(folder)


def _free(bench: Bench) -> None:
    import gc

    import torch

    gc.collect()
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--scale", choices=["full", "smoke"], default="full", help="smoke: tiny models, to see that all runs"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"out of {','.join(PARTS)}")
    parser.add_argument("--join-vectors", type=int, default=0, help="also join so many vectors, block by block")
    parser.add_argument(
        "--decoders", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that decode in part pipeline"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"expected --parts out of {', '.join(PARTS)}, found {args.parts!r}")
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "expected a CUDA GPU for --device cuda, found none; --device cpu --scale smoke shows that all runs"
        )
    # The references are float32; TF32 would round what they multiply.
    torch.backends.cudnn.allow_tf32 = False
    bench = Bench(device=args.device, scale=args.scale, join_vectors=args.join_vectors, decoders=args.decoders)
    facts = machine_facts(args.device)
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    figures: dict[str, Any] = {"machine": facts, "arguments": arguments, "failed": None}
    gpu = f"{facts['gpu']}, {facts['gpu_gib']} GiB" if facts["gpu"] else "not measured on a GPU"
    versions = f"torch {facts['versions']['torch']}, CUDA {facts['cuda']}, transformers {facts['transformers']}"
    print(f"{gpu}; {versions}; {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB", flush=True)
    try:
        run(bench, parts, figures)
    except CheckError as error:
        figures["failed"] = str(error)
        print(f"FAILED: {error}", file=sys.stderr, flush=True)
    finally:
        # Also where a later part broke: a GPU is not to be had every day.
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if figures["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    # The parts know this file by its name: a second copy of CheckError, __main__'s, would catch nothing of theirs.
    from benchmarks.gpu import main as by_name

    by_name()
