"""Answer keys: the published MMVP has an `original` and a `corrected` one; any benchmark can have an errata file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mmvp_ray.benchmark.benchmark import AS_FOUND, Benchmark, with_answers
from mmvp_ray.benchmark.errata_file import Errata, changed_answers, load_errata, option_of
from mmvp_ray.benchmark.items import Question
from mmvp_ray.errors import ConfigError

ORIGINAL: Final = "original"
CORRECTED: Final = "corrected"
KEYS: Final = (AS_FOUND, ORIGINAL, CORRECTED)

PUBLISHED_QUESTIONS: Final = 300
PUBLISHED_ERRATA: Final = Path(__file__).with_name("errata") / "published_mmvp.yaml"


def published_key(benchmark: Benchmark) -> str | None:
    """Which key the published MMVP is found with: "original", "corrected" or "mixed"; None for any other benchmark.

    It is known by its content: 300 questions in 150 pairs, of which pairs 50 and 140 ask about an elephant's tusks and whether an elderly
    person stands or sits, with two options each.
    """
    if benchmark.kind != "questions" or len(benchmark.items) != PUBLISHED_QUESTIONS:
        return None
    questions = _by_key(benchmark)
    errata = load_errata(str(PUBLISHED_ERRATA))
    states = set()
    for change in errata.changes:
        question = questions.get(change.key)
        if question is None or len(question.options) != 2 or not change.fits(question):
            return None
        now = option_of(change.answer, question, errata.where)
        states.add(CORRECTED if question.answer == now else ORIGINAL)
    return states.pop() if len(states) == 1 else "mixed"


def available_keys(benchmark: Benchmark) -> tuple[str, ...]:
    """The keys that this benchmark can be scored with, besides errata files: both for the published MMVP, else the one that it has."""
    return (ORIGINAL, CORRECTED) if published_key(benchmark) in (ORIGINAL, CORRECTED) else (benchmark.key,)


def with_key(benchmark: Benchmark, key: str) -> Benchmark:
    """The benchmark with another answer key; what was asked stays the same, and so does `asked_fingerprint`.

    Args:
        benchmark: Of questions; statements have no key but "as-found".
        key: "as-found", "original", "corrected", or where an errata file lies (it ends in .yaml or .yml).

    Returns:
        The benchmark, with a note that says what was changed.

    Raises:
        ConfigError: an unknown key; "original" or "corrected" for what is not known as the published MMVP, or where its key is neither.
        DataError: an errata file for another benchmark.
    """
    if key.lower().endswith((".yaml", ".yml")):
        return _with_errata(benchmark, load_errata(key))
    if key not in KEYS:
        raise ConfigError(f"expected an answer key among {', '.join(KEYS)}, or an errata file in YAML, found {key!r}")
    if key in (AS_FOUND, benchmark.key):
        return benchmark
    found = published_key(benchmark)
    if found is None:
        raise ConfigError(
            f"expected the published MMVP for the key {key!r} (300 questions, pair 50 about an elephant's tusks, pair 140 about an "
            f"elderly person), found another benchmark at {benchmark.url or benchmark.name}; use --key {AS_FOUND} or an errata file of its own"
        )
    if found not in (ORIGINAL, CORRECTED):
        raise ConfigError(
            f"expected the published MMVP's original or corrected answers in pairs 50 and 140, found some of each at "
            f"{benchmark.url or benchmark.name}; download it again, or use --key {AS_FOUND}"
        )
    if found == key:
        return with_answers(benchmark, {}, key=key)
    errata = load_errata(str(PUBLISHED_ERRATA))
    questions = _by_key(benchmark)
    answers = {
        change.key: option_of(change.answer if key == CORRECTED else change.was, questions[change.key], errata.where)
        for change in errata.changes
    }
    return with_answers(
        benchmark,
        answers,
        key=key,
        note=f"{key} answers in pairs 50 and 140 (Index 99, 100, 279, 280), found with the {found} ones",
    )


def note_published(benchmark: Benchmark) -> Benchmark:
    """Name the key of the published MMVP where it is recognised; other benchmarks come back as they are."""
    found = published_key(benchmark)
    notes = {
        ORIGINAL: "the published MMVP with its original answers: those of pairs 50 and 140 stand the wrong way round; see the key 'corrected'",
        "mixed": "the published MMVP with neither its original nor its corrected answers in pairs 50 and 140",
    }
    if found is None:
        return benchmark
    return with_answers(benchmark, {}, key=AS_FOUND if found == "mixed" else found, note=notes.get(found, ""))


def _with_errata(benchmark: Benchmark, errata: Errata) -> Benchmark:
    if errata.fingerprint and errata.fingerprint not in (benchmark.fingerprint, benchmark.asked_fingerprint):
        raise ConfigError(
            f"expected the benchmark with fingerprint {errata.fingerprint} for {errata.where}, found {benchmark.fingerprint}"
        )
    if errata.name in KEYS:
        raise ConfigError(
            f"expected a name of its own for the key of {errata.where}, found {errata.name!r}, which is taken"
        )
    questions = _by_key(benchmark)
    answers = changed_answers(errata, questions)
    num_changed = sum(questions[key].answer != answer for key, answer in answers.items())
    return with_answers(
        benchmark, answers, key=errata.name, note=f"{num_changed} answers changed by {errata.where} ({errata.name})"
    )


def _by_key(benchmark: Benchmark) -> dict[str, Question]:
    return {question.key: question for question in benchmark.questions}
