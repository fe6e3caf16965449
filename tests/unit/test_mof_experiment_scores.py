"""The table of the miniature experiment against brute force: pairs, questions, examination, McNemar with Holm, and what stands on page and table."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest

from mmvp_ray.benchmark.items import Question
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.intervals import wilson_interval
from mmvp_ray.miniature.instructions import InstructionConfig, held_out_questions, split_scene
from mmvp_ray.miniature.scene_questions import CONTENT_KINDS
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig, ratio_of
from mmvp_ray.pipeline.mof_experiment_scores import score_modes, usual_rates
from mmvp_ray.report.mof_experiment import MofReport, Readout, markdown_table, readout_table, render_mof_html

MODES, SEEDS, NUM_PAIRS = ("none", "additive:0.5", "interleaved"), (1, 2, 3), 40
PATTERNS = ("Color and Appearance", "Quantity and Count", "Text")
OPTIONS = ("Left", "Right")
EXAMINATION = held_out_questions(InstructionConfig(num_held_out_images=22))


def questions() -> list[Question]:
    return [
        Question(
            pair_id=f"{number:04d}",
            item=item,
            image_uri=f"/pictures/{number}{item}.jpg",
            text="Is the cat facing left or right in the picture?",
            options=OPTIONS,
            answer=(number + (item == "b")) % 2,
            patterns=(PATTERNS[number % 3],),
        )
        for number in range(NUM_PAIRS)
        for item in "ab"
    ]


def answers(seed: int) -> dict[tuple[str, int], dict[str, dict[str, str]]]:
    """Random answers, better ones for later modes; a few that name no option."""
    rng = np.random.default_rng(seed)
    found = {}
    for place, mode in enumerate(MODES):
        for run in SEEDS:
            said = {}
            for question in questions():
                is_right = rng.random() < 0.55 + 0.15 * place
                text = OPTIONS[question.answer if is_right else 1 - question.answer]
                said[question.key] = "Purple" if rng.random() < 0.05 else f" {text}"
            examined = {one.key: one.question.answer if rng.random() < 0.6 else "something else" for one in EXAMINATION}
            found[mode, run] = {"benchmark": said, "examination": examined}
    return found


def is_right(question: Question, said: dict[str, str]) -> bool:
    return said[question.key].strip() == OPTIONS[question.answer]


def right_pairs(said: dict[str, str], pattern: str | None = None) -> list[bool]:
    asked = questions()
    pairs = [(asked[at], asked[at + 1]) for at in range(0, len(asked), 2)]
    return [
        all(is_right(one, said) for one in pair) for pair in pairs if pattern is None or pair[0].patterns == (pattern,)
    ]


def p_by_enumeration(verdicts: list[tuple[bool, bool]]) -> float:
    """Two-sided exact McNemar by listing which of the discordant pairs could fall to one side."""
    only_a = sum(a and not b for a, b in verdicts)
    num = sum(a != b for a, b in verdicts)
    ways = sum(1 for size in range(min(only_a, num - only_a) + 1) for _ in combinations(range(num), size))
    return min(1.0, 2 * ways / 2**num)


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_equal_counting_by_hand(seed: int) -> None:
    said = answers(seed)
    rows = score_modes(questions(), EXAMINATION, said, baseline="none", num_resamples=500)
    assert [row.mode for row in rows] == list(MODES)
    by_hand: dict[tuple[str, int], float] = {}
    for row in rows:
        pairs = [right_pairs(said[row.mode, run]["benchmark"]) for run in SEEDS]
        assert row.pairs.num_right == sum(map(sum, pairs)) and row.pairs.num_total == NUM_PAIRS * 3
        assert row.pairs.low <= row.pairs.fraction <= row.pairs.high
        asked = [is_right(question, said[row.mode, run]["benchmark"]) for run in SEEDS for question in questions()]
        assert (row.questions.num_right, row.questions.num_total) == (sum(asked), len(asked))
        unread = [text for run in SEEDS for text in said[row.mode, run]["benchmark"].values() if text == "Purple"]
        assert row.num_unread == len(unread)
        for pattern in PATTERNS:
            found = [one for run in SEEDS for one in right_pairs(said[row.mode, run]["benchmark"], pattern)]
            assert (row.patterns[pattern].num_right, row.patterns[pattern].num_total) == (sum(found), len(found))
        for group, belongs in (
            ("all", lambda one: True),
            ("content", lambda one: one.question.kind in CONTENT_KINDS),
            ("attributes", lambda one: one.question.kind not in CONTENT_KINDS),
            ("attributes with options", lambda one: bool(one.question.options)),
            ("colour attribute", lambda one: one.question.kind == "colour"),
            ("noun content", lambda one: one.question.kind == "noun"),
        ):
            verdicts = [
                said[row.mode, run]["examination"][one.key] == one.question.answer
                for run in SEEDS
                for one in EXAMINATION
                if belongs(one)
            ]
            rate = row.examination[group]
            assert (rate.num_right, rate.num_total) == (sum(verdicts), len(verdicts)), group
        for one, run in zip(row.seeds, SEEDS, strict=True):
            num = sum(right_pairs(said[row.mode, run]["benchmark"]))
            assert (one.seed, one.pairs.num_right) == (run, num)
            assert (one.pairs.low, one.pairs.high) == wilson_interval(num, NUM_PAIRS)
        if row.mode == "none":
            assert row.compared is None
            continue
        assert row.compared is not None
        for place, run in enumerate(SEEDS):
            verdicts_2 = list(
                zip(
                    right_pairs(said["none", run]["benchmark"]),
                    right_pairs(said[row.mode, run]["benchmark"]),
                    strict=True,
                )
            )
            by_hand[row.mode, run] = p_by_enumeration(verdicts_2)
            assert row.compared.p[place] == pytest.approx(by_hand[row.mode, run], rel=1e-12)
        assert row.compared.difference == pytest.approx(row.pairs.fraction - rows[0].pairs.fraction)
        assert row.compared.low <= row.compared.difference <= row.compared.high
    ordered, largest = sorted(by_hand, key=lambda key: by_hand[key]), 0.0
    for rank, key in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * by_hand[key]))
        row = next(row for row in rows if row.mode == key[0])
        assert row.compared is not None
        assert row.compared.p_holm[SEEDS.index(key[1])] == pytest.approx(largest)


def test_intervals_draw_whole_pairs() -> None:
    """Seeds that agree on every pair tell as much as one seed: the interval must not shrink with their number."""
    said = answers(3)
    alike = {("none", run): said["none", 1] for run in SEEDS}
    (three,) = score_modes(questions(), EXAMINATION, alike, baseline="none", num_resamples=20_000)
    (one,) = score_modes(questions(), EXAMINATION, {("none", 1): said["none", 1]}, baseline="none", num_resamples=20_000)  # fmt: skip
    assert three.pairs.high - three.pairs.low == pytest.approx(one.pairs.high - one.pairs.low, abs=0.03)


def test_missing_answers_and_uneven_seeds_are_errors() -> None:
    said = answers(0)
    with pytest.raises(DataError, match="same seeds"):
        score_modes(questions(), EXAMINATION, {key: one for key, one in said.items() if key != ("none", 2)}, baseline="none")  # fmt: skip
    for kind in ("benchmark", "examination"):
        broken = answers(0)
        broken["none", 1][kind].popitem()
        with pytest.raises(DataError, match="expected an answer"):
            score_modes(questions(), EXAMINATION, broken, baseline="none")


def test_what_noun_and_place_alone_give() -> None:
    scenes = {one.image: split_scene("held-out", 0, index // 4) for index, one in enumerate(EXAMINATION)}
    rates = usual_rates(EXAMINATION, scenes, num_resamples=200)
    assert rates["content"].value == 1.0
    assert rates["attributes free"].num_total == rates["attributes with options"].num_total == 36
    assert 0.2 < rates["attributes"].fraction < 0.85


def report() -> MofReport:
    said = answers(0)
    rows = score_modes(questions(), EXAMINATION, said, baseline="none", num_resamples=200)
    scenes = {one.image: split_scene("held-out", 0, index // 4) for index, one in enumerate(EXAMINATION)}
    return MofReport(
        created_at="2026-01-02T03:04:05Z",
        rows=rows,
        usual=usual_rates(EXAMINATION, scenes, num_resamples=200),
        readouts=[Readout(features="clip, pooled", num_features=128, pairs=rows[0].pairs, patterns=rows[0].patterns)],
        examples=[],
        losses={"none-seed1": {"align": [3.0, 2.0], "finetune": [1.0, 0.2]}},
        seconds={"training": 3.0},
        facts={"num_asked": NUM_PAIRS, "num_selected": NUM_PAIRS, "left_out": {}},
    )


def test_the_table_has_the_rows_own_numbers_and_the_page_is_whole() -> None:
    found = report()
    lines = markdown_table(found).splitlines()
    assert len(lines) == 2 + len(MODES) + 1 and len({line.count("|") for line in lines}) == 1
    for row, line in zip(found.rows, lines[2:], strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row.mode and cells[1].startswith(f"{100 * row.pairs.fraction:.1f} (")
    assert "clip, pooled" in readout_table(found)
    page = render_mof_html(found, {})
    assert page.count("<svg") == 2 and "<script" not in page and "http://" not in re.sub(r"xmlns(:\w+)?=\"[^\"]*\"", "", page)  # fmt: skip
    assert render_mof_html(found, {}) == page
    json.dumps(asdict(found), allow_nan=False)


def test_modes_are_read() -> None:
    assert [ratio_of(mode) for mode in ("none", "interleaved", "additive:0.25", "additive:1")] == [None, None, 0.25, 1]
    for mode in ("additive", "additive:x", "additive:1.5", "mixed", "none:0.5", "additive:nan"):
        with pytest.raises(ConfigError):
            ratio_of(mode)


@pytest.mark.parametrize(
    "settings",
    [
        {"modes": ("interleaved",)},
        {"modes": ("none", "none")},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"finetune_steps": 0},
        {"num_probe_images": 10_000},
        {"finetune_rate": 0.0},
        {"width": 10},
        {"out": ""},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MofExperimentConfig(**settings).check()  # type: ignore[arg-type]
