"""Trained Mixture-of-Features models as responders: the evaluation's local models, with the one loader that knows their classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from mmvp_ray.cluster import Session
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.asking_config import AskingConfig
from mmvp_ray.evaluate.local_models import LocalModel
from mmvp_ray.evaluate.local_pool import PoolConfig, PooledResponder, place
from mmvp_ray.evaluate.local_responder import LocalResponder, placed
from mmvp_ray.evaluate.local_spec import LocalModelConfig, LocalModelSpec, moved_to, resolve_local_model, same_files
from mmvp_ray.evaluate.responder import Responder

MODEL_TYPE: Final = "mmvp_mof"
"""config.json's model_type of our checkpoints."""


def load_mof_model(spec: LocalModelSpec) -> LocalModel:
    """Load the checkpoint that a spec describes, on a worker.

    Raises:
        DataError: the weights on this machine are others, do not load, or lack some of the model's. ConfigError: processor and model do
            not fit each other. ResourceError: the GPU's memory does not hold the model.
    """
    from mmvp_ray.mof.checkpoints import load_model

    model, processor = load_model(str(same_files(spec)), dtype=spec.dtype)
    loose: Any = processor
    return LocalModel(spec, placed(spec, model), loose)


LOADERS: Final[Mapping[str, Callable[[LocalModelSpec], LocalModel]]] = {MODEL_TYPE: load_mof_model}
"""model_type -> what loads it, where that is not transformers' own classes."""


def mof_responder(checkpoint: str, config: LocalModelConfig | None = None) -> LocalResponder:
    """The responder of one checkpoint, loaded when there is something to answer.

    Args:
        checkpoint: The folder that `model.save_pretrained` and `processor.save_pretrained` wrote, or a URL of one.
        config: How it runs; its model is the checkpoint.

    Raises:
        ConfigError: nothing there, or another kind of model. Others: as resolve_local_model.
    """
    spec = resolve_local_model(dataclasses.replace(config or LocalModelConfig(), model=checkpoint))
    if spec.model_type != MODEL_TYPE:
        raise ConfigError(
            f"expected a Mixture-of-Features model ({MODEL_TYPE}) in {checkpoint}, found a {spec.model_type or 'model without a type'}; give "
            "a folder that jobs/train_mof.py exported"
        )
    return LocalResponder(spec, load_mof_model)


def open_model(
    asking: AskingConfig,
    name: str,
    session: Session,
    *,
    pool: PoolConfig | None = None,
    base_url: str | None = None,
    api_key_env: str | None = None,
) -> Responder:
    """The responder that a name means, asked as the config says: our checkpoints too, and local models in several copies on Ray.

    Args:
        asking: How models are asked.
        name: As `named_responders.open_responder` takes it.
        session: Where copies run; nothing is started before there is something to answer, except that a cluster is asked for its GPUs.
        pool: How many copies.
        base_url: As in `AskingConfig.open`.
        api_key_env: As in `AskingConfig.open`.

    Raises:
        ConfigError: the name means nothing, or a setting cannot be used. ResourceError: a GPU is asked for and there is none.
    """
    pool = pool or PoolConfig()
    if not name.startswith("hf:"):
        return asking.open(name, base_url=base_url, api_key_env=api_key_env)
    num_replicas, device = place(pool, asking.device, session)
    if not num_replicas:
        return _with_loader(asking.open(name))
    # The driver need not have what the copies run on.
    found = _with_loader(dataclasses.replace(asking, device="cpu", dtype=None).open(name))
    return PooledResponder(
        LocalResponder(moved_to(found.spec, device=device, dtype=asking.dtype), found.load),
        session,
        num_replicas=num_replicas,
        num_cpus=pool.cpus_per_replica,
        num_gpus=pool.gpus_per_replica if device == "cuda" else 0.0,
    )


def _with_loader(found: Responder) -> LocalResponder:
    assert isinstance(found, LocalResponder)
    return LocalResponder(found.spec, LOADERS.get(found.spec.model_type))
