"""The same answers as others would have read them: other harnesses' rules on every answer, and the released grader, asked to the letter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mmvp_ray.benchmark.benchmark import Benchmark, with_answers
from mmvp_ray.errors import ConfigError, DataError, MmvpError, TransientError
from mmvp_ray.evaluate.compat_parsers import PARSERS
from mmvp_ray.evaluate.judging import OFFICIAL_SYSTEM
from mmvp_ray.evaluate.mllm import Answers, MllmConfig, ask_model
from mmvp_ray.evaluate.mllm_results import read_result, result_of, write_result
from mmvp_ray.evaluate.options import show_options
from mmvp_ray.evaluate.other_readings import RELEASED_GRADER, SAID_NEITHER, SAID_NO, SAID_YES
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.responder import Ask
from mmvp_ray.evaluate.scores import Failed
from mmvp_ray.pipeline.evaluation import compose_report
from mmvp_ray.pipeline.evaluation_cards import other_readings
from mmvp_ray.report.evaluation_data import OtherReading, Share
from tests.unit.scripted_model import Scripted, doors

NUM_PAIRS = 6
SAID = ["(b) Closed", "The camera sees a door.", "B", "It is not open, so it is closed.", "(a)", "the answer is (b)"]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return doors(tmp_path_factory.mktemp("images"), num_pairs=NUM_PAIRS, answers=(0, 1))


def number_of(ask: Ask) -> int:
    """Place of the question that a prompt holds."""
    words = ask.prompt.split("Is door ")[1].split()
    return 2 * int(words[0]) + "ab".index(words[1])


def asked(
    benchmark: Benchmark, out: Path, model: Scripted, judge: Scripted | None = None, *, compat: str = "official"
) -> tuple[MllmConfig, Answers]:
    config = MllmConfig(
        benchmark="doors",
        model="python:x",
        judge="python:y" if judge else "",
        out=str(out),
        compat=compat,  # type: ignore[arg-type]
        swap=True,
    )
    config = dataclasses.replace(config, asking=dataclasses.replace(config.asking, max_failed_share=0.5))
    return config, ask_model(config, benchmark, model, judge=judge)


def test_every_harness_reads_every_plain_answer_by_its_rules(benchmark: Benchmark, tmp_path: Path) -> None:
    model = Scripted("model", lambda ask: None if number_of(ask) == 3 else SAID[number_of(ask) % len(SAID)])
    _, answers = asked(benchmark, tmp_path, model, compat="none")
    assert set(answers.others) == set(PARSERS) == {"lmms-eval", "VLMEvalKit", "Cambrian"}
    shown = show_options(("Open", "Closed"))
    for name, parse in PARSERS.items():
        read = [answers.others[name][question.key] for question in benchmark.questions]
        assert isinstance(read.pop(3), Failed)
        said = [SAID[number % len(SAID)] for number in range(2 * NUM_PAIRS) if number != 3]
        assert read == [parse(text, shown) for text in said]
    assert answers.others["lmms-eval"][benchmark.questions[1].key].choice == 0, "the camerA"  # type: ignore[union-attr]


def verdict(ask: Ask) -> str | None:
    return ("yes", "Yes", "no", "Yes.", "No.", None, "It does")[number_of(ask) % 7]


def test_the_released_grader_is_asked_to_the_letter(benchmark: Benchmark, tmp_path: Path) -> None:
    model, judge = (
        Scripted("model", lambda ask: "(a) Open, I think" if number_of(ask) else None),
        Scripted("j", verdict),
    )
    config, answers = asked(benchmark, tmp_path, model, judge)
    prompts = [ask for ask in judge.asked if ask.system == OFFICIAL_SYSTEM]
    assert [ask.prompt for ask in prompts] == [
        f"Given the following question Is door {number // 2} {'ab'[number % 2]} open? (a) Open (b) Closed, the correct answer is "
        f"{('(a)', '(b)')[number % 2]}. Does the following answer correctly answers the question, answer:(a) Open, I think?"
        for number in range(1, 2 * NUM_PAIRS)
    ], "every plain answer once, none that failed, none with swapped options"
    graded = [answers.others[RELEASED_GRADER][question.key] for question in benchmark.questions]
    expected = {"yes": SAID_YES, "Yes": SAID_YES, "no": SAID_NO, "No.": SAID_NO}
    for number, answer in enumerate(graded):
        said = None if number == 0 else verdict(prompts[number - 1])
        if said is None:
            assert isinstance(answer, Failed)
            continue
        rule = expected.get(said, SAID_NEITHER)
        assert answer == Parsed(number % 2 if rule == SAID_YES else None, rule)

    # What was written is read again, and shown with the key that the grader was told alone.
    write_result(str(tmp_path), result_of(config, answers))
    found = read_result(str(tmp_path))
    assert found.others == answers.others and found.told_fingerprint == benchmark.fingerprint
    questions = list(benchmark.questions)
    row = other_readings(found, benchmark, questions, allow_incomplete=True)[-1]
    # Yes was said of 1, 7 and 8; 0, 5 failed, and 3, 6, 10 are neither: pairs 0 and 2 have no verdict.
    assert row == OtherReading(
        model="python:x",
        reading=RELEASED_GRADER,
        pairs=Share.of(0, 4),
        questions=row.questions,
        num_unread=3,
        num_failed=2,
    )
    assert (row.questions.k, row.questions.n) == (2, 8)
    other = with_answers(benchmark, {benchmark.questions[0].key: 1}, key=benchmark.key)
    for told, warns in ((benchmark, False), (other, True)):
        report, _ = compose_report([str(tmp_path)], title="t", benchmark=told, allow_incomplete=True)
        assert {one.reading for one in report.other_readings} == {*PARSERS, *([] if warns else [RELEASED_GRADER])}
        assert any("released grader was told other answers" in text for text in report.warnings) == warns


def test_the_same_run_again_asks_the_grader_nothing_but_what_failed_and_another_key_all(
    benchmark: Benchmark, tmp_path: Path
) -> None:
    def judge_of_all() -> Scripted:
        return Scripted("j", lambda ask: "yes")

    model = Scripted("model", lambda ask: "(a)")
    asked(benchmark, tmp_path, model, judge_of_all())
    num_asked = len(model.asked)
    again = judge_of_all()
    asked(benchmark, tmp_path, model, again)
    assert again.asked == []
    turned = dataclasses.replace(
        benchmark, items=tuple(dataclasses.replace(one, answer=1 - one.answer) for one in benchmark.questions)
    )
    asked(turned, tmp_path, model, again)
    assert len(again.asked) == 2 * NUM_PAIRS and len(model.asked) == num_asked


@pytest.mark.parametrize(("retry_helps", "kind"), [(False, ConfigError), (True, TransientError)])
def test_a_grader_that_grades_nothing_ends_the_run_in_one_line_and_the_next_one_asks_no_model(
    benchmark: Benchmark, tmp_path: Path, retry_helps: bool, kind: type[MmvpError]
) -> None:
    model = Scripted("model", lambda ask: "(a)")
    with pytest.raises(kind, match=r"j.*status 403: flagged") as caught:
        asked(benchmark, tmp_path, model, Scripted("j", lambda ask: None, retry_helps=retry_helps))
    assert "\n" not in str(caught.value)
    num_asked = len(model.asked)
    _, answers = asked(benchmark, tmp_path, model, Scripted("j", lambda ask: "yes"))
    assert len(model.asked) == num_asked
    assert {answer.rule for answer in answers.others[RELEASED_GRADER].values() if isinstance(answer, Parsed)} == {
        SAID_YES
    }


@pytest.mark.parametrize("compat", ["none", "official"])
def test_nobody_grades_unasked(benchmark: Benchmark, tmp_path: Path, compat: str) -> None:
    model, judge = Scripted("model", lambda ask: "(a)"), Scripted("j", lambda ask: "yes")
    _, answers = asked(benchmark, tmp_path, model, judge if compat == "none" else None, compat=compat)
    assert judge.asked == [] and RELEASED_GRADER not in answers.others


def test_results_from_before_have_no_other_readings(benchmark: Benchmark, tmp_path: Path) -> None:
    config, answers = asked(benchmark, tmp_path, Scripted("model", lambda ask: "(a)"), compat="none")
    uri = Path(write_result(str(tmp_path), result_of(config, answers)))
    found = json.loads(uri.read_text())
    del found["others"], found["told_fingerprint"]
    uri.write_text(json.dumps(found))
    before = read_result(str(tmp_path))
    assert (
        before.others == {}
        and other_readings(before, benchmark, list(benchmark.questions), allow_incomplete=False) == []
    )
    uri.write_text(json.dumps(found | {"others": {"lmms-eval": ["(a)"]}}))
    with pytest.raises(DataError, match="another form"):
        read_result(str(tmp_path))
