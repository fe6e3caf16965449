"""Two recipes by name: the paper's, and what the released scripts really do."""

from __future__ import annotations

from typing import Final

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.recipe import MoFRecipe

PAPER_224: Final = MoFRecipe(
    clip="openai/clip-vit-large-patch14",
    ssl="facebook/dinov2-large",
    llm="lmsys/vicuna-13b-v1.5",
    mode="interleaved",
    vision_layer=-2,
    ssl_layer=-1,
    image_px=224,
    ssl_px=224,
    ssl_normalisation="native",
)
"""Tong et al. 2024, Table 3: LLaVA-1.5 + Interleaved-MoF, 224 px, 256 + 256 = 512 tokens. The paper does not say how DINOv2's images are
normalised; its own mean and standard deviation are taken."""

RELEASED_336: Final = MoFRecipe(
    clip="openai/clip-vit-large-patch14-336",
    ssl="facebook/dinov2-large",
    llm="lmsys/vicuna-13b-v1.5",
    mode="interleaved",
    vision_layer=-2,
    ssl_layer=-1,
    image_px=336,
    ssl_px=336,
    framing="pad",
    ssl_normalisation="clip",
    adapter="mlp2x_gelu",
)
"""tsb0601/MMVP at 7635005 (LLaVA/pretrain.sh, finetune.sh, llava_arch.py), with its oddities: 336 px for both towers and so 576 + 576 = 1152 tokens,
not the paper's 512; DINOv2 sees the tensor normalised with CLIP's mean and standard deviation; pictures are padded to a square of CLIP's mean
colour (in finetune.sh; its pretrain.sh and its evaluation do not pad). What is not copied: one adapter's weights loaded into both."""

PRESETS: Final = {"paper-224": PAPER_224, "released-336": RELEASED_336}


def preset(name: str) -> MoFRecipe:
    """A recipe by its name.

    Raises:
        ConfigError: an unknown name; the known ones are listed.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"expected a preset out of {', '.join(PRESETS)}, found {name!r}; or give a YAML file of configs/mof"
        )
    return PRESETS[name]
