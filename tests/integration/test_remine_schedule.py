"""Scheduled re-mining: dated runs that do only what is missing, in a bucket and on a disk; killed, refused, taken down."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmvp_ray import MineConfig, mine_pairs, open_run, storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.ingest.aesthetic import AestheticConfig, score_images
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress, Run
from mmvp_ray.pipeline.dated_runs import change_lines, dated_names, read_latest
from mmvp_ray.store import Store, hold_lease
from mmvp_ray.store import lease as leases
from mmvp_ray.store.lease_holder import Holder
from tests.integration.embed_here import embedding_here
from tests.integration.encoders_small_models import save_hf

pytestmark = [pytest.mark.integration]
REPOSITORY = Path(__file__).resolve().parents[2]
WORLD = WorldConfig(num_images=120, seed=5, images_per_shard=40, num_exact_copies=0, num_near_copies=0, num_broken=0)


def base(corpus: str, runs: str, **more: Any) -> MineConfig:
    config = MineConfig(
        corpus=(f"w={corpus}",),
        runs=runs,
        device="cpu",
        select=5,
        rule=RuleConfig(near_above=0.8, far_below=0.9),
        embed=EmbedConfig(num_threads=1, num_actors=1),
    )
    return dataclasses.replace(config, **more)


def mine(config: MineConfig) -> tuple[Run, str]:
    """The run, and what it said."""
    said = io.StringIO()
    with embedding_here():
        return mine_pairs(config, progress=Progress(stream=said)), said.getvalue()


def ids_of(run: Run) -> set[tuple[bytes, bytes]]:
    return {(row["image_id_a"], row["image_id_b"]) for row in run.blind_pairs().to_pylist()}


class TestWeeksInABucket:
    """A shard comes in the second week and an encoder in the third; the command is the same."""

    @pytest.fixture(scope="class")
    @classmethod
    def weeks(cls, s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Run, str, list[str]]]:
        folder, here = f"{s3_bucket}/schedule", tmp_path_factory.mktemp("weeks")
        patch = pytest.MonkeyPatch()
        patch.setenv("MMVP_RAY_CACHE", str(here / "cache"))
        shards = write_shards(here / "world", WORLD).paths
        config = base(f"{folder}/world/*.tar", f"{folder}/runs", far=("miniature:dino", f"hf:{folder}/encoders/*"))

        def put(path: Path, to: str) -> None:
            storage.write_file(f"{folder}/{to}/{path.name}", path)

        def add_encoder(kind: str) -> None:
            for path in save_hf(here / kind, kind).iterdir():
                put(path, f"encoders/{kind}")

        weeks: list[tuple[Run, str, list[str]]] = []
        add_encoder("vit")
        put(shards[0], "world")
        put(shards[1], "world")
        for week in range(4):
            if week == 1:
                put(shards[2], "world")
            if week == 2:
                add_encoder("dinov2")
            run, said = mine(config)
            vectors = [info.etag for info in storage.find_files(f"{folder}/runs/store/embeddings")]
            weeks.append((run, said, vectors))
        patch.undo()
        return weeks

    def test_only_missing_work_is_done(self, weeks: list[tuple[Run, str, list[str]]]) -> None:
        done = [
            (run.manifest["measured"]["num_images"], run.manifest["measured"]["num_vectors"]) for run, _, _ in weeks
        ]
        # Near, and two far ones; then one far encoder alone over everything; then nothing.
        assert done == [(80, 3 * 80), (40, 3 * 40), (120, 120), (0, 0)]
        joined = [run.manifest["measured"]["num_pairs"] for run, _, _ in weeks]
        assert joined[1] < 120 * 119 // 2 and joined[2:] == [0, 0]
        for (_, _, before), (_, _, after) in itertools.pairwise(weeks):
            assert set(before) <= set(after)

    def test_runs_are_dated_and_the_latest_is_the_last(self, weeks: list[tuple[Run, str, list[str]]]) -> None:
        runs = weeks[0][0].url.rpartition("/")[0]
        names = [run.url.rpartition("/")[2] for run, _, _ in weeks]
        assert names == dated_names(runs) == sorted(set(names))
        latest = storage.read_json(f"{runs}/latest.json")
        assert latest == {"run": names[3], "previous": names[2], "created_at": weeks[3][0].manifest["created_at"]}
        assert open_run(runs).url == open_run(f"{runs}/latest").url == weeks[3][0].url

    def test_each_run_is_compared_with_the_one_before(self, weeks: list[tuple[Run, str, list[str]]]) -> None:
        assert "the first one here" in weeks[0][1] and not storage.exists(f"{weeks[0][0].url}/diff.json")
        assert change_lines(weeks[0][0].url) == []
        for (before, _, _), (after, said, _) in itertools.pairwise(weeks):
            diff = storage.read_json(f"{after.url}/diff.json")
            assert diff["old"]["url"] == after.manifest["config"]["compare_with"] == before.url
            assert f"the latest is {before.url.rpartition('/')[2]}" in said
            assert before.url in change_lines(after.url)[0]
            new = len(ids_of(after) - ids_of(before))
            assert diff["num_new_images"] + diff["num_new_blind"] == new
            assert diff["num_still_blind"] == len(ids_of(after) & ids_of(before)) > 0
        assert [storage.read_json(f"{run.url}/diff.json")["num_new_images"] > 0 for run, _, _ in weeks[1:]] == [
            True, False, False,
        ]  # fmt: skip

    def test_the_new_encoder_is_in_the_matrix(self, weeks: list[tuple[Run, str, list[str]]]) -> None:
        fars = [[cell["far"].rpartition("/")[2] for cell in run.report()["matrix"]] for run, _, _ in weeks]
        assert fars[:2] == [["miniature:dino", "vit"]] * 2
        assert fars[2:] == [["miniature:dino", "dinov2", "vit"]] * 2
        assert weeks[3][0].manifest["encoders"]["far"]["name"] == "miniature:dino"

    def test_the_last_run_equals_one_from_nothing(
        self, weeks: list[tuple[Run, str, list[str]]], tmp_path: Path
    ) -> None:
        """The vectors are those of the store; the pairs are found anew."""
        last = weeks[3][0]
        store = Path(tmp_path, "store")
        for info in storage.find_files(last.manifest["store"]):
            relative = info.uri.removeprefix(last.manifest["store"] + "/")
            if relative.startswith(("embeddings", "corpora", "store.json")):
                storage.write_bytes(f"{store}/{relative}", storage.read_bytes(info.uri))
        config = dataclasses.replace(
            base(last.manifest["config"]["corpus"][0].partition("=")[2], "", store=str(store)),
            runs=None,
            out=str(tmp_path / "out"),
        )
        assert mine(config)[0].blind_pairs().equals(last.blind_pairs())

    def test_the_lease_is_free_and_was_taken_once_a_run(self, weeks: list[tuple[Run, str, list[str]]]) -> None:
        leases = f"{weeks[0][0].manifest['store']}/leases"
        found = [storage.read_json(f"{leases}/{name}") for name in storage.list_names(leases)]
        assert len(found) == 4 and all(one["released_at"] for one in found)


@pytest.fixture(scope="module")
def first_week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and RUNS with one run, on this disk."""
    folder = tmp_path_factory.mktemp("first-week")
    write_shards(folder / "world", WORLD)
    mine(base(f"{folder}/world/*.tar", f"{folder}/runs"))
    return folder


@pytest.fixture
def config(first_week: Path, tmp_path: Path) -> MineConfig:
    """What a second week runs, on a copy of the first."""
    shutil.copytree(first_week / "runs", tmp_path / "runs")
    return base(f"{first_week}/world/*.tar", str(tmp_path / "runs"))


def latest(config: MineConfig) -> str | None:
    assert config.runs is not None
    return read_latest(config.runs)


def names(config: MineConfig) -> list[str]:
    assert config.runs is not None
    return dated_names(config.runs)


class TestKilled:
    @pytest.mark.parametrize("at", ["manifest.json", "report.html"])
    def test_a_run_that_did_not_end_is_taken_up_again(
        self, config: MineConfig, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        before = latest(config)
        with monkeypatch.context() as patch:
            kill_at(patch, at)
            with pytest.raises(KeyboardInterrupt):
                mine(config)
        assert len(names(config)) == 2 and latest(config) == before
        with pytest.raises(ConfigError, match="finished run"):
            open_run(f"{config.runs}/{names(config)[1]}")
        assert open_run(str(config.runs)).url.endswith(str(before))
        run, said = mine(config)
        assert "taken up again" in said
        assert [before, latest(config)] == names(config) == [before, run.url.rpartition("/")[2]]
        assert storage.read_json(f"{run.url}/diff.json")["old"]["url"].endswith(str(before))

    def test_before_it_became_the_latest(self, config: MineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            kill_at(patch, "latest.json")
            with pytest.raises(KeyboardInterrupt):
                mine(config)
        first, second = names(config)
        assert latest(config) == first and open_run(f"{config.runs}/{second}").blind_pairs().num_rows
        run, said = mine(config)
        assert f"the latest is {second}" in said and len(names(config)) == 3
        assert run.manifest["config"]["compare_with"] == f"{config.runs}/{second}"
        assert storage.read_json(f"{config.runs}/latest.json")["previous"] == second

    def test_kill_9_of_a_driver_on_this_host(self, config: MineConfig) -> None:
        begun = f"{config.runs}/2999-01-01T000000Z"
        code = (
            "import sys, time; from mmvp_ray import storage; from mmvp_ray.store import Store, hold_lease\n"
            "with hold_lease(Store(sys.argv[1]), run='killed', ttl_seconds=3600):\n"
            "    storage.write_bytes(sys.argv[2] + '/pieces.parquet', b'half'); print('holds', flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", code, config.store_url, begun], stdout=subprocess.PIPE) as driver:
            assert driver.stdout is not None and driver.stdout.readline() == b"holds\n"
            driver.send_signal(signal.SIGKILL)
        run, said = mine(config)
        assert run.url == begun and latest(config) == "2999-01-01T000000Z"
        assert "waiting" not in said

    def test_a_driver_that_died_on_another_host_is_waited_for(self, config: MineConfig) -> None:
        holder = dataclasses.replace(Holder.this_process("runs/x"), host="pod-that-is-gone")
        lease = {
            "token": "t", "holder": dataclasses.asdict(holder), "num_renewals": 3, "ttl_seconds": 1.5,
            "acquired_at": "2099-01-01T00:00:00+00:00", "renewed_at": "2099-01-01T00:00:00+00:00", "released_at": None,
        }  # fmt: skip
        storage.write_json(f"{config.store_url}/leases/000007.json", lease)
        began = time.monotonic()
        _, said = mine(config)
        assert "pod-that-is-gone" in said and "waiting up to 1.5 s" in said
        assert time.monotonic() - began >= 1.5
        assert storage.read_json(f"{config.store_url}/leases/000008.json")["released_at"]


def kill_at(patch: pytest.MonkeyPatch, name: str) -> None:
    """Whoever writes a file of that name is interrupted in its place."""
    write = storage.write_bytes

    def killed(uri: str, data: bytes) -> None:
        if uri.endswith(name):
            raise KeyboardInterrupt
        write(uri, data)

    patch.setattr(storage, "write_bytes", killed)


@pytest.fixture
def renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of this process that count for two minutes are renewed, and watched, three times a second: no stall lasts as long."""
    monkeypatch.setattr(leases, "RENEWALS_PER_TTL", 400)
    monkeypatch.setattr(leases, "TRIES_PER_TTL", 400)


class TestRefused:
    def command(self, config: MineConfig) -> list[str]:
        return [
            sys.executable, str(REPOSITORY / "jobs/mine.py"), "--corpus", *config.corpus, "--runs", str(config.runs),
            "--device", "cpu", "--near-above", "0.8", "--far-below", "0.9",
        ]  # fmt: skip

    def test_two_at_once(self, config: MineConfig, renewed_often: None) -> None:
        before = latest(config)
        with hold_lease(Store(config.store_url), run="s3://b/runs", ttl_seconds=120.0) as lease:
            found = subprocess.run(self.command(config), capture_output=True, text=True, timeout=200, check=False)
            lease.confirm()
        assert found.returncode == 1 and found.stdout == ""
        note, error = found.stderr.splitlines()
        assert note.startswith("lease: ") and error.startswith("ResourceError: ") and "for s3://b/runs since" in error
        assert (names(config), latest(config)) == ([before], before)

    def test_a_run_that_lost_its_lease_ends_without_a_manifest(
        self, config: MineConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = latest(config)
        write = storage.write_bytes

        def overtaken(uri: str, data: bytes) -> None:
            write(uri, data)
            if uri.endswith("pairs.parquet"):
                # Somebody broke the lease by hand, as docs/remining.md says.
                storage.remove_folder(f"{config.store_url}/leases")

        monkeypatch.setattr(storage, "write_bytes", overtaken)
        with pytest.raises(ResourceError, match="found it lost"):
            mine(config)
        assert latest(config) == before
        assert not storage.exists(f"{config.runs}/{names(config)[1]}/manifest.json")

    def test_a_run_that_slept_embeds_no_further_piece(
        self, config: MineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody else's takedown may be over: images that were read before it would come back."""
        write_shards(tmp_path / "more", dataclasses.replace(WORLD, seed=6))
        config = dataclasses.replace(config, corpus=(*config.corpus, f"more={tmp_path}/more/*.tar"))
        write, now, slept = storage.write_bytes, leases.MACHINE_CLOCK.now, [0.0]

        def written(uri: str, data: bytes) -> None:
            write(uri, data)
            if "/corpora/more/images/" in uri:
                slept[0] = 1000.0

        monkeypatch.setattr(storage, "write_bytes", written)
        monkeypatch.setattr(leases._MachineClock, "now", lambda self: now() + slept[0])
        with pytest.raises(ResourceError, match=r"found it lost: it was not renewed for 120 s"):
            mine(config)
        folder = Store(config.store_url).images("more")
        assert len([name for name in storage.list_names(folder) if name.endswith(".parquet")]) == 1

    def test_the_lease_outlives_the_workers(self, config: MineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        left: list[dict[str, Any]] = []
        leave = Session.__exit__

        def noted(self: Session, *failure: Any) -> None:
            leave(self, *failure)
            (newest,) = storage.list_names(f"{config.store_url}/leases")[-1:]
            left.append(storage.read_json(f"{config.store_url}/leases/{newest}"))

        monkeypatch.setattr(Session, "__exit__", noted)
        mine(config)
        assert [entry["released_at"] for entry in left] == [None]

    def test_a_failed_run_leaves_the_latest_alone(self, config: MineConfig) -> None:
        before = latest(config)
        broken = dataclasses.replace(config, max_reject_fraction=0.0, corpus=(f"w={config.runs}/*.tar",))
        Path(str(config.runs), "broken.tar").write_bytes(b"no tar")
        with pytest.raises((DataError, ConfigError)):
            mine(broken)
        assert latest(config) == before
        assert storage.read_json(f"{config.store_url}/leases/000002.json")["released_at"]

    def test_a_plan_holds_nothing_and_moves_nothing(self, config: MineConfig) -> None:
        before = latest(config)
        with hold_lease(Store(config.store_url), run="x"):
            found = subprocess.run(
                [*self.command(config), "--plan"], capture_output=True, text=True, timeout=120, check=False
            )
        assert found.returncode == 0, found.stderr
        assert "0 pieces" in found.stdout and latest(config) == before


class TestTakedown:
    def test_it_is_refused_beside_a_scheduled_run(
        self, config: MineConfig, tmp_path: Path, renewed_often: None
    ) -> None:
        (tmp_path / "list.txt").write_text("0" * 32)
        plain = dataclasses.replace(config, runs=None, store=config.store_url, out=str(tmp_path / "out"))
        with hold_lease(Store(config.store_url), run="scheduled", ttl_seconds=120.0):
            with pytest.raises(ResourceError, match="for scheduled since"):
                mine(dataclasses.replace(plain, takedown=str(tmp_path / "list.txt")))
            # A run without one needs no lease.
            assert mine(plain)[0].blind_pairs().num_rows

    def test_it_cleans_every_dated_run(self, config: MineConfig, tmp_path: Path) -> None:
        (first,) = names(config)
        key = open_run(str(config.runs)).pairs().to_pylist()[0]["image_id_a"]
        (tmp_path / "list.txt").write_text(key.hex())
        run, said = mine(dataclasses.replace(config, takedown=str(tmp_path / "list.txt")))
        assert f"{first} showed images that were taken down" in said
        for path in Path(str(config.runs)).glob("2*/**/*.parquet"):
            table = pq.read_table(path)
            for name in set(table.column_names) & {"image_id_a", "image_id_b"}:
                assert key not in table.column(name).to_pylist()
        for path in Path(str(config.runs)).glob("2*/*.json"):
            assert key.hex() not in json.dumps(json.loads(path.read_text()))
        assert latest(config) == run.url.rpartition("/")[2]
        assert open_run(str(config.runs)).url == run.url
        third, _ = mine(config)
        assert storage.read_json(f"{third.url}/diff.json")["old"]["url"] == run.url
        assert len(names(config)) == 3 and names(config)[0] == first


class TestMinAesthetic:
    """A gate by stored scores, checked pair by pair."""

    def score(self, store: str, tmp_path: Path) -> dict[bytes, float]:
        from safetensors.numpy import save_file

        folder = next(Path(store, "embeddings").glob("*clip*"))
        dim = len(pq.read_table(next(folder.rglob("*.parquet")))["vector"][0])
        rng = np.random.default_rng(0)
        save_file(
            {"weight": rng.normal(size=(1, dim)).astype(np.float32), "bias": np.array([5.0], dtype=np.float32)},
            tmp_path / "head.safetensors",
        )
        scoring = AestheticConfig(store=store, head=str(tmp_path / "head.safetensors"), encoder=folder.name)
        score_images(scoring, Inline())
        tables = [pq.read_table(path) for path in Path(store, "aesthetics").rglob("*.parquet")]
        return {
            key: score
            for table in tables
            for key, score in zip(table["image_id"].to_pylist(), table["score"].to_pylist(), strict=True)
        }

    def test_pairs_of_images_with_a_low_score_are_left_out(self, config: MineConfig, tmp_path: Path) -> None:
        before = open_run(str(config.runs))
        scores = self.score(config.store_url, tmp_path)
        least = float(np.median(list(scores.values())))
        run, _ = mine(dataclasses.replace(config, min_aesthetic=least))
        expected = {pair for pair in ids_of(before) if all(scores[key] >= least for key in pair)}
        assert ids_of(run) == expected and 0 < len(expected) < len(ids_of(before))
        step = next(step for step in run.report()["funnel"] if step["stage"] == "kept by score")
        assert step["count"] == sum(score >= least for score in scores.values()) and f"{least:g}" in step["note"]
        # The tables of near pairs are those of a run without.
        assert run.manifest["combinations"][0]["near_pairs"] == before.manifest["combinations"][0]["near_pairs"]
        without, _ = mine(config)
        assert ids_of(without) == ids_of(before)

    def test_missing_scores_are_one_line(self, config: MineConfig, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"3 of 3 pieces .* run jobs/ingest\.py score --store"):
            mine(dataclasses.replace(config, min_aesthetic=5.0))
        self.score(config.store_url, tmp_path)
        next(Path(config.store_url, "aesthetics").rglob("*.done.json")).unlink()
        with pytest.raises(ConfigError, match="1 of 3 pieces") as caught:
            mine(dataclasses.replace(config, min_aesthetic=5.0))
        assert "\n" not in str(caught.value)


def test_a_directory_that_is_no_encoder_is_one_line_that_names_it(config: MineConfig, tmp_path: Path) -> None:
    (tmp_path / "encoders" / "half-copied").mkdir(parents=True)
    with pytest.raises(ConfigError, match="half-copied") as caught:
        mine(dataclasses.replace(config, far=("miniature:dino", f"hf:{tmp_path}/encoders/*")))
    assert "\n" not in str(caught.value)


def test_one_encoder_under_two_names_is_refused(config: MineConfig, tmp_path: Path) -> None:
    shutil.copytree(save_hf(tmp_path / "encoders" / "one", "vit"), tmp_path / "encoders" / "two")
    with pytest.raises(ConfigError, match=r"encoders/one and hf:.*encoders/two"):
        mine(dataclasses.replace(config, far=(f"hf:{tmp_path}/encoders/*",)))
