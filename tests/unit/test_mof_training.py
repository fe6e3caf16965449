"""Stages: learning rates are transformers' own, published settings are in the files, curves come back, commands do not take what cannot be meant."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.cluster import Inline, Resources
from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.mof.data.convert import ConvertConfig, convert
from mmvp_ray.mof.data.image_index import IndexConfig, build_index
from mmvp_ray.mof.data.images import MissingConfig
from mmvp_ray.mof.data.order import OrderConfig
from mmvp_ray.mof.recipe import MoFRecipe
from mmvp_ray.mof.training.command import TrainCommand
from mmvp_ray.mof.training.config import OptimConfig, ScaleConfig, TrainConfig
from mmvp_ray.mof.training.curve import Point, from_parquet, to_parquet
from mmvp_ray.mof.training.feed import feed_for
from mmvp_ray.mof.training.loop import check_losses
from mmvp_ray.mof.training.run import Trained, shares, train
from mmvp_ray.mof.training.schedule import rate_at
from mmvp_ray.mof.training.speed import Work, peak_flops
from mmvp_ray.mof.training.stage_file import key_of, write_stage
from mmvp_ray.mof.training.steps import seed_step
from mmvp_ray.mof.training.worker import CURVE_FILE

STAGES = Path(__file__).resolve().parents[2] / "configs/mof/stages"
COMPLETE: dict[str, Any] = {"rows": "rows", "images": "images", "out": "out"}
TURNS = ({"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "a dog"})
POINT = Point(
    step=1,
    epoch=1.0,
    loss=1.0,
    learning_rate=1.0,
    grad_norm=1.0,
    num_rows=4,
    num_images=4,
    num_label_tokens=1,
    num_tokens=1,
    num_padded_tokens=1,
    seconds=1.0,
    wait_seconds=0.0,
)


@pytest.mark.parametrize(("num_steps", "warmup_fraction"), [(1, 0.0), (10, 0.03), (100, 0.03), (101, 0.25), (7, 0.9)])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_rates_are_those_of_transformers(num_steps: int, warmup_fraction: float, schedule: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # Trainer rounds the warm-up up.
    num_warmup = transformers.TrainingArguments(warmup_steps=warmup_fraction).get_warmup_steps(num_steps)
    scheduler = (
        transformers.get_cosine_schedule_with_warmup(optimizer, num_warmup, num_steps)
        if schedule == "cosine"
        else transformers.get_constant_schedule_with_warmup(optimizer, num_warmup)
    )
    config = OptimConfig(schedule=schedule, warmup_fraction=warmup_fraction)
    for step in range(num_steps):
        assert rate_at(step, num_steps=num_steps, config=config) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("name", "batch_rows", "rate", "num_epochs", "stage"),
    [
        # arXiv 2401.06209, appendix, table of hyper-parameters.
        ("llava_align", 128, 1e-3, 1, "align"),
        ("llava_finetune", 128, 2e-5, 3, "finetune"),
        ("llava15_align", 256, 2e-3, 1, "align"),
        ("llava15_finetune", 128, 2e-5, 1, "finetune"),
    ],
)
def test_the_papers_stages(name: str, batch_rows: int, rate: float, num_epochs: int, stage: str) -> None:
    found = load_yaml(TrainCommand, str(STAGES / f"{name}.yaml"))
    assert (found.stage, found.order.batch_rows, found.optim.learning_rate, found.num_epochs) == (
        stage,
        batch_rows,
        rate,
        num_epochs,
    )
    assert (found.optim.schedule, found.optim.warmup_fraction, found.optim.weight_decay) == ("cosine", 0.03, 0.0)
    dataclasses.replace(found.stage_config(), **COMPLETE).check()
    found.scale.check()


def test_every_stage_file_loads_and_takes_a_recipe() -> None:
    paths = sorted(STAGES.glob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        found = load_yaml(TrainCommand, str(path))
        recipe = str(STAGES.parent / "table2_additive_0625.yaml")
        stage = dataclasses.replace(found, recipe=recipe).stage_config()
        assert (stage.model.mode, stage.model.ssl_ratio) == ("additive", 0.625)
        assert type(stage) is TrainConfig
        dataclasses.replace(stage, **COMPLETE).check()


def test_a_recipe_and_settings_of_the_model_are_not_mixed() -> None:
    command = TrainCommand(recipe=str(STAGES.parent / "table2_additive_0625.yaml"), model=MoFRecipe(llm="mine"))
    with pytest.raises(ConfigError, match="found both"):
        command.stage_config()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "pretrain"}, "--stage align or finetune"),
        ({"rows": None}, "--rows"),
        ({"num_epochs": 0}, "--num-epochs"),
        ({"max_steps": 0}, "--max-steps"),
        ({"lora_rank": 8}, "finetune alone"),
        ({"lora_rank": -1}, "--lora-rank"),
        ({"precision": "fp16"}, "--precision"),
        ({"optim": OptimConfig(learning_rate=0.0)}, "learning rates above 0"),
        ({"optim": OptimConfig(learning_rate=float("nan"))}, "learning rates above 0"),
        ({"optim": OptimConfig(warmup_fraction=1.0)}, "--warmup-fraction"),
        ({"optim": OptimConfig(beta2=1.0)}, "betas"),
        ({"optim": OptimConfig(max_grad_norm=-1.0)}, "--max-grad-norm"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        TrainConfig(**COMPLETE | changes).check()
    assert "\n" not in str(caught.value)
    TrainConfig(**COMPLETE).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_workers": 0},
        {"num_to_keep": 0},
        {"cpus_per_loader": 0.0},
        {"gpu_gib": float("nan")},
        {"max_failures": -1},
        {"num_threads": 0},
        {"device": "tpu"},
        {"strategy": "zero"},
    ],
)
def test_a_scale_that_cannot_be_meant_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected "):
        ScaleConfig(**changes).check()


def test_an_index_names_prefixes() -> None:
    config = IndexConfig(archives=("coco=s3://b/train2017.tar", "=all.tar", "a=x=y.tar"), out="i.parquet")
    config.check()
    assert config.pairs() == [("s3://b/train2017.tar", "coco"), ("all.tar", ""), ("x=y.tar", "a")]
    for bad in (
        IndexConfig(out="i.parquet"),
        IndexConfig(archives=("a.tar",), out="i.parquet"),
        IndexConfig(archives=("a=b",), out="i"),
    ):
        with pytest.raises(ConfigError, match="expected "):
            bad.check()


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**40)


@given(
    st.lists(
        st.builds(
            Point,
            step=COUNTS,
            epoch=NUMBERS,
            loss=NUMBERS,
            learning_rate=NUMBERS,
            grad_norm=NUMBERS,
            num_rows=COUNTS,
            num_images=COUNTS,
            num_label_tokens=COUNTS,
            num_tokens=COUNTS,
            num_padded_tokens=COUNTS,
            seconds=NUMBERS,
            wait_seconds=NUMBERS,
            counts=st.dictionaries(st.text(max_size=5), COUNTS, max_size=3),
        ),
        max_size=4,
    )
)
def test_a_curve_comes_back(points: list[Point]) -> None:
    assert from_parquet(to_parquet(points)) == points


def test_rows_that_go_on_as_text_are_no_further_rows() -> None:
    numbers = dict.fromkeys((item.name for item in dataclasses.fields(Point)), 0)
    point = Point(**numbers | {"num_rows": 100, "counts": {"image_missing": 15}})  # type: ignore[arg-type]
    check_losses([point], MissingConfig(missing="drop", max_missing_fraction=0.14), num_rows=100)
    with pytest.raises(DataError, match="found 15 of 100 so far"):
        check_losses([point], MissingConfig(missing="text_only", max_missing_fraction=0.14), num_rows=100)
    # Ten of them were then dropped, for they lack labels too.
    both = Point(**numbers | {"num_rows": 90, "counts": {"image_missing": 10, "dropped_unlabelled": 10}})  # type: ignore[arg-type]
    check_losses([both], MissingConfig(missing="text_only", max_missing_fraction=0.15), num_rows=100)
    with pytest.raises(DataError, match="found 10 of 100 so far"):
        check_losses([both], MissingConfig(missing="text_only", max_missing_fraction=0.09), num_rows=100)


@given(
    num_cpus=st.integers(1, 64),
    num_workers=st.integers(1, 16),
    num_loaders=st.integers(1, 8),
    cpus_per_loader=st.floats(0.1, 4.0),
)
def test_all_workers_and_loaders_run_at_the_same_time(
    num_cpus: int, num_workers: int, num_loaders: int, cpus_per_loader: float
) -> None:
    have = Resources(
        num_cpus=num_cpus, num_gpus=0, num_nodes=1, smallest_node_cpus=num_cpus, memory_bytes=0, object_store_bytes=0
    )
    scale = ScaleConfig(num_workers=num_workers, num_loaders=num_loaders, cpus_per_loader=cpus_per_loader)
    try:
        device, worker, loader = shares(have, scale)
    except ResourceError:
        assert num_cpus < 0.02 * num_workers * (1 + num_loaders * cpus_per_loader) / min(1.0, cpus_per_loader)
        return
    assert device == "cpu"
    assert 0 < worker <= 1 and 0 < loader <= cpus_per_loader
    assert num_workers * (worker + num_loaders * loader) <= num_cpus


def test_the_work_of_a_step_is_that_of_its_matrices() -> None:
    # Counted by hand: 2 operations a weight and token forward, 2 for the gradient of its input, 2 for its own.
    work = Work(
        num_language=20, num_language_trained=11, num_adapters=3, num_towers=5, tower_tokens=7, adapter_tokens=4
    )
    assert work.of_step(num_tokens=10, num_images=2) == 4 * 20 * 10 + 6 * 11 * 10 + 6 * 3 * 8 + 2 * 5 * 14
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("some card") is peak_flops("NVIDIA H100 PCIe") is None


def test_dropout_depends_on_seed_step_and_rank_alone() -> None:
    def drawn(seed: int, step: int, rank: int) -> float:
        torch.rand(3)
        seed_step(seed, step, rank)
        return float(torch.rand(()))

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}) == 27


@pytest.mark.parametrize("place", ["folder", "index"])
def test_a_finished_stage_needs_no_images(tmp_path: Path, place: str) -> None:
    rows = [{"id": str(n), "image": f"{n}.jpg", "conversations": list(TURNS)} for n in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    convert(ConvertConfig(source=str(tmp_path / "rows.json"), out=str(tmp_path / "rows"), template="plain"))
    (tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / "images/all.tar", "w") as file:
        for row in rows:
            file.addfile(tarfile.TarInfo(str(row["image"])))
            (tmp_path / "images" / str(row["image"])).touch()
    build_index([(str(tmp_path / "images/all.tar"), "")], str(tmp_path / "images/index.parquet"))
    config = TrainConfig(
        rows=str(tmp_path / "rows"),
        images=str(tmp_path / "images" / ("index.parquet" if place == "index" else "")),
        out=str(tmp_path / "out"),
        model=load_yaml(TrainCommand, str(STAGES / "llava15_align.yaml")).stage_config().model,
        order=OrderConfig(batch_rows=4),
    )
    # As train leaves them.
    feed = feed_for(config, num_micro_batches=1)
    key = key_of(dataclasses.replace(config, collate=feed.collate), feed.rows)
    write_stage(str(config.out), key, "align", feed, is_finished=True)
    (tmp_path / "out" / CURVE_FILE).write_bytes(to_parquet([POINT]))

    def again(**changes: Any) -> Trained:
        return train(dataclasses.replace(config, **changes), ScaleConfig(), session=Inline())

    before = again()
    assert before.points == (POINT,)
    shutil.rmtree(tmp_path / "images")
    assert again() == before
    with pytest.raises(ConfigError, match="found another training"):
        again(num_epochs=2)
    write_stage(str(config.out), key, "align", feed, is_finished=False)
    with pytest.raises(ConfigError, match="images"):
        again()
