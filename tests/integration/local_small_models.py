"""LLaVA and InstructBLIP with random small weights, saved in the real formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "USER",
    ":",
    "ASSISTANT",
    "A",
    "chat",
    "between",
    "curious",
    "user",
    "and",
    "an",
    "artificial",
    "intelligence",
    "assistant",
    ".",
    "The",
    "gives",
    "helpful",
    ",",
    "detailed",
    "polite",
    "answers",
    "to",
    "the",
    "'s",
    "questions",
    "Is",
    "dog",
    "black",
    "white",
    "yes",
    "no",
    "(",
    "a",
    ")",
    "b",
    "?",
    "cat",
    "left",
    "right",
    "of",
    "how",
    "many",
    "one",
    "two",
    "three",
    "red",
    "blue",
    "green",
    "what",
    "colour",
    "it",
    "be",
    "brief",
]


def _tokenizer(*, image_token: str | None) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", *([image_token] if image_token else [])]
    vocabulary = {word: number for number, word in enumerate([*special, *sorted({*WORDS, "\n"})])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" "), "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    if image_token:
        found.add_special_tokens({"additional_special_tokens": [image_token]})
    return found


def _scramble(model: Any, seed: int) -> None:
    """Weights so large that every input shows in the answer."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.35)


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save_llava(directory: Path, *, chat_template: str | None = None, seed: int = 0) -> Path:
    """A LLaVA of four patches and a Llama of two layers."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _tokenizer(image_token="<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    _scramble(model, seed)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def save_instructblip(directory: Path, *, language: str = "llama", seed: int = 0) -> Path:
    """An InstructBLIP of four query tokens before a Llama (as with Vicuna) or a T5 (as with Flan-T5)."""
    from transformers import (
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        InstructBlipQFormerConfig,
        InstructBlipVisionConfig,
        LlamaConfig,
        T5Config,
    )

    tokenizer = _tokenizer(image_token="<image>")
    texts: Any
    if language == "llama":
        texts = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    else:
        texts = T5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            eos_token_id=2,
            pad_token_id=0,
        )
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            encoder_hidden_size=32,
            max_position_embeddings=64,
        ).to_dict(),
        text_config=texts.to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = InstructBlipForConditionalGeneration(config)
    _scramble(model, seed)
    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": 28, "width": 28}),
        tokenizer,
        _tokenizer(image_token=None),
        num_query_tokens=4,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
