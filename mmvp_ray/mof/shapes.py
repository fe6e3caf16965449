"""The sizes of published backbones, so that plans and token counts need neither weights nor a network."""

from __future__ import annotations

import difflib
from typing import Any, Final

from mmvp_ray.errors import ConfigError

_LARGE: Final = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_LLAMA: Final = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_LLAMA_7B: Final = _LLAMA | {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008,
}  # fmt: skip
_LLAMA_13B: Final = _LLAMA | {
    "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40, "intermediate_size": 13824,
}  # fmt: skip
_CLIP_L14: Final = _LARGE | {"intermediate_size": 4096, "patch_size": 14, "projection_dim": 768}
_DINOV2_L14: Final = _LARGE | {"image_size": 518, "patch_size": 14, "mlp_ratio": 4}
_VIT_L16: Final = _LARGE | {"intermediate_size": 4096, "image_size": 224, "patch_size": 16}

# As in each repository's config.json. The published CLIP-L/14 has 224 px, its -336 twin 336 px; DINOv2's position table is for 518 px, whatever
# its input; Vicuna is LLaMA (v1.3: 2048 positions) and Llama 2 (v1.5: 4096), which are of one size.
SHAPES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "openai/clip-vit-large-patch14": ("clip_vision_model", _CLIP_L14 | {"image_size": 224}),
    "openai/clip-vit-large-patch14-336": ("clip_vision_model", _CLIP_L14 | {"image_size": 336}),
    "google/siglip-so400m-patch14-384": (
        "siglip_vision_model",
        {
            "hidden_size": 1152,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "intermediate_size": 4304,
            "image_size": 384,
            "patch_size": 14,
        },
    ),
    "facebook/dinov2-large": ("dinov2", _DINOV2_L14),
    "facebook/dinov2-with-registers-large": ("dinov2_with_registers", _DINOV2_L14 | {"num_register_tokens": 4}),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": (
        "dinov3_vit",
        _LARGE | {"intermediate_size": 4096, "image_size": 224, "patch_size": 16, "num_register_tokens": 4},
    ),
    "facebook/vit-mae-large": ("vit", _VIT_L16 | {"layer_norm_eps": 1e-12}),
    "timm:vit_large_patch16_224": ("vit", _VIT_L16 | {"layer_norm_eps": 1e-6}),
    "lmsys/vicuna-7b-v1.5": ("llama", _LLAMA_7B),
    "lmsys/vicuna-13b-v1.3": ("llama", _LLAMA_13B | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}),
    "lmsys/vicuna-13b-v1.5": ("llama", _LLAMA_13B),
}


def published_config(name: str) -> Any:
    """The configuration of a published backbone, as transformers has it.

    Args:
        name: A key of SHAPES; "hf:" may stand before it, and of a name of timm its tag and file do not count.

    Raises:
        ConfigError: an unknown name; the nearest known ones are named.
    """
    import transformers

    key = name.removeprefix("hf:")
    if key.startswith("timm:"):
        key = key.partition("/")[0].partition(".")[0]
    if key not in SHAPES:
        near = difflib.get_close_matches(key, SHAPES, n=3, cutoff=0.0)
        raise ConfigError(
            f"expected a backbone whose sizes are known, found {name!r}; known near it: {', '.join(near)}; or give a folder"
        )
    model_type, sizes = SHAPES[key]
    return transformers.AutoConfig.for_model(model_type, **sizes)
