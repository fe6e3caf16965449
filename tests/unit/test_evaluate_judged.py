"""A judge that refuses some of the answers it is to read: the others are scored, and one that answers nothing is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.errors import ConfigError, MmvpError, TransientError
from mmvp_ray.evaluate.asking_config import AskingConfig
from mmvp_ray.evaluate.mllm import PLAIN, Answers, MllmConfig, ask_model
from mmvp_ray.evaluate.responder import Ask
from tests.unit.scripted_model import Scripted, doors

NUM_PAIRS = 30
HAZY = "Hm, it may be either of them."


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return doors(tmp_path_factory.mktemp("images"), num_pairs=NUM_PAIRS, answers=(0, 0))


def judged(benchmark: Benchmark, out: Path, judge: Scripted, *, num_hazy: int, share: float = 0.05) -> Answers:
    hazy = {f"{PLAIN}/{question.key}" for question in benchmark.questions[:num_hazy]}
    model = Scripted("model", lambda ask: HAZY if ask.key in hazy else "(a)")
    config = MllmConfig(
        benchmark="doors", model="python:x", judge="python:y", out=str(out), asking=AskingConfig(max_failed_share=share)
    )
    return ask_model(config, benchmark, model, judge=judge)


def refuses(num_refused: int) -> Callable[[Ask], str | None]:
    return lambda ask: (
        None if any(f"door {at // 2} {'ab'[at % 2]} " in ask.prompt for at in range(num_refused)) else "a"
    )


@pytest.mark.parametrize(("num_hazy", "num_refused"), [(8, 1), (8, 3), (4, 3), (60, 3)])
def test_refusals_up_to_the_share_of_all_questions_leave_their_answers_unread(
    benchmark: Benchmark, tmp_path: Path, num_hazy: int, num_refused: int
) -> None:
    for _ in range(2):
        judge = Scripted("judge", refuses(num_refused))
        found = judged(benchmark, tmp_path, judge, num_hazy=num_hazy)
        assert found.num_unjudged == num_refused
        rules = [answer.rule for answer in found.by_variant[PLAIN].values()]
        assert (rules.count("judge"), rules.count("unclear")) == (num_hazy - num_refused, num_refused)
    assert len(judge.asked) == num_refused, "only those are asked again"


@pytest.mark.parametrize(("retry_helps", "kind"), [(False, ConfigError), (True, TransientError)])
@pytest.mark.parametrize(("num_hazy", "num_refused"), [(1, 1), (3, 3), (8, 8), (8, 4), (60, 60), (60, 4)])
def test_more_refusals_than_that_or_nothing_else_end_the_run(
    benchmark: Benchmark, tmp_path: Path, num_hazy: int, num_refused: int, retry_helps: bool, kind: type[MmvpError]
) -> None:
    judge = Scripted("judge", refuses(num_refused), retry_helps=retry_helps)
    with pytest.raises(kind, match=r"judge.*status 403: flagged") as caught:
        judged(benchmark, tmp_path, judge, num_hazy=num_hazy)
    assert "5% of 60 prompts" in str(caught.value) and "--max-failed-share 1" in str(caught.value)
    assert len(judge.asked) == min(num_hazy, 20) if num_refused == num_hazy else num_hazy
    judge.retry_helps = False
    assert judged(benchmark, tmp_path, judge, num_hazy=num_hazy, share=1.0).num_unjudged == num_refused
