"""Instruction data of the miniature world as LLaVA JSON with images: captions for stage 1, conversations for stage 2, an examination beside them.

Everything is a pure function of the seed. The splits are worlds of different seeds, so that no picture is in two of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import picture_bytes
from mmvp_ray.miniature.captions import draw_caption
from mmvp_ray.miniature.scene_questions import (
    ATTRIBUTE_KINDS,
    CONTENT_KINDS,
    KINDS,
    Draw,
    SceneQuestion,
    draw_question,
)
from mmvp_ray.miniature.words import PLURALS
from mmvp_ray.miniature.world import NOUNS, VALUES, Scene, sample_scene, scene_generator

CAPTIONS_FILE, CONVERSATIONS_FILE, EXAMINATION_FILE = "captions.json", "conversations.json", "examination.jsonl"
IMAGES_FOLDER: Final = "images"
TRAIN_SEED, HELD_OUT_SEED = 2_000_003, 3_000_017
"""Added to a data set's seed for the worlds of its two splits: far from the encoders' training world (1,000,003) and from the small seeds of
demos and benchmarks."""
USUAL_PROBABILITY: Final = 0.5
"""That an attribute has its usual value: two-valued ones are then as often one as the other, and noun and place give little away. In the worlds
that are mined it is 0.8."""
CAPTION_PROMPTS: Final = ("Describe the picture.", "What does the picture show?", "Give a caption.")
NUM_TURNS: Final = (1, 12, 12)
"""A conversation has one of these numbers of questions, each as often."""
NAMING_KINDS: Final = ("noun", "caption")
"""Kinds that ask for the object, and come first."""
NUM_WRITING_THREADS: Final = 8

_CAPTION_PROMPT_STREAM, _QUESTION_STREAM, _TEXT_STREAM, _EXAMINATION_STREAM = 4, 5, 6, 7


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionConfig:
    """How much instruction data."""

    num_train_images: int = 4096
    """Pictures that captions and conversations are about: one of each for each picture."""
    num_text_rows: int = 256
    """Conversations without a picture."""
    num_held_out_images: int = 256
    """Pictures of the examination, which nothing is trained on."""
    num_held_out_questions: int = 4
    """Questions about each of them; the kinds take turns."""
    seed: int = 0
    """Another seed, other pictures and questions."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        for name in ("num_train_images", "num_held_out_images", "num_held_out_questions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, found {getattr(self, name)}; give a number from 1")
        if not 0 <= self.seed < 1_000_000 or self.num_text_rows < 0:
            raise ConfigError(
                f"expected a seed from 0 to 999999 and text rows from 0, found {self.seed} and {self.num_text_rows}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutQuestion:
    """One question of the examination.

    Attributes:
        key: Names it.
        image: Path of the picture in the folder.
        question: What is asked and what is right; an answer counts only if it is this word for word.
    """

    key: str
    image: str
    question: SceneQuestion


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What lies in the folder.

    Attributes:
        folder: Path or URL.
        captions, conversations: The two JSON files.
        examination: The held-out questions.
        train_sha256, held_out_sha256: Digests of the images' bytes (hexadecimal) by split.
    """

    folder: str
    captions: str
    conversations: str
    examination: tuple[HeldOutQuestion, ...]
    train_sha256: frozenset[str]
    held_out_sha256: frozenset[str]


def split_scene(split: str, seed: int, index: int) -> Scene:
    """The scene of one picture of a split ("train" or "held-out")."""
    return sample_scene(_world(split, seed), index, usual_probability=USUAL_PROBABILITY)


def caption_rows(config: InstructionConfig) -> Iterator[dict[str, Any]]:
    """Stage 1 as LLaVA JSON: one picture, one instruction, one caption, which says what web captions say (`draw_caption`)."""
    world = _world("train", config.seed)
    for index in range(config.num_train_images):
        draw = _drawer(world, index, _CAPTION_PROMPT_STREAM)
        prompt = CAPTION_PROMPTS[draw(len(CAPTION_PROMPTS))]
        said = draw_caption(split_scene("train", config.seed, index), world, index)
        yield {
            "id": f"caption-{index:06d}",
            "image": image_name("train", index),
            "conversations": [{"from": "human", "value": f"{prompt}\n<image>"}, {"from": "gpt", "value": said}],
        }


def conversation_rows(config: InstructionConfig) -> Iterator[dict[str, Any]]:
    """Stage 2 as LLaVA JSON: conversations about pictures, then text alone. No kind is asked about twice in a conversation."""
    world = _world("train", config.seed)
    for index in range(config.num_train_images):
        draw = _drawer(world, index, _QUESTION_STREAM)
        questions = _conversation(split_scene("train", config.seed, index), draw)
        turns: list[dict[str, str]] = []
        for place, question in enumerate(questions):
            mark = "" if place else "<image>\n"
            turns.append({"from": "human", "value": mark + question.text})
            turns.append({"from": "gpt", "value": question.answer})
        yield {"id": f"image-{index:06d}", "image": image_name("train", index), "conversations": turns}
    known = list(text_facts())
    for index in range(config.num_text_rows):
        draw = _drawer(world, index, _TEXT_STREAM)
        turns = []
        for _ in range(1 + draw(3)):
            asked, said = known[draw(len(known))]
            turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
        yield {"id": f"text-{index:06d}", "conversations": turns}


def held_out_questions(config: InstructionConfig) -> list[HeldOutQuestion]:
    """The examination: every kind as often as any other, attributes half with options and half without."""
    world = _world("held-out", config.seed)
    forms = [(kind, False) for kind in KINDS] + [(kind, True) for kind in ATTRIBUTE_KINDS]
    found = []
    for index in range(config.num_held_out_images):
        draw = _drawer(world, index, _EXAMINATION_STREAM)
        scene = split_scene("held-out", config.seed, index)
        for place in range(config.num_held_out_questions):
            kind, with_options = forms[(index * config.num_held_out_questions + place) % len(forms)]
            found.append(
                HeldOutQuestion(
                    key=f"{index:06d}/{place}",
                    image=image_name("held-out", index),
                    question=draw_question(scene, kind, draw, with_options=with_options),
                )
            )
    return found


def text_facts() -> Iterator[tuple[str, str]]:
    """Questions that need no picture, and their answers."""
    for noun in NOUNS:
        yield f"What is the plural of {noun}?", PLURALS[noun].capitalize()
        yield f"What do you call one of several {PLURALS[noun]}?", noun.capitalize()
    for first, second in (("left", "right"), ("above", "below"), ("plain", "striped")):
        yield f"What is the opposite of {first}?", second.capitalize()
        yield f"What is the opposite of {second}?", first.capitalize()
    yield "What comes after one?", "Two"
    yield "What comes after two?", "Three"
    yield "What comes before two?", "One"
    yield "What comes before three?", "Two"
    for colour in VALUES["colour"]:
        yield f"Is {colour} a colour?", "Yes"
    for noun in NOUNS:
        yield f"Is {noun} a colour?", "No"


def write_instructions(folder: str, config: InstructionConfig) -> Written:
    """Write the JSON files and pictures below `folder`; equal settings give equal bytes.

    Raises:
        ConfigError: bad settings. DataError: two pictures of different splits are the same, byte for byte.
    """
    config.check()
    folder = storage.normalise(folder)
    train = _write_pictures(folder, "train", config.seed, config.num_train_images)
    held_out = _write_pictures(folder, "held-out", config.seed, config.num_held_out_images)
    check_disjoint({"train": train, "held-out": held_out})
    for name, rows in ((CAPTIONS_FILE, caption_rows(config)), (CONVERSATIONS_FILE, conversation_rows(config))):
        storage.write_bytes(storage.join(folder, name), json.dumps(list(rows)).encode())
    examination = held_out_questions(config)
    lines = (
        json.dumps(
            {
                "key": one.key,
                "image": one.image,
                "kind": one.question.kind,
                "question": one.question.text,
                "options": list(one.question.options),
                "answer": one.question.answer,
            }
        )
        for one in examination
    )
    storage.write_bytes(storage.join(folder, EXAMINATION_FILE), ("\n".join(lines) + "\n").encode())
    return Written(
        folder=folder,
        captions=storage.join(folder, CAPTIONS_FILE),
        conversations=storage.join(folder, CONVERSATIONS_FILE),
        examination=tuple(examination),
        train_sha256=train,
        held_out_sha256=held_out,
    )


def check_disjoint(images: Mapping[str, frozenset[str]]) -> None:
    """Raise DataError if two of the named sets share an image.

    Args:
        images: Name of a split -> digests of its images.
    """
    names = list(images)
    for at, first in enumerate(names):
        for second in names[at + 1 :]:
            shared = images[first] & images[second]
            if shared:
                raise DataError(
                    f"expected no image in both {first} and {second}, found {len(shared)} ({min(shared)[:16]}); take other seeds"
                )


def image_name(split: str, index: int) -> str:
    """Path of a picture in the folder, as the JSON has it."""
    return f"{IMAGES_FOLDER}/{split}/{index:06d}.jpg"


def _conversation(scene: Scene, draw: Draw) -> list[SceneQuestion]:
    """One, six or twelve questions; about a third about content, of the rest half with options."""
    num_turns = NUM_TURNS[draw(len(NUM_TURNS))]
    kinds = _shuffled(CONTENT_KINDS, draw)[: -(-num_turns // 3)]
    kinds += _shuffled(ATTRIBUTE_KINDS, draw)[: num_turns - len(kinds)]
    if num_turns == 1 and draw(3):
        kinds = [ATTRIBUTE_KINDS[draw(len(ATTRIBUTE_KINDS))]]
    # Most questions name the object: to ask for it afterwards would teach nothing about the picture.
    ordered = sorted(_shuffled(kinds, draw), key=lambda kind: kind not in NAMING_KINDS)
    return [draw_question(scene, kind, draw, with_options=kind in ATTRIBUTE_KINDS and draw(2) == 1) for kind in ordered]


def _shuffled(items: Sequence[str], draw: Draw) -> list[str]:
    left = list(items)
    return [left.pop(draw(len(left))) for _ in range(len(left))]


def _drawer(world: int, index: int, stream: int) -> Draw:
    generator = scene_generator(world, index, stream)

    def draw(below: int) -> int:
        return int(generator.random() * below)

    return draw


def _world(split: str, seed: int) -> int:
    return {"train": TRAIN_SEED, "held-out": HELD_OUT_SEED}[split] + seed


def _write_pictures(folder: str, split: str, seed: int, num_images: int) -> frozenset[str]:
    def put(index: int) -> str:
        data = picture_bytes(split_scene(split, seed, index))
        storage.write_bytes(storage.join(folder, image_name(split, index)), data)
        return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(NUM_WRITING_THREADS) as pool:
        return frozenset(pool.map(put, range(num_images)))
