"""A fast tokenizer of whole words for the miniature language model: all that the templates can say, each word with and without a space before it.

A piece carries its own space, so that decoding is joining, and every text of the vocabulary comes back letter for letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from mmvp_ray import storage
from mmvp_ray.miniature.captions import TEMPLATES as CAPTION_TEMPLATES
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.instructions import CAPTION_PROMPTS, text_facts
from mmvp_ray.miniature.scene_questions import all_texts
from mmvp_ray.miniature.words import PLACE_PHRASES, PLURALS
from mmvp_ray.miniature.world import NOUNS, PLACES, VALUES, Attributes, Scene

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, BEGIN, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL: Final = (PADDING, BEGIN, END, UNKNOWN, IMAGE)
"""Their ids are their places."""
SYSTEM: Final = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions."
)
"""What LLaVA's chat template begins every conversation with; one token here, since nothing in it ever changes."""
_PIECE: Final = r" ?[A-Za-z0-9]+| ?[^A-Za-z0-9\s]|\n| "


def known_texts() -> Iterator[str]:
    """Every text that the vocabulary is made of."""
    yield from all_texts()
    for asked, said in text_facts():
        yield asked
        yield said
    yield from CAPTION_PROMPTS
    for noun in NOUNS:
        yield f"{noun} {PLURALS[noun]}"
        for place in PLACES:
            for attribute, values in VALUES.items():
                for value in values:
                    attributes: dict[str, Any] = {attribute: value}
                    scene = Scene(noun=noun, place=place, attributes=Attributes(**attributes))
                    for template in range(len(CAPTION_TEMPLATES)):
                        yield caption(scene, named=attribute, template=template)
                        yield caption(scene, template=template)
    yield " ".join(phrase.capitalize() for phrase in PLACE_PHRASES.values())
    yield "USER: ASSISTANT: < image > There is no image. (a) (b) (A) (B) A. B."


def split_pieces(text: str) -> list[str]:
    """A text as the pieces that are looked up in the vocabulary."""
    return re.findall(_PIECE, text)


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Special tokens, then every word and mark of the texts with and without a space before it, in alphabetical order."""
    found = {form for text in texts for piece in split_pieces(text) for form in (piece, piece.strip(" "))}
    both = {form for piece in found if piece.strip() for form in (piece.strip(), f" {piece.strip()}")}
    return [*SPECIAL, *sorted(both | {"\n", " "})]


def build_tokenizer() -> Tokenizer:
    """The tokenizer; the system text is one more token behind the vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = vocabulary(known_texts())
    model = models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token=UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(SYSTEM, normalized=False)])
    return tokenizer


def write_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and tokenizer_config.json, which AutoTokenizer loads."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "pad_token": PADDING,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    storage.write_bytes(storage.join(folder, "tokenizer.json"), tokenizer.to_str(pretty=True).encode())
    storage.write_bytes(storage.join(folder, "tokenizer_config.json"), json.dumps(config, indent=1).encode())
