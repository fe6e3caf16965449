"""Where a stage's weights come from: the backbones, with an earlier stage's adapters, or a saved model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.training.config import TrainConfig

if TYPE_CHECKING:
    from mmvp_ray.mof.config import MoFConfig
    from mmvp_ray.mof.image_processor import MoFImageProcessor
    from mmvp_ray.mof.model import MoFForConditionalGeneration
    from mmvp_ray.mof.processor import MoFProcessor
    from mmvp_ray.mof.recipe import MoFRecipe

ADAPTERS_FILE = "adapters.safetensors"
MODEL_FOLDER = "model"


def starting_point(start: str | None) -> tuple[str | None, str | None]:
    """(adapters file, folder of a whole model) that `start` means, at most one of them.

    Raises:
        ConfigError: nothing to start from lies there.
    """
    if start is None:
        return None, None
    uri = storage.normalise(start)
    if uri.endswith(".safetensors"):
        if storage.exists(uri):
            return uri, None
    elif storage.exists(storage.join(uri, ADAPTERS_FILE)):
        return storage.join(uri, ADAPTERS_FILE), None
    elif storage.exists(storage.join(uri, MODEL_FOLDER, "config.json")):
        return None, storage.join(uri, MODEL_FOLDER)
    elif storage.exists(storage.join(uri, "config.json")):
        return None, uri
    raise ConfigError(
        f"expected the --out of a finished stage, its {ADAPTERS_FILE} or a saved model in --start, found none of them at {uri}; "
        "let the earlier stage finish first"
    )


def load_start(config: TrainConfig) -> tuple[MoFForConditionalGeneration, MoFProcessor]:
    """The model before its first step, whole, in float32 on the CPU, and its processor.

    Raises:
        ConfigError: backbones that do not go together, or a saved model with another mixture than the recipe's. DataError: weights that are
            missing or do not read, or adapters that learned with another mixture.
    """
    from mmvp_ray.mof.adapters import load_adapters
    from mmvp_ray.mof.checkpoints import load_model

    adapters, folder = starting_point(config.start)
    if folder is None:
        model, processor = config.model.build(dtype="float32", seed=config.order.seed)
        if adapters is not None:
            load_adapters(model, adapters)
        return model, processor
    model, processor = load_model(folder, dtype="float32")
    _check_recipe(config.model, model.config, processor.image_processor, folder)
    return model, processor


def _check_recipe(recipe: MoFRecipe, saved: MoFConfig, images: MoFImageProcessor, folder: str) -> None:
    """Raise ConfigError where a saved model is not what the recipe says of it; what the recipe leaves open is not compared, nor are backbones' names."""
    other: list[tuple[str, object, object]] = []
    if recipe.framing != images.framing:
        other.append(("framing", recipe.framing, images.framing))
    # One way round alone: where both towers have CLIP's numbers, nobody can tell why.
    means = (images.ssl_image_mean, images.image_mean)
    if recipe.ssl_normalisation == "clip" and None not in means and len(set(map(tuple, means))) > 1:
        other.append(("ssl_normalisation", "clip", "native"))
    for name in ("mode", "adapter", "image_px", *(() if recipe.ssl is None else ("ssl_px", "grid"))):
        wanted, found = getattr(recipe, name), getattr(saved, name)
        if wanted not in (None, found):
            other.append((name, wanted, found))
    if recipe.mode == saved.mode == "additive" and recipe.ssl_ratio != saved.ssl_ratio:
        other.append(("ssl_ratio", recipe.ssl_ratio, saved.ssl_ratio))
    for name, tower in (("vision_layer", saved.vision_config), ("ssl_layer", saved.ssl_config)):
        wanted, found = getattr(recipe, name), getattr(saved, name)
        if tower is not None and wanted is not None and (wanted - found) % (int(tower.num_hidden_layers) + 1):
            other.append((name, wanted, found))
    if other:
        flags = ", ".join(f"--{name.replace('_', '-')} {found}" for name, _, found in other)
        raise ConfigError(
            f"expected a saved model with {', '.join(f'{name} {wanted}' for name, wanted, _ in other)} in --start, found one with "
            f"{', '.join(f'{name} {found}' for name, _, found in other)} in {folder}; set {flags}, or start from another model"
        )
