"""A study's report against plain loops over the scripted answers; its table gives the evaluation's human line the same numbers."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace
from statistics import median

import numpy as np
import pytest

from mmvp_ray.annotate.studies import StudyNewConfig, new_study
from mmvp_ray.annotate.study_report import StudyReportConfig, report_study
from mmvp_ray.annotate.studying import Shown, agree, answer, current, participant_of
from mmvp_ray.annotate.workspace import open_workspace
from mmvp_ray.benchmark.benchmark import collect
from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.benchmark.table import write_table
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.human import COLUMNS, crossed_interval, human_baseline, read_responses
from mmvp_ray.intervals import wilson_interval
from mmvp_ray.miniature.benchmark import make_mmvp
from mmvp_ray.report.study_page import StudyReport, render_study_html
from mmvp_ray.report.twin import decode_dataclass
from tests.unit.test_report_page import Page, assert_needs_nothing

NUM_PAIRS = 9
PATTERNS = ("Color and Appearance", "Quantity and Count", "Text")


def wrong(person: int, question: int) -> bool:
    """The script: who is wrong at what. The pattern of pairs 3, 6, 9 is never wrong; question 0 is, for all but one."""
    if question // 2 % 3 == 2:
        return False
    return person > 0 if question == 0 else (3 * person + 5 * question) % 7 == 0


def unsure(person: int, question: int) -> bool:
    return person == 1 and question == 6


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four who finish, one who stops after five questions, one who agrees and goes, one who never comes."""
    folder = tmp_path_factory.mktemp("study")
    plain = make_mmvp(folder / "mmvp", num_pairs=NUM_PAIRS)
    labelled = [replace(one, patterns=(PATTERNS[place // 2 % 3],)) for place, one in enumerate(plain.questions)]
    write_table(str(folder / "table"), labelled, name="nine pairs")
    config = StudyNewConfig(
        workspace=str(folder / "work"),
        name="scripted",
        benchmark=str(folder / "table"),
        participants=7,
        min_gap=3,
        shuffle_options=True,
    )
    tokens = [line.rpartition("#")[2] for line in new_study(config)[-7:]]
    workspace = open_workspace(config.workspace)
    given = {}
    for person, token in enumerate(tokens[:6]):
        agree(workspace, participant_of(workspace, token))
        participant = participant_of(workspace, token)
        num_left = {4: 5, 5: 0}.get(person, 99)
        while num_left and isinstance(shown := current(workspace, participant), Shown):
            num_left -= 1
            (number,) = workspace.row(
                "SELECT question_place FROM responses WHERE participant_id = ? AND place = ?",
                participant.participant_id,
                shown.place,
            )
            question = plain.questions[number]
            choice = question.answer ^ wrong(person, number)
            text = question.options[choice]
            seconds = 0.1 * (person + 1) + 0.01 * number
            given[person, number] = None if unsure(person, number) else choice, seconds
            answer(
                workspace,
                participant,
                shown.place,
                None if unsure(person, number) else shown.options.index(text),
                seconds,
            )
    lines = report_study(StudyReportConfig(workspace=config.workspace, name="Scripted", out=str(folder / "out")))
    return folder, plain, given, lines


def read(folder):
    return decode_dataclass(StudyReport, (folder / "out" / "study.json").read_text(), version=1)


def right_matrices(plain, given):
    """right_MP and share_MP of the four who finished, by plain loops."""
    pairs, shares = np.zeros((4, NUM_PAIRS)), np.zeros((4, NUM_PAIRS))
    for person in range(4):
        for pair in range(NUM_PAIRS):
            hits = [given[person, 2 * pair + half][0] == plain.questions[2 * pair + half].answer for half in (0, 1)]
            pairs[person, pair], shares[person, pair] = all(hits), sum(hits)
    return pairs, shares


def test_the_numbers_are_those_of_plain_loops(study):
    folder, plain, given, lines = study
    report = read(folder)
    pairs, shares = right_matrices(plain, given)
    assert 0 < pairs.mean() < 1
    assert report.pairs.value == pytest.approx(pairs.mean())
    assert report.questions.value == pytest.approx(shares.mean() / 2)
    assert (report.num_invited, report.num_people, report.num_excluded) == (7, 4, 1)
    assert [(one.name, one.num_answered) for one in report.people] == [
        ("P001", 18), ("P002", 18), ("P003", 18), ("P004", 18), ("P005", 5),
    ]  # fmt: skip
    for person, one in enumerate(report.people[:4]):
        assert one.pair_accuracy == pytest.approx(pairs[person].mean())
        assert one.question_accuracy == pytest.approx(shares[person].mean() / 2)
        assert one.num_cannot_tell == (person == 1)
    assert report.people[4].pair_accuracy is None and report.people[4].question_accuracy is None
    assert report.guessing == pytest.approx(0.25)
    assert f"{100 * pairs.mean():.1f} % of pairs right" in lines[0] and "1 excluded, 7 links" in lines[0]
    assert report.median_seconds == pytest.approx(
        median(seconds for (who, _), (_, seconds) in given.items() if who < 4)
    )


def test_patterns_have_intervals_of_their_own_pairs(study):
    folder, plain, given, _ = study
    pairs, shares = right_matrices(plain, given)
    rows = {row.pattern: row for row in read(folder).patterns}
    # In the paper's order.
    assert list(rows) == ["Quantity and Count", "Color and Appearance", "Text"]
    for number, pattern in enumerate(PATTERNS):
        mine, row = pairs[:, number::3], rows[pattern]
        assert row.num_pairs == 3 and row.pairs.value == pytest.approx(mine.mean())
        assert row.questions.value == pytest.approx(shares[:, number::3].mean() / 2)
        if pattern == "Text":
            assert row.pairs.interval == "wilson" and (row.pairs.low, row.pairs.high) == wilson_interval(3, 3)
        else:
            assert (row.pairs.low, row.pairs.high) == pytest.approx(crossed_interval(mine, np.ones(3)))
            assert row.pairs.interval == "people and pairs" and row.pairs.low <= row.pairs.value <= row.pairs.high


def test_the_hardest_pair_comes_first_and_a_doubtful_key_is_named(study):
    folder, plain, given, _ = study
    report = read(folder)
    pairs, _ = right_matrices(plain, given)
    assert [pair.num_right for pair in report.pair_difficulty] == sorted(int(num) for num in pairs.sum(0))
    assert sorted(pair.pair_id for pair in report.pair_difficulty) == sorted(pairs_of(plain.questions))
    for pair in report.pair_difficulty:
        for asked in pair.questions:
            number = next(
                place
                for place, one in enumerate(plain.questions)
                if (one.pair_id, one.item) == (pair.pair_id, asked.item)
            )
            said = [given[person, number][0] for person in range(4)]
            assert asked.chosen == [said.count(0), said.count(1)] and asked.num_cannot_tell == said.count(None)
            assert asked.is_against_key == (said.count(1 - asked.answer) > said.count(asked.answer))
    assert [pair.pair_id for pair in report.pair_difficulty if pair.is_against_key] == [plain.questions[0].pair_id]


def test_the_table_feeds_the_human_line_with_the_same_numbers(study):
    folder, plain, given, _ = study
    report = read(folder)
    path = folder / "out" / "responses.csv"
    responses = read_responses(str(path))
    found = human_baseline(plain.questions, responses)
    assert asdict(report.pairs) == {
        "value": found.pair_accuracy, "low": found.pair_low, "high": found.pair_high, "interval": "people and pairs",
    }  # fmt: skip
    assert (report.questions.low, report.questions.high) == (found.question_low, found.question_high)
    assert dict(found.excluded) == {"P005": 13} and report.num_excluded == 1
    assert report.agreement.krippendorff_alpha == found.agreement.krippendorff_alpha
    assert report.agreement.percent == found.agreement.percent
    assert report.median_seconds == found.median_seconds
    assert {pair.pair_id: pair.num_right for pair in report.pair_difficulty} == dict(found.pair_difficulty)
    assert len(responses) == 4 * 18 + 5
    for said in responses:
        number = next(place for place, one in enumerate(plain.questions) if one.key == said.question)
        choice, seconds = given[int(said.participant[1:]) - 1, number]
        assert said.option == choice and said.seconds == pytest.approx(seconds, abs=1e-9)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(COLUMNS) < set(rows[0])
    assert [row["place"] for row in rows[:18]] == [str(place) for place in range(18)]
    assert all(sorted(json.loads(row["option_order"])) == [0, 1] for row in rows)
    assert len({row["option_order"] for row in rows}) == 2
    assert all(row["answered_at"].endswith("+00:00") for row in rows)


def test_the_page_needs_nothing_and_says_what_the_twin_says(study):
    folder, plain, _, _ = study
    report = read(folder)
    html = (folder / "out" / "study.html").read_text()
    page = Page(html)
    assert_needs_nothing(page)
    rows = page.rows("people-table")[1:]
    assert [float(row[0]) for row in rows] == [18, 18, 18, 18, 5]
    assert [float(row[1]) for row in rows[:4]] == pytest.approx([one.pair_accuracy for one in report.people[:4]])
    patterns = page.rows("pattern-table")[1:]
    assert [float(row[1]) for row in patterns] == pytest.approx([row.pairs.value for row in report.patterns])
    cards = page.classed("pair")
    assert len(cards) == sum(pair.num_right < 4 for pair in report.pair_difficulty)
    assert len([one for one in page.elements if one["tag"] == "img"]) == 2 * len(cards)
    assert "against the key" in cards[0]["text"] and plain.questions[0].text in cards[0]["text"]
    # No stranger's number beside ours: this is not the published MMVP.
    assert report.published is None and "The paper" not in html
    assert "95.7" not in html


def test_equal_reports_equal_pages_and_hostile_texts_stay_text(study):
    folder, *_ = study
    report = read(folder)
    hostile = "<script>alert(1)</script>\"'\u202e"
    first = report.pair_difficulty[0]
    asked = [replace(one, text=f"{hostile} {one.item}", options=[hostile, "y"]) for one in first.questions]
    report = replace(
        report,
        name=hostile,
        benchmark=hostile,
        config={"intro": hostile},
        patterns=[replace(row, pattern=f"{hostile} {place}") for place, row in enumerate(report.patterns)],
        people=[replace(one, name=hostile) for one in report.people],
        pair_difficulty=[replace(first, pair_id=hostile, pattern=hostile, questions=asked)],
    )
    html = render_study_html(report, {})
    assert html == render_study_html(report, {})
    assert "<script" not in html and "\u202e" not in html
    assert_needs_nothing(Page(html))


def test_nobody_yet_and_nobody_wrong(tmp_path):
    benchmark = make_mmvp(tmp_path / "mmvp", num_pairs=2)
    config = StudyNewConfig(workspace=str(tmp_path / "work"), name="new", benchmark=benchmark.url, participants=1)
    token = new_study(config)[-1].rpartition("#")[2]
    workspace = open_workspace(config.workspace)
    reporting = StudyReportConfig(workspace=config.workspace, name="new", out=str(tmp_path / "out"))
    lines = report_study(reporting)
    report = read(tmp_path)
    assert report.pairs.value is None and (report.num_people, report.num_excluded, report.num_invited) == (0, 0, 1)
    assert "0 participants" in lines[0] and read_responses(str(tmp_path / "out" / "responses.csv")) == []
    assert_needs_nothing(Page((tmp_path / "out" / "study.html").read_text()))
    participant = participant_of(workspace, token)
    agree(workspace, participant)
    while isinstance(shown := current(workspace, participant), Shown):
        (number,) = workspace.row("SELECT question_place FROM responses WHERE place = ?", shown.place)
        answer(workspace, participant, shown.place, benchmark.questions[number].answer, None)
    report_study(reporting)
    report = read(tmp_path)
    # Two pairs that everybody got right say little: no spread to draw from, so Wilson's bounds.
    assert (report.pairs.value, (report.pairs.low, report.pairs.high)) == (1, wilson_interval(2, 2))
    assert report.pairs.interval == "wilson"
    assert report.patterns == [] and report.median_seconds is None and report.agreement.krippendorff_alpha is None
    html = (tmp_path / "out" / "study.html").read_text()
    assert (
        re.search(r"34\.2\W*%", html)
        and "no spread to draw from" not in html
        and "Everybody got every pair right" in html
    )


def test_mistakes(tmp_path, study):
    folder, *_ = study
    good = StudyReportConfig(workspace=str(folder / "work"), name="scripted", out=str(tmp_path))
    for name in ("workspace", "name", "out"):
        with pytest.raises(ConfigError, match=f"--{name}"):
            report_study(replace(good, **{name: ""}))
    with pytest.raises(ConfigError, match="expected a study among scripted, found 'other'"):
        report_study(replace(good, name="other"))
    with pytest.raises(ConfigError, match="expected a workspace"):
        report_study(replace(good, workspace=str(tmp_path)))


@pytest.mark.parametrize("key", ["original", "corrected"])
def test_the_papers_number_stands_beside_the_published_mmvp_alone(tmp_path, monkeypatch, key):
    """300 questions that are recognised as the published MMVP, asked of nobody."""
    from mmvp_ray.annotate import studies

    plain = make_mmvp(tmp_path / "mmvp", num_pairs=2)
    asks = {50: ("Are the elephant's tusks long or short?", ("Long", "Short")), 140: ("Is the elderly person standing or sitting?", ("Standing", "Sitting"))}  # fmt: skip
    questions = []
    for pair in range(1, 151):
        for half, item in enumerate("ab"):
            text, options = asks.get(pair, ("Left or right?", ("Left", "Right")))
            right = half ^ (pair in asks and key == "corrected")
            questions.append(
                replace(plain.questions[half], pair_id=str(pair), item=item, text=text, options=options, answer=right)
            )
    monkeypatch.setattr(studies, "open_benchmark", lambda *_, **__: collect(questions, name="MMVP", key=key))
    config = StudyNewConfig(workspace=str(tmp_path / "work"), name="new", benchmark="MMVP", participants=1)
    new_study(config)
    reporting = StudyReportConfig(workspace=config.workspace, name="new", out=str(tmp_path / "out"))
    report_study(reporting)
    assert read(tmp_path).published == pytest.approx(0.957) and read(tmp_path).answer_key == key
    assert "95.7" in (tmp_path / "out" / "study.html").read_text()
    # One word changed, and the questions are not those of the fingerprint.
    workspace = open_workspace(config.workspace)
    with workspace.transaction() as connection:
        connection.execute("UPDATE study_questions SET question = 'Up or down?' WHERE place = 0")
    report_study(reporting)
    assert read(tmp_path).published is None
