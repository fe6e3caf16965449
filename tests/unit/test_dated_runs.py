"""Dated runs: which one comes next, what latest.json says, and what open_run takes for the latest run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray import open_run, storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.dated_runs import (
    NAME_FORMAT,
    change_lines,
    dated_names,
    next_run,
    planned,
    point_to,
    read_latest,
    run_folder,
)
from mmvp_ray.pipeline.preflight import check_writable
from mmvp_ray.pipeline.prepare import prepare
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.schema import SCHEMA_VERSION

NOW = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
FIRST, SECOND, THIRD = "2026-11-07T031500Z", "2026-11-14T031500Z", "2026-11-21T031500Z"


@pytest.fixture(params=["", "memory://"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}{tmp_path}/runs"


def add(runs: str, name: str, *, ended: bool) -> None:
    storage.write_bytes(f"{runs}/{name}/pieces.parquet", b"x")
    if ended:
        storage.write_json(
            f"{runs}/{name}/manifest.json", {"schema_version": SCHEMA_VERSION, "created_at": f"at {name}"}
        )


class TestNext:
    def test_the_first_one(self, runs: str) -> None:
        found = next_run(runs, NOW)
        assert (found.name, found.is_begun, found.previous, found.is_late) == (THIRD, False, None, False)
        assert found.url == f"{runs}/{THIRD}"
        config = found.config(MineConfig(runs=runs))
        config.check()
        assert (config.runs, config.out_url, config.store_url) == (None, f"{runs}/{THIRD}", f"{runs}/store")
        assert config.compare_with is None

    def test_planning_begins_none(self, tmp_path: Path) -> None:
        runs = str(tmp_path / "runs")
        check_writable(planned(MineConfig(runs=runs)).out_url, flag="--out")
        assert dated_names(runs) == [] and not next_run(runs, NOW).is_begun
        # What is there already stays.
        (tmp_path / "runs" / FIRST).mkdir(parents=True)
        check_writable(f"{runs}/{FIRST}", flag="--out")
        assert next_run(runs, NOW).name == FIRST

    @pytest.mark.parametrize("scheme", ["", "memory://"])
    def test_planning_the_miniature_world_begins_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
    ) -> None:
        runs = f"{scheme}{tmp_path}/runs"
        config = MineConfig(
            corpus=("m=miniature:16",),
            near=("miniature:clip",),
            far=("miniature:dino",),
            runs=runs,
            device="cpu",
            plan=True,
        )
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        session: Any = SimpleNamespace(joins_cluster=False)
        ready = prepare(planned(config), session, Progress(stream=None))
        assert ready.plan.num_images_left > 0
        assert not storage.exists(runs) and not next_run(runs, NOW).is_begun
        assert list(temporary.iterdir()) == []

    def test_after_a_latest_one(self, runs: str) -> None:
        add(runs, FIRST, ended=True)
        add(runs, SECOND, ended=True)
        point_to(runs, SECOND)
        found = next_run(runs, NOW)
        assert (found.name, found.is_begun, found.previous, found.is_late) == (THIRD, False, SECOND, False)
        assert found.config(MineConfig(runs=runs)).compare_with == f"{runs}/{SECOND}"
        given_one = MineConfig(runs=runs, compare_with=f"{runs}/{FIRST}", store=f"{runs}/elsewhere")
        assert found.config(given_one).compare_with == f"{runs}/{FIRST}"
        assert found.config(given_one).store_url == f"{runs}/elsewhere"

    def test_one_that_did_not_end_is_taken_up_again(self, runs: str) -> None:
        add(runs, FIRST, ended=False)
        add(runs, SECOND, ended=False)
        assert next_run(runs, NOW).name == SECOND
        assert next_run(runs, NOW).is_begun
        add(runs, FIRST, ended=True)
        point_to(runs, FIRST)
        assert (next_run(runs, NOW).name, next_run(runs, NOW).previous) == (SECOND, FIRST)

    def test_one_that_did_not_end_before_the_latest_is_left(self, runs: str) -> None:
        add(runs, FIRST, ended=False)
        add(runs, SECOND, ended=True)
        point_to(runs, SECOND)
        assert next_run(runs, NOW).name == THIRD

    def test_one_that_ended_and_did_not_become_the_latest(self, runs: str) -> None:
        add(runs, FIRST, ended=True)
        point_to(runs, FIRST)
        add(runs, SECOND, ended=True)
        found = next_run(runs, NOW)
        assert (found.name, found.is_begun, found.previous, found.is_late) == (THIRD, False, SECOND, True)

    def test_a_latest_run_that_a_takedown_reopened(self, runs: str) -> None:
        add(runs, SECOND, ended=True)
        point_to(runs, SECOND)
        storage.remove(f"{runs}/{SECOND}/manifest.json")
        found = next_run(runs, NOW)
        assert (found.name, found.previous) == (THIRD, SECOND)
        assert found.config(MineConfig(runs=runs)).compare_with is None
        storage.remove_folder(f"{runs}/{SECOND}")
        assert next_run(runs, NOW).name == THIRD

    def test_what_else_lies_there_is_no_run(self, runs: str) -> None:
        for name in ("store", "2026-W47", "2026-11-21T031500", "2026-13-21T031500Z", "2026-11-21T031500Z.old"):
            add(runs, name, ended=True)
        assert dated_names(runs) == []
        assert next_run(runs, NOW).previous is None

    @given(offset=st.integers(-(10**7), 10**7))
    def test_names_rise_whatever_the_clock_says(self, tmp_path_factory: pytest.TempPathFactory, offset: int) -> None:
        runs = str(tmp_path_factory.getbasetemp() / f"rising{offset}")
        add(runs, THIRD, ended=True)
        found = next_run(runs, NOW + timedelta(seconds=offset)).name
        assert found > THIRD
        if offset > 0:
            assert found == (NOW + timedelta(seconds=offset)).strftime(NAME_FORMAT)

    def test_a_plan_moves_nothing(self, runs: str) -> None:
        add(runs, FIRST, ended=True)
        config = planned(MineConfig(runs=runs))
        assert config.compare_with == f"{runs}/{FIRST}"
        assert read_latest(runs) is None
        assert planned(MineConfig()) == MineConfig()


class TestLatest:
    def test_it_names_the_run_and_the_one_before(self, runs: str) -> None:
        add(runs, FIRST, ended=True)
        add(runs, SECOND, ended=True)
        point_to(runs, FIRST)
        point_to(runs, SECOND)
        expected = {"run": SECOND, "created_at": f"at {SECOND}", "previous": FIRST}
        assert storage.read_json(f"{runs}/latest.json") == expected
        point_to(runs, SECOND)
        assert storage.read_json(f"{runs}/latest.json") == expected

    def test_a_run_that_did_not_end_never_becomes_it(self, runs: str) -> None:
        add(runs, FIRST, ended=False)
        with pytest.raises(DataError, match=r"manifest\.json"):
            point_to(runs, FIRST)
        assert read_latest(runs) is None

    @pytest.mark.parametrize(
        "text", [b"", b"[]", b'{"run": "../elsewhere"}', b'{"run": 3}', b'{"run": "2026-99-01T000000Z"}']
    )
    def test_a_broken_one_is_named(self, runs: str, text: bytes) -> None:
        storage.write_bytes(f"{runs}/latest.json", text)
        with pytest.raises(DataError, match=r"latest\.json"):
            next_run(runs, NOW)

    def test_open_run_takes_the_folder_for_its_latest_run(self, runs: str) -> None:
        for name in (FIRST, SECOND):
            add(runs, name, ended=True)
            point_to(runs, name)
        expected = f"{runs}/{SECOND}"
        for url in (runs, f"{runs}/", f"{runs}/latest", expected):
            assert open_run(url).url == expected
        assert open_run(f"{runs}/{FIRST}").url == f"{runs}/{FIRST}"

    def test_a_run_named_latest_is_itself(self, runs: str) -> None:
        add(runs, "latest", ended=True)
        assert run_folder(f"{runs}/latest") == f"{runs}/latest"

    def test_without_one_the_error_names_what_was_asked_for(self, runs: str) -> None:
        with pytest.raises(ConfigError, match="found none"):
            open_run(f"{runs}/latest")


def test_change_lines(tmp_path: Path) -> None:
    assert change_lines(str(tmp_path)) == []
    counts = {"num_fixed": 1, "num_still_blind": 2345, "num_new_blind": 3, "num_new_images": 4, "num_gone": 5}
    storage.write_json(f"{tmp_path}/diff.json", {"old": {"url": "s3://b/runs/x"}, **counts})
    first, second = change_lines(str(tmp_path))
    assert "since s3://b/runs/x: 1 pairs fixed, 2,345 still blind, 3 newly blind, 4 with new images, 5 gone" in first
    assert second.endswith("diff.html")


def test_out_and_runs_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="--out or --runs"):
        MineConfig(out="a", runs="b").check()
