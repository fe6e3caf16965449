"""Stages on Ray Train: workers that are killed end with the weights of a plain loop; in an object store; wrong data is said once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.checkpoints import load_model
from mmvp_ray.mof.data.images import MissingConfig
from mmvp_ray.mof.training.config import ScaleConfig
from mmvp_ray.mof.training.run import train
from tests.conftest import jpeg
from tests.integration.mof_training_data import config_for
from tests.integration.mof_training_reference import reference
from tests.processes import descendants
from tests.scripted_server import ScriptedServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_TRIES = 3
SCALE = ScaleConfig(device="cpu", num_threads=1, checkpoint_every_steps=2, log_every_steps=1)


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, value in found.items():
        torch.testing.assert_close(
            value, wanted[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@contextlib.contextmanager
def once_kept(out: str, checkpoint: str, act: Callable[[], bool]) -> Iterator[list[str]]:
    """Act when a checkpoint, or one behind it, is there, and again until it is done; gives the checkpoint of the deed.

    Lines of progress would say it too late on a busy machine, and only the best are kept: a given one may be gone before it is seen.
    """
    done: list[str] = []
    is_over = threading.Event()

    def watch() -> None:
        while not done and not is_over.wait(0.02):
            newest = max(storage.list_folders(f"{out}/checkpoints"), default="")
            if newest >= checkpoint and act():
                done.append(newest)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        is_over.set()
        thread.join()


def kill_a_trainer() -> bool:
    """Kill one of the training processes of this process's Ray; False where there is none, as while Ray starts them anew."""
    trainers = descendants("RayTrainWorker")
    with contextlib.suppress(psutil.NoSuchProcess):
        for trainer in trainers[-1:]:
            trainer.kill()
            return True
    return False


@pytest.mark.parametrize(
    ("num_workers", "strategy"),
    [pytest.param(1, "ddp", id="one"), pytest.param(2, "fsdp", id="two sharded", marks=pytest.mark.long)],
)
def test_workers_of_which_one_is_killed_equal_a_plain_loop(
    num_workers: int,
    strategy: str,
    backbones: dict[str, str],
    data: dict[str, str],
    tmp_path: Path,
    ray_session: None,
) -> None:
    scale = dataclasses.replace(SCALE, num_workers=num_workers, strategy=strategy, num_micro_batches=2)
    # On a busy machine a training may be over before it is looked at again.
    for number in range(NUM_TRIES):
        out = tmp_path / str(number)
        config = config_for(backbones, data, out, num_epochs=4)
        said: list[str] = []
        with Session() as session, once_kept(str(out), "step_00000006", kill_a_trainer) as killed:
            found = train(config, scale, session=session, say=said.append)
        if killed:
            break
    assert killed
    assert any(line.startswith("going on behind step ") for line in said), said
    model, losses, _ = reference(config)
    assert [p.step for p in found.points] == list(range(1, 25))
    torch.testing.assert_close(torch.tensor([p.loss for p in found.points]), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    trained, processor = load_model(found.product)
    same(trained.state_dict(), model.state_dict())
    assert processor.num_image_tokens == model.config.num_image_tokens
    # The two best are kept, and the newest.
    kept = storage.list_folders(str(out / "checkpoints"))
    assert 2 <= len(kept) <= 3 and "step_00000024" in kept
    assert events(out / "tensorboard")["train/loss"] == pytest.approx(losses, rel=1e-4)
    again = train(config, scale, session=Session(), say=said.append)
    assert again == found
    with pytest.raises(ConfigError, match="found another training"):
        train(dataclasses.replace(config, num_epochs=5), scale, session=Session())


def events(folder: Path) -> dict[str, list[float]]:
    """Scalars that TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {name: [event.value for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


@pytest.mark.long
def test_a_job_that_is_killed_goes_on_in_an_object_store(
    backbones: dict[str, str], captions: dict[str, str], tmp_path: Path, s3_bucket: str
) -> None:
    out = f"{s3_bucket}/mof/align"
    config = config_for(backbones, captions, out, stage="align", num_epochs=4)
    recipe = {"model": dataclasses.asdict(config.model), "scale": dataclasses.asdict(SCALE)}
    for name in ("stage", "precision", "rows", "images", "out", "num_epochs"):
        recipe[name] = getattr(config, name)
    for name in ("order", "collate", "optim"):
        recipe[name] = dataclasses.asdict(getattr(config, name))
    recipe["collate"].pop("template")
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(recipe))

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "jobs/train_mof.py"), "train", "--config", str(tmp_path / "align.yaml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        )

    first = start()
    with once_kept(out, "step_00000006", lambda: first.terminate() is None):
        first.communicate(timeout=700)
    assert first.returncode == 143
    assert not storage.exists(f"{out}/adapters.safetensors")
    second = start()
    output, said = second.communicate(timeout=700)
    assert second.returncode == 0, said
    assert "going on behind step" in said
    assert output.splitlines()[-1] == f"{out}/adapters.safetensors"
    model, _, _ = reference(config)
    adapters = load(storage.read_bytes(f"{out}/adapters.safetensors"))
    assert {name.split(".")[1] for name in adapters} == {"clip_adapter", "ssl_adapter"}
    same(adapters, model.state_dict())


def test_data_that_is_wrong_ends_training_at_once_with_one_line(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path, ray_session: None
) -> None:
    broken = tmp_path / "images"
    broken.mkdir()
    for path in Path(data["images"]).iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:60])
    config = config_for(
        backbones, data | {"images": str(broken)}, tmp_path / "out", missing=MissingConfig(missing="drop")
    )
    said: list[str] = []
    with Session() as session, pytest.raises(DataError, match="rows without their image") as caught:
        train(config, dataclasses.replace(SCALE, max_failures=5), session=session, say=said.append)
    assert "\n" not in str(caught.value)
    assert not any("step" in line for line in said[1:])


@pytest.fixture
def judge() -> Iterator[ScriptedServer]:
    """A judge that finds reference answers (shown first) twice as good."""
    with ScriptedServer(lambda asked: "8 4\nbecause") as server:
        yield server


def write_llava_bench(folder: Path) -> None:
    """One question of each category about one picture, in LLaVA-Bench's files."""
    folder.mkdir()
    (folder / "1.jpg").write_bytes(jpeg(1))
    kinds = list(enumerate(("conv", "detail", "complex")))
    questions = [{"question_id": i, "image": "1.jpg", "text": "is it a dog ?", "category": kind} for i, kind in kinds]
    references = [{"question_id": i, "text": "It is a dog.", "category": kind} for i, kind in kinds]
    for name, rows in (
        ("questions", questions),
        ("references", references),
        ("contexts", [{"image": "1.jpg", "caption": "a dog"}]),
    ):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.long
def test_a_sweep_trains_and_scores_a_recipe(
    backbones: dict[str, str],
    data: dict[str, str],
    captions: dict[str, str],
    judge: ScriptedServer,
    tmp_path: Path,
    ray_session: None,
) -> None:
    from mmvp_ray.miniature.benchmark import make_mmvp
    from mmvp_ray.pipeline.mof_sweep import SweepConfig, sweep

    parts: dict[str, dict[str, Any]] = {
        "mmvp": {"benchmark": make_mmvp(tmp_path / "bench", num_pairs=3).url, "max_tokens": 4},
        "pope": {"questions": str(tmp_path / "pope"), "images": str(tmp_path / "pope"), "max_tokens": 4},
    }
    folder = tmp_path / "llava_bench"
    parts["llava_bench"] = {
        "questions": str(folder / "questions.jsonl"),
        "references": str(folder / "references.jsonl"),
        "contexts": str(folder / "contexts.jsonl"),
        "images": str(folder),
        "rule": "captions",
        "judge": "vllm:judge",
        "judge_base_url": judge.base_url,
        "judge_api_key_env": "",
        "max_tokens": 4,
    }
    write_llava_bench(folder)
    for part in parts.values():
        part["asking"] = {"device": "cpu"}
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope/1.jpg").write_bytes(jpeg(1))
    question = {"image": "1.jpg", "text": "is it a dog ?"}
    rows = [question | {"question_id": number, "label": ("yes", "no")[number % 2]} for number in range(4)]
    for split in ("random", "popular", "adversarial"):
        (tmp_path / f"pope/coco_pope_{split}.json").write_text("\n".join(map(json.dumps, rows)))
    for stage, where in (("align", captions), ("finetune", data)):
        parts[stage] = {
            "stage": stage,
            "max_steps": 2,
            "precision": "fp32",
            "order": {"batch_rows": 4},
            "collate": {"max_tokens": 128},
            "scale": dataclasses.asdict(SCALE),
        } | where
    model = {
        "clip": backbones["clip"],
        "llm": backbones["llm"],
        "mode": "additive",
        "ssl_ratio": 0.75,
        "ssl": backbones["ssl"],
    }
    parts["recipes/additive_0750"] = {"model": model}
    (tmp_path / "recipes").mkdir()
    for name, values in parts.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    config = SweepConfig(
        recipes=(str(tmp_path / "recipes/*.yaml"),),
        out=str(tmp_path / "out"),
        **{name: str(tmp_path / f"{name}.yaml") for name in ("align", "finetune", "mmvp", "pope", "llava_bench")},
    )
    lines = sweep(config)
    assert [line.split()[:3] for line in lines[1:]] == [["additive_0750", "additive", "0.75"]]
    found = json.loads((tmp_path / "out/sweep.json").read_text())["rows"]
    assert [row["ssl_ratio"] for row in found] == [0.75]
    for row in found:
        pairs = json.loads((tmp_path / f"out/{row['recipe']}/mmvp/mllm.json").read_text())
        assert row["pairs"]["num_total"] == 3 and len(pairs["by_variant"]["plain"]) == 6
        # The judge gives every reference 8 and every answer 4.
        assert 0.0 <= row["pope"] <= 1.0 and row["llava_bench"] == 50.0
        # Stage 2 began with the adapters of stage 1.
        stage = storage.read_json(f"{tmp_path}/out/{row['recipe']}/finetune/stage.json")
        assert stage["finished"] is True
        assert (tmp_path / f"out/{row['recipe']}/align/adapters.safetensors").is_file()
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors"))
    assert sweep(config) == lines
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")) == before
    with pytest.raises(ConfigError, match="expected stage align in --align"):
        sweep(dataclasses.replace(config, align=config.finetune, out=str(tmp_path / "other")))
