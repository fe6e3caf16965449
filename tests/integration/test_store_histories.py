"""Random histories of one store: other shards, engines, rules and encoders, takedowns and kills; each run finds what a run from scratch finds."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from mmvp_ray import MineConfig, mine_pairs
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress, Run
from mmvp_ray.search import SearchConfig, ivfpq
from mmvp_ray.store.verify import verify
from tests.unit.test_store_takedown import Killer
from tests.unit.test_store_takedown import _no_fsync as _no_fsync

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]

CLIP, DINO, GREY = "miniature:clip", "miniature:dino", "python:tests.integration.grey_encoder:factory"
NUM_SHARDS = 6
MISSED = 0.03
"""Share of the pairs that an approximate engine may overlook in so small a corpus; the audit's target is stricter, and of larger ones."""
ROUNDING = 2e-6
"""Beside a threshold by less than this, float64 products and exact arithmetic may differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One run on the store, killed at some of its writes before it is let through."""

    shards: frozenset[int]
    search: SearchConfig
    rule: RuleConfig
    collapse: str
    near: tuple[str, ...]
    far: tuple[str, ...]
    taken_down: frozenset[int]
    kills: tuple[int, ...]
    compares: bool

    @property
    def pattern(self) -> str:
        """Glob of its shards' names."""
        return f"*-00000[{''.join(map(str, sorted(self.shards)))}].tar"

    def config(self, world: Path, out: Path, **more: Any) -> MineConfig:
        """Its run into `out`."""
        settings = {name: getattr(self, name) for name in ("search", "rule", "collapse", "near", "far")}
        return config(world, self.pattern, out, **settings, **more)


STEPS = st.builds(
    Step,
    shards=st.frozensets(st.integers(0, NUM_SHARDS - 1), min_size=2),
    search=st.builds(
        SearchConfig,
        engine=st.sampled_from(["auto", "exact", "ivfpq"]),
        refit_cells=st.booleans(),
    )
    | st.builds(
        SearchConfig,
        engine=st.just("routed"),
        provable=st.booleans(),
        num_cells=st.sampled_from([4, 8]),
        refit_cells=st.booleans(),
    ),
    rule=st.sampled_from(
        [
            RuleConfig(near_above=0.93, far_below=0.7),
            RuleConfig(near_above=0.93, far_below=0.7, centred=True),
            RuleConfig(near_above=0.96, far_below=0.7),
            RuleConfig(near_above=0.93, far_below=0.6, floor=0.85),
            RuleConfig(near_quantile=0.99, far_quantile=0.5),
        ]
    ),
    collapse=st.sampled_from(["none", "near"]),
    near=st.sampled_from([(CLIP,), (DINO,), (CLIP, DINO)]),
    far=st.sampled_from([(DINO, CLIP), (GREY,), (DINO, GREY)]),
    taken_down=st.frozensets(st.integers(0, 499), max_size=6),
    kills=st.lists(st.integers(0, 60), max_size=2).map(tuple),
    compares=st.booleans(),
).filter(lambda step: any(near != far for near in step.near for far in step.far))


def grown(num_shards: int, *, refit: bool = False, kills: tuple[int, ...] = ()) -> Step:
    """One of several runs that each build on the index of the one before; drawn at random, such runs hardly ever follow each other."""
    return Step(
        shards=frozenset(range(num_shards)),
        search=SearchConfig(engine="ivfpq", refit_cells=refit),
        rule=RuleConfig(near_above=0.93, far_below=0.7),
        collapse="none",
        near=(CLIP,),
        far=(DINO,),
        taken_down=frozenset(),
        kills=kills,
        compares=True,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards, with copies across them and two broken images."""
    folder = tmp_path_factory.mktemp("world")
    counts = {"num_images": 480, "images_per_shard": 90, "num_exact_copies": 10, "num_near_copies": 14, "num_broken": 2}
    write_shards(folder, WorldConfig(seed=5, **counts))
    assert len(list(folder.glob("*.tar"))) == NUM_SHARDS
    return folder


@pytest.fixture(scope="module")
def embedded(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the vectors of all images, and nothing that was found in them."""
    out = tmp_path_factory.mktemp("embedded")
    encoders = (CLIP, DINO, GREY)
    mine_pairs(config(world, "*.tar", out, near=encoders, far=encoders), progress=Progress(stream=None))
    store = tmp_path_factory.mktemp("vectors") / "store"
    store.mkdir()
    shutil.copy(out / "store" / "store.json", store)
    for folder in ("corpora", "embeddings"):
        shutil.copytree(out / "store" / folder, store / folder)
    return store


def config(world: Path, pattern: str, out: Path, **more: Any) -> MineConfig:
    base = MineConfig(
        corpus=(f"w={world}/{pattern}",),
        out=str(out),
        device="cpu",
        select=20,
        embed=EmbedConfig(num_threads=1),
        max_reject_fraction=0.5,
    )
    return dataclasses.replace(base, **more)


def image_ids(store: Path) -> list[bytes]:
    tables = [pq.read_table(path, columns=["image_id"]) for path in (store / "corpora/w/images").glob("*.parquet")]
    return sorted({key for table in tables for key in table["image_id"].to_pylist()})


def write_list(path: Path, keys: set[bytes]) -> str:
    path.write_text("".join(f"{key.hex()}\n" for key in sorted(keys)))
    return str(path)


def is_exact(run: Run) -> bool:
    """Whether every engine of the run finds every pair by construction."""
    return all(combination["audit"]["by_construction"] for combination in run.manifest["combinations"])


def keys_of(rows: list[dict[str, Any]]) -> set[tuple[bytes, bytes]]:
    return {(row["image_id_a"], row["image_id_b"]) for row in rows}


def brute_force(store: Path, shards: frozenset[int], combination: dict[str, Any]) -> tuple[set[Any], set[Any]]:
    """The pairs that surely are blind, and those that may be, from the stored vectors of some shards."""
    cosines = []
    for side in ("near", "far"):
        vectors: dict[bytes, list[float]] = {}
        for path in (store / "embeddings" / combination[side]["slug"] / "w").glob("*.parquet"):
            if int(path.name.split("-")[1]) in shards:
                table = pq.read_table(path)
                vectors.update(zip(table["image_id"].to_pylist(), table["vector"].to_pylist(), strict=True))
        ids = sorted(vectors)
        vectors_ND = np.array([vectors[key] for key in ids], dtype=np.float64)
        vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        cosines.append(vectors_ND @ vectors_ND.T)
    rule, (near_NN, far_NN) = combination["rule"], cosines
    found = []
    for slack in (ROUNDING, -ROUNDING):
        blind_NN = np.triu((near_NN > rule["near_above"] + slack) & (far_NN < rule["far_below"] - slack), 1)
        found.append({(ids[a], ids[b]) for a, b in np.argwhere(blind_NN)})
    return found[0], found[1]


@pytest.mark.long
@settings(
    max_examples=4,
    # A history takes seconds; what failed is printed whole and short enough as it is.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps=st.lists(STEPS, min_size=2, max_size=4))
@example(steps=[grown(3), grown(4, kills=(20, 28, 36)), grown(5, refit=True, kills=(30,)), grown(6)])
def test_whatever_happened_to_a_store_a_run_finds_what_is_in_it(
    steps: list[Step], world: Path, embedded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("history")
    store = Path(shutil.copytree(embedded, root / "store"))
    ids, gone, previous = image_ids(store), set[bytes](), None
    with pytest.MonkeyPatch.context() as always:
        always.setattr(ivfpq, "MIN_IMAGES", 200)
        for number, step in enumerate(steps):
            run, gone_now = _run(step, world, store, root / f"run{number}", ids, previous)
            gone |= gone_now
            previous = run.url
            _check(run, step, world, embedded, root / f"scratch{number}", gone)
            assert verify(str(store)).problems == []
    shutil.rmtree(root)


def _run(
    step: Step, world: Path, store: Path, out: Path, ids: list[bytes], previous: str | None
) -> tuple[Run, set[bytes]]:
    gone = {ids[number] for number in step.taken_down if number < len(ids)}
    settled = step.config(
        world,
        out,
        store=str(store),
        takedown=write_list(out.with_suffix(".txt"), gone) if gone else None,
        compare_with=previous if step.compares else None,
    )
    for limit in step.kills:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            Killer(patch, limit)
            mine_pairs(settled, progress=Progress(stream=None))
        # The process that holds it lives on here, and would be waited for.
        shutil.rmtree(store / "leases", ignore_errors=True)
    return mine_pairs(settled, progress=Progress(stream=None)), gone


def _check(run: Run, step: Step, world: Path, embedded: Path, scratch: Path, gone: set[bytes]) -> None:
    fresh = Path(shutil.copytree(embedded, scratch / "store"))
    settled = step.config(
        world,
        scratch / "out",
        store=str(fresh),
        takedown=write_list(scratch / "list.txt", gone) if gone else None,
    )
    reference = mine_pairs(settled, progress=Progress(stream=None))
    for combination in run.manifest["combinations"]:
        names = (combination["near"]["name"], combination["far"]["name"])
        found, expected = (one.blind_pairs(*names).to_pylist() for one in (run, reference))
        assert not {key for pair in keys_of(found) for key in pair} & gone
        if is_exact(run) and is_exact(reference):
            assert found == expected
        if step.collapse == "none" and not step.rule.centred:
            surely, maybe = brute_force(Path(run.manifest["store"]), step.shards, combination)
            assert keys_of(found) <= maybe
            assert len(surely - keys_of(found)) <= (0 if is_exact(run) else max(1, MISSED * len(surely)))
    if is_exact(run) and is_exact(reference):
        assert run.pairs().equals(reference.pairs())
        assert _numbers(run) == _numbers(reference)
    shutil.rmtree(scratch)


def _numbers(run: Run) -> dict[str, Any]:
    """What its report says of the images and pairs, but not of where they lie and how long it took."""
    report = run.report()
    return {
        key: report[key]
        for key in ("rule", "funnel", "blindness", "joint", "matrix", "pairs", "nearest_misses", "random", "rejects")
    }
