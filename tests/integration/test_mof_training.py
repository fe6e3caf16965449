"""Stages without Ray: a step is that of a plain loop for every mode, stage, split and strategy; a checkpoint goes on as if nothing had been."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from mmvp_ray.errors import ConfigError, DataError, ResourceError, TransientError
from mmvp_ray.mof.adapters import save_adapters
from mmvp_ray.mof.backbones import from_backbones
from mmvp_ray.mof.checkpoints import load_model
from mmvp_ray.mof.data.order import OrderConfig
from mmvp_ray.mof.training.config import OptimConfig, ScaleConfig, TrainConfig
from mmvp_ray.mof.training.export import export, export_checkpoint, merged
from mmvp_ray.mof.training.feed import BatchMaker, feed_for
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.mof.training.saving import unreadable
from mmvp_ray.mof.training.spread import core, prepared, spread_model
from mmvp_ray.mof.training.start import load_start
from mmvp_ray.mof.training.steps import optimizer_for, train_step
from tests.integration.mof_rank import STAGES, batches
from tests.integration.mof_small_models import pictures, save_llama, scramble
from tests.integration.mof_training_data import config_for, save_rows
from tests.integration.mof_training_rank import run
from tests.integration.mof_training_reference import reference

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]

ALONE = Ranks()
# Sums of float32 in another order; the losses are about 5, the largest gradients about 1.
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}


def same(found: dict[str, torch.Tensor], model: Any) -> None:
    """Weights of a run against those of the reference's model."""
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("stage", ["align", "finetune"])
@pytest.mark.parametrize("mode", ["none", "additive", "interleaved"])
def test_a_step_equals_a_plain_reference(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path, mode: str, stage: str
) -> None:
    config = config_for(backbones, data, tmp_path, mode=mode, stage=stage, num_epochs=1)
    scale = ScaleConfig(num_micro_batches=2)
    model, losses, gradients = reference(config)
    points, weights = run(config, scale, ALONE)
    torch.testing.assert_close(torch.tensor([p.loss for p in points]), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    norms = [torch.nn.utils.get_total_norm(list(of.values())) for of in gradients]
    torch.testing.assert_close(torch.tensor([p.grad_norm for p in points]), torch.stack(norms), rtol=1e-4, atol=1e-5)
    same(weights, model)
    # The gradients themselves, of the first step: the rate is zero in it, so that they stay.
    found, processor = spread_model(config, scale, ALONE)
    maker = BatchMaker(feed_for(config, num_micro_batches=2), processor, rank=0, world_size=1)
    optimizer = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=0.0)
    train_step(found, optimizer, [maker.make(0), maker.make(1)], ranks=ALONE)
    grads = {name: p.grad for name, p in found.named_parameters() if p.requires_grad}
    assert grads.keys() == gradients[0].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(grads[name], gradient, **CLOSE)


PLAIN = {
    "ddp interleaved finetune": ("ddp", "interleaved", "finetune"),
    "fsdp interleaved finetune": ("fsdp", "interleaved", "finetune"),
    "ddp additive align": ("ddp", "additive", "align"),
    "fsdp none align": ("fsdp", "none", "align"),
}
SHARDED = {"fp32 lora": ("fp32", 4), "bf16 lora": ("bf16", 4), "bf16": ("bf16", 0), "fp32 tied resumed": ("fp32", 0)}
TWO = ScaleConfig(num_workers=2, num_micro_batches=2)


@pytest.fixture(scope="module")
def jobs(
    backbones: dict[str, str], data: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[TrainConfig, ScaleConfig]]:
    """Stages for two ranks, by name."""
    out = tmp_path_factory.mktemp("out")
    tied = {**backbones, "llm": save_llama(tmp_path_factory.mktemp("tied"), tied=True)}
    found = {}
    for name, (strategy, mode, stage) in PLAIN.items():
        config = config_for(backbones, data, out, mode=mode, stage=stage, num_epochs=2, max_steps=8)
        found[name] = (config, dataclasses.replace(TWO, strategy=strategy))
    for name, (precision, lora_rank) in SHARDED.items():
        lora = {"lora_rank": lora_rank, "lora_alpha": 8, "lora_dropout": 0.0}
        parts = tied if "tied" in name else backbones
        config = config_for(parts, data, out, num_epochs=2, max_steps=6, precision=precision, **lora)
        found[name] = (config, dataclasses.replace(TWO, strategy="fsdp", activation_checkpointing=True))
    return found


@pytest.fixture(scope="module")
def whole(backbones: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder with it and with the batch of each of two ranks, a model), for the steps of mof_rank."""
    root = tmp_path_factory.mktemp("whole")
    model, processor = from_backbones(backbones["clip"], backbones["ssl"], backbones["llm"], mode="interleaved")
    for adapter in model.adapters().values():
        scramble(adapter, 11)
    model.save_pretrained(root / "whole")
    processor.save_pretrained(root / "whole")
    batches = []
    for text, images in (("<image> what is red ?", pictures(1)), ("is the cat blue ? no", None)):
        batch = dict(processor(text=[text], images=images, return_tensors="pt"))
        batches.append(
            batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] == processor.image_token_id, -100)}
        )
    torch.save(batches, root / "batches.pt")
    return root, model


@pytest.fixture(scope="module")
def on_two_ranks(
    jobs: dict[str, tuple[TrainConfig, ScaleConfig]],
    whole: tuple[Path, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, Any]]:
    """Points and weights of each of them on two processes, which take the steps of mof_rank too."""
    root = tmp_path_factory.mktemp("ranks")
    (root / "jobs").write_bytes(pickle.dumps(jobs))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.mof_training_rank", str(root), str(rank), "2", str(whole[0])],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=500)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return {name: torch.load(root / f"{name}.out", weights_only=True) for name in jobs}


def losses_of(points: Any) -> torch.Tensor:
    return torch.tensor([point["loss"] if isinstance(point, dict) else point.loss for point in points])


@pytest.mark.parametrize("name", PLAIN)
def test_two_ranks_equal_a_plain_reference(
    jobs: dict[str, tuple[TrainConfig, ScaleConfig]], on_two_ranks: dict[str, dict[str, Any]], name: str
) -> None:
    model, losses, _ = reference(jobs[name][0])
    torch.testing.assert_close(losses_of(on_two_ranks[name]["points"]), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    same(on_two_ranks[name]["weights"], model)


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_ranks_in_half_precision_and_with_lora_equal_one(
    jobs: dict[str, tuple[TrainConfig, ScaleConfig]], on_two_ranks: dict[str, dict[str, Any]], name: str
) -> None:
    config, found = jobs[name][0], on_two_ranks[name]
    points, weights = run(config, ScaleConfig(), ALONE)
    # In half precision DDP's autocast keeps norms in float32, FSDP2 computes them in bfloat16.
    is_whole = config.precision == "fp32"
    tolerance = 1e-5 if is_whole else 0.02
    torch.testing.assert_close(losses_of(found["points"]), losses_of(points), rtol=tolerance, atol=tolerance)
    # AdamW hides a gradient of the wrong size; its length does not.
    norms = torch.tensor([point["grad_norm"] for point in found["points"]])
    wanted = torch.tensor([point.grad_norm for point in points])
    torch.testing.assert_close(norms, wanted, rtol=1e-4 if is_whole else 0.05, atol=1e-5)
    assert found["weights"].keys() == weights.keys()
    if is_whole:
        for key, value in weights.items():
            torch.testing.assert_close(found["weights"][key], value, **CLOSE)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one_process_though_one_has_no_picture(
    whole: tuple[Path, Any], on_two_ranks: dict[str, dict[str, Any]], tmp_path: Path, stage: str
) -> None:
    root, model = whole[0], copy.deepcopy(whole[1])
    model.freeze(stage)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    (sum(model(**batch).loss for batch in batches(root)) / 2).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    found = torch.load(root / f"grads_{stage}.pt", weights_only=True)
    torch.testing.assert_close(found, wanted, **CLOSE)
    after, _ = load_model(str(root / f"after_{stage}"))
    torch.testing.assert_close(after.state_dict(), model.state_dict(), **CLOSE)
    save_adapters(after, str(tmp_path / "adapters.safetensors"))


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_checkpoint_goes_on_as_if_nothing_had_been(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path, lora_rank: int
) -> None:
    config = config_for(backbones, data, tmp_path, num_epochs=2, lora_rank=lora_rank, lora_alpha=8, lora_dropout=0.2)
    scale = ScaleConfig(num_micro_batches=2)
    points, weights = run(config, scale, ALONE)
    run(config, scale, ALONE, state=tmp_path / "state", until=5)
    resumed, again = run(config, scale, ALONE, state=tmp_path / "state")
    # Exactly: dropout is drawn by the number of the step, and the optimiser's state is whole.
    assert [p.loss for p in resumed] == [p.loss for p in points] and len(points) == 12
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("stage", "lora_rank"), [("align", 0), ("finetune", 4)])
def test_any_checkpoint_becomes_a_whole_model(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path, stage: str, lora_rank: int
) -> None:
    config = config_for(backbones, data, tmp_path, stage=stage, lora_rank=lora_rank, lora_dropout=0.0)
    _, weights = run(config, ScaleConfig(), ALONE, state=tmp_path / "state", until=3)
    folder = export_checkpoint(config, str(tmp_path / "state"), str(tmp_path / "whole"))
    found, processor = load_model(folder)
    scale = config.lora_alpha / max(1, lora_rank)
    same(merged(weights, scale=scale) if lora_rank else weights, found)
    assert processor.num_image_tokens == found.config.num_image_tokens
    with pytest.raises(ConfigError, match="found none at"):
        export_checkpoint(config, str(tmp_path), str(tmp_path / "other"))


def test_a_checkpoint_of_another_model_is_refused(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path
) -> None:
    scale = ScaleConfig()
    run(config_for(backbones, data, tmp_path, mode="additive"), scale, ALONE, state=tmp_path / "state", until=1)
    with pytest.raises(DataError, match="expected a checkpoint of this model"):
        run(config_for(backbones, data, tmp_path), scale, ALONE, state=tmp_path / "state")
    (tmp_path / "state" / ".metadata").unlink()
    with pytest.raises(DataError, match="expected a checkpoint of this model"):
        run(config_for(backbones, data, tmp_path, mode="additive"), scale, ALONE, state=tmp_path / "state")


def test_both_stages_and_the_whole_model_again(
    backbones: dict[str, str], data: dict[str, str], captions: dict[str, str], tmp_path: Path
) -> None:
    first = config_for(backbones, captions, tmp_path / "one", stage="align")
    model, processor = spread_model(first, ScaleConfig(), ALONE)
    for adapter in core(model).adapters().values():
        torch.nn.init.normal_(adapter.linear_1.weight)
    export(model, processor, first, str(tmp_path / "one"), ALONE)
    second = config_for(backbones, data, tmp_path / "two", start=str(tmp_path / "one"))
    found, _ = spread_model(second, ScaleConfig(), ALONE)
    for name, adapter in core(model).adapters().items():
        torch.testing.assert_close(core(found).adapters()[name].state_dict(), adapter.state_dict(), rtol=0, atol=0)
    export(found, processor, second, str(tmp_path / "two"), ALONE)
    third = dataclasses.replace(second, start=str(tmp_path / "two"))
    again, _ = spread_model(third, ScaleConfig(), ALONE)
    torch.testing.assert_close(again.state_dict(), found.state_dict(), rtol=0, atol=0)
    with pytest.raises(
        ConfigError, match="expected a saved model with mode none in --start, found one with mode inter"
    ):
        spread_model(config_for(backbones, data, tmp_path, mode="none", start=third.start), ScaleConfig(), ALONE)
    recipes = {
        "vision_layer -1 in --start, found one with vision_layer -2 in .*; set --vision-layer -2": {"vision_layer": -1},
        "image_px 14, ssl_px 14 in --start, found one with image_px 28, ssl_px 28": {"image_px": 14, "ssl_px": 14},
        "adapter linear": {"adapter": "linear"},
        "framing crop in --start, found one with framing pad": {"framing": "crop"},
        "ssl_normalisation clip in --start, found one with ssl_normalisation native": {"ssl_normalisation": "clip"},
    }
    for match, changes in recipes.items():
        with pytest.raises(ConfigError, match=match):
            load_start(dataclasses.replace(third, model=dataclasses.replace(third.model, **changes)))
    load_start(dataclasses.replace(third, model=dataclasses.replace(third.model, vision_layer=2, ssl_layer=-1)))
    with pytest.raises(ConfigError, match="found none of them"):
        spread_model(dataclasses.replace(second, start=str(tmp_path / "nowhere")), ScaleConfig(), ALONE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_is_exported_merged(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path, precision: str
) -> None:
    config = config_for(
        backbones, data, tmp_path, lora_rank=4, lora_alpha=8, lora_dropout=0.0, precision=precision, max_steps=3
    )
    feed = feed_for(config, num_micro_batches=1)
    model, processor = spread_model(config, ScaleConfig(), ALONE)
    optimizer = optimizer_for(model, config.optim)
    maker = BatchMaker(feed, processor, rank=0, world_size=1)
    batch = maker.make(0)
    for _ in range(3):
        train_step(model, optimizer, [batch], ranks=ALONE, autocast=precision == "bf16")
    export(model, processor, config, str(tmp_path), ALONE)
    merged, _ = load_model(str(tmp_path / "model"))
    model.eval()
    inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        wanted = model(**inputs).logits.float()
    with torch.no_grad():
        found = merged(**inputs).logits
    plain, _ = config.model.build(dtype="float32", seed=config.order.seed)
    with torch.no_grad():
        before = plain(**inputs).logits
    # Scores are about 3; in half precision single ones differ by more, all of them on the mean by its rounding.
    tolerance = 1e-5 if precision == "fp32" else 0.03
    assert (found - wanted).abs().mean() < tolerance
    assert (found - before).abs().mean() > 3 * tolerance
    assert (tmp_path / "lora" / "adapter_config.json").is_file()


def test_half_precision_trains_what_trains_in_float32(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path
) -> None:
    config = config_for(backbones, data, tmp_path, precision="bf16", num_epochs=3)
    model, _ = config.model.build(dtype="float32")
    model = prepared(model, config, activation_checkpointing=True)
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    points, _ = run(config, ScaleConfig(activation_checkpointing=True), ALONE)
    _, losses, _ = reference(dataclasses.replace(config, precision="fp32"))
    torch.testing.assert_close(torch.tensor([p.loss for p in points]), torch.tensor(losses), rtol=0.02, atol=0.02)


def test_adapters_have_their_own_rate_and_biases_do_not_decay(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path
) -> None:
    optim = OptimConfig(learning_rate=1e-4, adapter_learning_rate=3e-4, weight_decay=0.1)
    model, _ = spread_model(config_for(backbones, data, tmp_path, optim=optim), ScaleConfig(), ALONE)
    groups = optimizer_for(model, optim).param_groups
    names = {id(value): name for name, value in model.named_parameters()}
    seen = {names[id(value)]: (group["peak"], group["weight_decay"]) for group in groups for value in group["params"]}
    assert seen.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert seen[name] == (3e-4 if "adapter" in name else 1e-4, 0.1 if value.ndim >= 2 else 0.0), name


def test_rows_that_are_lost_are_counted_and_limited(
    backbones: dict[str, str], data: dict[str, str], tmp_path: Path
) -> None:
    from mmvp_ray.mof.data.collate import CollateConfig
    from mmvp_ray.mof.data.images import MissingConfig
    from mmvp_ray.mof.training.loop import check_losses, lost_rows

    config = config_for(
        backbones,
        data,
        tmp_path,
        collate=CollateConfig(max_tokens=64, too_long="drop"),
        missing=MissingConfig(missing="drop"),
    )
    points, _ = run(config, ScaleConfig(), ALONE)
    counts = lost_rows(points)
    assert counts["dropped_too_long"] > 0
    assert sum(p.num_rows for p in points) + sum(counts.values()) == 24
    with pytest.raises(DataError, match=r"dropped_too_long \d+"):
        check_losses(points, config.missing, num_rows=24)
    check_losses(points, MissingConfig(max_missing_fraction=1.0), num_rows=24)
    check_losses(points[:1], config.missing, num_rows=1000)


def test_what_goes_on_has_the_rows_and_weights_of_its_start(
    backbones: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmvp_ray.cluster import Inline
    from mmvp_ray.mof.data.images import MissingConfig
    from mmvp_ray.mof.training import run as stages

    orders: list[list[list[int]]] = []

    def interrupted(job: Any, **_: Any) -> None:
        order = job.feed.sample_order()
        orders.append([job.feed.kept_K[order.batch(0, step)].tolist() for step in range(job.num_steps)])
        raise ResourceError("interrupted")

    monkeypatch.setattr(stages, "_fit", interrupted)
    monkeypatch.setattr(stages, "shares", lambda have, scale: ("cpu", 1.0, 1.0))
    monkeypatch.setattr(Inline, "resources", lambda self: None)
    own = {**backbones, "llm": save_llama(tmp_path / "llm")}
    data = save_rows(tmp_path)
    missing = MissingConfig(missing="drop", max_missing_fraction=0.1)
    config = config_for(own, data, tmp_path / "out", missing=missing)

    def start(**changes: Any) -> None:
        stages.train(dataclasses.replace(config, **changes), ScaleConfig(), session=Inline())

    image = tmp_path / "images" / "5.png"
    picture = image.read_bytes()
    image.unlink()
    with pytest.raises(ResourceError, match="interrupted"):
        start()
    image.write_bytes(picture)
    # The limit is no part of the result: whoever meets it is told to raise it.
    with pytest.raises(ResourceError, match="interrupted"):
        start(missing=dataclasses.replace(missing, max_missing_fraction=0.2))
    assert orders[0] == orders[1] and 5 not in {row for batch in orders[0] for row in batch}
    save_llama(tmp_path / "llm")
    with pytest.raises(ResourceError, match="interrupted"):
        start()
    save_llama(tmp_path / "llm", seed=99)
    with pytest.raises(ConfigError, match="same settings, rows and weights in --out, found another training"):
        start()


def test_what_is_wrong_is_said_before_training(backbones: dict[str, str], data: dict[str, str], tmp_path: Path) -> None:
    from mmvp_ray.cluster import Inline, Resources
    from mmvp_ray.mof.training.run import check_model, shares, train

    def refused(error: type[Exception], match: str, scale: ScaleConfig | None = None, **changes: Any) -> None:
        config: TrainConfig = dataclasses.replace(config_for(backbones, data, tmp_path / "out"), **changes)
        with pytest.raises(error, match=match):
            train(config, scale or ScaleConfig(), session=Inline())
        assert not (tmp_path / "out").exists()

    refused(ConfigError, "expected converted rows", rows=str(tmp_path))
    refused(ConfigError, "expected a folder of images", images=str(tmp_path / "none"))
    refused(ConfigError, "rows for one batch", order=OrderConfig(batch_rows=64))
    refused(ConfigError, "share evenly", ScaleConfig(num_workers=3))
    refused(ConfigError, "lora-rank", stage="align", lora_rank=8)
    (tmp_path / "empty").mkdir()
    refused(DataError, "expected images of all rows", images=str(tmp_path / "empty"))
    config = config_for(backbones, data, tmp_path / "out")
    with pytest.raises(ConfigError, match="expected towers with equal grids"):
        check_model(
            dataclasses.replace(config, model=dataclasses.replace(config.model, ssl_px=35)), ScaleConfig(), device="cpu"
        )
    with pytest.raises(ResourceError, match="GiB on each of 1 GPUs"):
        check_model(config, ScaleConfig(gpu_gib=1e-4), device="cuda")
    have = Resources(num_cpus=2, num_gpus=0, num_nodes=1, smallest_node_cpus=2, memory_bytes=0, object_store_bytes=0)
    with pytest.raises(ResourceError, match="expected 2 GPUs"):
        shares(have, ScaleConfig(num_workers=2, device="cuda"))
    device, worker, loader = shares(have, ScaleConfig(num_workers=2, num_loaders=2))
    assert device == "cpu" and 2 * worker + 4 * loader <= 2 and min(worker, loader) > 0
    assert shares(have, ScaleConfig()) == ("cpu", 1.0, 1.0)


def test_a_store_that_is_unwell_while_restoring_is_no_broken_checkpoint() -> None:
    """Another attempt mends the one and not the other; DCP wraps what each rank met."""

    def met(error: Exception) -> CheckpointException:
        return CheckpointException("read", {0: _wrap_exception(error)})

    unwell = unreadable("s3://bucket/checkpoint", met(TimeoutError("timed out")))
    assert isinstance(unwell, TransientError)
    broken = unreadable("s3://bucket/checkpoint", met(ValueError("not a tensor")))
    assert isinstance(broken, DataError)
    assert "expected a checkpoint of this model in s3://bucket/checkpoint" in str(broken)
    assert isinstance(unreadable("s3://bucket/checkpoint", PermissionError("denied")), ConfigError)
