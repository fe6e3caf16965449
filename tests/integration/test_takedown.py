"""Takedown from end to end: killed at every write, by random lists, and in runs that mine the same store before and after."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmvp_ray import MineConfig, mine_pairs, open_run, storage
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.errors import ConfigError
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress, Run
from mmvp_ray.pipeline.takedown import apply_takedown_to_run, take_down
from mmvp_ray.store import DONE, apply_takedown, is_applied, open_store, refusals, takedown
from mmvp_ray.store.verify import verify
from tests.integration.embed_here import embedding_here
from tests.unit.test_store_takedown import (
    KEYS,
    NONFINITE,
    NUM,
    Killer,
    commit,
    contents,
    ids_anywhere,
    lines_for,
    near_table,
    pairs_of,
    taken,
    url_of,
    whole,
)
from tests.unit.test_store_takedown import _no_fsync as _no_fsync

pytestmark = pytest.mark.integration
SILENT = Progress(stream=None)
__all__ = ["whole"]


@pytest.fixture(scope="module", autouse=True)
def _few_threads() -> Iterator[None]:
    """Hundreds of takedowns of small tables: most of their time would be the start of threads that find nothing to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(takedown, "NUM_READING_THREADS", 2)
        patch.setattr(takedown, "NUM_WRITING_THREADS", 2)
        yield


def test_killed_at_every_write_and_removal(whole: Path, tmp_path: Path) -> None:
    lines = [*lines_for([2, 3, NONFINITE]), url_of(29)]
    start = open_store(str(shutil.copytree(whole, tmp_path / "start")))
    near_table(start, "rests", {"copies_key": "touched"})
    near_table(start, "cut-short", None)
    expected = open_store(str(shutil.copytree(start.root, tmp_path / "expected")))
    taken(expected, tmp_path, *lines)
    tree = contents(expected.root)
    for limit in range(1000):
        store = open_store(str(shutil.copytree(start.root, tmp_path / "store")))
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, limit)
            try:
                taken(store, tmp_path, *lines)
                break
            except KeyboardInterrupt:
                pass
        assert killer.num_done == limit
        if limit >= 2:
            assert not is_applied(store) and verify(store.root).problems
        # A second kill, while the first is mended.
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, limit // 2)
            with contextlib.suppress(KeyboardInterrupt):
                taken(store, tmp_path, *lines)
        taken(store, tmp_path, *lines)
        assert contents(store.root) == tree, limit
        shutil.rmtree(store.root)
    assert limit > 60 and verify(expected.root).problems == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=st.lists(st.lists(st.integers(0, 2 * NUM - 1), max_size=9), min_size=1, max_size=3))
def test_any_lists_of_ids_and_urls(whole: Path, tmp_path: Path, lists: list[list[int]]) -> None:
    store = open_store(str(shutil.copytree(whole, tmp_path / "store")))
    gone: set[int] = set()
    for numbers in lists:
        found = taken(store, tmp_path, *(KEYS[n].hex() if n < NUM else url_of(n - NUM) for n in numbers))
        # An image without a URL is not found by one; images 21 and 22 were found at the same.
        for number in numbers:
            named = {number} if number < NUM else {number - NUM} if (number - NUM) % 4 else set()
            gone |= {21, 22} if number >= NUM and named & {21, 22} else named
        assert {row.tobytes() for row in found.ids_M16} == {KEYS[number] for number in gone}
        assert not {KEYS[number] for number in gone} & set(ids_anywhere(store.root))
        assert verify(store.root).problems == []
    expected = open_store(str(tmp_path / "expected"))
    commit(expected, gone)
    mine = contents(store.root)
    assert {name: data for name, data in mine.items() if name.startswith(("corpora", "embeddings"))} == {
        name: data for name, data in contents(expected.root).items() if name != "store.json"
    }
    assert pairs_of(store) == pairs_of(expected)
    shutil.rmtree(store.root)
    shutil.rmtree(expected.root)


def config(world: Path, out: Path, **more: object) -> MineConfig:
    base = MineConfig(
        corpus=(f"world={world}",),
        out=str(out),
        device="cpu",
        select=12,
        rule=RuleConfig(near_above=0.9, far_below=0.7),
        embed=EmbedConfig(num_threads=1, num_actors=1),
        max_reject_fraction=0.5,
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_shards(
        folder,
        WorldConfig(num_images=240, seed=5, images_per_shard=96, num_exact_copies=6, num_near_copies=12, num_broken=2),
    )
    return folder


@pytest.fixture(scope="module")
def first(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with embedding_here():
        return mine_pairs(config(world, tmp_path_factory.mktemp("first") / "out"), progress=SILENT)


@pytest.fixture
def out(first: Run, tmp_path: Path) -> Path:
    """A copy of the finished run with its store."""
    folder = Path(shutil.copytree(first.url, tmp_path / "out"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["store"] = str(folder / "store")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_list(tmp_path: Path, keys: list[bytes]) -> str:
    (tmp_path / "list.txt").write_text("".join(f"{key.hex()}\n" for key in keys))
    return str(tmp_path / "list.txt")


def blind_of(run: Run) -> list[dict[str, object]]:
    return run.blind_pairs().to_pylist()


@pytest.mark.parametrize("collapse", ["none", "near"])
def test_a_run_after_a_takedown_is_a_run_that_never_saw_the_images(
    first: Run, out: Path, world: Path, tmp_path: Path, collapse: str
) -> None:
    if collapse == "near":
        mine_pairs(config(world, out, collapse=collapse), progress=SILENT)
    before = open_run(str(out))
    best = before.pairs().to_pylist()[0]
    keys = [best["image_id_a"], before.pairs().to_pylist()[3]["image_id_b"]]
    if collapse == "near":
        # A representative and, of another group, a member.
        groups: dict[bytes, list[bytes]] = {}
        for path in (out / "store" / "copies").rglob("copies.parquet"):
            for row in pq.read_table(path).to_pylist():
                groups.setdefault(row["group_id"], []).append(row["image_id"])
        some = sorted(groups)
        assert len(some) > 3
        keys += [some[0], max(groups[some[1]])]
    listed = write_list(tmp_path, keys)
    store = open_store(str(out / "store"))
    result = take_down(store, str(out), listed, SILENT)
    assert result is not None and result.num_images == len(keys) and result.unknown == ()
    assert not set(keys) & set(ids_anywhere(out))
    for path in out.rglob("*"):
        if path.suffix in (".json", ".html"):
            assert not any(key.hex() in path.read_text() for key in keys)
    assert verify(store.root).problems == []
    with pytest.raises(ConfigError, match="expected a finished run"):
        open_run(str(out))
    assert not (out / "report.html").exists() and not (out / "report.json").exists()

    progress = Progress(stream=None)
    after = mine_pairs(config(world, out, collapse=collapse), progress=progress)
    assert "embed" not in [stage.name for stage in progress.stages]
    if collapse == "none":
        assert next(stage for stage in progress.stages if stage.name == "join").count == 0
    scratch = tmp_path / "scratch"
    apply_takedown(open_store(str(scratch / "store")), listed)
    with embedding_here():
        never = mine_pairs(config(world, scratch, collapse=collapse), progress=SILENT)
    assert blind_of(after) == blind_of(never) and len(blind_of(after)) > 10
    assert after.pairs().equals(never.pairs()) and after.pairs().num_rows == 12
    for table in ("corpora", "embeddings", "takedown.parquet", "takedown" + DONE):
        mine, theirs = (
            {name: data for name, data in contents(root / "store").items() if name.startswith(table)}
            for root in (out, scratch)
        )
        assert mine == theirs and mine
    assert not set(keys) & set(ids_anywhere(out))
    assert after.verify().problems == []
    best_texts = {best["caption_a"], best["member_a"]}
    assert {reject["reason"] for reject in after.report()["rejects"]} >= {"taken_down"}
    assert all(row[f"member_{side}"] not in best_texts for row in after.pairs().to_pylist() for side in ("a", "b"))
    with pytest.raises(ConfigError, match="expected an image of the run"):
        after.place(keys[0])
    assert take_down(store, str(out), None, SILENT) is None


@pytest.mark.usefixtures("ray_session")
def test_a_new_encoder_does_not_bring_them_back(out: Path, world: Path, tmp_path: Path) -> None:
    keys = [open_run(str(out)).pairs().to_pylist()[0]["image_id_a"]]
    take_down(open_store(str(out / "store")), str(out), write_list(tmp_path, keys), SILENT)
    run = mine_pairs(config(world, out, far="python:tests.integration.grey_encoder:factory"), progress=SILENT)
    assert not set(keys) & set(ids_anywhere(out)) and run.verify().problems == []


class TestRun:
    def test_a_run_that_names_none_of_them_is_left_as_it_is(self, out: Path) -> None:
        before = contents(out)
        found = apply_takedown_to_run(str(out), np.zeros((1, 16), dtype=np.uint8))
        assert (found.num_rows_removed, found.is_reopened) == (0, False)
        assert apply_takedown_to_run(str(out), np.empty((0, 16), dtype=np.uint8)).is_reopened is False
        assert apply_takedown_to_run(str(out / "nothing"), np.zeros((1, 16), dtype=np.uint8)).is_reopened is False
        assert contents(out) == before

    def test_pairs_leave_and_what_shows_them_is_removed(self, out: Path) -> None:
        run = open_run(str(out))
        row = run.pairs().to_pylist()[1]
        key, other = row["image_id_a"], row["image_id_b"]
        pairs, blind = run.pairs().to_pylist(), blind_of(run)
        store = contents(out / "store")
        # What a diff with an earlier run leaves, and what users put there.
        (out / "diff.json").write_text(json.dumps({"pairs": [{"image_id_a": key.hex()}]}))
        (out / "diff.html").write_text("<img>")
        (out / "other.json").write_text(json.dumps({"image_id": other.hex()}))
        (out / "other.html").write_text("mine")
        foreign = pq.read_table(next((out / "store").rglob("images/*.parquet"))).replace_schema_metadata(None)
        pq.write_table(foreign, out / "foreign.parquet")
        (out / "broken.parquet").write_bytes(b"no Parquet")
        kept = (out / "foreign.parquet").read_bytes()
        found = apply_takedown_to_run(str(out), np.frombuffer(key, dtype=np.uint8).reshape(1, 16))
        touched = [row for row in [*pairs, *blind] if key in (row["image_id_a"], row["image_id_b"])]
        assert found.is_reopened and found.num_rows_removed == len(touched) >= 2
        assert pq.read_table(out / "pairs.parquet").to_pylist() == [row for row in pairs if row not in touched]
        (part,) = out.glob("blind_pairs/*/*.parquet")
        assert pq.read_table(part).to_pylist() == [row for row in blind if row not in touched]
        assert {path.name for path in out.iterdir() if path.is_file()} == {
            "pairs.parquet", "pieces.parquet", "other.json", "other.html", "foreign.parquet", "broken.parquet",
        }  # fmt: skip
        assert (out / "foreign.parquet").read_bytes() == kept
        assert contents(out / "store") == store

    def test_an_image_that_only_the_report_shows(self, out: Path) -> None:
        report = json.loads((out / "report.json").read_text())
        in_tables = set(ids_anywhere(out / "blind_pairs")) | set(
            pq.read_table(out / "pairs.parquet")["image_id_a"].to_pylist()
        )
        shown = {
            bytes.fromhex(pair[f"image_id_{side}"]) for pair in report["nearest_misses"] for side in ("a", "b")
        } - in_tables
        assert shown
        found = apply_takedown_to_run(str(out), np.frombuffer(min(shown), dtype=np.uint8).reshape(1, 16))
        assert (found.num_rows_removed, found.is_reopened) == (0, True)
        assert not (out / "report.html").exists() and not (out / "manifest.json").exists()

    def test_killed_at_every_write(self, out: Path, tmp_path: Path) -> None:
        key = open_run(str(out)).pairs().to_pylist()[0]["image_id_a"]
        ids = np.frombuffer(key, dtype=np.uint8).reshape(1, 16)
        shutil.rmtree(out / "store")
        for limit in range(20):
            folder = shutil.copytree(out, tmp_path / "copy")
            with pytest.MonkeyPatch.context() as patch:
                Killer(patch, limit)
                try:
                    apply_takedown_to_run(str(folder), ids)
                    break
                except KeyboardInterrupt:
                    pass
            apply_takedown_to_run(str(folder), ids)
            assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
                "pairs.parquet",
                "pieces.parquet",
            ]
            assert key not in set(ids_anywhere(folder))
            shutil.rmtree(folder)
        assert limit == 5


def test_an_interrupted_takedown_is_finished_by_whoever_comes_next(out: Path, tmp_path: Path) -> None:
    store = open_store(str(out / "store"))
    key = open_run(str(out)).pairs().to_pylist()[0]["image_id_a"]
    listed = write_list(tmp_path, [key])
    assert take_down(store, str(out), None, SILENT) is None
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            take_down(store, str(out), listed, SILENT)
    progress = Progress(stream=io.StringIO())
    assert take_down(store, str(out), None, progress) is not None
    assert key not in set(ids_anywhere(out)) and is_applied(store)
    assert isinstance(progress.stream, io.StringIO)
    assert "counts as unfinished" in progress.stream.getvalue()
    assert [stage.name for stage in progress.stages] == ["takedown"]
    assert take_down(store, str(out), None, SILENT) is None


def test_everything_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{s3_bucket}/takedown/store")
    commit(store)
    storage.write_bytes(f"{s3_bucket}/takedown/list.txt", "\n".join([url_of(29), *lines_for([3, 6])]).encode())
    storage.write_bytes(f"{store.root}/cells/near-x/file", b"centroids")
    assert not refusals(store)
    found = apply_takedown(store, f"{s3_bucket}/takedown/list.txt")
    assert found.num_images == 3 and found.removed == ("cells",)
    assert not storage.exists(f"{store.root}/cells")
    assert refusals(store).refuses(KEYS[6]) and not refusals(store).refuses(KEYS[7])
    assert verify(store.root).problems == []
    here = open_store(str(tmp_path / "here"))
    commit(here, [29, 3, 6])
    for name, data in contents(here.root).items():
        assert storage.read_bytes(f"{store.root}/{name}") == data
