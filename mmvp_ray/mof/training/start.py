"""Where a stage's weights come from: the backbones, with an earlier stage's adapters, or a saved model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.training.config import TrainConfig

if TYPE_CHECKING:
    from mmvp_ray.mof.model import MoFForConditionalGeneration
    from mmvp_ray.mof.processor import MoFProcessor

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
        ConfigError: backbones that do not go together, or a saved model of another mode than the recipe's. DataError: weights that are
            missing or do not read.
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
    if model.config.mode != config.model.mode:
        raise ConfigError(
            f"expected a saved model of mode {config.model.mode} in --start, found one of mode {model.config.mode} in {folder}; set --mode "
            f"{model.config.mode}, or start from another model"
        )
    return model, processor
