"""What a checkpoint holds and how it is read again: what trains and its optimiser in pieces (DCP), and the loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError, MmvpError, TransientError
from mmvp_ray.mof.training.curve import Point, from_parquet, to_parquet
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.retries import translate

CURVE_FILE = "curve.parquet"
_dcp: Any = torch.distributed.checkpoint
_TRAINED = StateDictOptions(ignore_frozen_params=True)


def save_state(
    model: Any, optimizer: torch.optim.Optimizer, points: Sequence[Point], folder: Path, ranks: Ranks
) -> None:
    """Write this rank's part of a checkpoint into a folder of its own; the parts of all ranks in one folder are the checkpoint.

    What does not train is not in it: it comes from where it came from at the start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {"model": _trained(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=_TRAINED)}
    _dcp.save(state, checkpoint_id=str(folder), no_dist=ranks.size == 1)
    if ranks.rank == 0:
        (folder / CURVE_FILE).write_bytes(to_parquet(points))


def load_state(model: Any, optimizer: torch.optim.Optimizer, uri: str, ranks: Ranks) -> list[Point]:
    """Read a checkpoint of any number of ranks into the model and the optimiser; the curve so far.

    Raises:
        DataError: it does not read, or is that of another model. TransientError: the store was unwell. ConfigError: no permission.
    """
    state = {"model": _trained(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=_TRAINED)}
    _read(state, uri, ranks)
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    try:
        return from_parquet(storage.read_bytes(storage.join(uri, CURVE_FILE)))
    except (OSError, ValueError) as error:
        raise unreadable(uri, error) from error


def load_trained(model: Any, uri: str) -> None:
    """Read the weights of a checkpoint of any number of ranks into a model of one process, without the optimiser.

    Raises:
        DataError: it does not read, or is that of another model. TransientError: the store was unwell. ConfigError: no permission.
    """
    state = {"model": _trained(model)}
    _read(state, uri, Ranks())
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))


def full_weights(model: Any, *, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """All weights, or those that train, gathered on the CPU of rank 0; empty on the others. Every rank must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    found: Any = get_model_state_dict(model, options=options)
    weights: dict[str, torch.Tensor] = found
    return weights


def _trained(model: Any) -> Any:
    return get_model_state_dict(model, options=_TRAINED)


def _read(state: dict[str, Any], uri: str, ranks: Ranks) -> None:
    """Of a URL each rank reads what it needs of the files, and no more."""
    try:
        if storage.is_local(uri):
            reader = _dcp.FileSystemReader(str(storage.local_path(uri)))
        else:
            reader = _dcp.FsspecReader(uri, use_listings_cache=False)
        _dcp.load(state, storage_reader=reader, no_dist=ranks.size == 1)
    # No RuntimeError: that is a peer that was lost, which another attempt mends; what is wrong with the files comes as CheckpointException.
    except (CheckpointException, OSError, ValueError, KeyError) as error:
        raise unreadable(uri, error) from error


def unreadable(uri: str, error: BaseException) -> MmvpError:
    """What a checkpoint that could not be read means: a store that was unwell on one of the ranks, which another attempt mends, or a broken file."""
    failures = [found for found, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    for failure in failures:
        meant = translate(failure, action="reading", uri=uri) if isinstance(failure, Exception) else failure
        if isinstance(meant, (TransientError, ConfigError)):
            return meant
    return DataError(
        f"expected a checkpoint of this model in {uri}, found one that does not read ({' '.join(str(error).split())[:200]}); train "
        "in another --out, or remove all of checkpoints/ to begin the stage again"
    )
