"""How mof and gpu are shown: training beside a bare loop, and what a GPU makes of the kernels."""

from __future__ import annotations

from typing import Any

from benchmarks.section import Claim, Figures, Section, at, everything, median_of, pick, rounds_of, table

CURATOR_IMAGES_PER_SECOND = 900 / 8
"""A GPU's share of the images a second that NeMo Curator's nightly benchmark image_curation_xenna must reach on 8 (from tars, CLIP ViT-L/14, aesthetic head, written):
benchmarking/nightly-benchmark.yaml of https://github.com/NVIDIA-NeMo/Curator at 003f751e. Another machine, and a floor: no measurement beside ours."""


def mof_tables(figures: Figures) -> list[str]:
    """Both loops."""
    rounds = figures["rounds"]
    rows = [
        (
            "bare loop on batches made beforehand, tokens/s",
            median_of([one["bare_tokens_per_second"] for one in rounds], 0),
        ),
        ("training loop on Ray, tokens/s", median_of([one["tokens_per_second"] for one in rounds], 0)),
        ("training loop / bare loop", median_of([one["ratio"] for one in rounds])),
        ("waiting for data, share of the time", median_of([one["wait_share"] for one in rounds], 4)),
    ]
    return table(("what", f"median of {rounds_of(rounds)}"), rows)


MOF = Section(
    claims=(Claim(what="Mixture-of-Features training loop on Ray over a bare loop", of=at("ratio"), at_least=0.9),),
    tables=mof_tables,
)


def keep_gpu(figures: Figures) -> Figures:
    """Parts that came to their end, without single rounds; which device it was decides whether anything was measured on a GPU."""
    kept = everything(figures) | {"device": pick(figures, "arguments", "device")}
    kept = {name: value for name, value in kept.items() if name not in ("unfinished", "seconds")}
    for part in ("join", "fused"):
        if sizes := pick(kept, part, "sizes"):
            shown = [{name: value for name, value in one.items() if name != "all_seconds"} for one in sizes]
            kept[part] = kept[part] | {"sizes": shown}
    return kept


def gpu_tables(figures: Figures) -> list[str]:
    """A table for each part that was measured."""
    lines: list[str] = []
    if peak := figures.get("peak"):
        rows = ((dtype, f"{one['best'] / 1e12:,.1f}") for dtype, one in sorted(peak.items()))
        lines += table(("square products, best size", "TFLOP/s"), rows)
    if embed := figures.get("embed"):
        lines += _embed(embed, figures.get("compile"))
    if pipeline := figures.get("pipeline"):
        lines += table(("from tars to both encoders' vectors", ""), _pipeline(pipeline))
    if join := figures.get("join"):
        lines += _join(join, figures.get("blockwise"))
    if sizes := pick(figures, "fused", "sizes"):
        lines += _fused(sizes)
    if mof := figures.get("mof"):
        facts = (
            ("parameters", f"{mof['num_parameters']:,}"),
            ("tokens/s", f"{mof['tokens_per_second']:,.0f}"),
            ("seconds a step", f"{mof['step_seconds']:.3f}"),
            ("MFU, of the measured peak", _percent(mof["share_of_measured_peak"])),
            ("MFU, of the published peak", _percent(mof.get("share_of_published_peak"))),
            ("largest difference of losses, fp32 and bf16", f"{mof['largest_difference']:.2%}"),
        )
        lines += table(("Mixture-of-Features training, interleaved, bf16", ""), facts)
    return lines


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"


def _embed(embed: dict[str, Any], compiled: dict[str, Any] | None) -> list[str]:
    places = sorted(next(iter(next(iter(embed["encoders"].values()))["images_per_second"].values())))
    rows = [
        (name, size, *(f"{rates[place]:,.0f}" for place in places))
        for name, one in sorted(embed["encoders"].items())
        for size, rates in sorted(one["images_per_second"].items(), key=lambda item: int(item[0]))
    ]
    words = {"as they are": embed["both"]} | ({"compiled": compiled} if compiled else {})
    lines = table(
        (f"{embed['dtype']}, images/s", "batch", *(f"pixels {place.replace('_', ' ')}" for place in places)), rows
    )
    return lines + table(
        ("both encoders", "batch", "images/s", "of the measured peak"),
        (
            (said, str(one["batch"]), f"{one['images_per_second']:,.0f}", _percent(one["share_of_peak"]))
            for said, one in words.items()
        ),
    )


def _pipeline(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("images/s", f"{found['images_per_second']:,.0f}"),
        ("share of the encoders alone", _percent(found["share_of_embed"])),
        ("decoding processes, cores that they used", f"{found['decoders']}, {found['cores_decoding']:.1f}"),
        ("images/s a core decodes", f"{found['decode_images_per_core_second']:,.0f}"),
        ("device busy", _percent(found["device_busy_share"])),
    ]


def _join(join: dict[str, Any], block: dict[str, Any] | None) -> list[str]:
    rows = [
        (
            f"{one['num_vectors']:,}",
            f"{one['seconds']:.3f}",
            f"{one['flop_per_second'] / 1e12:,.1f}",
            _percent(one["share_of_peak"]),
        )
        for one in join["sizes"]
    ]
    if block:
        foretold = block["foretold_seconds"]
        said = f" (foretold {foretold:,.0f} s)" if foretold is not None else ""
        what = f"{block['num_vectors']:,} in {block['num_blocks']} blocks{said}"
        rate, share = f"{block['flop_per_second'] / 1e12:,.1f}", _percent(block["share_of_peak"])
        rows.append((what, f"{block['join_seconds']:.1f}", rate, share))
    fit, largest = join["fit"], join["foretold"]
    return [
        *table((f"join of N vectors of {join['dim']} numbers", "seconds", "TFLOP/s", "of the measured peak"), rows),
        f"t = {fit['a']:.3g} s + {fit['b']:.3g} s N + {fit['c']:.3g} s N^2 foretells {largest['seconds']:,.0f} s for "
        f"{largest['num_vectors']:,}; "
        f"at the largest size measured it is {fit['error_at_largest']:+.1%} off.",
        "",
    ]


def _fused(sizes: list[dict[str, Any]]) -> list[str]:
    header = (
        "products of N vectors, in groups of so many near ones",
        "blocks multiplied again",
        "plain, seconds",
        "fused, seconds",
        "plain / fused",
        "fused, of the measured peak",
    )
    rows = (
        (
            f"{one['num_vectors']:,}, {one['group']}",
            f"{one['share_again']:.1%}",
            f"{one['plain_seconds']:.3f}",
            f"{one['fused_seconds']:.3f}",
            f"{one['ratio']:.2f}",
            _percent(one["share_of_peak"]),
        )
        for one in sizes
    )
    return table(header, rows)


def _both_share(figures: Figures) -> float | None:
    found = [pick(figures, *path, "share_of_peak") for path in (("embed", "both"), ("compile",))]
    shares = [share for share in found if share is not None]
    return max(shares) if shares else None


def _fit_error(figures: Figures) -> float | None:
    error = pick(figures, "join", "fit", "error_at_largest")
    return None if error is None else 100 * abs(error)


def _over_curator(figures: Figures) -> float | None:
    rate = pick(figures, "pipeline", "images_per_second")
    return None if rate is None else rate / CURATOR_IMAGES_PER_SECOND


GPU = Section(
    claims=(
        Claim(
            what="CLIP ViT-L/14 and DINOv2-L/14 together, share of the GPU's measured peak",
            of=_both_share,
            at_least=0.6,
        ),
        Claim(
            what="images/s from tars to both encoders' vectors (the goal is for an H200)",
            of=at("pipeline", "images_per_second"),
            digits=0,
            at_least=1400,
        ),
        Claim(
            what="the same over an eighth of what NeMo Curator's nightly image curation on 8 GPUs has to reach",
            of=_over_curator,
            unit=" times as fast",
        ),
        Claim(what="the same over the encoders alone", of=at("pipeline", "share_of_embed"), at_least=0.9),
        Claim(what="error of the join's formula at the largest size", of=_fit_error, unit=" %", digits=1, at_most=25),
        Claim(
            what="plain products' time over fused ones', the least of all densities of pairs",
            of=at("fused", "least_ratio"),
        ),
        Claim(what="training step, MFU of the measured peak", of=at("mof", "share_of_measured_peak")),
    ),
    tables=gpu_tables,
    keep=keep_gpu,
)
