"""The whole main job on Ray: what it writes equals brute force, a second run does nothing, shards do not matter, bad input is one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmvp_ray import MineConfig, mine_pairs, open_run
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.errors import ConfigError, DataError, MmvpError
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress, Run
from mmvp_ray.pipeline.closing import closing_lines
from mmvp_ray.store import id_keys, read_embeddings

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]
SILENT = Progress(stream=None)
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"


def config(corpus: str, out: Path, **more: object) -> MineConfig:
    base = MineConfig(
        corpus=(corpus,),
        out=str(out),
        device="cpu",
        select=20,
        rule=RuleConfig(near_above=0.9, far_below=0.7),
        embed=EmbedConfig(num_threads=1),
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


def stored_vectors(run: Run, role: str) -> dict[bytes, np.ndarray]:
    """id -> fp16 vector, read with pyarrow alone from whatever files lie in the store."""
    folder = Path(run.manifest["store"]) / "embeddings" / run.manifest["encoders"][role]["slug"]
    found: dict[bytes, np.ndarray] = {}
    for path in sorted(folder.rglob("*.parquet")):
        ids, vectors = read_embeddings(str(path))
        found.update(zip(id_keys(ids).tolist(), vectors, strict=True))
    return found


def brute_force(run: Run, near_above: float, far_below: float) -> dict[tuple[bytes, bytes], tuple[float, float]]:
    near, far = stored_vectors(run, "near"), stored_vectors(run, "far")
    keys = sorted(near)

    def cosines(vectors: dict[bytes, np.ndarray]) -> np.ndarray:
        matrix = np.stack([vectors[key] for key in keys]).astype(np.float64)
        squares = (matrix * matrix).sum(axis=1)
        return matrix @ matrix.T / np.sqrt(np.outer(squares, squares))

    near_cos, far_cos = cosines(near), cosines(far)
    rows = np.nonzero(np.triu((near_cos > near_above) & (far_cos < far_below), 1))
    return {(keys[i], keys[j]): (near_cos[i, j], far_cos[i, j]) for i, j in zip(*rows, strict=True)}


def blind_set(run: Run) -> dict[tuple[bytes, bytes], tuple[float, float]]:
    # numpy's fixed-length texts lose trailing zero bytes; so do the keys on the other side.
    rows = run.blind_pairs().to_pylist()
    return {
        (row["image_id_a"].rstrip(b"\0"), row["image_id_b"].rstrip(b"\0")): (row["cos_near"], row["cos_far"])
        for row in rows
    }


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_shards(
        folder,
        WorldConfig(num_images=420, seed=77, images_per_shard=150, num_exact_copies=6, num_near_copies=4, num_broken=3),
    )
    return folder


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mine_pairs(config(f"world={world}", tmp_path_factory.mktemp("run")), progress=Progress(stream=None))


def test_blind_pairs_equal_brute_force(run: Run) -> None:
    expected = brute_force(run, 0.9, 0.7)
    assert len(expected) > 20
    found = blind_set(run)
    assert found.keys() == expected.keys()
    for pair, cosines in expected.items():
        assert found[pair] == pytest.approx(cosines, abs=1e-12)


def test_the_funnel_adds_up(run: Run) -> None:
    counts = run.manifest["counts"]
    assert counts["read"] == 433 == counts["decoded"] + counts["rejected"]
    assert counts["rejected"] == 3
    assert counts["embedded"] == 424
    assert counts["blind"] == run.blind_pairs().num_rows
    assert counts["selected"] == run.pairs().num_rows == 20
    report = run.report()
    assert {step["stage"]: step["count"] for step in report["funnel"]} == counts
    assert sum(entry["count"] for entry in report["rejects"]) == 3


def test_the_selection_names_images_that_can_be_opened(run: Run) -> None:
    pairs = run.pairs().to_pylist()
    assert [row["rank"] for row in pairs] == list(range(1, 21))
    blind = blind_set(run)
    uses: dict[bytes, int] = {}
    for row in pairs:
        pair = (row["image_id_a"], row["image_id_b"])
        assert tuple(key.rstrip(b"\0") for key in pair) in blind
        assert row["caption_a"]
        for key in pair:
            uses[key] = uses.get(key, 0) + 1
            data = run.image_bytes(key)
            assert hashlib.sha256(data).digest()[:16] == key
    assert max(uses.values()) <= 2
    assert run.image(pairs[0]["image_id_a"].hex()).size == (64, 64)
    with pytest.raises(ConfigError, match="ids are in pairs"):
        run.image("00" * 16)


def test_copies_are_counted(run: Run) -> None:
    table = run.blind_pairs()
    most = max(table.column("num_copies_a").to_pylist() + table.column("num_copies_b").to_pylist())
    assert most >= 1
    images = [pq.read_table(path) for path in (Path(run.manifest["store"]) / "corpora").rglob("images/*.parquet")]
    places: dict[bytes, int] = {}
    for part in images:
        for key in part.column("image_id").to_pylist():
            places[key] = places.get(key, 0) + 1
    for row in table.to_pylist():
        assert (row["num_copies_a"], row["num_copies_b"]) == (places[row["image_id_a"]], places[row["image_id_b"]])


def test_csv_has_the_selection(run: Run, tmp_path: Path) -> None:
    run.to_csv(str(tmp_path / "pairs.csv"))
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    assert len(lines) == 21
    assert run.pairs().column("image_id_a")[0].as_py().hex() in lines[1]


def test_the_store_verifies(run: Run) -> None:
    verdict = run.verify()
    assert verdict.problems == []
    assert verdict.num_markers >= 3 * 3


def test_a_second_run_computes_nothing_and_changes_nothing(run: Run, world: Path) -> None:
    before = digest(Path(run.manifest["store"]))
    progress = Progress(stream=None)
    again = mine_pairs(config(f"world={world}", Path(run.url)), progress=progress)
    assert "embed" not in [stage.name for stage in progress.stages]
    assert digest(Path(run.manifest["store"])) == before
    assert again.pairs().equals(run.pairs())


def test_a_new_far_encoder_computes_only_its_own_vectors(run: Run, world: Path, tmp_path: Path) -> None:
    before = digest(Path(run.manifest["store"]))
    swapped = mine_pairs(
        config(
            f"world={world}", tmp_path, store=run.manifest["store"], far="python:tests.integration.grey_encoder:factory"
        ),
        progress=SILENT,
    )
    after = digest(Path(run.manifest["store"]))
    new = after.keys() - before.keys()
    assert all(after[name] == text for name, text in before.items())
    slug = swapped.manifest["encoders"]["far"]["slug"]
    assert {name.split("/")[0] for name in new} == {"embeddings", "scores", "copies", "hubs"}
    assert all(slug in name for name in new if name.startswith(("embeddings", "scores")))
    assert blind_set(swapped).keys() == brute_force(swapped, 0.9, 0.7).keys()


def test_other_shards_of_the_same_images_give_the_same_pairs(
    run: Run, world: Path, tmp_path: Path, make_tar: Callable[..., None]
) -> None:
    import tarfile

    members: list[tuple[str, bytes]] = []
    for path in sorted(world.glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    keys = sorted({name.split(".")[0] for name, _ in members}, reverse=True)
    for part in range(2):
        chosen = set(keys[part::2])
        make_tar(
            tmp_path / f"new/{part}.tar",
            [member for key in keys if key in chosen for member in members if member[0].split(".")[0] == key],
        )
    other = mine_pairs(config(f"world={tmp_path}/new/{{0..1}}.tar", tmp_path / "out"), progress=SILENT)
    assert blind_set(other) == blind_set(run)
    assert [(r["image_id_a"], r["image_id_b"]) for r in other.pairs().to_pylist()] == [
        (r["image_id_a"], r["image_id_b"]) for r in run.pairs().to_pylist()
    ]


def test_collapse_near_leaves_one_of_each_group(run: Run, world: Path, tmp_path: Path) -> None:
    collapsed = mine_pairs(
        config(f"world={world}", tmp_path, store=run.manifest["store"], collapse="near"), progress=SILENT
    )
    near, far = stored_vectors(run, "near"), stored_vectors(run, "far")

    def cos(vectors: dict[bytes, np.ndarray], a: bytes, b: bytes) -> float:
        x, y = vectors[a].astype(np.float64), vectors[b].astype(np.float64)
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    keys = sorted(near)
    parent = {key: key for key in keys}

    def root(key: bytes) -> bytes:
        while parent[key] != key:
            key = parent[key]
        return key

    matrix = np.stack([near[key] for key in keys]).astype(np.float64)
    for i, j in zip(*np.nonzero(np.triu(matrix @ matrix.T > 0.98, 1)), strict=True):
        if cos(near, keys[i], keys[j]) >= 0.985 and cos(far, keys[i], keys[j]) >= 0.95:
            low, high = sorted([root(keys[i]), root(keys[j])])
            parent[high] = low
    kept = {key for key in keys if root(key) == key}
    assert len(kept) < len(keys)
    expected = {pair for pair in brute_force(run, 0.9, 0.7) if set(pair) <= kept}
    assert blind_set(collapsed).keys() == expected


@pytest.fixture(scope="module")
def without_pairs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first images of each shard, by a rule that no pair fulfils."""
    rule = RuleConfig(near_above=0.999, far_below=-0.9)
    out = tmp_path_factory.mktemp("without-pairs")
    return mine_pairs(config(f"world={world}", out, max_images=60, rule=rule), progress=SILENT)


def test_max_images_takes_the_first_of_each_shard(without_pairs: Run) -> None:
    assert without_pairs.manifest["counts"]["read"] == 60


def test_no_pairs_is_a_valid_result(without_pairs: Run) -> None:
    assert without_pairs.pairs().num_rows == without_pairs.blind_pairs().num_rows == 0
    report = without_pairs.report()
    assert any("nearest misses" in text for text in report["advice"])
    assert report["random"]["num_pairs"] == 60 * 59 // 2 - 0 or report["random"]["num_pairs"] > 0
    assert "No pair" in (Path(without_pairs.url) / "report.html").read_text()


def test_quantiles_become_thresholds_in_the_manifest(run: Run, world: Path, tmp_path: Path) -> None:
    rule = RuleConfig(near_quantile=0.99, far_quantile=0.5)
    mined = mine_pairs(config(f"world={world}", tmp_path, store=run.manifest["store"], rule=rule), progress=SILENT)
    settled = mined.manifest["rule"]
    assert settled["near_source"].startswith("quantile 0.99 of")
    vectors = stored_vectors(run, "near")
    matrix = np.stack([vectors[key] for key in sorted(vectors)]).astype(np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    cos = (matrix @ matrix.T)[np.triu_indices(len(matrix), 1)]
    assert settled["near_above"] == pytest.approx(np.quantile(cos, 0.99), abs=1e-9)


def test_rejects_above_the_limit_fail_the_run(
    tmp_path: Path, make_tar: Callable[..., None], make_jpeg: Callable[[int], bytes]
) -> None:
    make_tar(
        tmp_path / "in/a.tar", [("good.jpg", make_jpeg(1)), ("bad.jpg", b"no picture"), ("cut.jpg", make_jpeg(2)[:200])]
    )
    with pytest.raises(DataError, match=r"expected at most 5.0% .* found 2 of 3 .*--max-reject-fraction"):
        mine_pairs(config(f"x={tmp_path}/in", tmp_path / "out"), progress=SILENT)
    with pytest.raises(ConfigError, match="expected a finished run"):
        open_run(str(tmp_path / "out"))
    mined = mine_pairs(config(f"x={tmp_path}/in", tmp_path / "out", max_reject_fraction=1.0), progress=SILENT)
    assert {entry["reason"]: entry["count"] for entry in mined.report()["rejects"]} == {
        "not_an_image": 1,
        "truncated": 1,
    }
    assert re.search(r"rejected +2 images +not_an_image 1, truncated 1$", "\n".join(closing_lines(mined)), re.MULTILINE)
    # A run that ends before it has results leaves those that are there.
    with pytest.raises(DataError, match=r"expected at most 5\.0%"):
        mine_pairs(config(f"x={tmp_path}/in", tmp_path / "out"), progress=SILENT)
    assert open_run(str(tmp_path / "out")).manifest == mined.manifest


def test_errors_of_workers_arrive_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.parquet").write_bytes(b"this is no Parquet file")
    with pytest.raises(MmvpError) as caught:
        mine_pairs(config(f"x={tmp_path}/in", tmp_path / "out"), progress=SILENT)
    assert type(caught.value) is DataError
    assert re.match(r"expected a Parquet file, found something else in .*a\.parquet", str(caught.value))
    assert "\n" not in str(caught.value)


def test_queries_of_the_guide_run_in_duckdb(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    queries = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(queries) == 4, "the selection, degrees, cosines, and the reasons of rejects"
    monkeypatch.chdir(run.url)
    for query in queries:
        rows = duckdb.sql(re.sub(r"runs/(miniature|photos)/", "", query)).fetchall()
        assert rows, query


def test_manifest_says_what_made_the_run(run: Run) -> None:
    manifest = json.loads((Path(run.url) / "manifest.json").read_text())
    assert manifest["config"]["near"] == ["miniature:clip"]
    assert manifest["stand_in"] is True
    assert set(manifest["encoders"]["near"]) >= {"name", "slug", "fingerprint", "weights_sha256", "dtype"}
    assert {"ray", "torch", "pyarrow"} <= set(manifest["versions"])
    assert "CLIP-blind" not in (Path(run.url) / "report.html").read_text().replace("never CLIP-blind", "")
