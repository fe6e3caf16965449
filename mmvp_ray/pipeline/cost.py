"""The cost estimate: pieces, images, vectors, operations, bytes and hours of a run before it starts, and afterwards what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmvp_ray.embed import Plan
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.pipeline.encoder_flop import flop_per_image
from mmvp_ray.pipeline.progress import Stage
from mmvp_ray.pipeline.unit_costs import MIN_MEASURED_SECONDS, Hardware, UnitCosts

ROW_BYTES = 400
"""What one image costs in the images table with caption, URL and metadata; a tenth to a half of it without."""
FILE_BYTES = 3000
"""What a Parquet file costs beside its rows: the schema and the footer."""
VECTOR_ID_BYTES = 16
MIN_COMPARED_SECONDS = 10.0
START_SECONDS = 35.0
"""Until the first piece is embedded on a Ray of its own: Ray, its workers and small encoders start (2 cores, measured: 26 to 38 s)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a run will take.

    Attributes:
        num_pieces: Pieces left to embed; estimated from bytes for tars that nobody has read to the end, exact for folders.
        num_images: Images in them; likewise.
        num_vectors: Vectors to be written, one for each image and encoder that lacks it; fewer where images are rejected or are copies.
        num_pairs: Pairs that the exact engine compares, all images of the run with each other: at most, for what earlier runs compared is
            not compared again, and other engines compare less.
        encode_flop: Operations of the encoders.
        join_flop: Operations of comparing `num_pairs`; two for each number of a vector.
        store_bytes: New bytes in the tables of images and vectors.
        embed_hours: Decoding and encoding on `hardware`: the slower one where GPUs encode, else the sum; and START_SECONDS, if there is
            anything to embed.
        join_hours: The exact join on `hardware`.
        hardware: What the hours are for.
        sources: Where the rates come from, by kind of work.
        guessed: Encoders whose operations were guessed from their parameters.
    """

    num_pieces: int
    num_images: int
    num_vectors: int
    num_pairs: int
    encode_flop: float
    join_flop: float
    store_bytes: int
    embed_hours: float
    join_hours: float
    hardware: Hardware
    sources: Mapping[str, str] = field(default_factory=dict)
    guessed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people: the work, the hours, and where the rates come from."""
        lines = [
            f"work: {_amounts(asdict(self))}, {self.encode_flop:.2g} FLOP to embed, at most {self.num_pairs:,} pairs and {self.join_flop:.2g} FLOP to join",
            f"on {self.hardware.text()}: roughly {_hours(self.embed_hours)} to embed and {_hours(self.join_hours)} to join",
        ]
        lines += [f"  rate of {kind}: {source}" for kind, source in self.sources.items()]
        if self.guessed:
            lines.append(
                f"  no formula for the FLOP of {', '.join(self.guessed)}: taken as twice the parameters for each 14 x 14 px"
            )
        return lines


def forecast(
    plan: Plan,
    specs: Mapping[str, EncoderSpec],
    *,
    nears: Sequence[str],
    num_images_total: int,
    hardware: Hardware,
    costs: UnitCosts,
) -> Forecast:
    """Add up the work of a plan and divide it by rates.

    Args:
        plan: What is left to embed.
        specs: The encoders by slug.
        nears: Slugs of those whose vectors are joined.
        num_images_total: Images that will be joined.
        hardware: What does it.
        costs: Rates of that hardware.
    """
    images = plan.num_images_left
    lacking = missing_shares(plan, list(specs))
    flop = {slug: flop_per_image(spec) for slug, spec in specs.items()}
    encode_device_seconds = sum(
        images * lacking[slug] / rate
        if (rate := costs.encode_images_per_second.get(slug))
        else images * lacking[slug] * flop[slug][0] / costs.encode_flop_per_second
        for slug in specs
    )
    encode_seconds = encode_device_seconds / hardware.num_devices
    decode_seconds = images / (costs.decode_images_per_second * hardware.num_cores)
    embed_seconds = max(encode_seconds, decode_seconds) if hardware.num_gpus else encode_seconds + decode_seconds
    embed_seconds += START_SECONDS if plan.num_pieces_left else 0.0
    pairs = num_images_total * (num_images_total - 1) // 2
    join_flop = float(sum(2 * specs[slug].dim for slug in nears)) * pairs
    vector_bytes = sum(round(images * lacking[slug]) * (2 * spec.dim + VECTOR_ID_BYTES) for slug, spec in specs.items())
    num_files = plan.num_pieces_left * (2 + sum(lacking.values()))
    return Forecast(
        num_pieces=plan.num_pieces_left,
        num_images=images,
        num_vectors=sum(round(images * share) for share in lacking.values()),
        num_pairs=pairs * len(nears),
        encode_flop=sum(images * lacking[slug] * flop[slug][0] for slug in specs),
        join_flop=join_flop,
        store_bytes=int(vector_bytes + images * ROW_BYTES + num_files * FILE_BYTES),
        embed_hours=embed_seconds / 3600.0,
        join_hours=join_flop / (costs.join_flop_per_second * hardware.num_devices) / 3600.0,
        hardware=hardware,
        sources=dict(costs.sources),
        guessed=tuple(spec.name for slug, spec in specs.items() if not flop[slug][1]),
    )


def missing_shares(plan: Plan, slugs: Sequence[str]) -> dict[str, float]:
    """For each encoder the share of the pieces left that lack its vectors: a new encoder beside old ones has all the work."""
    if not plan.num_pieces_left:
        return dict.fromkeys(slugs, 0.0)
    num_begun = 0
    lacking = dict.fromkeys(slugs, 0)
    for work in plan.work:
        begun = work.images_done.union(*work.embedded.values()) - work.skip
        num_begun += len(begun)
        for slug in slugs:
            lacking[slug] += len(begun - work.embedded[slug])
    num_untouched = max(0, plan.num_pieces_left - num_begun)
    return {
        slug: min(1.0, (count + num_untouched) / max(plan.num_pieces_left, num_begun))
        for slug, count in lacking.items()
    }


def took(stages: Sequence[Stage]) -> dict[str, Any]:
    """What a finished run took, in the terms of its forecast: from the stages embed and join, of all near encoders."""
    counts: dict[str, float] = {}
    for stage in stages:
        if stage.name == "embed":
            for name, value in stage.counts.items():
                counts[name] = counts.get(name, 0) + value
    embed_seconds = sum(stage.seconds for stage in stages if stage.name == "embed")
    joins = [stage for stage in stages if stage.name.split(" ")[0] == "join"]
    return {
        "num_pieces": int(counts.get("pieces", 0)),
        "num_images": int(counts.get("num_read", 0)),
        "num_vectors": int(counts.get("num_embedded", 0)),
        "num_pairs": sum(stage.count for stage in joins),
        "read_bytes": int(counts.get("num_bytes", 0)),
        "store_bytes": int(counts.get("num_written_bytes", 0)),
        "embed_hours": embed_seconds / 3600.0,
        "join_hours": sum(stage.seconds for stage in joins) / 3600.0,
    }


def unit_costs_of(
    stages: Sequence[Stage], *, join_dims: Mapping[str, int], hardware: Hardware, num_joiners: float, threads: float
) -> dict[str, Any]:
    """The rates that a finished run measured, for the plans of later ones; without those that it had too little work to tell.

    Args:
        stages: The run's stages.
        join_dims: For the name of each join stage the numbers in a vector.
        hardware: What it ran on.
        num_joiners: Workers of the join.
        threads: Cores, or GPUs, of one encoder actor.
    """
    found: dict[str, Any] = {"gpu": hardware.gpu}
    embed = next((stage for stage in stages if stage.name == "embed"), None)
    if embed is not None:
        seconds = embed.counts.get("decode_seconds", 0.0)
        if seconds >= MIN_MEASURED_SECONDS:
            found["decode_images_per_second"] = round(embed.counts["num_read"] / seconds, 3)
        slugs = [name.removeprefix("encode_images ") for name in embed.counts if name.startswith("encode_images ")]
        rates = {
            slug: round(embed.counts[f"encode_images {slug}"] / (seconds * threads), 4)
            for slug in slugs
            if (seconds := embed.counts.get(f"encode_seconds {slug}", 0.0)) >= MIN_MEASURED_SECONDS
        }
        if rates:
            found["encode_images_per_second"] = rates
    joins = [stage for stage in stages if stage.name in join_dims and stage.count]
    seconds = sum(stage.seconds for stage in joins)
    if seconds >= MIN_MEASURED_SECONDS:
        flop = sum(2.0 * join_dims[stage.name] * stage.count for stage in joins)
        found["join_flop_per_second"] = round(flop / (seconds * max(1.0, num_joiners)))
    return found


def comparison(expected: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """What the plan said beside what the run took, for people; nothing for a run that had nothing to embed.

    A stage below MIN_COMPARED_SECONDS, by the plan and in truth, is left out: what it takes to begin one is no part of any rate.
    """
    if not expected.get("num_pieces"):
        return []
    hours = {name: (float(expected[name]), float(measured[name])) for name in ("embed_hours", "join_hours")}
    told = {name: pair for name, pair in hours.items() if max(pair) * 3600 >= MIN_COMPARED_SECONDS}
    ratios = ", ".join(
        f"{name.removesuffix('_hours')} {_hours(said)} said, {_hours(was)} taken"
        + (f" ({was / said:.2g} x)" if said else "")
        for name, (said, was) in told.items()
    )
    amounts = f"the plan said {_amounts(expected)}; the run took {_amounts(measured)}"
    return [amounts, f"on {Hardware(**expected['hardware']).text()}: {ratios}"] if told else [amounts]


def _amounts(of: Mapping[str, Any]) -> str:
    pieces = f"{of['num_pieces']:,} piece" + ("" if of["num_pieces"] == 1 else "s")
    return f"{pieces}, {of['num_images']:,} images, {of['num_vectors']:,} vectors, {of['store_bytes'] / 1e6:,.1f} MB"


def _hours(hours: float) -> str:
    return f"{hours * 3600:.2g} s" if hours < 1 / 60 else f"{hours * 60:.2g} min" if hours < 1 else f"{hours:.3g} h"
