"""The preflight's arithmetic: devices and waiting, folders that all nodes see, the cost estimate and what it learns from earlier runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.cluster import Resources, Session
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.embed.plan import Plan, ShardWork
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ConfigError, ResourceError
from mmvp_ray.images.geometry import Geometry
from mmvp_ray.pipeline import cost, preflight, unit_costs
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.prepare import prepare
from mmvp_ray.pipeline.progress import Progress, Stage
from mmvp_ray.pipeline.unit_costs import Hardware, calibrated, measured_costs, table_costs
from mmvp_ray.sources.piece import Shard


class Joined(Session):
    """A cluster that somebody else started."""

    def __init__(self, *, waits_well: bool = False, **have: Any) -> None:
        super().__init__("host:6379")
        self.waits_well = waits_well
        self.waited: list[float] = []
        self.have = Resources(
            **{
                "num_cpus": 16.0,
                "num_gpus": 0.0,
                "num_nodes": 1,
                "smallest_node_cpus": 16.0,
                "memory_bytes": 1,
                "object_store_bytes": 1,
                **have,
            }
        )

    def resources(self) -> Resources:
        return self.have

    def wait_for_gpus(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return self.waits_well


class TestDevice:
    def test_a_cluster_may_be_waited_for(self) -> None:
        session = Joined(waits_well=True)
        assert preflight.choose_device("cuda", session, wait_seconds=60.0) == "cuda"
        assert session.waited == [60.0]

    def test_the_wait_is_bounded_and_says_so(self) -> None:
        with pytest.raises(
            ResourceError, match=r"found none in the cluster after 60 s; see `ray status`.*--wait-for-gpus"
        ):
            preflight.choose_device("cuda", Joined(), wait_seconds=60.0)

    def test_without_a_wait_it_fails_at_once_and_names_the_flag(self) -> None:
        session = Joined()
        with pytest.raises(ResourceError, match=r"found none in the cluster; .*--wait-for-gpus SECONDS"):
            preflight.choose_device("cuda", session)
        assert session.waited == []

    @pytest.mark.parametrize(("num_gpus", "expected"), [(0.0, "cpu"), (2.0, "cuda")])
    def test_auto_does_not_wait(self, num_gpus: float, expected: str) -> None:
        session = Joined(num_gpus=num_gpus)
        assert preflight.choose_device("auto", session, wait_seconds=60.0) == expected
        assert session.waited == []

    @pytest.mark.parametrize(("plan", "waited"), [(True, []), (False, [60.0])])
    def test_a_plan_starts_no_node(self, tmp_path: Path, plan: bool, waited: list[float]) -> None:
        config = MineConfig(device="cuda", plan=plan, wait_for_gpus=60.0, out=str(tmp_path / "out"))
        session = Joined()
        with pytest.raises(ResourceError, match="expected a GPU"):
            prepare(config, session, Progress(stream=None))
        assert session.waited == waited


class TestSharedFolders:
    @pytest.mark.parametrize(
        ("have", "refused"),
        [
            ({"num_nodes": 1, "num_cpus": 2.0}, False),
            ({"num_nodes": 2, "num_cpus": 4.0}, True),
            ({"num_nodes": 2, "num_cpus": 2.0}, True),  # a head without CPUs, and its worker
            ({"num_nodes": 1, "num_cpus": 0.0}, True),  # a head without CPUs whose workers have yet to come
        ],
    )
    def test_a_nodes_own_disk(self, have: dict[str, Any], refused: bool, tmp_path: Path) -> None:
        if not refused:
            preflight.check_shared(Joined(**have), {"--out": str(tmp_path)})
            return
        with pytest.raises(ConfigError, match=r"expected a place that all .*nodes.* see, found .* in --out"):
            preflight.check_shared(Joined(**have), {"--out": str(tmp_path)})
        preflight.check_shared(Joined(**have), {"--out": "s3://bucket/out"})

    def test_a_session_of_our_own_has_one_node(self, tmp_path: Path) -> None:
        preflight.check_shared(Session("local"), {"--out": str(tmp_path)})


class TestHardware:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("8xH100", Hardware(num_cores=112.0, num_gpus=8.0, gpu="H100")),
            ("8xl40s, 128xcpu", Hardware(num_cores=128.0, num_gpus=8.0, gpu="L40S")),
            ("64xCPU", Hardware(num_cores=64.0)),
        ],
    )
    def test_a_stated_cluster(self, text: str, expected: Hardware) -> None:
        assert Hardware.parse(text) == expected

    @pytest.mark.parametrize("text", ["", "H100", "8xH900", "0xH100", "8xH100,4xT4", "8xH100,", "-1xCPU", "8 H100"])
    def test_anything_else_is_an_error(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--plan-cluster"):
            Hardware.parse(text)

    @pytest.mark.parametrize(
        ("hardware", "expected"),
        [
            (Hardware(num_cores=1.0), "1 core"),
            (Hardware(num_cores=2.0), "2 cores"),
            (Hardware(num_cores=1.0, num_gpus=1.0), "1 GPU and 1 core"),
            (Hardware(num_cores=16.0, num_gpus=2.0), "2 GPUs and 16 cores"),
            (Hardware(num_cores=112.0, num_gpus=8.0, gpu="H100"), "8 H100 and 112 cores"),
        ],
    )
    def test_in_words(self, hardware: Hardware, expected: str) -> None:
        assert hardware.text() == expected

    def test_of_a_cluster(self) -> None:
        session = Joined(num_gpus=4.0, gpu="A100-80G")
        assert preflight.hardware("cuda", session) == Hardware(num_cores=16.0, num_gpus=4.0, gpu="A100")
        assert preflight.hardware("cpu", session) == Hardware(num_cores=16.0)
        assert preflight.hardware("cuda", Joined(num_gpus=1.0, gpu="L40S")).gpu == "L40S"


def encoder(name: str, dim: int = 8, *, backend: str = "miniature") -> EncoderSpec:
    vision = {"width": 32, "depth": 2, "patch_px": 8, "embedding_dim": dim}
    return EncoderSpec(
        name=name,
        backend=backend,
        source=name,
        architecture=json.dumps({"label": name, "vision": vision}),
        weights_sha256="0" * 64,
        geometry=Geometry(library="pil", resize="squash", resize_px=(64, 64), interpolation="bicubic", crop_px=None),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        feature="x",
        dtype="float32",
        dim=dim,
        family="vision",
        num_parameters=1000,
    )


def work(images: set[int], **embedded: set[int]) -> ShardWork:
    shard = Shard(corpus="w", uri="a.tar", kind="tar", num_bytes=1, etag="")
    return ShardWork(
        shard=shard,
        images_done=frozenset(images),
        embedded={slug: frozenset(done) for slug, done in embedded.items()},
    )


def plan(items: list[ShardWork], *, pieces: int, images: int, total: int) -> Plan:
    return Plan(
        work=tuple(items),
        num_shards=len(items),
        num_pieces_done=0,
        num_pieces_left=pieces,
        num_images_left=images,
        num_images_total=total,
    )


class TestForecast:
    def test_nothing_to_embed_costs_nothing_to_embed(self) -> None:
        clip = encoder("clip")
        found = preflight.forecast(
            plan([], pieces=0, images=0, total=100), {"c": clip}, device="cpu", num_images_total=100, nears=["c"]
        )
        assert (found.num_pieces, found.num_images, found.num_vectors, found.store_bytes) == (0, 0, 0, 0)
        assert found.embed_hours == 0 and found.encode_flop == 0
        assert found.num_pairs == 4950 and found.join_flop == 4950 * 2 * 8

    def test_memory_is_this_machines_and_says_nothing_of_a_cluster(self, tmp_path: Path) -> None:
        specs = {"c": dataclasses.replace(encoder("clip"), num_parameters=400_000_000)}
        todo = plan([work(set(), c=set())], pieces=1, images=10, total=10)
        expected = preflight.forecast(todo, specs, device="cpu", num_images_total=10, nears=["c"])
        config = EmbedConfig(num_actors=100_000)
        with pytest.raises(ResourceError, match="100000 copies of the encoders"):
            preflight.check_room(expected, specs, config, device="cpu", store=str(tmp_path))
        preflight.check_room(expected, specs, config, device="cpu", store=str(tmp_path), joins_cluster=True)

    def test_on_cpus_decoding_and_encoding_add_up_on_gpus_the_slower_counts(self) -> None:
        specs = {"c": encoder("clip")}
        todo = plan([work(set(), c=set())], pieces=1, images=1000, total=1000)
        for hardware in (Hardware(num_cores=4.0), Hardware(num_cores=4.0, num_gpus=2.0, gpu="H100")):
            costs = dataclasses.replace(
                table_costs(hardware),
                decode_images_per_second=10.0,
                encode_images_per_second={"c": 5.0},
                join_flop_per_second=1e6,
            )
            found = cost.forecast(todo, specs, nears=["c"], num_images_total=1000, hardware=hardware, costs=costs)
            decode, encode = 1000 / 10 / 4, 1000 / 5 / hardware.num_devices
            expected = max(decode, encode) if hardware.num_gpus else decode + encode
            assert found.embed_hours * 3600 == pytest.approx(expected + cost.START_SECONDS)
            assert found.join_hours * 3600 == pytest.approx(499_500 * 16 / 1e6 / hardware.num_devices)

    def test_a_new_encoder_beside_an_old_one_has_all_the_work(self) -> None:
        specs = {"old": encoder("old", 8), "new": encoder("new", 32)}
        todo = plan([work({0, 1}, old={0, 1}, new=set())], pieces=2, images=3000, total=3000)
        assert cost.missing_shares(todo, ["old", "new"]) == {"old": 0.0, "new": 1.0}
        found = preflight.forecast(todo, specs, device="cpu", num_images_total=3000, nears=["old"])
        assert found.num_vectors == 3000
        alone = preflight.forecast(todo, {"new": specs["new"]}, device="cpu", num_images_total=3000, nears=["new"])
        assert found.encode_flop == alone.encode_flop > 0

    def test_an_untouched_shard_lacks_everything(self) -> None:
        todo = plan([work(set(), a=set(), b=set())], pieces=5, images=10_000, total=10_000)
        assert cost.missing_shares(todo, ["a", "b"]) == {"a": 1.0, "b": 1.0}

    @given(
        st.lists(st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9))), max_size=5)
    )  # fmt: skip
    def test_shares_are_what_counting_pieces_gives(self, shards: list[tuple[set[int], set[int], set[int]]]) -> None:
        items = [work(images, a=a, b=b) for images, a, b in shards]
        pieces = [
            (index not in a, index not in b)
            for images, a, b in shards
            for index in range(10)
            if index not in images & a & b
        ]
        todo = plan(items, pieces=len(pieces), images=len(pieces), total=100)
        found = cost.missing_shares(todo, ["a", "b"])
        for slug, column in (("a", 0), ("b", 1)):
            expected = sum(lacks[column] for lacks in pieces) / len(pieces) if pieces else 0.0
            assert found[slug] == pytest.approx(expected)

    def test_lines_name_the_hardware_the_rates_and_the_guesses(self) -> None:
        specs = {"c": encoder("clip"), "p": encoder("plugin", backend="python")}
        todo = plan([work(set(), c=set(), p=set())], pieces=1, images=1000, total=1000)
        found = preflight.forecast(
            todo, specs, device="cuda", num_images_total=1000, nears=["c"], on=Hardware.parse("8xH100")
        )
        text = "\n".join(found.lines())
        assert "1 piece, 1,000 images, 2,000 vectors" in text and "at most 499,500 pairs" in text
        assert "on 8 H100 and 112 cores: roughly" in text
        assert "assumed: 30% of the data sheet's 16-bit peak" in text
        assert "no formula for the FLOP of plugin" in text and "clip" not in text.split("no formula")[1]
        unknown = preflight.forecast(
            todo, specs, device="cuda", num_images_total=1000, on=Hardware(num_cores=4.0, num_gpus=1.0, gpu="RTX 9999")
        )
        assert "of an H100, for RTX 9999 is not in the table" in "\n".join(unknown.lines())


class TestCalibration:
    MEASURED = {  # noqa: RUF012
        "gpu": "H100",
        "decode_images_per_second": 50.0,
        "encode_images_per_second": {"c": 7.0},
        "join_flop_per_second": 3.0e9,
    }

    def test_rates_of_a_gpu_count_for_that_gpu_alone(self) -> None:
        same, other, cpu = Hardware.parse("8xH100"), Hardware.parse("8xT4"), Hardware.parse("8xCPU")
        found = calibrated(table_costs(same), {**self.MEASURED, "run": "runs/last"}, same)
        assert (found.decode_images_per_second, found.join_flop_per_second) == (50.0, 3.0e9)
        assert found.encode_images_per_second == {"c": 7.0}
        assert set(found.sources.values()) == {"measured by runs/last"}
        for hardware in (other, cpu):
            found = calibrated(table_costs(hardware), self.MEASURED, hardware)
            assert found.decode_images_per_second == 50.0
            assert found.encode_images_per_second == {}
            assert found.join_flop_per_second == table_costs(hardware).join_flop_per_second

    def test_nothing_measured_changes_nothing(self) -> None:
        hardware = Hardware.parse("8xCPU")
        assert calibrated(table_costs(hardware), None, hardware) == table_costs(hardware)
        assert calibrated(table_costs(hardware), {"gpu": ""}, hardware) == table_costs(hardware)

    def test_the_first_run_that_has_any_is_taken(self, tmp_path: Path) -> None:
        for name, text in (
            ("old", '{"counts": {}}'),
            ("broken", "{"),
            ("good", json.dumps({"unit_costs": self.MEASURED})),
        ):
            (tmp_path / name).mkdir()
            (tmp_path / name / "manifest.json").write_text(text)
        folders = [None, *(str(tmp_path / name) for name in ("none", "old", "broken", "good"))]
        assert measured_costs(*folders) == {**self.MEASURED, "run": str(tmp_path / "good")}
        assert measured_costs(*folders[:-1]) is None

    def test_what_a_run_measures_is_what_the_next_plan_divides_by(self) -> None:
        """A run of 8 core seconds of decoding and so on; planned again with its rates, the plan says the run's own work."""
        embed = Stage("embed", "images", seconds=9.0)
        embed.report(
            pieces=1, num_read=400, num_embedded=400, num_bytes=1, num_written_bytes=2, decode_seconds=8.0,
            **{"encode_images c": 400, "encode_seconds c": 4.0},
        )  # fmt: skip
        join = Stage("join", "pairs", count=79_800, seconds=2.0)
        stages = [embed, join]
        hardware = Hardware(num_cores=2.0)
        measured = cost.unit_costs_of(stages, join_dims={"join": 8}, hardware=hardware, num_joiners=2.0, threads=2.0)
        assert measured == {
            "gpu": "",
            "decode_images_per_second": 50.0,
            "encode_images_per_second": {"c": 50.0},
            "join_flop_per_second": round(79_800 * 16 / 4.0),
        }
        found = preflight.forecast(
            plan([work(set(), c=set())], pieces=1, images=400, total=400),
            {"c": encoder("c")},
            device="cpu",
            num_images_total=400,
            on=hardware,
            measured=measured,
        )
        assert found.embed_hours * 3600 == pytest.approx(8.0 / 2 + 4.0 * 2 / 2 + cost.START_SECONDS)
        assert found.join_hours * 3600 == pytest.approx(2.0, rel=1e-4)

    def test_too_little_work_measures_nothing(self) -> None:
        stages = [Stage("embed", "images", seconds=0.1), Stage("join", "pairs", count=10, seconds=0.1)]
        found = cost.unit_costs_of(
            stages, join_dims={"join": 8}, hardware=Hardware(num_cores=2.0), num_joiners=1.0, threads=1.0
        )
        assert found == {"gpu": ""}


def test_the_comparison_of_a_plan_with_its_run() -> None:
    hardware = dataclasses.asdict(Hardware(num_cores=2.0))
    expected = {
        "num_pieces": 2, "num_images": 100, "num_vectors": 200, "store_bytes": 2_000_000, "embed_hours": 0.5,
        "join_hours": 0.0, "hardware": hardware,
    }  # fmt: skip
    took = {
        "num_pieces": 1, "num_images": 99, "num_vectors": 190, "store_bytes": 1_000_000, "embed_hours": 1.0,
        "join_hours": 2.0,
    }  # fmt: skip
    assert cost.comparison(expected, took) == [
        "the plan said 2 pieces, 100 images, 200 vectors, 2.0 MB; the run took 1 piece, 99 images, 190 vectors, 1.0 MB",
        "on 2 cores: embed 30 min said, 1 h taken (2 x), join 0 s said, 2 h taken",
    ]
    assert cost.comparison({**expected, "num_pieces": 0}, took) == []
    # What beginning it took, whatever there was to do: 99 times what was said.
    seconds = {"join_hours": 1.1 / 3600}
    assert cost.comparison(expected, took | seconds)[1:] == ["on 2 cores: embed 30 min said, 1 h taken (2 x)"]
    few = {"embed_hours": 0.1 / 3600}
    assert len(cost.comparison(expected | few, took | seconds | few)) == 1


def test_every_rate_of_the_table_has_a_source() -> None:
    for gpu in unit_costs.GPU_PEAK_FLOP_PER_SECOND:
        costs = table_costs(Hardware.parse(f"1x{gpu}"))
        assert set(costs.sources) == {"decode", "encode", "join"}
        assert costs.join_flop_per_second > costs.encode_flop_per_second > 0
    assert set(table_costs(Hardware(num_cores=1.0)).sources) == {"decode", "encode", "join"}
