"""Plans: rows become shards as in one loop over all metadata, however they lie in files and whoever reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.ingest import laion_duplicates, laion_kept, laion_metadata, laion_plan
from mmvp_ray.ingest.filters import LaionFilters
from mmvp_ray.ingest.laion_config import LaionConfig
from mmvp_ray.ingest.laion_plan import plan_laion

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder: Path, files: list[list[dict[str, Any]]], *, group_rows: int = 7) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema({"URL": pa.string(), "TEXT": pa.string(), "punsafe": pa.float32(), "WIDTH": pa.float64()})
    for index, rows in enumerate(files):
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, folder / f"part-{index:05d}.parquet", row_group_size=group_rows)
    return str(folder)


def rows(num: int, *, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"URL": f"http://h{n % 5}.example/{n}", "TEXT": f"t{n}", "punsafe": n % 10 / 10, "WIDTH": float(n)}
        for n in range(start, start + num)
    ]


def config(folder: Path, **changes: Any) -> LaionConfig:
    defaults = LaionConfig(metadata=(str(folder / "metadata"),), out=str(folder / "out"), num_urls_per_shard=8)
    return dataclasses.replace(defaults, **changes)


def shards_of(settings: LaionConfig) -> list[list[dict[str, Any]]]:
    found = []
    for path in sorted(Path(settings.out_url, "plan/shards").glob("*")):
        with pa.ipc.open_file(path) as file:
            found.append(file.read_all().to_pylist())
    return found


NUMBERS = st.lists(st.lists(st.integers(0, 25), max_size=20), min_size=1, max_size=4)


@settings(max_examples=12)
@given(files=NUMBERS, per_shard=st.integers(1, 9), max_urls=st.none() | st.integers(1, 40), small=st.booleans())
def test_shards_are_those_of_one_loop(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], per_shard: int, max_urls: int | None, small: bool
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    # The same URL in two spellings is one URL.
    rows_of = [
        [
            {"URL": f"http://{'A' if n % 3 else 'a'}.example:80/{n % 13}", "TEXT": f"{f}.{i}", "punsafe": n / 25}
            for i, n in enumerate(ns)
        ]
        for f, ns in enumerate(files)
    ]
    write(folder / "metadata", rows_of)
    recipe = config(folder, num_urls_per_shard=per_shard, max_urls=max_urls, filters=LaionFilters(max_punsafe=0.8))
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(laion_duplicates, "MAX_RANGE_ROWS", 3)
            patch.setattr(laion_kept, "GROUP_ROWS", 4)
            patch.setattr(laion_metadata, "BATCH_ROWS", 3)
            patch.setattr(laion_plan, "SHARDS_PER_TASK", 2)
        plan = plan_laion(recipe, Inline())

    seen: set[str] = set()
    expected: list[tuple[str, str]] = []
    num_unsafe = num_again = 0
    for row in (row for rows in rows_of for row in rows):
        if np.float32(row["punsafe"]) > 0.8:
            num_unsafe += 1
        elif row["URL"].lower() in seen:
            num_again += 1
        else:
            seen.add(row["URL"].lower())
            expected.append((row["URL"], row["TEXT"]))
    asked = expected[:max_urls]
    found = shards_of(recipe)
    assert [(row["url"], row["caption"]) for shard in found for row in shard] == asked
    assert [len(shard) for shard in found] == [plan.shard_urls(index) for index in range(plan.num_shards)]
    assert all(len(shard) == per_shard for shard in found[:-1])
    assert plan.dropped == {k: v for k, v in (("unsafe", num_unsafe), ("duplicate_url", num_again)) if v}
    assert plan.num_beyond == len(expected) - len(asked)
    assert plan.num_rows == plan.num_urls + plan.num_beyond + sum(plan.dropped.values())
    assert sorted(path.name for path in Path(recipe.out_url, "plan").iterdir() if path.name != "shards") == [
        "plan.json",
        "settings.json",
    ]


def test_a_plan_broken_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "metadata", [rows(30), rows(30, start=20), rows(5, start=100)])
    undisturbed = config(tmp_path, out=str(tmp_path / "undisturbed"))
    plan_laion(undisturbed, Inline())
    settings = config(tmp_path)
    read: list[str] = []
    whole = laion_kept.read_metadata

    def counted(uri: str, *rest: Any) -> Any:
        read.append(uri)
        if len(read) == 2:
            raise KeyboardInterrupt
        return whole(uri, *rest)

    monkeypatch.setattr(laion_kept, "read_metadata", counted)
    with pytest.raises(KeyboardInterrupt):
        plan_laion(settings, Inline())
    seen: list[int] = []
    plan = plan_laion(settings, Inline(), on_file=lambda facts: seen.append(facts["num_rows"]))
    assert [Path(uri).name for uri in read] == [f"part-0000{n}.parquet" for n in (0, 1, 1, 2)]
    assert seen == [30, 30, 5]
    assert (plan, shards_of(settings)) == (plan_laion(undisturbed, Inline()), shards_of(undisturbed))
    read.clear()
    assert plan_laion(settings, Inline()) == plan
    assert not read


def test_what_the_ranges_found_is_read_once_however_many_shards_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "metadata", [rows(200), rows(200, start=100), rows(200, start=150)])
    monkeypatch.setattr(laion_duplicates, "MAX_RANGE_ROWS", 50)
    monkeypatch.setattr(laion_plan, "SHARDS_PER_TASK", 1)
    num_bytes = 0
    read = storage.read_bytes

    def counted(uri: str, **options: Any) -> bytes:
        nonlocal num_bytes
        data = read(uri, **options)
        if "/plan/duplicates/" in uri and not uri.endswith(".json"):
            num_bytes += len(data)
        return data

    monkeypatch.setattr(storage, "read_bytes", counted)
    plan = plan_laion(config(tmp_path), Inline())
    assert plan.dropped == {"duplicate_url": 250} and plan.num_shards > 40
    assert num_bytes == 250 * 8


def test_filters_are_tried_in_one_folder_until_something_is_downloaded(tmp_path: Path) -> None:
    write(tmp_path / "metadata", [rows(30)])
    loose = config(tmp_path)
    strict = config(tmp_path, filters=LaionFilters(max_punsafe=0.25))
    alone = config(tmp_path, out=str(tmp_path / "alone"), filters=LaionFilters(max_punsafe=0.25))
    assert plan_laion(loose, Inline()).num_urls == 30
    assert plan_laion(strict, Inline()) == plan_laion(alone, Inline())
    assert shards_of(strict) == shards_of(alone)

    missing = config(tmp_path, filters=LaionFilters(min_similarity=0.3))
    with pytest.raises(ConfigError, match="--min-similarity"):
        plan_laion(missing, Inline())
    assert shards_of(strict) == shards_of(alone)

    (tmp_path / "out" / "attempts").mkdir()
    (tmp_path / "out" / "attempts" / "00000.1a2b").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"found others \(filters\.max_punsafe\)"):
        plan_laion(loose, Inline())
    assert shards_of(strict) == shards_of(alone)


def test_a_replacement_of_a_plan_that_was_cut_short_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "metadata", [rows(30)])
    strict = config(tmp_path, filters=LaionFilters(max_punsafe=0.25))
    plan_laion(config(tmp_path), Inline())
    with monkeypatch.context() as patch:
        patch.setattr(laion_plan.storage, "remove_folder", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            plan_laion(strict, Inline())
    plan = plan_laion(strict, Inline())
    assert plan.num_urls == sum(len(shard) for shard in shards_of(strict)) == 9
    assert plan_laion(config(tmp_path), Inline()).num_urls == 30


def test_nulls_in_disguise(tmp_path: Path) -> None:
    values = [
        {"URL": "http://a.example/1", "TEXT": "", "punsafe": float("nan"), "WIDTH": 0.0},
        {"URL": "", "TEXT": "x", "punsafe": 0.1, "WIDTH": 10.0},
        {"URL": "http://a.example/2", "TEXT": None, "punsafe": None, "WIDTH": -1.0},
        {"URL": "http://a.example/3", "TEXT": "y", "punsafe": 0.5, "WIDTH": float("inf")},
    ]
    write(tmp_path / "metadata", [values])
    plan = plan_laion(config(tmp_path), Inline())
    assert plan.dropped == {"no_url": 1}
    assert [(row["caption"], row["punsafe"], row["laion_width"]) for row in shards_of(config(tmp_path))[0]] == [
        (None, None, None),
        (None, None, None),
        ("y", 0.5, None),
    ]
    strict = config(tmp_path, out=str(tmp_path / "strict"), filters=LaionFilters(max_punsafe=0.5))
    assert plan_laion(strict, Inline()).dropped == {"no_url": 1, "unsafe_unknown": 2}
    lax = config(tmp_path, out=str(tmp_path / "lax"), filters=LaionFilters(max_punsafe=0.4, unknown="keep"))
    assert plan_laion(lax, Inline()).dropped == {"no_url": 1, "unsafe": 1}


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    raw = pa.array([b"ok", b"caf\xe9", None], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = pa.table({"url": [f"http://a.example/{n}" for n in range(3)], "text": texts})
    pq.write_table(table, tmp_path / "metadata/a.parquet")
    plan_laion(config(tmp_path), Inline())
    assert [row["caption"] for row in shards_of(config(tmp_path))[0]] == ["ok", "caf\ufffd", None]


def test_a_filter_without_its_column(tmp_path: Path) -> None:
    write(tmp_path / "metadata", [rows(3)])
    with pytest.raises(ConfigError, match=r"expected a column for --min-aesthetic \(AESTHETIC_SCORE or "):
        plan_laion(config(tmp_path, filters=LaionFilters(min_aesthetic=5.0)), Inline())
    with pytest.raises(ConfigError, match=r"expected a column for --max-aspect \(original_height or "):
        plan_laion(config(tmp_path, filters=LaionFilters(max_aspect=2.0)), Inline())
    listed = tmp_path / "ids.txt"
    listed.write_text("123\n")
    with pytest.raises(ConfigError, match="expected a column for the ids in --deny-file"):
        plan_laion(config(tmp_path, filters=LaionFilters(deny_file=(str(listed),))), Inline())
    assert not (tmp_path / "out").exists()


def test_metadata_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/a.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(DataError, match="expected a LAION metadata Parquet file"):
        plan_laion(config(tmp_path), Inline())
    (tmp_path / "metadata/a.parquet").rename(tmp_path / "metadata/a.csv")
    with pytest.raises(ConfigError, match=r"expected \.parquet files"):
        plan_laion(config(tmp_path), Inline())


def test_metadata_that_is_damaged_or_has_a_column_twice_is_named(tmp_path: Path) -> None:
    urls = pa.array([f"http://a.example/{index}" for index in range(5000)])
    path = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"URL": urls}), path, compression="zstd")
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in (slice(footer, footer + 40), slice(60, 120)):
        damaged = bytearray(whole)
        damaged[place] = b"\xff" * (place.stop - place.start)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged\.parquet"):
            plan_laion(LaionConfig(metadata=(str(path),), out=str(tmp_path / f"out{place.start}")), Inline())
    doubled = tmp_path / "doubled.parquet"
    pq.write_table(pa.Table.from_arrays([urls, urls], names=["URL", "URL"]), doubled)
    with pytest.raises(DataError, match=r"'URL' more than once in .*doubled\.parquet"):
        plan_laion(LaionConfig(metadata=(str(doubled),), out=str(tmp_path / "out")), Inline())


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": ()},
        {"out": None},
        {"num_urls_per_shard": 0},
        {"num_threads": 5000},
        {"max_failed_shards": -1},
        {"cpus_per_task": 0.0},
        {"column": ("x",)},
        {"filters": LaionFilters(max_punsafe=2.0)},
    ],
)
def test_values_out_of_range(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        config(tmp_path, **changes).check()


def test_the_recipe_loads() -> None:
    recipe = load_yaml(LaionConfig, str(REPOSITORY / "configs/ingest/laion_aesthetics.yaml"))
    dataclasses.replace(recipe, out="out").check()
    assert recipe.filters.min_aesthetic and recipe.filters.max_punsafe
    assert not recipe.fetch.allow_private_addresses
