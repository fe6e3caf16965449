"""What a large corpus costs on many GPUs: hours of every stage from unit costs, and which stage bounds the run. Arithmetic, no measurement.

Amounts (pieces, operations, bytes) and the hours of decoding, encoding and joining are those of the project's own plan (pipeline/cost.py); here is
what a plan leaves out: the network, commits, and the processes that drive it all.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass
from typing import Any

from mmvp_ray.embed import Plan
from mmvp_ray.embed.drivers import ACTORS_PER_DRIVER
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.images.geometry import Geometry
from mmvp_ray.pipeline.cost import START_SECONDS, VECTOR_ID_BYTES, forecast
from mmvp_ray.pipeline.unit_costs import CORES_PER_GPU, Hardware, UnitCosts, table_costs
from mmvp_ray.search.exact import BLOCK_ROWS, num_blocks
from mmvp_ray.search.passes import MAX_TASKS
from mmvp_ray.sources.piece import PIECE_MEMBERS

GPUS_PER_NODE = 8
NODE_BYTES_PER_SECOND = 2.0e9
"""Assumed: what the processes of a node read from, or write to, S3 in its region; 16 Gbit/s."""
REQUEST_SECONDS = 0.1
"""Assumed: until S3 has taken one PUT of at most 4 MB."""
REQUESTS_IN_A_ROW = 4
"""Of an encoder actor for a piece: vectors and marker of two encoders. What it notes of its attempts does not wait for an answer."""
PAIRS_PER_IMAGE = 1.0
"""Assumed: near pairs of a corpus for each of its images."""
CENSUS_SECONDS = 876 / 1e9
"""An image; 1e9 ids on one process (docs/performance_notes.md, measured by benchmarks.hygiene)."""
HYGIENE_SECONDS = (52 + 535 + 94) / 1e8
"""A near pair: counts, copies, hubs, sorting and hygiene of 1e8 on one process (likewise); the images tables were read in it as well."""
DRIVER_SECONDS, JOB_SECONDS = 0.028, 0.0011
"""Of a core for a piece: of the process that drives Ray Data for 48 actors, and of the job's own where several processes do
(docs/performance_notes.md, "What driving many actors costs"; benchmarks.drivers measures both)."""
PASS_SECONDS = 0.0090 + 3 * 0.0038
"""Of a core for a piece on S3: a census reads ids of its vectors, blind pairs and what is shown those of its images table, the counts its
marker (measured by benchmarks.passes)."""

EMBED, PASSES, ALONE, JOIN = "embedding pass", "some tasks", "one process", "join"


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What a unit of work costs.

    Attributes:
        rates: Images and operations a second of a core and a GPU, with their sources.
        gpu: The GPU that they are for.
        read_bytes: Of an encoded image.
        commit_seconds: Of an encoder actor for a piece of 2,048 images and two encoders, on a disk of its own.
        driver_seconds: Of a driver's processor for a piece, with about as many actors as a driver looks after.
        job_seconds: Of the job's own processor for a piece that a driver tells it of.
        census_seconds: Of one process for an image.
        hygiene_seconds: Of one process for a near pair.
        pass_seconds: Of a core for a piece, all passes over the pieces together.
    """

    rates: UnitCosts
    gpu: str = "H100"
    read_bytes: float
    commit_seconds: float
    driver_seconds: float = DRIVER_SECONDS
    job_seconds: float = JOB_SECONDS
    census_seconds: float = CENSUS_SECONDS
    hygiene_seconds: float = HYGIENE_SECONDS
    pass_seconds: float = PASS_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage: its name, the phase that it belongs to, and its hours if nothing else slowed it down."""

    name: str
    phase: str
    hours: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A run of so many images on so many GPUs.

    Attributes:
        num_gpus: GPUs.
        num_images: Images.
        num_pieces: Pieces of 2,048.
        stages: All stages. Those of the embedding pass run at one time, the others one after the other.
        start_hours: Until Ray and the encoders have started.
        cores_per_gpu: Cores that decode as fast as one GPU encodes and commits.
    """

    num_gpus: int
    num_images: int
    num_pieces: int
    stages: tuple[Stage, ...]
    start_hours: float
    cores_per_gpu: float

    @property
    def bound(self) -> Stage:
        """The largest stage: what to make faster first."""
        return max(self.stages, key=lambda stage: stage.hours)

    @property
    def embed_bound(self) -> Stage:
        """The largest stage of the embedding pass."""
        return max((stage for stage in self.stages if stage.phase == EMBED), key=lambda stage: stage.hours)

    @property
    def embed_hours(self) -> float:
        """Of the embedding pass: its largest stage, and the start."""
        return self.embed_bound.hours + self.start_hours

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.embed_hours + sum(stage.hours for stage in self.stages if stage.phase != EMBED)


def model(
    costs: Costs, num_gpus: int, num_images: int = 50_000_000, *, cores_per_gpu: float = CORES_PER_GPU
) -> Estimate:
    """Hours of every stage of mining with CLIP ViT-L/14 and DINOv2 ViT-L/14, the exact join, images and tables on S3.

    Args:
        costs: Unit costs.
        num_gpus: GPUs, eight on a node; fewer share one node's network.
        num_images: Images of the corpus.
        cores_per_gpu: Cores that decode, for each GPU.
    """
    hardware = Hardware(num_cores=cores_per_gpu * num_gpus, num_gpus=num_gpus, gpu=costs.gpu)
    pieces = math.ceil(num_images / PIECE_MEMBERS)
    plan = Plan(
        work=(),
        num_shards=pieces,
        num_pieces_done=0,
        num_pieces_left=pieces,
        num_images_left=num_images,
        num_images_total=num_images,
    )
    near, far = published_specs()
    specs = {spec.slug: spec for spec in (near, far)}

    def planned(rates: UnitCosts) -> Any:
        return forecast(plan, specs, nears=[near.slug], num_images_total=num_images, hardware=hardware, costs=rates)

    amounts = planned(costs.rates)
    start_hours = START_SECONDS / 3600
    # The plan says the slower of decoding and encoding: each is had by making the other one cost nothing.
    encode = planned(dataclasses.replace(costs.rates, decode_images_per_second=math.inf)).embed_hours - start_hours
    free = dict.fromkeys(specs, math.inf)
    decode = planned(dataclasses.replace(costs.rates, encode_images_per_second=free)).embed_hours - start_hours
    # An actor commits a piece before it takes the next one.
    commit = pieces * (costs.commit_seconds + REQUESTS_IN_A_ROW * REQUEST_SECONDS) / num_gpus / 3600
    network = NODE_BYTES_PER_SECOND * math.ceil(num_gpus / GPUS_PER_NODE) * 3600
    # Every pair of blocks is a task, which reads both, so that vectors are read as often as there are blocks.
    blocks = max(num_blocks(num_gpus), math.ceil(num_images / BLOCK_ROWS["cuda"]))
    num_drivers = math.ceil(num_gpus / ACTORS_PER_DRIVER)
    block_bytes = blocks * num_images * (2 * near.dim + VECTOR_ID_BYTES)
    return Estimate(
        num_gpus=num_gpus,
        num_images=num_images,
        num_pieces=pieces,
        stages=(
            Stage(name="read images", phase=EMBED, hours=num_images * costs.read_bytes / network),
            Stage(name="decode", phase=EMBED, hours=decode),
            Stage(name="encode and commit", phase=EMBED, hours=encode + commit),
            Stage(name="write tables", phase=EMBED, hours=amounts.store_bytes / network),
            Stage(name="drivers", phase=EMBED, hours=pieces * costs.driver_seconds / num_drivers / 3600),
            Stage(name="count pieces", phase=EMBED, hours=pieces * costs.job_seconds / 3600),
            Stage(
                name="read ids",
                phase=PASSES,
                hours=pieces * costs.pass_seconds / min(hardware.num_cores, MAX_TASKS) / 3600,
            ),
            Stage(name="census", phase=ALONE, hours=num_images * costs.census_seconds / 3600),
            Stage(name="read blocks", phase=JOIN, hours=block_bytes / network),
            Stage(name="multiply", phase=JOIN, hours=amounts.join_hours),
            Stage(
                name="hygiene",
                phase=ALONE,
                hours=num_images * PAIRS_PER_IMAGE * costs.hygiene_seconds / 3600,
            ),
        ),
        start_hours=start_hours,
        cores_per_gpu=cores_per_gpu * decode / (encode + commit),
    )


def costs_from(results: dict[str, dict[str, Any]], *, gpu: str = "H100") -> Costs:
    """Unit costs from saved results: "scaling" must be there; rates of GPUs from "gpu" if it has any, else assumed as in every plan.

    Args:
        results: By benchmark, the JSON that it wrote.
        gpu: Which GPU the rates of the table are for, where none was measured.
    """
    units = results["scaling"]["units"]
    measured = results.get("gpu") or {}
    name = str((measured.get("machine") or {}).get("gpu") or "")
    known = next((one for one in ("H100", "H200", "B200", "A100", "L40S") if one in name), "") if name else ""
    gpu = known or gpu
    rates = table_costs(Hardware(num_cores=1, num_gpus=1, gpu=gpu))
    sources = {**rates.sources, "decode": "measured by benchmarks.scaling on one core"}
    decode = float(units["decode_images_per_second"])
    if noop := results["scaling"].get("embed", {}).get("noop"):
        # What Ray and moving pixels cost that core as well.
        decode = statistics.median(noop["images_per_second"]["1"])
        sources["decode"] += ": the embedding pass with an encoder that costs nothing"
    changes: dict[str, Any] = {"decode_images_per_second": decode}
    encoders = (measured.get("embed") or {}).get("encoders") or {}
    if known and {"clip", "dinov2"} <= set(encoders):
        near, far = published_specs()
        changes["encode_images_per_second"] = {
            spec.slug: max(rate for found in encoders[kind]["images_per_second"].values() for rate in found.values())
            for kind, spec in (("clip", near), ("dinov2", far))
        }
        sources["encode"] = f"measured by benchmarks.gpu on one {name}"
    if known and (join := measured.get("join")):
        largest = max(join["sizes"], key=lambda row: row["num_vectors"])
        pairs = largest["num_vectors"] * (largest["num_vectors"] - 1) / 2
        changes["join_flop_per_second"] = 2 * join["dim"] * pairs / largest["seconds"]
        sources["join"] = f"measured by benchmarks.gpu on one {name}"
    return Costs(
        rates=dataclasses.replace(rates, **changes, sources=sources),
        gpu=gpu,
        read_bytes=float(units["read_bytes"]),
        commit_seconds=float(units["commit_seconds"]),
        **_drivers(results.get("drivers") or {}),
        **_alone(results.get("hygiene") or {}),
        **_passes(results.get("passes") or {}),
    )


def _alone(hygiene: dict[str, Any]) -> dict[str, float]:
    """Seconds of one process for an image and a pair, from benchmarks.hygiene where it was run."""
    found = {}
    stages = {
        name: {one["stage"]: one for one in (hygiene.get(name) or {}).get("stages", [])} for name in ("pieces", "pairs")
    }
    if census := stages["pieces"].get("take_census"):
        found["census_seconds"] = census["seconds"] / census["rows"]
    if hygiene.get("num_pairs") and {"write blind pairs", "hygiene"} <= set(stages["pairs"]):
        names = ("count, copies, hubs", "write blind pairs", "hygiene")
        seconds = sum(stages["pairs"][name]["seconds"] for name in names)
        # Images tables are many for 1e8 pairs there, and on a cluster they are read by tasks.
        seconds -= stages["pairs"]["write blind pairs"].get("seconds of that", 0)
        found["hygiene_seconds"] = seconds / hygiene["num_pairs"]
    return found


def _drivers(drivers: dict[str, Any]) -> dict[str, float]:
    """Seconds of a driver and of the job for a piece, from benchmarks.drivers where it was run: one driver with the most actors, and several."""
    found = {}
    for case in sorted(drivers.get("cases") or [], key=lambda case: case["num_actors"]):
        if case["num_drivers"] == 1:
            found["driver_seconds"] = float(case["driver_seconds"])
        else:
            found["job_seconds"] = float(case["job_seconds"])
    return found


def _passes(passes: dict[str, Any]) -> dict[str, float]:
    """Seconds of a core for a piece, from benchmarks.passes where it was run: one pass over vectors and three over what is one request."""
    if not passes:
        return {}
    vectors, images = (
        statistics.median(one["alone"][kind]["driver_cpu_seconds"] for one in passes["rounds"])
        for kind in ("embeddings", "images")
    )
    return {"pass_seconds": vectors + 3 * images}


def published_specs() -> tuple[EncoderSpec, EncoderSpec]:
    """CLIP ViT-L/14 and DINOv2 ViT-L/14 without weights: enough for a plan."""
    size = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}
    clip = {"model_type": "clip", "projection_dim": 768, "vision_config": {**size, "intermediate_size": 4096}}
    return (
        _spec("hf:openai/clip-vit-large-patch14", clip, dim=768, family="clip", num_parameters=427_616_513),
        _spec(
            "hf:facebook/dinov2-large",
            {"model_type": "dinov2", **size, "mlp_ratio": 4},
            dim=1024,
            family="vision",
            num_parameters=304_368_640,
        ),
    )


def _spec(name: str, config: dict[str, Any], *, dim: int, family: str, num_parameters: int) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        backend="hf",
        source=name.removeprefix("hf:"),
        architecture=json.dumps({"config": config, "label": name.rsplit("/", 1)[1]}, sort_keys=True),
        weights_sha256="0" * 64,
        geometry=Geometry(
            library="pil", resize="shortest", resize_px=(224, 224), interpolation="bicubic", crop_px=(224, 224)
        ),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        feature="embedding",
        dtype="float16",
        dim=dim,
        family=family,
        num_parameters=num_parameters,
    )
