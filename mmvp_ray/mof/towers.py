"""Vision towers of transformers: prefix tokens, default layer, grid; and their patch tokens after one block."""

# Shapes: B images, C = 3, H x W pixels, T tokens with prefix, N patch tokens, F token width.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmvp_ray.encoders.block_tokens import layer_index, tokens_after_block
from mmvp_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerFacts:
    """What is fixed by a tower's model_type.

    Attributes:
        family: "clip" for towers trained with text, "vision" for those trained on images alone.
        default_layer: Whose output is taken, as an index into hidden_states: -1 is the last block, before the final LayerNorm.
        num_prefix_tokens: config -> tokens before the patches (CLS, registers).
        positions: "any" where the tower takes any size (interpolates, or uses rotary positions) by itself, "on request" where it takes an
            argument `interpolate_pos_encoding`.
        model_arguments: Keyword arguments of the class in transformers, beside the config.
    """

    family: str
    default_layer: int
    num_prefix_tokens: Callable[[Any], int]
    positions: str
    model_arguments: tuple[tuple[str, Any], ...] = ()


def _cls(_config: Any) -> int:
    return 1


def _none(_config: Any) -> int:
    return 0


def _cls_and_registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


# Layer -2 of CLIP is LLaVA's choice (mm_vision_select_layer) and the released code's; DINOv2's last block before its LayerNorm is the released
# code's (x_prenorm). For SigLIP, DINOv3, MAE and MoCo v3 nobody's choice is known, and the family's is taken.
TOWERS: Final = {
    "clip_vision_model": TowerFacts(family="clip", default_layer=-2, num_prefix_tokens=_cls, positions="on request"),
    "siglip_vision_model": TowerFacts(family="clip", default_layer=-2, num_prefix_tokens=_none, positions="on request"),
    "dinov2": TowerFacts(family="vision", default_layer=-1, num_prefix_tokens=_cls, positions="any"),
    "dinov2_with_registers": TowerFacts(
        family="vision", default_layer=-1, num_prefix_tokens=_cls_and_registers, positions="any"
    ),
    "dinov3_vit": TowerFacts(family="vision", default_layer=-1, num_prefix_tokens=_cls_and_registers, positions="any"),
    # MAE's and MoCo v3's weights as a plain ViT: ViTMAEModel shuffles its tokens on every call, even with mask_ratio 0.
    "vit": TowerFacts(
        family="vision",
        default_layer=-1,
        num_prefix_tokens=_cls,
        positions="on request",
        model_arguments=(("add_pooling_layer", False),),
    ),
}


def tower_facts(model_type: str) -> TowerFacts:
    """The facts of a tower.

    Raises:
        ConfigError: an unknown model_type; the known ones are listed.
    """
    if model_type not in TOWERS:
        hint = "; load its weights as model_type vit, as from_backbones does" if model_type == "vit_mae" else ""
        raise ConfigError(
            f"expected a vision tower of model_type {', '.join(TOWERS)}, found {model_type!r}{hint or '; choose one of them'}"
        )
    return TOWERS[model_type]


def patch_px(config: Any) -> int:
    """Side of a tower's square patches in pixels.

    Raises:
        ConfigError: patches are not square.
    """
    size = config.patch_size
    if isinstance(size, (list, tuple)):
        if len(set(size)) != 1:
            raise ConfigError(f"expected square patches, found {tuple(size)} px in a {config.model_type} tower")
        size = size[0]
    return int(size)


def native_px(config: Any) -> int:
    """The input side that a tower's position table is for (DINOv2: 518, whatever the usual input is).

    Raises:
        ConfigError: it is not square.
    """
    size = config.image_size
    if isinstance(size, (list, tuple)):
        if len(set(size)) != 1:
            raise ConfigError(
                f"expected a tower of square images, found {tuple(size)} px in a {config.model_type} tower"
            )
        size = size[0]
    return int(size)


def grid_side(config: Any, image_px: int) -> int:
    """Patches along each side of an image of `image_px` pixels.

    A tower's own size need not be a multiple of its patch: SigLIP so400m/14 at 384 px has 27 x 27 patches and leaves out the last 6 px.

    Raises:
        ConfigError: the patches do not tile the image, which is of another size than the tower's own.
    """
    side_px = patch_px(config)
    if image_px < side_px or (image_px % side_px and image_px != native_px(config)):
        below = max(side_px, image_px // side_px * side_px)
        raise ConfigError(
            f"expected an input side that is a multiple of the {side_px} px patches of the {config.model_type} tower, found {image_px} px; "
            f"the next ones are {below} and {below + side_px}"
        )
    return image_px // side_px


def tower_blocks(tower: Any) -> Any:
    """The transformer blocks of a tower, or of a language model, in order."""
    from torch import nn

    num_blocks = int(tower.config.num_hidden_layers)
    found = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module) == num_blocks]
    assert found, f"no list of {num_blocks} blocks in {type(tower).__name__}"
    return found[0]


def patch_tokens(tower: Any, pixel_values_BCHW: torch.Tensor, layer: int) -> torch.Tensor:
    """Patch tokens of a tower at one depth, prefix tokens taken off.

    The same numbers as hidden_states[layer] of the tower, but caught by a hook of our own: fully_shard replaces a module's class, by which
    transformers finds what to capture, and then gives no hidden states at all.

    Args:
        tower: A vision tower of transformers whose model_type is in TOWERS.
        pixel_values_BCHW: Normalised images; square, a multiple of the patch.
        layer: Index into hidden_states: 0 is the input of the first block, k the output of block k, -1 the last block's.

    Returns:
        tokens_BNF in the tower's dtype, in row-major order of the grid.

    Raises:
        ConfigError: the layer is out of range, or the size does not fit the patches.
    """
    config = tower.config
    facts = tower_facts(config.model_type)
    height_px, width_px = pixel_values_BCHW.shape[-2:]
    if height_px != width_px:
        raise ConfigError(
            f"expected square images for the {config.model_type} tower, found {height_px} x {width_px} px"
        )
    side = grid_side(config, height_px)
    arguments = {}
    if facts.positions == "on request" and height_px != native_px(config):
        arguments["interpolate_pos_encoding"] = True
    blocks = tower_blocks(tower)
    index = layer_index(layer, num_blocks=len(blocks), name=config.model_type)
    dtype = next(tower.parameters()).dtype
    tokens_BTF = tokens_after_block(lambda: tower(pixel_values_BCHW.to(dtype), **arguments), blocks, index)
    tokens_BNF = tokens_BTF[:, facts.num_prefix_tokens(config) :]
    assert tokens_BNF.shape[1] == side * side, f"{tokens_BNF.shape[1]} tokens for a grid of {side} x {side}"
    return tokens_BNF
