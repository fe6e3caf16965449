"""What a finished stage leaves: the adapters alone (align), or the whole model in Hugging Face's format with its processor (finetune)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.adapters import save_adapters
from mmvp_ray.mof.training.config import ScaleConfig, TrainConfig
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.mof.training.saving import full_weights, load_trained
from mmvp_ray.mof.training.spread import core, spread_model
from mmvp_ray.mof.training.start import ADAPTERS_FILE, MODEL_FOLDER

LORA_FOLDER = "lora"


def export_checkpoint(config: TrainConfig, checkpoint: str, out: str) -> str:
    """The whole model as it was at a checkpoint, of either stage, for the evaluation.

    Args:
        config: The stage that left the checkpoint.
        checkpoint: Its folder or URL (OUT/checkpoints/step_...).
        out: Folder or URL to write to.

    Returns:
        Where the model lies.

    Raises:
        ConfigError: no such checkpoint. DataError: it does not read, or is that of another model.
    """
    uri = storage.normalise(checkpoint)
    if not storage.exists(storage.join(uri, ".metadata")):
        raise ConfigError(
            f"expected a checkpoint (a folder step_... below checkpoints/) in --checkpoint, found none at {uri}; see the --out of the stage"
        )
    model, processor = spread_model(config, ScaleConfig(), Ranks())
    load_trained(model, uri)
    _write_model(model, processor, full_weights(model), config, storage.normalise(out))
    return storage.join(storage.normalise(out), MODEL_FOLDER)


def export(model: Any, processor: Any, config: TrainConfig, out: str, ranks: Ranks) -> None:
    """Gather the weights on rank 0 and write them; every rank must call it.

    A stage with LoRA leaves LoRA and adapters (`lora`) and the model with LoRA merged into its weights (`model`). Weights are saved in
    bfloat16 where the stage computed in it, else in float32.

    Args:
        model: As `spread_model` gave it.
        processor: Its processor.
        config: The stage.
        out: Folder or URL.
        ranks: Who takes part.
    """
    weights = full_weights(model, trained_only=config.stage == "align")
    if ranks.rank > 0:
        return
    if config.stage == "align":
        save_adapters(core(model), storage.join(out, ADAPTERS_FILE), state_dict=weights)
        return
    _write_model(model, processor, weights, config, out)


def _write_model(model: Any, processor: Any, weights: dict[str, torch.Tensor], config: TrainConfig, out: str) -> None:
    inner = core(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if config.lora_rank:
            lora = model.module if hasattr(model, "module") else model
            lora.save_pretrained(str(folder / LORA_FOLDER), state_dict=weights)
            weights = merged(weights, scale=config.lora_alpha / config.lora_rank)
        if config.precision == "bf16":
            weights = {name: value.to(torch.bfloat16) for name, value in weights.items()}
        if inner.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        inner.config.dtype = next(iter(weights.values())).dtype
        inner.save_pretrained(str(folder / MODEL_FOLDER), state_dict=weights)
        processor.save_pretrained(str(folder / MODEL_FOLDER))
        _upload(folder, out)


def merged(weights: dict[str, torch.Tensor], *, scale: float) -> dict[str, torch.Tensor]:
    """The weights of a PeftModel as the plain model's: LoRA's products added to what they belong to, adapters as they were trained.

    Done on gathered weights, since a model in pieces cannot be merged in place.

    Args:
        weights: The state of a PeftModel with LoRA on linear layers and whole adapters (modules_to_save).
        scale: alpha / rank.
    """
    found: dict[str, torch.Tensor] = {}
    for full_name, value in weights.items():
        name = full_name.removeprefix("base_model.model.")
        if ".lora_A." in name or ".lora_B." in name or ".original_module." in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        if ".base_layer.weight" in name:
            stem = full_name.removesuffix(".base_layer.weight")
            down, up = (weights[f"{stem}.lora_{which}.default.weight"].float() for which in ("A", "B"))
            value = (value.float() + scale * (up @ down)).to(value.dtype)
        found[plain] = value
    return found


def _upload(folder: Path, out: str) -> None:
    """Every file below a folder; a model's config.json last, so that a folder with one is whole."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "config.json"):
        storage.write_file(storage.join(out, *path.relative_to(folder).parts), path)
