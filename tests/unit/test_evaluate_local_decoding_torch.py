"""Drawing answers row by row: the distribution is softmax's at the temperature within top_p, and no row notices another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.evaluate.local_decoding import Decoding, RowLimits, RowSampler, before_stop, kept_tokens, seed_of


def drawn(scores_BV: torch.Tensor, rows: list[Decoding]) -> list[int]:
    sampler = RowSampler(rows, scores_BV.device)
    return sampler(torch.zeros(len(rows), 1), scores_BV).argmax(dim=-1).tolist()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (1.0, 0.3)])
def test_tokens_are_drawn_with_the_probabilities_of_softmax(temperature: float, top_p: float) -> None:
    scores_V = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.5])
    num_draws = 20_000
    rows = [Decoding(max_tokens=1, temperature=temperature, top_p=top_p, seed=seed) for seed in range(num_draws)]
    counts_V = torch.bincount(torch.tensor(drawn(scores_V.expand(num_draws, -1), rows)), minlength=6)
    # By hand: sorted probabilities until they add up to top_p, then as large as they were to each other.
    probabilities = (scores_V / temperature).softmax(-1).tolist()
    kept: list[int] = []
    for token in sorted(range(6), key=lambda token: -probabilities[token]):
        if sum(probabilities[one] for one in kept) >= top_p:
            break
        kept.append(token)
    total = sum(probabilities[token] for token in kept)
    for token in range(6):
        expected = probabilities[token] / total if token in kept else 0.0
        share, error = counts_V[token].item() / num_draws, (expected * (1 - expected) / num_draws) ** 0.5
        assert abs(share - expected) <= 5 * error, (token, share, expected)


@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    temperatures=st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=6, max_size=6),
)
def test_a_row_is_drawn_as_it_is_alone(seeds: list[int], temperatures: list[float]) -> None:
    scores_BV = torch.randn(len(seeds), 50, generator=torch.Generator().manual_seed(1))
    rows = [
        Decoding(max_tokens=1, temperature=temperature, seed=seed, top_p=0.9)
        for seed, temperature in zip(seeds, temperatures, strict=False)
    ]
    together = drawn(scores_BV, rows)
    assert together == [drawn(scores_BV[at : at + 1], [row])[0] for at, row in enumerate(rows)]
    for at, row in enumerate(rows):
        if not row.temperature:
            assert together[at] == scores_BV[at].argmax().item()


def test_the_next_token_is_drawn_anew() -> None:
    sampler = RowSampler([Decoding(max_tokens=9, temperature=1.0, seed=1)], torch.device("cpu"))
    flat_BV = torch.zeros(1, 1000)
    assert len({sampler(flat_BV, flat_BV).argmax().item() for _ in range(20)}) > 15


@given(scores=st.lists(st.floats(-20, 20), min_size=1, max_size=30), top_p=st.floats(1e-6, 1.0))
def test_at_least_one_token_is_kept_and_the_likeliest_is_among_them(scores: list[float], top_p: float) -> None:
    scores_V = torch.tensor(scores)
    kept_V, probabilities_V = kept_tokens(scores_V, top_p), scores_V.softmax(-1)
    # Scores may differ by less than their probabilities can.
    assert probabilities_V[kept_V].max() == probabilities_V.max()
    assert probabilities_V[kept_V].sum() >= top_p - 1e-4
    if bool((~kept_V).any()):
        assert probabilities_V[kept_V].min() >= probabilities_V[~kept_V].max()


LETTERS = "abcdefgh"


@given(
    answers=st.lists(st.text(LETTERS, min_size=8, max_size=8), min_size=1, max_size=4),
    limits=st.lists(st.integers(1, 8), min_size=4, max_size=4),
    stops=st.lists(st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2), min_size=4, max_size=4),
    num_before=st.integers(0, 3),
)
def test_each_row_ends_where_it_would_alone(
    answers: list[str], limits: list[int], stops: list[list[str]], num_before: int
) -> None:
    rows = [
        Decoding(max_tokens=limit, stop=tuple(stop)) for _, limit, stop in zip(answers, limits, stops, strict=False)
    ]
    criterion = RowLimits(rows, lambda tokens: "".join(LETTERS[token] for token in tokens))
    tokens_BT = torch.tensor([[0] * num_before + [LETTERS.index(sign) for sign in answer] for answer in answers])
    ended = [False] * len(rows)
    for step in range(1, 9):
        ended = criterion(tokens_BT[:, : num_before + step], None).tolist()
    for at, (answer, row) in enumerate(zip(answers, rows, strict=True)):
        # By hand: the first length at which the limit is reached or a stop text is complete.
        expected = next(
            (n for n in range(1, 9) if n >= row.max_tokens or any(stop in answer[:n] for stop in row.stop)), None
        )
        assert criterion.ended.get(at) == expected and ended[at] == (expected is not None)


@given(text=st.text(LETTERS), stop=st.lists(st.text(LETTERS, min_size=1, max_size=2), max_size=3))
def test_text_before_the_first_stop(text: str, stop: list[str]) -> None:
    found = before_stop(text, stop)
    assert text.startswith(found) and not any(one in found for one in stop)
    if found != text:
        assert any(text[len(found) :].startswith(one) for one in stop)


def test_seeds_differ_between_prompts_and_runs() -> None:
    found = {seed_of(seed, key, "\ud800") for seed in range(10) for key in "abc"} | {
        seed_of(3, "a", "b"),
        seed_of(3, "ab"),
    }
    assert len(found) == 32 and all(0 <= seed < 2**63 for seed in found)
