"""Agreement of a workspace against numbers counted by hand from who wrote and answered what."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmvp_ray.annotate import verifying
from mmvp_ray.annotate.adjudicating import correct, drop, keep
from mmvp_ray.annotate.agreeing import AgreementReport, agreement_lines, agreement_report
from mmvp_ray.annotate.annotating import undo
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.evaluate.agreement import agreement
from mmvp_ray.intervals import wilson_interval
from tests.unit.annotate_workspace import ADA, ANN, BEN, REY, VERA, annotation, make_workspace, verify, write_annotation


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Ann wrote 1 to 6, Ben 7 and 8; Vera read 1 to 5 and 7, Ben 6; Rey decided. Answers are 1 for a and 0 for b."""
    workspace = make_workspace(tmp_path, 12)
    answers = {1: (1, 0), 2: (1, 0), 3: (1, 2), 4: (0, 1), 5: (-1, 0), 6: (1, 0), 7: (1, 1)}
    for pair_id in range(1, 9):
        found = write_annotation(workspace, BEN if pair_id > 6 else ANN, pair_id)
        if pair_id in answers:
            verify(
                workspace,
                BEN if pair_id == 6 else VERA,
                pair_id,
                found,
                answers=answers[pair_id],
                seconds=float(pair_id),
            )
    keep(workspace, REY, 3)
    new = annotation(4, answer_a=0, answer_b=1)
    correct(workspace, REY, 4, new)
    verify(workspace, VERA, 4, new, answers=(0, 1), seconds=20.0)
    drop(workspace, REY, 5, "ambiguous")
    # Neither finished nor undone work counts.
    verifying.begin(workspace, ADA, 8)
    write_annotation(workspace, REY, 9)
    undo(workspace, REY)
    return workspace


def tallies(report: AgreementReport) -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        part: {
            one.name: (
                one.agreed.num_right,
                one.agreed.num_total,
                one.num_disputed,
                one.num_kept,
                one.num_corrected,
                one.num_dropped,
                one.num_cannot_tell,
            )
            for one in getattr(report, part)
        }
        for part in ("authors", "verifiers", "patterns")
    }


def test_counts(workspace: Workspace):
    found = tallies(agreement_report(workspace))
    assert found["authors"] == {
        "Ann": (3, 6, 3, 1, 1, 1, 1),
        "Ben": (0, 1, 1, 0, 0, 0, 0),
        "Rey": (1, 1, 0, 0, 0, 0, 0),
    }
    assert found["verifiers"] == {"Vera": (3, 7, 4, 1, 1, 1, 1), "Ben": (1, 1, 0, 0, 0, 0, 0)}
    assert list(found["authors"]) == ["Ann", "Ben", "Rey"] and list(found["verifiers"]) == ["Vera", "Ben"]
    assert list(found["patterns"]) == list(PATTERNS[:7])
    assert found["patterns"][PATTERNS[3]] == (1, 2, 1, 0, 1, 0, 0)


def test_overall(workspace: Workspace):
    overall = agreement_report(workspace).overall
    assert (overall.agreed.num_right, overall.agreed.num_total) == (4, 8)
    assert (overall.agreed.low, overall.agreed.high) == wilson_interval(4, 8)
    # 1 to 7 and 20 seconds, each twice.
    assert overall.median_seconds == 4.5


def test_questions_are_units_and_an_unsure_verifier_does_not_agree(workspace: Workspace):
    """Units in the order of verification; 6 stands for "cannot tell"."""
    expected = [
        [1, 1], [0, 0], [1, 1], [0, 0], [1, 1], [0, 2], [1, 0], [0, 1], [1, 6], [0, 0], [1, 1], [0, 0], [1, 1], [0, 1], [0, 0], [1, 1],
    ]  # fmt: skip
    report = agreement_report(workspace)
    # Both questions of a pair are drawn together: they stand and fall together.
    assert report.questions == agreement(expected, groups=[unit // 2 for unit in range(16)])
    alone = agreement(expected)
    assert alone.krippendorff_alpha == report.questions.krippendorff_alpha
    assert alone.alpha_high - alone.alpha_low < report.questions.alpha_high - report.questions.alpha_low
    assert report.questions.percent == 11 / 16
    assert report.questions.num_units == 16
    assert agreement_report(workspace) == report


def test_each_annotation_of_a_pair_has_its_own_outcome(tmp_path: Path):
    """Corrected, then disputed again, then kept: two disputes of one pair, about two authors."""
    workspace = make_workspace(tmp_path)
    first, second = write_annotation(workspace, ANN), annotation(answer_a=0, answer_b=2)
    verify(workspace, VERA, 1, first, answers=(0, 1))
    correct(workspace, REY, 1, second)
    verify(workspace, BEN, 1, second, answers=(1, 0))
    keep(workspace, ADA, 1)
    assert tallies(agreement_report(workspace))["authors"] == {
        "Ann": (0, 1, 1, 0, 1, 0, 0),
        "Rey": (0, 1, 1, 1, 0, 0, 0),
    }


def test_lines(workspace: Workspace):
    lines = agreement_lines(agreement_report(workspace))
    assert all(len(line) <= 140 for line in lines)
    assert lines[1].split()[:3] == ["all", "8", "50.0%"]
    assert "agree in 68.8% of 16; Krippendorff's alpha 0." in lines[2]
    (vera,) = [line for line in lines if "Vera" in line]
    assert vera.split() == ["Vera", "7", "42.9%", "[15.8%,", "75.0%]", "4", "1", "1", "1", "1", "4.0"]
    table = [line for line in lines if line.endswith("s each") or line.split()[:1] in (["all"], ["Ann"], ["Vera"])]
    assert len({len(line) for line in table}) == 1


def test_a_workspace_without_verifications(tmp_path: Path):
    workspace = make_workspace(tmp_path)
    report = agreement_report(workspace)
    assert report.overall.agreed.value is None and report.overall.median_seconds is None
    assert agreement_lines(report) == ["  no annotation has been verified yet"]


def test_perfect_agreement_and_names_that_are_hostile(tmp_path: Path):
    workspace = make_workspace(tmp_path)
    with workspace.transaction() as connection:
        connection.execute("UPDATE users SET name = ? WHERE user_id = ?", ("<script>" * 7, ANN.user_id))
    found = write_annotation(workspace, ANN)
    verify(workspace, VERA, 1, found, answers=(1, 0))
    report = agreement_report(workspace)
    assert report.questions.percent == 1.0 == report.questions.krippendorff_alpha
    assert max(map(len, agreement_lines(report))) <= 140
