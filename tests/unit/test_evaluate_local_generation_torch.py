"""Prompts as tokens: one whose template writes the first token is read as transformers reads it, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmvp_ray.evaluate.local_decoding import Decoding
from mmvp_ray.evaluate.local_generation import Completion, LocalGenerator, LocalPrompt

WORDS = ("<unk>", "<s>", "</s>", "USER:", "▁USER:", "is", "▁is", "it", "▁it", "red", "▁red")
TEMPLATE = "{{ bos_token }}USER: {{ messages[0]['content'] }}"
QUESTIONS = ("is it red", "is it")


def tokenizer_of(prepend_scheme: str, *, puts_first: bool = True) -> Any:
    """As SentencePiece's: "▁" stands for a space, and before the first word, or none, or every one behind a special token."""
    whole = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    if puts_first:
        whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found = PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found.chat_template = TEMPLATE
    return found


def generator_of(tokenizer: Any) -> LocalGenerator:
    class Processor:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def __call__(self, *, text: list[str], images: Any, **settings: Any) -> Any:
            return tokenizer(text, return_token_type_ids=False, **settings)

    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    return LocalGenerator(name="small", model=model, processor=Processor(), device="cpu", dtype="float32")


@pytest.mark.parametrize("puts_first", [True, False])
@pytest.mark.parametrize("prepend_scheme", ["first", "always", "never"])
def test_prompts_are_tokenised_as_transformers_does_whatever_is_beside_them(
    prepend_scheme: str, puts_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(prepend_scheme, puts_first=puts_first)
    wanted: dict[str, list[int]] = {}
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        wanted[text] = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        wanted[f"USER: {question}"] = tokenizer(f"USER: {question}")["input_ids"]
    seen: dict[str, list[int]] = {}

    def complete(self: LocalGenerator, prompts: Sequence[LocalPrompt]) -> list[Completion]:
        inputs = self.inputs(prompts)
        for prompt, ids_T, mask_T in zip(prompts, inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen[prompt.text] = ids_T[mask_T == 1].tolist()
        return [
            Completion(text=prompt.text, finish="stop", num_prompt_tokens=1, num_answer_tokens=1) for prompt in prompts
        ]

    monkeypatch.setattr(LocalGenerator, "_complete", complete)
    generator = generator_of(tokenizer)
    texts = list(wanted)
    for batch in (texts, texts[::-1], texts[:1], texts[1:2], [*texts[1::2], *texts[::2]]):
        seen.clear()
        found = generator.attempt([LocalPrompt(text=text, decoding=Decoding(max_tokens=1)) for text in batch])
        assert [one.text if isinstance(one, Completion) else one for one in found] == batch
        assert seen == {text: wanted[text] for text in batch}
