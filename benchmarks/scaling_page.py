"""The section on scaling of docs/performance.md: what one and two cores reached, and the arithmetic for clusters that follows from unit costs."""

from __future__ import annotations

from typing import Any

from benchmarks.scaling_model import (
    EMBED,
    GPUS_PER_NODE,
    NODE_BYTES_PER_SECOND,
    PAIRS_PER_IMAGE,
    REQUEST_SECONDS,
    REQUESTS_IN_A_ROW,
    Estimate,
    costs_from,
    model,
)
from mmvp_ray.embed.drivers import ACTORS_PER_DRIVER
from mmvp_ray.pipeline.unit_costs import CORES_PER_GPU
from mmvp_ray.search import SearchConfig, choose_method
from mmvp_ray.search.exact import BLOCK_ROWS
from mmvp_ray.search.passes import MAX_TASKS

CLUSTERS = (8, 64, 512)
CORPORA = {"5e7 images, as many as LAION-Aesthetics": 50_000_000, "1e9 images": 1_000_000_000}
NAMES = {
    "noop": "embedding pass, an encoder that costs nothing: reading and decoding 500 x 375 px, images/s",
    "miniature": "embedding pass, the miniature CLIP on the CPU, images/s",
    "exact": "exact join of {num_images:,} x {dim}, GFLOP/s",
    "exact-fp32": "the same without the CPU's bfloat16 products, GFLOP/s",
}


def page(results: dict[str, dict[str, Any]]) -> str:
    """The section in Markdown.

    Args:
        results: By benchmark the JSON that it wrote: "scaling", and where there are any "gpu", "drivers", "hygiene" and "passes".
    """
    found = results.get("scaling") or {}
    lines = ["## Scaling", ""]
    if not found:
        return "\n".join([*lines, "Not measured: `python -m benchmarks.scaling`.", ""])
    lines += _here(found)
    if "units" in found:
        lines += _clusters(results)
    return "\n".join(lines)


def _here(found: dict[str, Any]) -> list[str]:
    """One and two cores of this machine."""
    facts = found.get("machine") or {}
    command = found.get("command", "python -m benchmarks.scaling")
    where = ", ".join([f"`{command}`", *(facts[name] for name in ("date", "cpu") if name in facts)])
    rows = []
    for part, key, scale in (("embed", "images_per_second", 1.0), ("join", "flop_per_second", 1e9)):
        for name, title in NAMES.items():
            if one := (found.get(part) or {}).get(name):
                rates = [_rates([rate / scale for rate in one[key][workers]]) for workers in ("1", "2")]
                rows.append(f"| {title.format(**found[part])} | {rates[0]} | {rates[1]} | **{one['speed_up']:.2f}** |")
    lines = [f"{where}.", ""]
    if rows:
        lines += [
            "With one core and with two, everything on so many: driver, Ray's own processes and workers. "
            "Ratios are of rates in the same round, medians.",
            "",
            "| what | 1 core | 2 cores | speed-up |",
            "|---|---|---|---|",
            *rows,
        ]
    else:
        lines += ["One core beside two: not measured."]
    if units := found.get("units"):
        lines += [
            "",
            "| unit cost, here | |",
            "|---|---|",
            f"| decoding and resizing, one core | {units['decode_images_per_second']:.0f} images/s |",
            f"| read, an image of 500 x 375 px | {units['read_bytes'] / 1e3:.0f} kB |",
            f"| written, an image: vectors of CLIP-L/14 and DINOv2-L/14, and its row | {units['written_bytes'] / 1e3:.1f} kB |",
            f"| committing both vectors of a piece of 2,048, local disk | {units['commit_seconds'] * 1e3:.0f} ms |",
        ]
    return [*lines, ""]


def _clusters(results: dict[str, dict[str, Any]]) -> list[str]:
    """The arithmetic."""
    costs = costs_from(results)
    is_assumed = "assumed" in costs.rates.sources["encode"]
    lines = [
        "### 8, 64 and 512 GPUs: arithmetic from these unit costs, not measured",
        "",
        f"CLIP ViT-L/14 and DINOv2 ViT-L/14 on {costs.gpu}s, {GPUS_PER_NODE} GPUs a node with {CORES_PER_GPU} cores for each, images and tables on S3, the exact join. "
        + ("**The rates of the GPU are assumptions**: nothing of this was run on one. " if is_assumed else "")
        + "Stages of the embedding pass run at one time, the others one after the other.",
        "",
        *[f"* {kind}: {source}." for kind, source in costs.rates.sources.items()],
        f"* Also assumed: {NODE_BYTES_PER_SECOND / 1e9:g} GB/s between a node and S3, {REQUEST_SECONDS * 1e3:.0f} ms for a PUT, {REQUESTS_IN_A_ROW} of them in a row for a piece, "
        f"{PAIRS_PER_IMAGE:g} near pair for each image.",
        "",
    ]
    for title, num_images in CORPORA.items():
        estimates = [model(costs, num_gpus, num_images) for num_gpus in CLUSTERS]
        lines += [
            f"| {title} | " + " | ".join(f"{one.num_gpus} GPUs" for one in estimates) + " |",
            "|---|" + "---|" * len(estimates),
        ]
        for at, stage in enumerate(estimates[0].stages):
            cells = [_marked(one, at) for one in estimates]
            lines.append(f"| {stage.phase}: {stage.name} | " + " | ".join(cells) + " |")
        lines += [
            f"| {EMBED}, with its start | " + " | ".join(hours(one.embed_hours) for one in estimates) + " |",
            "| all, with the exact join | " + " | ".join(hours(one.hours) for one in estimates) + " |",
            "| bound by | " + " | ".join(f"{one.bound.phase}, {one.bound.name}" for one in estimates) + " |",
            "| what `auto` joins with there | " + " | ".join(_engine(one) for one in estimates) + " |",
            "",
        ]
    cores = model(costs, CLUSTERS[0]).cores_per_gpu
    lines += [
        f"The largest stage is bold. **{cores:.1f} cores a GPU** decode as fast as it encodes and commits, at images of this size.",
        f"Ids are read by {MAX_TASKS} tasks, as fast as S3 promises to answer for a prefix: one process would take {hours(model(costs, CLUSTERS[0], 10**9).num_pieces * costs.pass_seconds / 3600)} for 1e9 images. "
        f"A driver looks after {ACTORS_PER_DRIVER} GPUs, at {costs.driver_seconds * 1e3:.0f} ms of a core for a piece; the job's own process counts what they did. "
        f"That, and census and hygiene in one process, do not become faster with GPUs. The exact join cuts the vectors into blocks "
        f"of at most {BLOCK_ROWS['cuda']:,}, and reads every block once for each other one, so that the network bounds it sooner than the products do; routing compares a hundredth of the pairs or less, and reads each vector 4 to 12 times.",
        "",
    ]
    return lines


def _marked(one: Estimate, at: int) -> str:
    stage = one.stages[at]
    return f"**{hours(stage.hours)}**" if stage == one.bound else hours(stage.hours)


def _engine(one: Estimate) -> str:
    return choose_method(SearchConfig(), num_images=one.num_images, device="cuda", num_workers=one.num_gpus).engine


def hours(value: float) -> str:
    """For people: seconds below a minute, minutes below an hour."""
    if value < 1 / 60:
        return f"{value * 3600:.2g} s"
    return f"{value * 60:.0f} min" if value < 1 else f"{value:.1f} h" if value < 100 else f"{value:,.0f} h"


def _rates(rates: list[float]) -> str:
    """One number, or the range of several."""
    low, high = min(rates), max(rates)
    return f"{low:,.0f}" if f"{low:,.0f}" == f"{high:,.0f}" else f"{low:,.0f} to {high:,.0f}"
