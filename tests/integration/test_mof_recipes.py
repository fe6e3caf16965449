"""Every row of the paper's tables at true size on the meta device: tokens, parts, and the plan of memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, ResourceError
from mmvp_ray.mof.memory import LOGIT_BYTES, Counts, PlanConfig, activation_bytes, memory_of, require_room
from mmvp_ray.mof.mixing import PAPER_SSL_RATIOS
from mmvp_ray.mof.plan import Plan, plan_for
from mmvp_ray.mof.recipe import MoFRecipe, load_recipe
from mmvp_ray.mof.shapes import SHAPES, published_config
from mmvp_ray.mof.training.command import TrainCommand
from mmvp_ray.mof.training.run import check_model
from tests.unit.test_docs import WITH_COMMANDS, job_lines, parse_job

pytestmark = [pytest.mark.integration]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "mof"
ROWS = {
    **{f"table2_additive_{int(ratio * 1000):04d}": ("additive", 256) for ratio in PAPER_SSL_RATIOS},
    "table3_llava_none_224": ("none", 256),
    "table3_llava_none_336": ("none", 576),
    "table3_llava_interleaved_224": ("interleaved", 512),
    "table3_llava15_none_336": ("none", 576),
    "table3_llava15_interleaved_224": ("interleaved", 512),
    "other_ssl_mae": ("interleaved", 512),
    "other_ssl_mocov3": ("interleaved", 512),
    "released_336": ("interleaved", 1152),
}


def test_there_is_one_file_for_each_row() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= ROWS.keys()
    for path in CONFIGS.glob("*.yaml"):
        assert path.read_text().startswith("# "), f"{path.name} names its source first"


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_the_papers_tokens_at_true_size(row: str) -> None:
    mode, num_tokens = ROWS[row]
    recipe = load_recipe(str(CONFIGS / f"{row}.yaml"))
    config = recipe.published()
    assert (recipe.mode, config.num_image_tokens) == (mode, num_tokens)
    # Rows that differ in the ratio alone have the same shapes.
    shaped = config.to_dict() | {"ssl_ratio": 0.5}
    assert mixed_shape(json.dumps(shaped, sort_keys=True)) == (2, num_tokens, 5120)


@functools.cache
def mixed_shape(config_json: str) -> tuple[int, ...]:
    """The shape of what the towers give of two images: they run for real, on the meta device."""
    from mmvp_ray.mof.config import MoFConfig
    from mmvp_ray.mof.model import MoFModel

    config = MoFConfig.from_dict(json.loads(config_json))
    # One block of the language model is enough here.
    config.text_config.num_hidden_layers = 1
    with torch.device("meta"):
        model = MoFModel(config).eval()
        pixels = torch.zeros(2, 3, config.image_px, config.image_px)
        ssl_pixels = None if config.mode == "none" else torch.zeros(2, 3, config.ssl_px, config.ssl_px)
        return tuple(model.mixed_tokens(pixels, ssl_pixels).shape)


def test_table_2_has_the_papers_ratios() -> None:
    found = [load_recipe(str(path)).ssl_ratio for path in sorted(CONFIGS.glob("table2_additive_*.yaml"))]
    assert tuple(found) == PAPER_SSL_RATIOS


def test_the_paper_and_the_released_code_differ_as_documented() -> None:
    paper = load_recipe(str(CONFIGS / "table3_llava15_interleaved_224.yaml"))
    released = load_recipe(str(CONFIGS / "released_336.yaml"))
    assert paper.published().num_image_tokens == 512
    assert paper.ssl_normalisation == "native" and (paper.image_px, paper.ssl_px) == (224, 224)
    assert released.published().num_image_tokens == 1152
    assert released.ssl_normalisation == "clip" and released.framing == "pad" and released.ssl_px == 336


@pytest.mark.parametrize("normalisation", ["clip", "native"])
def test_a_saved_model_starts_the_recipe_whose_pictures_it_has(normalisation: str, tmp_path: Path) -> None:
    from mmvp_ray.mof.backbones import image_processor_for
    from mmvp_ray.mof.image_processor import MoFImageProcessor
    from mmvp_ray.mof.training.start import _check_recipe

    recipe = load_recipe(str(CONFIGS / "released_336.yaml"))
    vision = SimpleNamespace(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28), interpolation="bicubic")
    ssl = SimpleNamespace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images: Any = image_processor_for(
        recipe.published(),
        vision,  # type: ignore[arg-type]
        ssl,  # type: ignore[arg-type]
        framing="pad",
        ssl_normalisation=normalisation,
    )
    images.save_pretrained(tmp_path)
    saved: Any = MoFImageProcessor.from_pretrained(tmp_path)
    for found in (images, saved):
        if normalisation == "clip":
            _check_recipe(recipe, recipe.published(), found, "model")
        else:
            with pytest.raises(ConfigError, match="found one with ssl_normalisation native in model"):
                _check_recipe(recipe, recipe.published(), found, "model")


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    found = {}
    for llm in ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5"):
        found[llm] = plan_for(MoFRecipe(llm=llm).published(), PlanConfig(gpu_counts=(1, 8)))
    return found


def test_parameters_by_part_at_true_size(plans: dict[str, Plan]) -> None:
    """Published counts: CLIP-L/14's image tower 303.18 M, DINOv2-L/14 304.37 M, Llama 6.738 B and 13.016 B."""
    for llm, body_and_head, width in (
        ("lmsys/vicuna-7b-v1.5", 6_738_415_616, 4096),
        ("lmsys/vicuna-13b-v1.5", 13_015_864_320, 5120),
    ):
        plan = plans[llm]
        counts = {part.name: part.num_parameters for part in plan.parts}
        assert list(counts) == ["vision_tower", "ssl_tower", "clip_adapter", "ssl_adapter", "language_model", "lm_head"]
        assert (counts["vision_tower"], counts["ssl_tower"]) == (303_179_776, 304_368_640)
        assert counts["language_model"] + counts["lm_head"] == body_and_head
        adapter = 1024 * width + width + width * width + width
        assert counts["clip_adapter"] == counts["ssl_adapter"] == adapter
        assert plan.trained("align") == 2 * adapter and plan.trained("finetune") == 2 * adapter + body_and_head


def test_what_a_plan_says_trains_is_what_freeze_trains() -> None:
    from mmvp_ray.mof.model import MoFForConditionalGeneration

    for mode, ssl in (("none", None), ("additive", "facebook/dinov2-large"), ("interleaved", "facebook/dinov2-large")):
        config = MoFRecipe(mode=mode, ssl=ssl, llm="lmsys/vicuna-7b-v1.5").published()  # type: ignore[arg-type]
        config.text_config.num_hidden_layers = 2
        plan = plan_for(config)
        with torch.device("meta"):
            model = MoFForConditionalGeneration(config)
        for stage in ("align", "finetune"):
            model.freeze(stage)
            assert plan.trained(stage) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_lora_is_counted_as_peft_counts_it() -> None:
    from mmvp_ray.mof.lora import LoraSettings, add_lora
    from mmvp_ray.mof.model import MoFForConditionalGeneration

    config = MoFRecipe(llm="lmsys/vicuna-7b-v1.5").published()
    config.text_config.num_hidden_layers = 2
    plan = plan_for(config, PlanConfig(lora_rank=16))
    with torch.device("meta"):
        wrapped = add_lora(MoFForConditionalGeneration(config), LoraSettings(rank=16))
    assert plan.trained("finetune") == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


def test_memory_follows_the_stated_formula(plans: dict[str, Plan]) -> None:
    plan = plans["lmsys/vicuna-7b-v1.5"]
    by_key = {(each.stage, each.strategy, each.num_gpus): each for each in plan.memories}
    trained, towers, language = plan.trained("finetune"), 303_179_776 + 304_368_640, 6_738_415_616
    ddp, fsdp = by_key["finetune", "ddp", 8], by_key["finetune", "fsdp", 8]
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (4 * trained + 2 * towers, 4 * trained, 8 * trained)
    assert fsdp.weights == -(-4 * trained // 8) + 2 * towers and fsdp.optimizer == trained
    assert by_key["finetune", "ddp", 1].total == ddp.total, "another GPU does not help ddp"
    align = by_key["align", "ddp", 1]
    assert align.weights == 4 * plan.trained("align") + 2 * (towers + language)
    assert align.activations == ddp.activations == fsdp.activations
    # 16 bytes for each of 6.8 billion parameters do not fit on one GPU of 80 GiB, and do on eight with fsdp.
    assert not ddp.fits(80) and fsdp.fits(80) and align.fits(80)
    block = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    assert fsdp.working == 2 * (3 * block + 2 * 32000 * 4096)


def test_activations_by_hand() -> None:
    counts = Counts(
        trained=1,
        frozen_language=0,
        frozen_towers=0,
        block=1,
        edge=1,
        num_blocks=3,
        width=10,
        vocabulary=100,
        tower_width=8,
        tower_tokens=5,
    )
    plain = PlanConfig(micro_batch=2, length_tokens=7, activation_checkpointing=False)
    tokens, rest = 14, 12 * 14 * 100 + 34 * 2 * 5 * 8
    assert activation_bytes(counts, plain) == 3 * 34 * tokens * 10 + rest
    assert (
        activation_bytes(counts, PlanConfig(micro_batch=2, length_tokens=7))
        == 3 * 2 * tokens * 10 + 34 * tokens * 10 + rest
    )
    assert memory_of(counts, plain, stage="align", strategy="fsdp", num_gpus=4).weights == 1


def test_the_loss_holds_as_many_bytes_as_a_plan_counts() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers.loss.loss_utils import ForCausalLMLoss

    held: dict[int, int] = {}
    peak = 0

    class Held(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            out = func(*args, **(kwargs or {}))
            for value in (out,) if isinstance(out, torch.Tensor) else out if isinstance(out, (list, tuple)) else ():
                if isinstance(value, torch.Tensor) and (storage := value.untyped_storage())._cdata not in held:
                    held[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, held.pop, storage._cdata, None)
            peak = max(peak, sum(held.values()))
            return out

    num_tokens, vocabulary = 64, 8000
    hidden = torch.randn(1, num_tokens, 4, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(vocabulary, 4, dtype=torch.bfloat16)
    labels = torch.randint(0, vocabulary, (1, num_tokens))

    def loss() -> Any:
        return ForCausalLMLoss(hidden @ head.T, labels, vocabulary, num_items_in_batch=num_tokens)

    with Held():
        loss().backward()
    assert peak / (num_tokens * vocabulary) == pytest.approx(LOGIT_BYTES, rel=0.02)


def test_documented_stages_fit_on_eight_gpus_of_80_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])
    lines = [line for page in ("mof_training.md", "jobs/train_mof.py") for line in job_lines(page, WITH_COMMANDS[page])]
    said = [found for line in lines if type(found := parse_job(line)) is TrainCommand and found.scale.num_workers > 1]
    assert len(said) >= 3
    recipe = str(CONFIGS / "table3_llava15_interleaved_224.yaml")
    for path in sorted((CONFIGS / "stages").glob("*.yaml")):
        found = load_yaml(TrainCommand, str(path))
        scale = dataclasses.replace(found.scale, num_workers=8, num_micro_batches=4)
        said.append(dataclasses.replace(found, recipe=recipe, scale=scale))
    for found in said:
        # What lies in --start is not there.
        stage = dataclasses.replace(found.stage_config(), start=None)
        check_model(stage, found.scale, device="cuda")


def test_too_little_memory_is_said_before_training(plans: dict[str, Plan]) -> None:
    plan = plans["lmsys/vicuna-7b-v1.5"]
    require_room(plan.memories, stage="finetune", strategy="fsdp", num_gpus=8, gpu_gib=80)
    with pytest.raises(
        ResourceError, match=r"expected about \d+ GiB on each of 1 GPUs .* found 80 GiB .* what fits: fsdp on 8"
    ):
        require_room(plan.memories, stage="finetune", strategy="ddp", num_gpus=1, gpu_gib=80)
    with pytest.raises(ResourceError, match="no planned count fits"):
        require_room(plan.memories, stage="finetune", strategy="fsdp", num_gpus=8, gpu_gib=8)
    with pytest.raises(ConfigError, match="3 GPUs, found none"):
        require_room(plan.memories, stage="finetune", strategy="fsdp", num_gpus=3, gpu_gib=80)


def test_the_plan_for_people(plans: dict[str, Plan]) -> None:
    lines = plans["lmsys/vicuna-13b-v1.5"].lines()
    assert lines[0] == "mode interleaved, 512 tokens for each image"
    assert [line.split()[0] for line in lines[2:8]] == [
        "vision_tower",
        "ssl_tower",
        "clip_adapter",
        "ssl_adapter",
        "language_model",
        "lm_head",
    ]
    assert lines[2].split()[1:] == ["303,179,776", "frozen", "frozen"]
    assert len([line for line in lines if line.startswith(("align", "finetune"))]) == 8
    assert all(line.isascii() for line in lines)


def bad(**settings: Any) -> Any:
    return MoFRecipe(**{"llm": "lmsys/vicuna-7b-v1.5"} | settings).published()


def test_what_cannot_be_mixed_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(
        ConfigError,
        match=r"equal grids, found 16 x 16 .* and 14 x 14 of vit at 224 px; take ssl_px 256, or grid: resample",
    ):
        bad(ssl="facebook/vit-mae-large", ssl_px=224)
    assert bad(ssl="facebook/vit-mae-large", ssl_px=224, grid="resample").num_image_tokens == 512
    assert bad(ssl="facebook/vit-mae-large").ssl_px == 256
    with pytest.raises(
        ConfigError, match=r"equal width for mode additive.*found 1152 \(siglip_vision_model\) and 1024 \(dinov2\)"
    ):
        bad(mode="additive", clip="google/siglip-so400m-patch14-384")
    assert bad(clip="google/siglip-so400m-patch14-384").num_image_tokens == 2 * 27 * 27
    for changes in ({"ssl": None}, {"mode": "none"}):
        with pytest.raises(
            ConfigError, match="expected --ssl with modes additive and interleaved and null with mode none"
        ):
            bad(**changes)
    with pytest.raises(ConfigError, match="expected ssl_ratio from 0"):
        bad(mode="additive", ssl_ratio=2.0)
    with pytest.raises(ConfigError, match=r"multiple of the 14 px patches .* found 225 px"):
        bad(image_px=225)
    with pytest.raises(ConfigError, match="expected vision_layer from -25 to 24"):
        bad(vision_layer=25)
    with pytest.raises(ConfigError, match=r"found 'lmsys/vicuna-7b'; known near it: lmsys/vicuna-7b-v1\.5"):
        bad(llm="lmsys/vicuna-7b")
    with pytest.raises(ConfigError, match=r"expected a vision tower of model_type .* found 'llama'"):
        bad(clip="lmsys/vicuna-7b-v1.5")


@pytest.mark.parametrize("name", SHAPES)
def test_every_known_backbone_builds_on_the_meta_device(name: str) -> None:
    config = published_config(name)
    if config.model_type == "llama":
        assert config.vocab_size == 32000
        return
    from mmvp_ray.mof.model import _tower

    with torch.device("meta"):
        assert 300e6 < sum(value.numel() for value in _tower(config).parameters()) < 430e6
