"""Token outputs of one transformer block, caught by a hook where a library does not return hidden states."""

# Shapes: B images, T tokens with prefix, N patch tokens, F token width.

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from mmvp_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch


def layer_index(layer: int, *, num_blocks: int, name: str) -> int:
    """The index from 0 (input of the first block) to num_blocks (output of the last) that `layer` means.

    Raises:
        ConfigError: Out of range.
    """
    num_layers = num_blocks + 1
    if not -num_layers <= layer < num_layers:
        raise ConfigError(
            f"Layer of encoder {name!r}: expected {-num_layers} to {num_layers - 1} (0 is the input of the first of "
            f"{num_blocks} blocks), found {layer}"
        )
    return layer % num_layers


def tokens_after_block(run: Callable[[], object], blocks: Sequence[Any], index: int) -> torch.Tensor:
    """Tokens at one depth of a stack of blocks; calls of several threads do not see each other's.

    Args:
        run: Runs the whole tower once, in this thread.
        blocks: Its transformer blocks, in order; each takes tokens_BTF first, or as `hidden_states`, and returns tokens_BTF, or them first.
        index: 0 for the input of the first block, k for the output of block k.

    Returns:
        tokens_BTF as the tower computed them, prefix tokens included.
    """
    thread = threading.get_ident()
    caught: list[torch.Tensor] = []

    def keep(value: Any) -> None:
        if threading.get_ident() == thread:
            caught.append(value[0] if isinstance(value, tuple) else value)

    if index == 0:
        handle = blocks[0].register_forward_pre_hook(
            lambda _module, arguments, named: keep(arguments or named["hidden_states"]), with_kwargs=True
        )
    else:
        handle = blocks[index - 1].register_forward_hook(lambda _module, _arguments, output: keep(output))
    try:
        run()
    finally:
        handle.remove()
    return caught[0]
