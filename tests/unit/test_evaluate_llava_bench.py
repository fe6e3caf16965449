"""LLaVA-Bench: released files, the judge's prompt to the letter, scores that are read or not, and the ratio of means."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest

from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.llava_bench import (
    CATEGORIES,
    RULES,
    BenchQuestion,
    Judged,
    coco_context,
    judge_prompt,
    parse_scores,
    parse_scores_official,
    read_bench,
    score_bench,
)
from mmvp_ray.evaluate.llava_bench_run import read_contexts


def test_the_released_files(real_data):
    folder = real_data / "llava_bench"
    questions = read_bench(str(folder / "qa90_questions.jsonl"), str(folder / "qa90_gpt4_answer.jsonl"))
    assert len(questions) == 90 and len({q.image for q in questions}) == 30
    assert [sum(q.category == name for q in questions) for name in CATEGORIES] == [30, 30, 30]
    assert all(q.reference and q.text for q in questions)


def test_a_line_separator_in_a_text_ends_no_line(tmp_path):
    text = "one\u2028two\u2029three\u0085four"
    questions, references, contexts = (tmp_path / name for name in ("q.jsonl", "r.jsonl", "c.jsonl"))
    row = {"question_id": 1, "image": "a.jpg", "text": text, "category": "conv"}
    for file in (questions, references):
        file.write_bytes(json.dumps(row, ensure_ascii=False).encode())
    contexts.write_bytes(json.dumps({"image": "a.jpg", "caption": text}, ensure_ascii=False).encode())
    (one,) = read_bench(str(questions), str(references))
    assert (one.text, one.reference) == (text, text)
    assert read_contexts(str(contexts)) == {"a.jpg": text}


def test_the_rules_are_llavas_to_the_letter():
    # SHA-256 of the prompts of llava/eval/table/rule.json at c121f04: those of conv, detail and complex are one text, and so are the others.
    digests = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in RULES.items()}
    assert digests == {"captions": "2ce22b562d600886", "captions_and_boxes": "a73b4b7bb781472c"}


QUESTION = BenchQuestion(key="0", image="x.jpg", text="What?", category="conv", reference="ref")


def test_the_judges_prompt_to_the_letter():
    context = coco_context(["one", "two"], [{"category": "cup", "bbox": [0.1, 0.2, 0.3, 0.4]}])
    assert context == "one\ntwo\n\ncup: [0.1, 0.2, 0.3, 0.4]"
    assert judge_prompt(QUESTION, "mine", context) == (
        f"[Context]\n{context}\n\n[Question]\nWhat?\n\n[Assistant 1]\nref\n\n[End of Assistant 1]\n\n"
        f"[Assistant 2]\nmine\n\n[End of Assistant 2]\n\n[System]\n{RULES['captions_and_boxes']}\n\n"
    )
    turned = judge_prompt(QUESTION, "mine", "c", rule="captions", model_first=True)
    assert "[Assistant 1]\nmine\n" in turned and "[Assistant 2]\nref\n" in turned


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 9", (8, 9)), ("8 9\nAssistant 1 is ...", (8, 9)), ("8, 9\nbecause", (8, 9)), ("8.5 9.0\n", (8.5, 9)), ("10 10", (10, 10)), ("\n\n7 8\n", (7, 8)),
        ("8  9", (8, 9)), ("8\t9", (8, 9)), ("**8 9**", (8, 9)), ("[8, 9]", (8, 9)), ("(8, 9)", (8, 9)), ("8/10 9/10", (8, 9)), ("Scores: 8 9", (8, 9)),
        ("8 and 9", (8, 9)), ("Assistant 1: 8, Assistant 2: 9", (8, 9)), ("Assistant 1: 8\nAssistant 2: 9\n", (8, 9)), ("8 9.", (8, 9)),
        ("", None), ("8", None), ("8 9 10", None), ("0 5", None), ("11 9", None), ("-1 -1", None), ("8/9", None), ("8-9", None), ("eight nine", None),
        ("Both are good. 8 9", None), ("I cannot rate this.", None), ("85 90", None), ("8.5.1 9", None), ("Failed to Get a Proper Review.", None),
    ],
)  # fmt: skip
def test_scores_are_read_or_are_a_gap(review, scores):
    assert parse_scores(review) == scores


def test_what_the_official_reading_makes_of_it():
    assert parse_scores_official("8 9\nx") == (8, 9)
    for review in ("8, 9", "\n8 9", "8/10 9/10", "", "8 9 ", "a b"):
        assert parse_scores_official(review) == (-1, -1)


def bench(categories):
    return [
        BenchQuestion(key=str(at), image="", text="", category=name, reference="") for at, name in enumerate(categories)
    ]


def given_scores(rows, order="reference_first"):
    return [
        Judged(key=str(at), order=order, reference=reference, model=model) for at, (reference, model) in enumerate(rows)
    ]


def test_what_the_released_scripts_print_stands_beside():
    questions = bench(["conv", "conv", "detail"])
    reviews = {"0": "8 6\nx", "1": "8, 9", "2": "10 5"}
    judged = given_scores([(8, 6), (8, 9), (10, 5)])
    found = score_bench("j", questions, judged, {}, reviews=reviews)
    # Over all: (6 - 1 + 5) / (8 - 1 + 10); conv: (6 - 1) / (8 - 1).
    assert [one.as_released for one in found.categories] == pytest.approx([1000 / 17, 500 / 7, 50.0])
    assert found.categories[0].relative == pytest.approx(2000 / 26)
    some = score_bench("j", questions, judged[:2], {"2": "no review"}, reviews={"1": "8, 9"})
    assert [one.as_released for one in some.categories] == [100.0, 100.0, None], "-1 over -1"
    assert {one.as_released for one in score_bench("j", questions, judged, {}).categories} == {None}


def test_relative_score_is_the_ratio_of_means_and_failures_are_left_out_and_seen():
    questions = bench(["conv", "conv", "detail", "complex"])
    judged = given_scores([(8, 6), (10, 9), (9, 9)])
    found = score_bench("gpt-4-0314", questions, judged, {"3": "judge: HTTP 500"})
    by_name = {one.category: one for one in found.categories}
    assert list(by_name) == ["all", "conv", "detail", "complex"]
    assert by_name["all"].relative == pytest.approx((6 + 9 + 9) / (8 + 10 + 9) * 100)
    assert by_name["conv"].relative == pytest.approx(15 / 18 * 100)
    assert (by_name["all"].num_judged, by_name["all"].num_failed) == (3, 1)
    assert by_name["complex"].relative is None and by_name["complex"].num_failed == 1
    assert by_name["all"].low <= by_name["all"].relative <= by_name["all"].high
    assert (found.judge, dict(found.failed)) == ("gpt-4-0314", {"3": "judge: HTTP 500"})
    json.dumps(asdict(found))
    # What averaging the failure in as (-1, -1) would have given.
    assert pytest.approx(by_name["all"].relative) != (6 + 9 + 9 - 1) / (8 + 10 + 9 - 1) * 100


def test_both_orders_are_averaged_and_their_gap_is_told():
    questions = bench(["conv", "conv"])
    both = given_scores([(8, 6), (8, 7)]) + given_scores([(7, 8), (8, 7)], order="model_first")
    found = score_bench("j", questions, both, {})
    assert found.order_gap == pytest.approx(1.0) and found.orders == ("model_first", "reference_first")
    assert found.categories[0].relative == pytest.approx((7 + 7) / (7.5 + 8) * 100)


def test_bounds_equal_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 11, (60, 2)).astype(float)
    found = score_bench("j", bench(["conv"] * 60), given_scores(rows.tolist()), {}).categories[0]
    ratios = [100 * rows[draw][:, 1].mean() / rows[draw][:, 0].mean() for draw in rng.integers(0, 60, (10_000, 60))]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=1.0)


def test_nothing_is_dropped_in_silence(tmp_path):
    questions = bench(["conv", "conv"])
    for judge, judged, failed, message in [
        (" ", given_scores([(8, 6), (8, 6)]), {}, "judge's name"),
        ("j", given_scores([(8, 6)]), {}, "neither"),
        ("j", given_scores([(8, 6)] * 3), {}, "one score"),
        ("j", given_scores([(8, 6)]) * 2, {}, "one score"),
        ("j", given_scores([(8, 6), (8, 6)]) + given_scores([(8, 6)], order="model_first"), {}, "neither"),
        ("j", given_scores([(8, 6), (8, 6)]), {"9": "x"}, "strangers"),
    ]:
        with pytest.raises(DataError, match=message):
            score_bench(judge, questions, judged, failed)
    one, two = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    row = {"question_id": 0, "image": "x.jpg", "text": "?", "category": "conv"}
    one.write_text(json.dumps(row) + "\n" + json.dumps({**row, "question_id": 1}))
    two.write_text(json.dumps(row))
    with pytest.raises(DataError, match="question_id 1"):
        read_bench(str(one), str(two))
    two.write_text(json.dumps({**row, "question_id": 1, "category": "detail"}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match="one category"):
        read_bench(str(one), str(two))
    one.write_text("{")
    with pytest.raises(DataError, match="line 1"):
        read_bench(str(one), str(two))
