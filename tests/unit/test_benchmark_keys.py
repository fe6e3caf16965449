"""Answer keys: the published MMVP is known by its content, nobody else's benchmark is touched, and errata files guard themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmvp_ray.benchmark import (
    Benchmark,
    Question,
    available_keys,
    collect,
    open_benchmark,
    published_key,
    with_key,
    write_mmvp,
    write_table,
)
from mmvp_ray.benchmark.errata_file import load_errata
from mmvp_ray.benchmark.keys import PUBLISHED_ERRATA
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp

TUSKS = ("Does the elephant have long or short tusks?", ("Long", "Short"))
PERSON = ("Is the elderly person standing or sitting in the picture?", ("Standing", "Sitting"))
"""As the issues quote them: EvolvingLMMs-Lab/lmms-eval#1018 and its tasks/mmvp/README.md; tsb0601/MMVP#14."""
ORIGINAL = {"50/a": 0, "50/b": 1, "140/a": 0, "140/b": 1}
"""tsb0601/MMVP#14 quotes rows 279 (a) and 280 (b); tasks/mmvp/README.md of lmms-eval rows 99 (a) and 100 (b)."""
CORRECTED = {key: 1 - answer for key, answer in ORIGINAL.items()}

Make = Callable[..., Benchmark]


@pytest.fixture
def published(tmp_path: Path) -> Make:
    """Makes 150 pairs with the published benchmark's questions where the key is wrong; every other one is made up."""
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (8, 8)).save(picture)

    def make(num_pairs: int = 150, **answers: int) -> Benchmark:
        questions = []
        for index in range(1, 2 * num_pairs + 1):
            pair_id, item = str((index + 1) // 2), "a" if index % 2 else "b"
            text, options = {"50": TUSKS, "140": PERSON}.get(pair_id, (f"Question {pair_id}?", ("Yes", "No")))
            answer = {**ORIGINAL, **answers}.get(f"{pair_id}/{item}", (index + 1) % 2)
            questions.append(
                Question(pair_id=pair_id, item=item, image_uri=str(picture), text=text, options=options, answer=answer)
            )
        return collect(questions, name="MMVP")

    return make


def answers_of(benchmark: Benchmark) -> dict[str, int]:
    return {question.key: question.answer for question in benchmark.questions}


def test_the_corrected_key_swaps_two_pairs_and_nothing_else(published: Make) -> None:
    original = published()
    corrected = with_key(original, "corrected")
    before, after = answers_of(original), answers_of(corrected)
    assert {key: after[key] for key in after if after[key] != before[key]} == CORRECTED
    assert corrected.key == "corrected"
    assert corrected.fingerprint != original.fingerprint
    assert corrected.asked_fingerprint == original.asked_fingerprint
    assert any("99, 100, 279, 280" in note for note in corrected.notes)


@pytest.mark.parametrize("found", [ORIGINAL, CORRECTED])
@pytest.mark.parametrize("key", ["original", "corrected"])
def test_a_key_gives_the_same_answers_whichever_copy_was_downloaded(
    published: Make, found: dict[str, int], key: str
) -> None:
    """lmms-lab-eval/MMVP has the corrections already: applying them twice would undo them."""
    benchmark = with_key(published(**found), key)
    wanted = ORIGINAL if key == "original" else CORRECTED
    assert {name: answers_of(benchmark)[name] for name in wanted} == wanted
    assert benchmark.key == key
    assert published_key(benchmark) == key
    assert available_keys(benchmark) == ("original", "corrected")


def test_corrected_and_back_is_the_original(published: Make) -> None:
    original = with_key(published(), "original")
    assert with_key(with_key(original, "corrected"), "original").fingerprint == original.fingerprint


@pytest.mark.parametrize("key", ["original", "corrected"])
def test_somebody_elses_benchmark_is_never_touched(published: Make, tmp_path: Path, key: str) -> None:
    whole = published()
    other_words = collect(
        [replace(q, text="Is it raining?") if q.pair_id == "50" else q for q in whole.questions], name="other"
    )
    three_options = collect(
        [replace(q, options=(*q.options, "Both")) if q.key == "140/a" else q for q in whole.questions], name="other"
    )
    mine = make_mmvp(tmp_path / "mine", num_pairs=3)
    for benchmark in (published(149), published(151), other_words, three_options, mine):
        assert published_key(benchmark) is None
        assert available_keys(benchmark) == ("as-found",)
        with pytest.raises(ConfigError, match="expected the published MMVP"):
            with_key(benchmark, key)
        assert with_key(benchmark, "as-found") == benchmark


def test_neither_key_is_an_error_and_not_a_guess(published: Make) -> None:
    mixed = published(**{"50/a": 1})
    assert published_key(mixed) == "mixed"
    with pytest.raises(ConfigError, match="some of each"):
        with_key(mixed, "corrected")


def test_open_benchmark_names_the_key_that_it_finds(published: Make, tmp_path: Path) -> None:
    write_mmvp(str(tmp_path / "o"), published().questions)
    found = open_benchmark(str(tmp_path / "o"))
    assert found.key == "original"
    assert any("wrong way round" in note for note in found.notes)
    corrected = open_benchmark(str(tmp_path / "o"), key="corrected")
    assert corrected.key == "corrected"
    assert not any("wrong way round" in note for note in corrected.notes)
    write_table(str(tmp_path / "c"), corrected.questions, name="MMVP", key=corrected.key)
    again = open_benchmark(str(tmp_path / "c"))
    assert (again.key, again.fingerprint) == ("corrected", corrected.fingerprint)
    assert open_benchmark(str(tmp_path / "c"), key="original").fingerprint == found.fingerprint


def test_the_shipped_errata_are_these_four_rows() -> None:
    errata = load_errata(str(PUBLISHED_ERRATA))
    assert {(change.key, change.was, change.answer) for change in errata.changes} == {
        ("50/a", "(a)", "(b)"),
        ("50/b", "(b)", "(a)"),
        ("140/a", "(a)", "(b)"),
        ("140/b", "(b)", "(a)"),
    }


GOOD = """
version: 1
name: second-look
changes:
  - {pair_id: "1", item: a, question: "%s", was: "%s", answer: "%s", reason: looked again}
"""


def errata_for(tmp_path: Path, text: str) -> str:
    path = tmp_path / "errata.yaml"
    path.write_text(text)
    return str(path)


def test_an_errata_file_of_ones_own(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "mine", num_pairs=2)
    first = made.questions[0]
    path = errata_for(
        tmp_path, GOOD % (first.text.upper(), first.options[first.answer], first.options[1 - first.answer])
    )
    changed = open_benchmark(str(tmp_path / "mine"), key=path)
    assert changed.key == "second-look"
    assert [q.answer for q in changed.questions] == [1 - first.answer, *(q.answer for q in made.questions[1:])]
    assert any("1 answers changed" in note for note in changed.notes)
    assert with_key(changed, path).fingerprint == changed.fingerprint


@pytest.mark.parametrize(
    ("question", "was", "answer", "says"),
    [
        ("Another question?", "(b)", "(a)", "another benchmark"),
        (None, "(c)", "(a)", "an answer among"),
        (None, "Up", "(a)", "an answer among"),
    ],
)
def test_an_errata_file_for_another_benchmark_is_refused(
    tmp_path: Path, question: str | None, was: str, answer: str, says: str
) -> None:
    made = make_mmvp(tmp_path / "mine", num_pairs=2)
    path = errata_for(tmp_path, GOOD % (question or made.questions[0].text, was, answer))
    with pytest.raises(DataError, match=says):
        with_key(made, path)


def test_an_errata_file_may_name_the_fingerprint_and_must_name_known_questions(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "mine", num_pairs=2)
    text = GOOD % (made.questions[0].text, "(a)", "(b)")
    with pytest.raises(ConfigError, match="fingerprint"):
        with_key(made, errata_for(tmp_path, text + "fingerprint: abc\n"))
    assert with_key(made, errata_for(tmp_path, text + f"fingerprint: {made.fingerprint}\n")).key == "second-look"
    with pytest.raises(DataError, match="'9/a'"):
        with_key(made, errata_for(tmp_path, text.replace('"1"', '"9"')))
    with pytest.raises(ConfigError, match="taken"):
        with_key(made, errata_for(tmp_path, text.replace("second-look", "corrected")))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version: 1", "version: 2", "version: 1"),
        ("name: second-look", "nome: x", "'nome'"),
        ("name: second-look", "name: ''", "expected a name"),
        ("was:", "whas:", "'whas'"),
        ("reason: looked again", "question_words: [x]", "either question"),
        ('question: "%s", ', "", "either question"),
        ('was: "%s", ', "", "no was"),
        ("changes:", "changes: 3 #", "YAML|list of changes"),
        ("version: 1", "{", "YAML"),
        ("version: 1", "!!python/object/apply:os.system ['true']", "YAML"),
    ],
)
def test_a_broken_errata_file_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=says) as raised:
        load_errata(errata_for(tmp_path, GOOD.replace(old, new)))
    assert "\n" not in str(raised.value)


def test_one_question_changed_twice_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    line = GOOD.splitlines()[-1]
    with pytest.raises(ConfigError, match="more than once"):
        load_errata(errata_for(tmp_path, GOOD + line + "\n"))
    with pytest.raises(ConfigError, match="as-found, original, corrected"):
        with_key(make_mmvp(tmp_path / "mine", num_pairs=1), "fixed")


def test_the_papers_scores_stand_beside_the_published_benchmark_alone(published: Make, tmp_path: Path) -> None:
    from mmvp_ray.pipeline.evaluation_cards import published_scores

    found = {score.model: score.pairs for score in published_scores(published())}
    # arXiv 2401.06209, Figure 4.
    assert found["GPT-4V"] == pytest.approx(0.387)
    assert found["LLaVA-1.5"] == pytest.approx(0.247)
    assert all("Figure 4" in score.source for score in published_scores(published()))
    assert published_scores(published(num_pairs=149)) == []
    assert published_scores(make_mmvp(tmp_path / "other", num_pairs=3, seed=1)) == []
    assert published_scores(None) == []


def test_a_report_scores_both_keys_and_lists_the_pairs_whose_verdict_changes(published: Make) -> None:
    from mmvp_ray.evaluate.mllm_results import MllmResult
    from mmvp_ray.evaluate.parsing import Parsed
    from mmvp_ray.evaluate.scores import score_run
    from mmvp_ray.pipeline.evaluation_cards import score_row

    benchmark = with_key(published(), "original")
    answers = {
        question.key: Parsed(question.answer, "whole") for question in with_key(benchmark, "corrected").questions
    }
    answers["140/a"] = answers["140/b"]
    found = MllmResult(
        model="m",
        identity={},
        benchmark_url="",
        benchmark_name="MMVP",
        asked_fingerprint=benchmark.asked_fingerprint,
        key="original",
        form="letter",
        labels=None,
        by_variant={"plain": answers},
        config={},
    )
    row = score_row(score_run("m", benchmark.questions, answers), found, benchmark, benchmark.questions)
    assert row.pairs_other_key is not None
    assert (row.pairs.k, row.pairs_other_key.k, row.changed_pairs) == (148, 149, ["50"])
