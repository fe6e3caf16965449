"""The tokenizer: every text of the world comes back letter for letter, without an unknown piece."""

from __future__ import annotations

import pytest

from mmvp_ray.benchmark.items import Question
from mmvp_ray.evaluate.prompts import build_prompt
from mmvp_ray.miniature.instructions import InstructionConfig, caption_rows, conversation_rows
from mmvp_ray.miniature.language_model import LanguageModelConfig, conversation_text
from mmvp_ray.miniature.piece_tokenizer import (
    BEGIN,
    END,
    IMAGE,
    SPECIAL,
    SYSTEM,
    UNKNOWN,
    build_tokenizer,
    known_texts,
    split_pieces,
    vocabulary,
)
from mmvp_ray.miniature.questions import questions_for_pair
from mmvp_ray.miniature.world import sample_scene
from mmvp_ray.mof.chat_templates import VICUNA_V1

pytest.importorskip("tokenizers")

TOKENIZER = build_tokenizer()


def comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert SPECIAL.index(UNKNOWN) not in ids, text
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_every_text_of_the_templates_comes_back() -> None:
    for text in set(known_texts()):
        comes_back(text)
        comes_back(f" {text}")


def test_every_conversation_and_caption_comes_back() -> None:
    config = InstructionConfig(num_train_images=400, num_text_rows=60, seed=77)
    for row in conversation_rows(config):
        comes_back(conversation_text(row))
    for row in caption_rows(config):
        comes_back(row["conversations"][1]["value"] + "\n")


def test_every_prompt_of_a_benchmark_comes_back() -> None:
    num_asked = 0
    for index in range(300):
        a, b = sample_scene(5, index), sample_scene(6, index)
        for asked in questions_for_pair(a, b) if a.noun == b.noun else []:
            question = Question(
                pair_id="1", item="a", image_uri="x", text=asked.question, options=asked.options, answer=0
            )
            comes_back(f"USER: {IMAGE}\n{build_prompt(question, form='official').text} ASSISTANT:")
            num_asked += 1
    assert num_asked > 0


def test_the_vocabulary_is_whole_and_repeats_itself() -> None:
    pieces = vocabulary(known_texts())
    assert len(set(pieces)) == len(pieces) and tuple(pieces[: len(SPECIAL)]) == SPECIAL
    assert {piece for text in known_texts() for piece in split_pieces(text)} <= set(pieces)
    assert [TOKENIZER.token_to_id(piece) for piece in pieces] == list(range(len(pieces)))
    assert TOKENIZER.token_to_id(SYSTEM) == len(pieces)
    assert build_tokenizer().to_str() == TOKENIZER.to_str()


def test_what_is_not_known_is_unknown_and_marks_are_single_tokens() -> None:
    assert TOKENIZER.encode("zebra").ids == [SPECIAL.index(BEGIN), SPECIAL.index(UNKNOWN)]
    assert TOKENIZER.encode(f"{IMAGE * 3}{END}", add_special_tokens=False).ids == [4, 4, 4, 2]


def test_the_system_text_is_that_of_the_chat_template() -> None:
    assert SYSTEM in VICUNA_V1


def test_sizes_that_cannot_be_are_refused() -> None:
    from mmvp_ray.errors import ConfigError

    for settings in ({"width": 20, "num_heads": 4}, {"depth": 0}, {"num_steps": -1}, {"learning_rate": 0.0}):
        with pytest.raises(ConfigError):
            LanguageModelConfig(**settings).check()  # type: ignore[arg-type]
