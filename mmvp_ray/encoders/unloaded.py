"""Build a model with NaN in place of random weights: quick to build, and a weight that nothing loads shows itself."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def nan_weights() -> Iterator[None]:
    """Inside this context, random in-place fills write NaN.

    Drawing the initial weights of open_clip's ViT-L/14 takes 9 s on one core, most of the time to load it; and a
    library that loads with strict=False keeps random numbers where the checkpoint has none.
    """
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    # torch hides what these functions of torch.nn.init call, so they are named beside the tensors' own fills.
    fills: frozenset[object] = frozenset(
        (torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)
    )

    class _NanFill(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            # A truncated normal, as timm draws it: uniform numbers and then this, which takes most of the time and changes no NaN.
            if func is torch.Tensor.erfinv_ and args[0].numel() and bool(args[0][(0,) * args[0].dim()].isnan()):
                return args[0]
            if func not in fills:
                return func(*args, **(kwargs or {}))
            filled = args[0] if args else (kwargs or {})["tensor"]
            with torch.no_grad():
                return filled.fill_(float("nan"))

    with _NanFill():
        yield


def unloaded_parameters(model: Any) -> list[str]:
    """Names of the parameters that still hold NaN, in order."""
    return [key for key, value in model.named_parameters() if bool(value.isnan().any())]


@contextlib.contextmanager
def no_warnings_logged() -> Iterator[None]:
    """Inside this context, log records of level WARNING and below are dropped: libraries warn of random weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
