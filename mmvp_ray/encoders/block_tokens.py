"""Token outputs of one transformer block, caught by a hook where a library does not return hidden states."""

# Shapes: B images, T tokens with prefix, N patch tokens, F token width.

from __future__ import annotations

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
    """Tokens at one depth of a stack of blocks.

    Args:
        run: Runs the whole tower once.
        blocks: Its transformer blocks, in order; each takes tokens_BTF first and returns tokens_BTF.
        index: 0 for the input of the first block, k for the output of block k.

    Returns:
        tokens_BTF as the tower computed them, prefix tokens included.
    """
    caught: list[torch.Tensor] = []

    def catch_input(_module: object, arguments: tuple[torch.Tensor, ...]) -> None:
        caught.append(arguments[0])

    def catch_output(_module: object, _arguments: object, output: torch.Tensor) -> None:
        caught.append(output)

    if index == 0:
        handle = blocks[0].register_forward_pre_hook(catch_input)
    else:
        handle = blocks[index - 1].register_forward_hook(catch_output)
    try:
        run()
    finally:
        handle.remove()
    return caught[0]
