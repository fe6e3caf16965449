"""What a GPU makes of the kernels, without Ray: `python -m benchmarks.gpu [--parts peak,embed,...] [--json FILE]`.

Needs torch, torchvision, transformers, numpy, pillow, safetensors, pyarrow, fsspec, PyYAML, psutil and tqdm, but neither
Ray, FAISS, open_clip, timm nor peft. Each part checks first and measures then. One that fails is named, the others go
on, and the exit code is 1; --json has every figure as soon as it is found, those of a call that is cut off too. Weights
are random, of the published sizes: speed does not depend on them.

In this order, the most wanted first; all of them take about seven minutes on an H100 (estimated), and say their seconds:

* peak: square matrix products. Shares are of the best of them in the same run; without this part there are none.
* embed: CLIP ViT-L/14 and DINOv2-L/14 through mmvp_ray.encoders, by batch size, from pinned and pageable memory.
* pipeline: tars of JPEGs, read, decoded by processes and embedded by both encoders, decoding and copying beside the
  GPU's work.
* join: mmvp_ray.search.kernel.join_block against float64, then by size; a + b N + c N^2 is fitted on all sizes but the
  largest, and its error shown there.
* fused: the join with products that never leave the registers (mmvp_ray.search.fused_products, by Triton) beside the plain one.
* compile: both encoders compiled by torch.compile, at the batch at which part embed found them fastest.
* mof: training steps of an interleaved Mixture-of-Features model: fp32 against bf16, then tokens a second.

--join-vectors N joins so many after all else, in blocks; for 10,000,000 of them, some five minutes, a call of its own:
`--parts peak,join --join-vectors 10000000`. `python -m benchmarks --take gpu=FILE` puts both files on the page.

On a CPU (--device cpu) it says whether all of it runs; its figures are none of a GPU.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_bench import Bench, Found, Record, usable_cores

PARTS = ("peak", "embed", "pipeline", "join", "fused", "compile", "mof")
BLOCKWISE = "blockwise"
"""The part that --join-vectors asks for."""
PEAK_SIZES = {"full": (4096, 8192, 12288, 16384), "smoke": (128, 256)}
PEAK_DTYPES = {"cuda": ("float16", "bfloat16"), "cpu": ("float32", "bfloat16")}


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


def measure_peak(bench: Bench, found: Found) -> None:
    """Operations per second of square products of random numbers, by dtype and size, and the best of each dtype."""
    import torch

    for dtype in PEAK_DTYPES[bench.device]:
        rates: dict[int, float] = {}
        for size in PEAK_SIZES[bench.scale]:
            # Not zeros: with fewer bits that change, a GPU draws less power and keeps a higher clock.
            a, b = (torch.randn(size, size, device=bench.device).to(getattr(torch, dtype)) for _ in range(2))
            rates[size] = 2 * size**3 / bench.seconds(lambda a=a, b=b: a @ b)
        bench.peaks[dtype] = max(rates.values())
        found.add(**{dtype: {"best": bench.peaks[dtype], "by_size": rates}})
        shown = ", ".join(f"{size}: {rate / 1e12:.2f}" for size, rate in rates.items())
        print(f"peak {dtype}: {bench.peaks[dtype] / 1e12:.2f} TFLOP/s ({shown})", flush=True)


def run(bench: Bench, parts: list[str], record: Record) -> None:
    """Measure the parts, in the order of PARTS; each imports what it needs itself, so that one that cannot fails alone."""
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-gpu-") as folder:
        root = Path(folder)

        @functools.cache
        def towers() -> Any:
            from benchmarks.gpu_embed import open_towers

            return open_towers(root / "towers", bench)

        def embed(found: Found) -> None:
            from benchmarks.gpu_embed import measure_embed

            measure_embed(towers(), bench, found)

        def pipeline(found: Found) -> None:
            from benchmarks.gpu_pipeline import measure_pipeline

            measure_pipeline(towers(), bench, root, record.figures.get("embed"), found)

        def join(found: Found) -> None:
            from benchmarks.gpu_join import measure_join

            measure_join(bench, found)

        def fused(found: Found) -> None:
            from benchmarks.gpu_fused import measure_fused

            measure_fused(bench, found)

        def compiled(found: Found) -> None:
            from benchmarks.gpu_embed import measure_compiled

            measure_compiled(towers(), bench, record.figures.get("embed"), found)

        def mof(found: Found) -> None:
            from benchmarks.gpu_mof import measure_mof

            measure_mof(bench, found)

        def blockwise(found: Found) -> None:
            from benchmarks.gpu_join import measure_blockwise

            measure_blockwise(bench, root, record.figures.get("join"), found)

        measures: dict[str, Callable[[Found], None]] = {
            "peak": functools.partial(measure_peak, bench),
            "embed": embed,
            "pipeline": pipeline,
            "join": join,
            "fused": fused,
            "compile": compiled,
            "mof": mof,
            BLOCKWISE: blockwise,
        }
        for part, work in measures.items():
            if part in parts:
                if part in ("mof", BLOCKWISE):
                    towers.cache_clear()
                record.measure(part, functools.partial(_apart, bench, work))


def _apart(bench: Bench, work: Callable[[Found], None], found: Found) -> None:
    bench.forget_peak_memory()
    work(found)


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
        "--decoders", type=int, default=max(1, usable_cores() - 1), help="processes that decode in part pipeline"
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
    # The references are float32; TF32, which some images switch on for all, would round what they multiply.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    bench = Bench(device=args.device, scale=args.scale, join_vectors=args.join_vectors, decoders=args.decoders)
    facts = machine_facts(args.device)
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    record = Record({"machine": facts, "arguments": arguments}, args.json)
    gpu = f"{facts['gpu']}, {facts['gpu_gib']} GiB" if facts["gpu"] else "not measured on a GPU"
    versions = f"torch {facts['versions']['torch']}, CUDA {facts['cuda']}, transformers {facts['transformers']}"
    print(f"{gpu}; {versions}; {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB", flush=True)
    # Ended at its limit: decoders and folders are not left behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    run(bench, [*parts, BLOCKWISE] if args.join_vectors else parts, record)
    if record.figures["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
