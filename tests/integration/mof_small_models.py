"""Small towers, a small Llama and a small tokenizer with random weights, saved in the real formats, for Mixture-of-Features models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = (
    "USER ASSISTANT A chat between a curious user and an artificial intelligence assistant . The gives helpful , detailed polite answers to the "
    "'s questions : ? red cat dog blue what is it no yes b ( ) left right"
)
SIDE_PX = 28
"""4 x 4 patches of 7 px: 16 tokens."""
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}


def tokenizer(*, image_token: bool = False) -> Any:
    """Words and punctuation, <s> in front."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(["<image>"] if image_token else []), *sorted({*WORDS.split(), "\n"})]
    found = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" "), "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    found.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    if image_token:
        fast.add_tokens(["<image>"], special_tokens=True)
    return fast


def scramble(model: Any, seed: int = 0, *, scale: float = 0.3) -> Any:
    """Weights so large that every input shows in the answer; biases and norms too, lest a mix-up hide behind zeros and ones."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.copy_(scale * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model


def llama(*, vocabulary: int, tied: bool = False, **changes: Any) -> Any:
    """A Llama of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **TEXT | changes,
        vocab_size=vocabulary,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def tower(model_type: str, *, image_px: int = SIDE_PX, patch_px: int = 7, **changes: Any) -> tuple[Any, Any]:
    """(model, image processor) of one published kind; DINOv2's positions are for twice the side, as published."""
    import transformers as tf

    sizes: dict[str, Any] = SIZES | {"image_size": image_px, "patch_size": patch_px} | changes
    square = {"height": image_px, "width": image_px}
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    crop = tf.BitImageProcessor(size={"shortest_edge": 32}, crop_size=square, **imagenet)
    if model_type == "clip":
        config = tf.CLIPConfig(vision_config=sizes, text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}, projection_dim=8)  # fmt: skip
        return tf.CLIPModel(config), tf.CLIPImageProcessor(size={"shortest_edge": image_px}, crop_size=square)
    if model_type == "siglip":
        config = tf.SiglipConfig(vision_config=sizes, text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50})  # fmt: skip
        return tf.SiglipModel(config), tf.SiglipImageProcessor(size=square)
    if model_type == "dinov2":
        return tf.Dinov2Model(tf.Dinov2Config(**sizes | {"image_size": 2 * image_px, "mlp_ratio": 2})), crop
    if model_type == "dinov2_with_registers":
        config = tf.Dinov2WithRegistersConfig(
            **sizes | {"image_size": 2 * image_px, "mlp_ratio": 2}, num_register_tokens=4
        )
        return tf.Dinov2WithRegistersModel(config), crop
    if model_type == "dinov3_vit":
        return tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**sizes, num_register_tokens=4)), tf.DINOv3ViTImageProcessor(
            size=square
        )
    if model_type == "vit":
        return tf.ViTModel(tf.ViTConfig(**sizes), add_pooling_layer=False), tf.ViTImageProcessor(
            size=square, **imagenet
        )
    assert model_type == "vit_mae", model_type
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    }
    return tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**sizes, **decoder)), tf.ViTImageProcessor(size=square, **imagenet)


SSL_TOWERS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vit_mae")
CLIP_TOWERS = ("clip", "siglip")


def save_tower(directory: Path, model_type: str, *, seed: int = 1, **changes: Any) -> str:
    """A tower with its image processor in `directory`, as save_pretrained writes it."""
    model, processor = tower(model_type, **changes)
    scramble(model, seed).save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def save_llama(directory: Path, *, seed: int = 3, tied: bool = False, image_token: bool = False, **changes: Any) -> str:
    """A Llama with its tokenizer in `directory`."""
    words = tokenizer(image_token=image_token)
    scramble(llama(vocabulary=len(words), tied=tied, **changes), seed).save_pretrained(directory)
    words.save_pretrained(directory)
    return str(directory)


def pictures(count: int, *, seed: int = 0) -> list[Any]:
    """Smooth pictures of odd sizes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    sides = [(37, 53), (64, 41), (20, 50), (28, 28)]
    found = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        found.append(coarse.resize(sides[number % 4], Image.Resampling.BICUBIC))
    return found
