"""POPE's files, its two readings, and its figures against plain counting."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.pope import (
    SPLIT_FILES,
    SPLITS,
    PopeQuestion,
    mean_f1,
    parse_official,
    parse_strict,
    read_pope,
    score_pope,
)
from mmvp_ray.evaluate.scores import Failed


@pytest.mark.parametrize("split", SPLITS)
def test_the_released_files(real_data, split):
    questions = read_pope(str(real_data / "pope" / SPLIT_FILES[split]), split)
    assert len(questions) == 3_000 and sum(q.is_yes for q in questions) == 1_500
    assert len({q.key for q in questions}) == 3_000 and len({q.image for q in questions}) == 500
    found = score_pope(questions, {q.key: "Yes" for q in questions}, num_resamples=100)
    assert (found.accuracy.value, found.recall.value, found.precision.value, found.yes_ratio.value) == (
        0.5,
        1.0,
        0.5,
        1.0,
    )
    assert found.f1 == pytest.approx(2 / 3)


def test_a_line_separator_in_a_text_ends_no_line(tmp_path):
    rows = [
        {"question_id": number, "image": "a.jpg", "text": f"Is there a{sign}dog?", "label": "yes"}
        for number, sign in enumerate("\u2028\u2029\u0085")
    ]
    file = tmp_path / "questions.json"
    file.write_bytes("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert [question.text for question in read_pope(str(file), "random")] == [row["text"] for row in rows]


def official_by_the_script(text):
    if text.find(".") != -1:
        text = text.split(".")[0]
    words = text.replace(",", "").split(" ")
    return not ("No" in words or "not" in words or "no" in words)


@given(
    st.lists(st.sampled_from(["Yes", "No", "no", "not", "NO", ",", ".", " ", "there", "\n", "is"]), max_size=8).map(
        "".join
    )
)
def test_the_official_reading_is_the_scripts(raw):
    assert parse_official(raw) == official_by_the_script(raw)


@pytest.mark.parametrize(
    ("raw", "official", "strict"),
    [
        ("Yes", True, True), ("yes.", True, True), ("No", False, False), ("No, there is no dog.", False, False), ("NO", True, False),
        ("no.", False, False), ("There is no snowboard in the image.", False, None), ("There is a dog. No cat.", True, None),
        ("I'm sorry, I can't help.", True, None), ("", True, None), ("Yes, but not in front.", False, True), ("Yes or no", False, None),
        ("**No**", True, False), ("<think>yes?</think>No", True, False), ("\\boxed{yes}", True, True), ("The answer is no.", False, False),
        ("There is a dog in the image. Yes", True, True), ("Yes. No.", True, None), ("No doubt, there is one", False, None), ("Nope", True, None),
        ("Yes, there is no doubt that a dog is there", False, True), ("Ｙｅｓ", True, True), ("Is there a dog? Yes.", True, True), ("no\n", True, False),
        ("Yesterday", True, None), ("No image was provided.", False, None), ("<answer>No</answer>", True, False), ("answer: yes", True, True),
    ],
)  # fmt: skip
def test_both_readings(raw, official, strict):
    assert (parse_official(raw), parse_strict(raw)) == (official, strict)


def split_of(labels):
    return [
        PopeQuestion(key=f"random/{at}", split="random", image="x.jpg", text="?", is_yes=label)
        for at, label in enumerate(labels)
    ]


REPLY = st.sampled_from(["Yes", "No", "Perhaps", "failed", "missing"])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), REPLY), max_size=14), st.sampled_from(["official", "strict"]))
def test_figures_equal_plain_counting(rows, parser):
    questions = split_of([label for label, _ in rows])
    answers = {
        q.key: Failed("x") if reply == "failed" else reply
        for q, (_, reply) in zip(questions, rows, strict=True)
        if reply != "missing"
    }
    found = score_pope(questions, answers, parser=parser, num_resamples=30)
    unknown = True if parser == "official" else None
    said = [
        (label, {"Yes": True, "No": False}.get(reply, unknown))
        for label, reply in rows
        if reply not in ("failed", "missing")
    ]
    tp, fp = said.count((True, True)), said.count((False, True))
    missed = sum(label and answer is not True for label, answer in said)
    assert (found.num_answered, found.num_failed, found.num_missing) == (
        len(said), sum(r == "failed" for _, r in rows), sum(r == "missing" for _, r in rows),
    )  # fmt: skip
    assert found.num_unknown == sum(answer is None for _, answer in said)
    assert found.accuracy.num_right == sum(label == answer for label, answer in said)
    assert (found.precision.value, found.recall.value) == (
        tp / (tp + fp) if tp + fp else None, tp / (tp + missed) if tp + missed else None,
    )  # fmt: skip
    assert found.yes_ratio.value == ((tp + fp) / len(said) if said else None)
    if tp:
        precision, recall = found.precision.value, found.recall.value
        assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))
        assert found.f1_low <= found.f1 + 1e-12 and found.f1 - 1e-12 <= found.f1_high
    json.dumps(asdict(found))


def test_yes_ratio_is_of_the_answers_not_of_the_key():
    questions = split_of([True, False] * 50)
    assert score_pope(questions, {q.key: "No" for q in questions}).yes_ratio.value == 0.0
    assert score_pope(questions, {q.key: "Yes" for q in questions}).yes_ratio.value == 1.0


def test_mean_f1_wants_three_whole_splits():
    def one(split, reply="Yes", drop=0):
        questions = [PopeQuestion(key=f"{split}/{i}", split=split, image="", text="", is_yes=i < 2) for i in range(4)]
        return score_pope(questions, {q.key: reply for q in questions[drop:]}, num_resamples=10)

    assert mean_f1([one(split) for split in SPLITS]) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="by one parser"):
        mean_f1([one("random"), one("popular")])
    with pytest.raises(DataError, match="in full"):
        mean_f1([one("random"), one("popular"), one("adversarial", drop=1)])


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(ConfigError, match="known: official, strict"):
        score_pope([], {}, parser="x")
    with pytest.raises(DataError, match="this split's"):
        score_pope(split_of([True]), {"random/9": "Yes"})
    file = tmp_path / "coco_pope_random.json"
    good = {"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}
    for rows, message in [
        (["{"], "line 1"),
        ([json.dumps(good), json.dumps(good)], "again"),
        ([json.dumps({**good, "label": "maybe"})], "yes or no"),
        (["[1]"], "JSON object"),
    ]:
        file.write_text("\n".join(rows))
        with pytest.raises(DataError, match=message):
            read_pope(str(file), "random")
