"""--compat official against an independent re-implementation of the published procedure, on random scores with many ties."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from mmvp_ray.benchmark.items import Statement
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.vlm_official import (
    OfficialRow,
    official_decisions,
    official_rows,
    official_scores,
)

DTYPES: list[tuple[Any, torch.dtype]] = [(np.float32, torch.float32), (np.float16, torch.float16)]


def published(
    qids: list[tuple[int, int]], logits: np.ndarray, number: Any
) -> tuple[list[tuple[str, str]], list[float], int]:
    """The published procedure in numpy: decisions of each pair, percent of each category, number of ties."""
    decisions = []
    right = [0] * 9
    num_pairs = num_ties = 0
    for (qid1, qid2), rows in zip(qids, logits, strict=True):
        picked = []
        for row in rows:
            # Half precision is computed in single and rounded at the end, as torch does on every device.
            wide = row.astype(np.float32)
            exps = np.exp(wide - wide.max(), dtype=np.float32)
            prob = number(exps[0] / np.float32(exps[0] + exps[1]))
            num_ties += prob == 0.5
            picked.append("img1" if prob > 0.5 else "img2")
        wanted = ["img1" if qid % 2 == 1 else "img2" for qid in (qid1, qid2)]
        right[num_pairs // 15] += picked == wanted
        num_pairs += 1
        decisions.append((picked[0], picked[1]))
    return decisions, [count / (num_pairs // 9) * 100 for count in right], num_ties


@pytest.mark.parametrize(("number", "dtype"), DTYPES)
@pytest.mark.parametrize("num_pairs", [9, 20, 134, 135])
@pytest.mark.parametrize("seed", range(8))
def test_decisions_and_percentages_are_the_scripts(number: Any, dtype: torch.dtype, num_pairs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(20, 24, (num_pairs, 2, 2)).astype(number)
    # A third as they come from a model: no ties; a third with a lead of a few units in the last place.
    logits[::3] = rng.normal(25, 2, logits[::3].shape).astype(number)
    close = logits[1::3]
    close[..., 1] = close[..., 0] - (rng.integers(-2, 3, close.shape[:2]) * np.spacing(close[..., 0])).astype(number)
    # Small logits, as of a model with a small scale: leads below what softmax resolves.
    logits[2::6] = (logits[2::6] * number(1e-4)).astype(number)
    qids = [(2 * k + 1, 2 * k + 2) for k in range(num_pairs)]
    if seed % 2:
        # The script trusts the parity of the numbers, whatever they are.
        qids = [(int(a), int(b)) for a, b in rng.integers(1, 500, (num_pairs, 2))]
    decisions, percent, num_ties = published(qids, logits, number)
    found = official_decisions(qids, list(torch.from_numpy(logits)))
    assert [(f"img{one.picked_1}", f"img{one.picked_2}") for one in found.pairs] == decisions
    assert list(found.percent) == list(PATTERNS)
    assert list(found.percent.values()) == percent
    assert found.average == pytest.approx(sum(percent) / 9)
    assert found.num_ties == num_ties
    assert num_ties > 0 or num_pairs == 9


def test_a_tie_goes_to_the_second_image_so_that_the_second_text_wins_it() -> None:
    found = official_decisions([(2 * k + 1, 2 * k + 2) for k in range(9)], [torch.full((2, 2), 20.0)] * 9)
    assert all((one.picked_1, one.picked_2) == (2, 2) for one in found.pairs)
    assert (found.num_ties, found.average) == (18, 0.0)


def test_a_lead_that_softmax_rounds_away_is_a_tie_for_the_script() -> None:
    lead = torch.tensor([[20.0, 20.0], [0.0, 0.0]])
    lead[0, 0] += 1e-5
    assert lead[0, 0] > lead[0, 1]
    assert official_decisions([(1, 2)] * 9, [lead] * 9).pairs[0].picked_1 == 1
    small = torch.tensor([[3e-8, 0.0], [0.0, 3e-8]])
    assert official_decisions([(1, 2)] * 9, [small] * 9).pairs[0].picked_1 == 2


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_from_vectors_the_model_formula_decides(precision: Literal["float32", "float16"]) -> None:
    rng = np.random.default_rng(3)
    text, image = (rng.normal(size=(270, 64)).astype(np.float32) * 7 for _ in range(2))
    image[10] = image[11]
    rows = [OfficialRow(qid=k + 1, text=k, image=k) for k in range(270)]
    found = official_scores(rows, text, image, precision=precision)
    unit_text, unit_image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, image))
    for k, one in enumerate(found.pairs):
        scores = unit_text[2 * k : 2 * k + 2] @ unit_image[2 * k : 2 * k + 2].T
        if k == 5:
            assert (one.picked_1, one.picked_2) == (2, 2)
        elif np.abs(scores[:, 0] - scores[:, 1]).min() > 0.01:
            assert [one.picked_1, one.picked_2] == [int(np.argmax(row)) + 1 for row in scores]
    assert found.num_ties >= 2


def statements(num_pairs: int, *, items: str = "ab") -> list[Statement]:
    return [
        Statement(
            pair_id=str(k),
            item=item,
            image_uri=f"{k}{item}.jpg",
            text=f"{k} {item}",
            provenance={"question_id": str(2 * k + i + 7)},
        )
        for k in range(num_pairs)
        for i, item in enumerate(items)
    ]


def places(found: list[Statement]) -> dict[str, Any]:
    return {
        "texts": {f"a photo of {one.text}": k for k, one in enumerate(found)},
        "images": {one.image_uri: k for k, one in enumerate(found)},
        "prefix": "a photo of ",
    }


def test_rows_keep_their_question_ids_and_places() -> None:
    found = statements(9)
    rows = official_rows(found, **places(found))
    assert [(row.qid, row.text, row.image) for row in rows] == [(k + 7, k, k) for k in range(18)]


def test_pairs_of_more_than_two_are_refused() -> None:
    found = statements(9, items="abc")
    with pytest.raises(ConfigError, match="pairs of two items with --compat official, found 3 in pair '0'"):
        official_rows(found, **places(found))


def test_rows_that_are_apart_are_refused() -> None:
    found = statements(9)
    found = [found[0], *found[2:], found[1]]
    with pytest.raises(ConfigError, match="one after the other"):
        official_rows(found, **places(found))


@pytest.mark.parametrize("num_pairs", [8, 136])
def test_numbers_of_pairs_that_stop_the_script_are_refused(num_pairs: int) -> None:
    found = statements(num_pairs)
    with pytest.raises(ConfigError, match=f"expected 9 to 135 pairs with --compat official, found {num_pairs}"):
        official_rows(found, **places(found))
