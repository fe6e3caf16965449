"""Instruction data: every answer follows from the scene by rules written down here again, splits share nothing, and equal seeds give equal data."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.options import show_options
from mmvp_ray.evaluate.parsing import parse_answer
from mmvp_ray.miniature.instructions import (
    InstructionConfig,
    caption_rows,
    check_disjoint,
    conversation_rows,
    held_out_questions,
    split_scene,
    text_facts,
    write_instructions,
)
from mmvp_ray.miniature.scene_questions import (
    ATTRIBUTE_KINDS,
    CONTENT_KINDS,
    KINDS,
    draw_question,
    usual_answer,
    wordings,
)
from mmvp_ray.miniature.world import NOUNS, Scene, sample_scene, usual_attributes
from mmvp_ray.mof.data.records import Read, read_record

SMALL = InstructionConfig(num_train_images=40, num_text_rows=10, num_held_out_images=44)

PLACES_SAID = {
    "beach": "On the beach",
    "meadow": "In a meadow",
    "snow": "In the snow",
    "city": "In the city",
    "night": "At night",
    "room": "In a room",
}
STATES_SAID = {
    "cat": ("Asleep", "Awake"),
    "duck": ("With its wing folded", "With its wing raised"),
    "elephant": ("With its trunk down", "With its trunk up"),
    "fish": ("With its mouth closed", "With its mouth open"),
    "car": ("With its headlights off", "With its headlights on"),
    "boat": ("With its sail furled", "With its sail set"),
    "house": ("With its door closed", "With its door open"),
    "teapot": ("Cold", "Steaming"),
}


def expected_answer(text: str, scene: Scene) -> str:
    """The right answer, from the words of the question and the scene alone."""
    asked = re.sub(r" \(a\).*", "", text).lower()
    facts = scene.attributes
    rules: list[tuple[str, str]] = [
        (r"facing left or right|which way does|to which side is the \w+ turned", facts.direction.capitalize()),
        (r"\bhat\b", "Yes" if facts.hat else "No"),
        (r"which describes|like\?|how is the", STATES_SAID[scene.noun][facts.state == "action"]),
        (r"how many|count the|number of", {1: "One", 2: "Two", 3: "Three"}[facts.count]),
        (r"\bball\b|on which side", {"left": "On the left", "right": "On the right", "above": "Above"}[facts.ball]),
        (r"colour", facts.colour.capitalize()),
        (r"surface|stripes", facts.surface.capitalize()),
        (r"sign", facts.text),
        (r"seen|which view", "From above" if facts.view == "above" else "From the side"),
        (r"is there an? (?P<thing>\w+)|do you see an? (?P<other>\w+)", ""),
        (r"what is in the picture|what do you see|name the object", scene.noun.capitalize()),
        (r"where|which place", PLACES_SAID[scene.place]),
        (r"describe|what does the picture show|caption", ""),
    ]
    for pattern, answer in rules:
        found = re.search(pattern, asked)
        if found is None:
            continue
        if "thing" in pattern:
            return "Yes" if (found["thing"] or found["other"]) == scene.noun else "No"
        if pattern.startswith("describe"):
            article = "An" if scene.noun == "elephant" else "A"
            place = PLACES_SAID[scene.place]
            return f"{article} {scene.noun} {place[0].lower()}{place[1:]}"
        return answer
    raise AssertionError(f"no rule for {text!r}")


@given(st.integers(0, 5000), st.sampled_from(KINDS), st.booleans(), st.lists(st.floats(0, 0.999), min_size=8))
@settings(max_examples=300, deadline=None)
def test_every_answer_follows_from_the_scene(index: int, kind: str, offers: bool, draws: list[float]) -> None:
    scene, left = sample_scene(9, index, usual_probability=0.5), iter(draws)
    question = draw_question(
        scene, kind, lambda below: int(next(left) * below), with_options=offers and kind in ATTRIBUTE_KINDS
    )
    assert question.answer == expected_answer(question.text, scene)
    if question.options:
        assert len(set(question.options)) == 2 and question.answer in question.options
        shown = show_options(question.options, style="(a)")
        assert question.text.endswith(f"(a) {question.options[0]} (b) {question.options[1]}")
        # What the model is taught to say is what the evaluation reads.
        assert parse_answer(question.answer, shown, question=question.text).choice == question.options.index(
            question.answer
        )


def test_wordings_of_a_scene_are_all_different() -> None:
    for noun in NOUNS:
        texts = [text for kind in KINDS for text in wordings(Scene(noun=noun, place="room"), kind)]
        assert len(set(texts)) == len(texts)


def test_conversations_are_llava_json_with_right_answers_and_no_kind_twice() -> None:
    rows = list(conversation_rows(SMALL))
    assert len(rows) == 50
    assert all(isinstance(read_record(row, "default"), Read) for row in rows)
    lengths = set()
    for index, row in enumerate(rows[:40]):
        turns = row["conversations"]
        lengths.add(len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n")
        assert sum("<image>" in turn["value"] for turn in turns) == 1
        scene = split_scene("train", SMALL.seed, index)
        asked = [turn["value"].removeprefix("<image>\n") for turn in turns[::2]]
        for text, said in zip(asked, turns[1::2], strict=True):
            assert said["value"] == expected_answer(text, scene)
        assert len(set(asked)) == len(asked)
    assert lengths == {1, 12}
    facts = dict(text_facts())
    for row in rows[40:]:
        assert "image" not in row
        for asked_turn, said in zip(row["conversations"][::2], row["conversations"][1::2], strict=True):
            assert facts[asked_turn["value"]] == said["value"]


def test_captions_are_what_stage_one_needs_and_name_noun_and_place() -> None:
    for index, row in enumerate(caption_rows(SMALL)):
        assert isinstance(read_record(row, "plain"), Read)
        scene, said = split_scene("train", SMALL.seed, index), row["conversations"][1]["value"]
        assert scene.noun in said and PLACES_SAID[scene.place].lower() in said


def test_examination_has_every_kind_and_form_equally_often() -> None:
    examination = held_out_questions(SMALL)
    assert len(examination) == 176
    counts: dict[tuple[str, bool], int] = {}
    for one in examination:
        key = (one.question.kind, bool(one.question.options))
        counts[key] = counts.get(key, 0) + 1
        scene = split_scene("held-out", SMALL.seed, int(Path(one.image).stem))
        assert one.question.answer == expected_answer(one.question.text, scene)
    assert set(counts) == {(kind, False) for kind in KINDS} | {(kind, True) for kind in ATTRIBUTE_KINDS}
    assert set(counts.values()) == {8}
    assert len({one.key for one in examination}) == len(examination)


@given(st.integers(0, 3000), st.sampled_from(KINDS))
@settings(max_examples=100, deadline=None)
def test_the_usual_answer_is_right_where_the_scene_is_usual(index: int, kind: str) -> None:
    drawn = sample_scene(11, index)
    scene = Scene(noun=drawn.noun, place=drawn.place, attributes=usual_attributes(drawn.noun, drawn.place))
    for with_options in (False, True)[: 1 + (kind in ATTRIBUTE_KINDS)]:
        question = draw_question(scene, kind, lambda below: below - 1, with_options=with_options)
        assert usual_answer(scene, question) == question.answer
    if kind in CONTENT_KINDS:
        question = draw_question(drawn, kind, lambda below: 0)
        assert usual_answer(drawn, question) == question.answer


def test_equal_seeds_give_equal_files_and_splits_share_no_picture(tmp_path: Path) -> None:
    written = [write_instructions(str(tmp_path / name), SMALL) for name in ("a", "b")]
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 40 + 44 + 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(written[0].train_sha256) == 40 and len(written[0].held_out_sha256) == 44
    assert not written[0].train_sha256 & written[0].held_out_sha256
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "a").rglob("*.jpg")}
    assert digests == written[0].train_sha256 | written[0].held_out_sha256
    names = {row["image"] for row in json.loads((tmp_path / "a" / "conversations.json").read_text()) if "image" in row}
    assert all((tmp_path / "a" / name).is_file() for name in names) and len(names) == 40


def test_another_seed_gives_other_pictures() -> None:
    assert split_scene("train", 0, 3) != split_scene("train", 1, 3)
    assert split_scene("train", 0, 3) != split_scene("held-out", 0, 3)


def test_a_shared_picture_is_an_error() -> None:
    check_disjoint({"train": frozenset("ab"), "held-out": frozenset("cd"), "benchmark": frozenset("e")})
    with pytest.raises(DataError, match="both train and benchmark"):
        check_disjoint({"train": frozenset("ab"), "held-out": frozenset("cd"), "benchmark": frozenset("b")})


@pytest.mark.parametrize(
    "settings", [{"num_train_images": 0}, {"num_held_out_questions": 0}, {"seed": -1}, {"num_text_rows": -1}]
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        InstructionConfig(**settings).check()
