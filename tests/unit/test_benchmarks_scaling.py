"""The arithmetic of benchmarks.scaling: it equals sums by hand, never grows with GPUs, names its largest stage, and its page says what it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.scaling import page
from benchmarks.scaling_model import (
    EMBED,
    JOIN,
    NODE_BYTES_PER_SECOND,
    PAIRS_PER_IMAGE,
    REQUEST_SECONDS,
    REQUESTS_IN_A_ROW,
    Costs,
    costs_from,
    model,
    published_specs,
)
from mmvp_ray.embed.drivers import ACTORS_PER_DRIVER
from mmvp_ray.pipeline.cost import FILE_BYTES, ROW_BYTES, START_SECONDS
from mmvp_ray.pipeline.encoder_flop import flop_per_image
from mmvp_ray.pipeline.unit_costs import CORES_PER_GPU, Hardware, UnitCosts, table_costs
from mmvp_ray.search.exact import num_blocks
from mmvp_ray.search.passes import MAX_TASKS

COSTS = Costs(
    rates=UnitCosts(decode_images_per_second=100.0, encode_flop_per_second=3e14, join_flop_per_second=4e14),
    read_bytes=100_000.0,
    commit_seconds=0.05,
    driver_seconds=0.02,
    job_seconds=0.001,
    census_seconds=1e-6,
    hygiene_seconds=7e-6,
    pass_seconds=0.03,
)
SCALING: dict[str, Any] = {
    "machine": {"cpu": "Some CPU", "date": "2026-11-22"},
    "embed": {
        "noop": {"images_per_second": {"1": [200.0, 210.0], "2": [390.0, 400.0]}, "speed_up": 1.93},
        "miniature": {"images_per_second": {"1": [50.0], "2": [95.0]}, "speed_up": 1.9},
    },
    "join": {
        "num_images": 50_000,
        "dim": 768,
        "exact": {"flop_per_second": {"1": [1e12], "2": [1.8e12]}, "speed_up": 1.8},
    },
    "units": {
        "decode_images_per_second": 250.0,
        "read_bytes": 100_000.0,
        "written_bytes": 3900.0,
        "commit_seconds": 0.02,
    },
}
GPU: dict[str, Any] = {
    "machine": {"gpu": "NVIDIA H100 80GB HBM3"},
    "embed": {
        "encoders": {
            "clip": {"images_per_second": {"64": {"pinned": 1000.0}, "256": {"pinned": 2000.0, "pageable": 1500.0}}},
            "dinov2": {"images_per_second": {"64": {"pinned": 3000.0}}},
        }
    },
    "join": {"dim": 768, "sizes": [{"num_vectors": 1000, "seconds": 1.0}, {"num_vectors": 100_001, "seconds": 2.0}]},
}


def hours(costs: Costs, num_gpus: int, num_images: int) -> dict[str, float]:
    return {stage.name: stage.hours for stage in model(costs, num_gpus, num_images).stages}


def test_one_gpu_equals_sums_by_hand() -> None:
    images, pieces = 2_048_000, 1000
    flop = sum(flop_per_image(spec)[0] for spec in published_specs())
    assert flop == pytest.approx(3.24e11, rel=0.01), "two ViT-L/14 at 224 px"
    written = images * (2 * 768 + 16 + 2 * 1024 + 16 + ROW_BYTES) + pieces * 4 * FILE_BYTES
    seconds = {
        "read images": images * 1e5 / NODE_BYTES_PER_SECOND,
        "decode": images / (100.0 * CORES_PER_GPU),
        "encode and commit": images * flop / 3e14 + pieces * (0.05 + REQUESTS_IN_A_ROW * REQUEST_SECONDS),
        "write tables": written / NODE_BYTES_PER_SECOND,
        "drivers": pieces * 0.02,
        "count pieces": pieces * 0.001,
        "read ids": pieces * 0.03 / min(MAX_TASKS, CORES_PER_GPU),
        "census": images * 1e-6,
        "read blocks": 2 * images * (2 * 768 + 16) / NODE_BYTES_PER_SECOND,
        "multiply": images * (images - 1) * 768 / 4e14,
        "hygiene": images * PAIRS_PER_IMAGE * 7e-6,
    }
    found = model(COSTS, 1, images)
    assert found.num_pieces == pieces
    assert {stage.name: stage.hours * 3600 for stage in found.stages} == pytest.approx(seconds)
    embed = max(seconds[name] for name in ("read images", "decode", "encode and commit", "write tables", "drivers"))
    assert found.embed_hours * 3600 == pytest.approx(embed + START_SECONDS)
    rest = sum(seconds[name] for name in ("read ids", "census", "read blocks", "multiply", "hygiene"))
    assert found.hours * 3600 == pytest.approx(embed + START_SECONDS + rest)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1000, 2 * 10**9))
def test_more_gpus_never_take_longer_and_the_bound_is_the_largest_stage(one: int, other: int, num_images: int) -> None:
    few, many = (model(COSTS, num_gpus, num_images) for num_gpus in sorted((one, other)))
    for here, there in zip(few.stages, many.stages, strict=True):
        # More GPUs on one network cut the join into more blocks, and read them more often: below, whole nodes.
        if here.name != "read blocks":
            assert there.hours <= here.hours * (1 + 1e-9)
    assert many.embed_hours <= few.embed_hours * (1 + 1e-9)
    assert few.bound.hours == max(stage.hours for stage in few.stages)
    assert few.embed_bound.hours == max(stage.hours for stage in few.stages if stage.phase == EMBED)
    assert few.embed_hours <= few.hours


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1000, 2 * 10**9))
@example(68, 69, 1000)
def test_more_nodes_never_take_longer(one: int, other: int, num_images: int) -> None:
    few, many = (model(COSTS, 8 * num_nodes, num_images) for num_nodes in sorted((one, other)))
    # One block more may outweigh one node more: 68 nodes cut a small corpus into 66 blocks, 69 into 67.
    read = next(stage.hours for stage in few.stages if stage.name == "read blocks")
    one_block = read / num_blocks(8 * min(one, other))
    for here, there in zip(few.stages, many.stages, strict=True):
        assert there.hours <= here.hours * (1 + 1e-9) + (one_block if here.name == "read blocks" else 0.0)
    assert many.hours <= few.hours * (1 + 1e-9) + one_block


def test_a_join_reads_every_block_for_each_other_one() -> None:
    vectors = 10**6 * (2 * 768 + 16) / NODE_BYTES_PER_SECOND / 3600
    assert hours(COSTS, 1, 10**6)["read blocks"] == pytest.approx(2 * vectors)
    assert hours(COSTS, 8, 10**6)["read blocks"] == pytest.approx(8 * vectors), "a block for each GPU"
    assert hours(COSTS, 64, 10**9)["read blocks"] == pytest.approx(477 * 1000 * vectors / 8), "2,097,152 in a block"


@given(st.integers(1, 600), st.integers(1000, 10**9))
def test_more_images_never_take_less(num_gpus: int, num_images: int) -> None:
    less, more = hours(COSTS, num_gpus, num_images), hours(COSTS, num_gpus, 2 * num_images)
    assert all(more[name] >= less[name] for name in less)


def test_work_of_gpus_is_divided_and_that_of_one_process_is_not() -> None:
    eight, many = hours(COSTS, 8, 10**9), hours(COSTS, 512, 10**9)
    for name in ("read images", "decode", "encode and commit", "write tables", "read blocks", "multiply"):
        assert eight[name] == pytest.approx(64 * many[name]), name
    for name in ("census", "hygiene"):
        assert eight[name] == many[name], name


def test_a_driver_looks_after_so_many_gpus_and_the_job_counts_what_several_did() -> None:
    one, two, many = (hours(COSTS, num_gpus, 10**9) for num_gpus in (ACTORS_PER_DRIVER, ACTORS_PER_DRIVER + 1, 512))
    assert one["drivers"] == 2 * two["drivers"] == 8 * many["drivers"] == pytest.approx(488_282 * 0.02 / 3600)
    assert one["count pieces"] == two["count pieces"] == many["count pieces"] == pytest.approx(488_282 * 0.001 / 3600)


def test_drivers_come_from_their_own_benchmark() -> None:
    cases = [
        {"num_actors": 48, "num_drivers": 1, "driver_seconds": 0.03, "job_seconds": 0.03},
        {"num_actors": 48, "num_drivers": 2, "driver_seconds": 0.025, "job_seconds": 0.002},
        {"num_actors": 2, "num_drivers": 1, "driver_seconds": 0.01, "job_seconds": 0.01},
    ]
    costs = costs_from({"scaling": SCALING, "drivers": {"cases": cases}})
    assert (costs.driver_seconds, costs.job_seconds) == (0.03, 0.002)


def test_gpus_of_one_node_share_its_network() -> None:
    one, eight, nine = (hours(COSTS, num_gpus, 10**8)["read images"] for num_gpus in (1, 8, 9))
    assert one == eight == 2 * nine


def test_so_many_cores_decode_as_fast_as_a_gpu_encodes() -> None:
    cores = model(COSTS, 8).cores_per_gpu
    found = model(COSTS, 8, cores_per_gpu=cores)
    stages = {stage.name: stage.hours for stage in found.stages}
    assert stages["decode"] == pytest.approx(stages["encode and commit"])
    assert found.cores_per_gpu == pytest.approx(cores)


def test_what_bounds_a_run_follows_the_costs() -> None:
    assert model(COSTS, 8).bound.name == "encode and commit"
    slow = dataclasses.replace(COSTS.rates, decode_images_per_second=1.0)
    assert model(dataclasses.replace(COSTS, rates=slow), 8).bound.name == "decode"
    assert model(dataclasses.replace(COSTS, driver_seconds=10.0), 512).bound.name == "drivers"
    assert model(COSTS, 8, 10**9).bound.phase == JOIN


def test_rates_of_gpus_are_assumed_without_a_measurement_and_said_to_be() -> None:
    costs = costs_from({"scaling": SCALING})
    assert costs.gpu == "H100"
    assert costs.rates.encode_flop_per_second == table_costs(Hardware.parse("1xH100")).encode_flop_per_second
    assert costs.rates.decode_images_per_second == 205.0, "the whole pass on one core, not decoding alone"
    alone = {name: found for name, found in SCALING.items() if name != "embed"}
    assert costs_from({"scaling": alone}).rates.decode_images_per_second == 250.0
    assert costs.rates.sources["encode"].startswith("assumed")
    assert costs.rates.sources["decode"].startswith("measured")


def test_measured_rates_of_gpus_go_before_the_assumed() -> None:
    costs = costs_from({"scaling": SCALING, "gpu": GPU})
    near, far = published_specs()
    assert costs.rates.encode_images_per_second == {near.slug: 2000.0, far.slug: 3000.0}
    assert costs.rates.join_flop_per_second == pytest.approx(768 * 100_001 * 100_000 / 2.0)
    assert costs.rates.sources["encode"] == "measured by benchmarks.gpu on one NVIDIA H100 80GB HBM3"
    commit = (0.02 + REQUESTS_IN_A_ROW * REQUEST_SECONDS) / 2048
    expected = 10**6 * (1 / 2000 + 1 / 3000 + commit) / 3600
    assert hours(costs, 1, 10**6)["encode and commit"] == pytest.approx(expected, rel=1e-3)


def test_a_run_on_a_cpu_gives_no_rate_of_a_gpu() -> None:
    costs = costs_from({"scaling": SCALING, "gpu": {**GPU, "machine": {"gpu": None}}})
    assert not costs.rates.encode_images_per_second
    assert costs.rates.sources["join"].startswith("assumed")


def test_hygiene_comes_from_its_own_benchmark() -> None:
    hygiene = {
        "num_pairs": 1000,
        "pieces": {"stages": [{"stage": "take_census", "seconds": 5.0, "rows": 10}]},
        "pairs": {
            "stages": [
                {"stage": "count, copies, hubs", "seconds": 1.0},
                {"stage": "write blind pairs", "seconds": 4.0, "seconds of that": 2},
                {"stage": "hygiene", "seconds": 3.0},
                {"stage": "select", "seconds": 100.0},
            ]
        },
    }
    costs = costs_from({"scaling": SCALING, "hygiene": hygiene})
    assert costs.census_seconds == 0.5
    assert costs.hygiene_seconds == 6.0 / 1000


def test_passes_over_pieces_come_from_their_own_benchmark() -> None:
    def one(vectors: float, images: float) -> dict[str, Any]:
        return {"alone": {kind: {"driver_cpu_seconds": s} for kind, s in (("embeddings", vectors), ("images", images))}}

    costs = costs_from({"scaling": SCALING, "passes": {"rounds": [one(1.0, 5.0), one(2.0, 0.5), one(9.0, 0.25)]}})
    assert costs.pass_seconds == 2.0 + 3 * 0.5


def test_the_page_says_what_is_arithmetic_and_what_was_assumed() -> None:
    text = page({"scaling": SCALING})
    assert "| 1.93" not in text and "**1.93**" in text
    assert "200 to 210" in text and "1,800" in text
    assert "arithmetic" in text and "not measured" in text
    assert "**The rates of the GPU are assumptions**" in text
    for num_gpus in (8, 64, 512):
        assert f"{num_gpus} GPUs" in text
    assert text.count("| bound by |") == 2
    assert "assumptions**" not in page({"scaling": SCALING, "gpu": GPU})


def test_unit_costs_alone_leave_no_empty_table_and_the_command_is_the_one_that_ran() -> None:
    text = page({"scaling": {"units": SCALING["units"], "command": "python -m benchmarks.scaling --parts units"}})
    assert "speed-up" not in text and "medians" not in text and "One core beside two: not measured." in text
    assert "`python -m benchmarks.scaling --parts units`" in text


def test_a_page_without_results_says_so() -> None:
    assert "Not measured" in page({})
    assert "arithmetic" not in page({"scaling": {key: SCALING[key] for key in ("machine", "join")}})
