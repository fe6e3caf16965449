"""The human line and agreement, against plain loops and published examples."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.benchmark.items import Question
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.agreement import agreement, count_ratings, fleiss_kappa, krippendorff_alpha, percent_agreement
from mmvp_ray.evaluate.human import Response, crossed_interval, human_baseline, read_responses

N = -1
KRIPPENDORFF = [
    [0, 1, 2, 2, 1, 0, 3, 0, 1, N, N, N],
    [0, 1, 2, 2, 1, 1, 3, 0, 1, 4, N, 2],
    [N, 2, 2, 2, 1, 2, 3, 1, 1, 4, 0, N],
    [0, 1, 2, 2, 1, 3, 3, 0, 1, 4, 0, N],
]
"""Krippendorff, Computing Krippendorff's alpha-reliability (2011), example C: four observers, twelve units, some ratings missing."""
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
"""Fourteen raters, ten subjects, five categories: the worked example of Fleiss' kappa on Wikipedia, 0.210."""


def test_published_examples():
    found = agreement(list(zip(*KRIPPENDORFF, strict=True)))
    assert found.krippendorff_alpha == pytest.approx(0.743, abs=5e-4)
    assert found.num_units == 11 and found.num_ratings == 40
    assert found.fleiss_kappa is None and "same number" in found.reason
    assert found.alpha_low < found.krippendorff_alpha < found.alpha_high
    assert fleiss_kappa(np.asarray(FLEISS)) == pytest.approx(0.210, abs=5e-4)


def alpha_by_pairs(ratings):
    """From the definition: disagreement within units over disagreement between any two pairable ratings."""
    units = [[value for value in row if value != N] for row in ratings]
    units = [unit for unit in units if len(unit) > 1]
    pool = [value for unit in units for value in unit]
    within = sum(sum(a != b for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units) / max(
        1, len(pool)
    )
    between = sum(a != b for a, b in itertools.permutations(pool, 2)) / max(1, len(pool) * (len(pool) - 1))
    return None if between == 0 else 1 - within / between


RATINGS = st.integers(2, 4).flatmap(
    lambda raters: st.lists(
        st.lists(st.sampled_from([N, 0, 1, 2]), min_size=raters, max_size=raters), min_size=1, max_size=7
    )
)


@settings(max_examples=80)
@given(RATINGS)
def test_agreement_equals_its_definition(ratings):
    counts = count_ratings(ratings)
    expected = alpha_by_pairs(ratings)
    found = krippendorff_alpha(counts)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected)
    shares = [
        np.mean([a == b for a, b in itertools.combinations([v for v in row if v != N], 2)])
        for row in ratings
        if sum(v != N for v in row) > 1
    ]
    percent = percent_agreement(counts)
    assert percent == pytest.approx(np.mean(shares)) if shares else percent is None


def test_agreement_that_is_not_defined_says_why():
    assert "one category" in agreement([[0, 0], [0, 0]]).reason
    assert "two ratings" in agreement([[0, N], [N, 1]]).reason
    assert agreement([]).percent is None
    with pytest.raises(DataError, match="different lengths"):
        agreement([[0, 1], [0]])
    with pytest.raises(DataError, match="-1 for none"):
        agreement([[-2, 1]])


def benchmark(num_pairs):
    return [
        Question(pair_id=str(pair), item=item, image_uri="", text="Q?", options=("x", "y"), answer=place)
        for pair in range(num_pairs)
        for place, item in enumerate("ab")
    ]


def responses_of(questions, name, wrong=(), seconds=2.0):
    return [
        Response(participant=name, question=q.key, option=q.answer ^ (q.key in wrong), seconds=seconds)
        for q in questions
    ]


def test_people_are_scored_and_half_done_ones_counted_but_left_out():
    questions = benchmark(4)
    rows = [
        *responses_of(questions, "ann"),
        *responses_of(questions, "bob", wrong=("0/a", "1/a", "1/b"), seconds=4.0),
        *responses_of(questions, "cy")[:5],
    ]
    rows[0] = Response(participant="ann", question="0/a", option=None, seconds=None)
    found = human_baseline(questions, rows)
    assert (found.num_participants, dict(found.excluded)) == (2, {"cy": 3})
    assert found.pair_accuracy == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert found.question_accuracy == pytest.approx((7 / 8 + 5 / 8) / 2)
    assert [(one.name, one.pair_accuracy, one.median_seconds) for one in found.participants] == [
        ("ann", 0.75, 2.0),
        ("bob", 0.5, 4.0),
    ]
    assert dict(found.pair_difficulty) == {"0": 0, "1": 1, "2": 2, "3": 2}
    assert found.pair_low <= found.pair_accuracy <= found.pair_high
    assert found.agreement.num_units == 7 and found.agreement.percent == pytest.approx(5 / 7)


def test_nobody_finished():
    questions = benchmark(2)
    found = human_baseline(questions, responses_of(questions, "ann")[:1])
    assert found.pair_accuracy is None and found.num_participants == 0 and dict(found.excluded) == {"ann": 3}


def test_strangers_are_errors():
    questions = benchmark(1)
    with pytest.raises(DataError, match="of this benchmark"):
        human_baseline(questions, [Response(participant="a", question="9/a", option=0, seconds=None)])
    with pytest.raises(DataError, match="option from 0 to 1"):
        human_baseline(questions, [Response(participant="a", question="0/a", option=2, seconds=None)])


def test_crossed_bootstrap_has_the_spread_of_both_samples():
    # Rows differ and columns do not: the spread is that of people alone; and the other way round.
    people = np.repeat([[1.0], [0.0], [1.0], [0.0]], 50, axis=1)
    low, high = crossed_interval(people, np.ones(50))
    assert high - low == pytest.approx(1.0, abs=0.3)
    pairs = np.tile(np.arange(50) % 2 * 1.0, (4, 1))
    low, high = crossed_interval(pairs, np.ones(50))
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 50**0.5, rel=0.1)
    assert crossed_interval(np.zeros((0, 3)), np.ones(3)) == (None, None)


def test_study_files_as_csv_and_parquet(tmp_path):
    expected = [
        Response(participant="ann", question="0/a", option=1, seconds=1.5),
        Response(participant="ann", question="0/b", option=None, seconds=None),
    ]
    csv = tmp_path / "study.csv"
    csv.write_text(
        '\ufeffparticipant,question,option,seconds,note\nann,0/a,1,1.5,"a, b"\nann,0/b,,,\n', encoding="utf-8"
    )
    assert read_responses(str(csv)) == expected
    table = {"participant": ["ann", "ann"], "question": ["0/a", "0/b"], "option": [1, None], "seconds": [1.5, None]}
    pq.write_table(pa.table(table), tmp_path / "study.parquet")
    assert read_responses(str(tmp_path / "study.parquet")) == expected
    # As pandas writes it.
    table["option"] = [1.0, float("nan")]
    pq.write_table(pa.table(table), tmp_path / "floats.parquet")
    assert read_responses(str(tmp_path / "floats.parquet")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant,question,option\nann,0/a,1\n", "no seconds"),
        ("participant,question,option,seconds\nann,0/a,b,1\n", "whole number"),
        ("participant,question,option,seconds\nann,0/a,1.5,1\n", "whole number"),
        ("participant,question,option,seconds\nann,0/a,1,1\nann,0/a,0,1\n", "row 3"),
    ],
)
def test_broken_study_files_name_the_row(tmp_path, text, message):
    (tmp_path / "study.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_responses(str(tmp_path / "study.csv"))
