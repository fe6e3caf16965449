"""The first person's work: leases, drafts, decisions, and taking one back."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmvp_ray.annotate.annotating import annotate, draft_of, find_pair, live_annotation, reject, save_draft, undo
from mmvp_ray.annotate.holding import NotHeldError, num_open, skip, take, take_next
from mmvp_ray.annotate.progress import events, history, own_work, pattern_counts, state_counts
from mmvp_ray.annotate.rules import ANNOTATE, VERIFY
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.errors import ConfigError
from tests.unit.annotate_workspace import (
    ANN,
    BEN,
    VERA,
    annotation,
    kinds,
    let_leases_end,
    make_workspace,
    state_of,
    verify,
    write_annotation,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def test_two_people_get_two_pairs_best_first_and_keep_theirs(workspace: Workspace) -> None:
    first, second = take_next(workspace, ANN, ANNOTATE), take_next(workspace, BEN, ANNOTATE)
    assert first is not None and second is not None
    assert (first.pair_id, first.ahead) == (1, (2, 3)) and (second.pair_id, second.ahead) == (2, (3,))
    again = take_next(workspace, ANN, ANNOTATE)
    assert again is not None and again.pair_id == 1
    with pytest.raises(NotHeldError, match="Somebody else is working on pair 1"):
        take(workspace, BEN, ANNOTATE, 1)
    with pytest.raises(NotHeldError, match="Somebody else"):
        annotate(workspace, BEN, 1, annotation())
    assert state_of(workspace) == "queued" and kinds(workspace) == []


def test_a_pair_whose_holder_is_away_goes_to_others(workspace: Workspace) -> None:
    take(workspace, ANN, ANNOTATE, 1)
    save_draft(workspace, ANN, 1, {"question": "half a"})
    let_leases_end(workspace)
    held = take_next(workspace, BEN, ANNOTATE)
    assert held is not None and held.pair_id == 1
    with pytest.raises(NotHeldError, match="Somebody else"):
        save_draft(workspace, ANN, 1, {"question": "half a question"})
    # Drafts are everybody's own.
    assert draft_of(workspace, BEN, 1) == {} and draft_of(workspace, ANN, 1) == {"question": "half a"}


def test_nothing_left(workspace: Workspace) -> None:
    for pair_id in (1, 2, 3):
        reject(workspace, ANN, pair_id, "same")
    assert take_next(workspace, BEN, ANNOTATE) is None
    assert num_open(workspace, BEN, ANNOTATE) == 0


def test_what_was_skipped_comes_last_and_only_to_that_person(workspace: Workspace) -> None:
    skip(workspace, ANN, ANNOTATE, 1)
    order = []
    for _ in range(3):
        held = take_next(workspace, ANN, ANNOTATE)
        assert held is not None
        order.append(held.pair_id)
        reject(workspace, ANN, held.pair_id, "same")
    assert order == [2, 3, 1]
    other = make_workspace(workspace.folder / "other")
    skip(other, ANN, ANNOTATE, 1)
    held = take_next(other, BEN, ANNOTATE)
    assert held is not None and held.pair_id == 1


def test_an_annotation_is_kept_whole(workspace: Workspace) -> None:
    save_draft(workspace, ANN, 1, {"question": "half"})
    found = write_annotation(workspace, ANN)
    row = live_annotation(workspace, 1)
    assert row is not None and (row["author_name"], row["question"], row["pattern"]) == (
        "Ann",
        found.question,
        found.pattern,
    )
    assert state_of(workspace) == "annotated" and kinds(workspace) == ["annotated"]
    assert draft_of(workspace, ANN, 1) == {}
    with pytest.raises(NotHeldError, match="not open for this any more"):
        annotate(workspace, BEN, 1, annotation())


def test_reasons(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="expected a reason among same"):
        reject(workspace, ANN, 1, "ugly")
    with pytest.raises(ConfigError, match="Say which reason"):
        reject(workspace, ANN, 1, "other", "  ")
    reject(workspace, ANN, 1, "other", "a painting of a photo")
    last = history(workspace, 1)[-1]
    assert (last.kind, last.user, last.content) == (
        "rejected",
        "Ann",
        {"reason": "other", "note": "a painting of a photo"},
    )


class TestUndo:
    def test_the_last_decisions_one_after_the_other(self, workspace: Workspace) -> None:
        found = write_annotation(workspace, ANN, 1)
        reject(workspace, ANN, 2, "same")
        assert undo(workspace, ANN) == 2 and state_of(workspace, 2) == "queued"
        assert undo(workspace, ANN) == 1 and state_of(workspace, 1) == "queued"
        draft = draft_of(workspace, ANN, 1)
        assert (draft["question"], tuple(draft["options"]), draft["answer_a"]) == (found.question, found.options, 1)
        assert live_annotation(workspace, 1) is None
        with pytest.raises(NotHeldError, match="nothing to take back"):
            undo(workspace, ANN)
        # Deciding again can be taken back again.
        reject(workspace, ANN, 2, "same")
        assert undo(workspace, ANN) == 2

    def test_not_what_others_did(self, workspace: Workspace) -> None:
        write_annotation(workspace, ANN)
        with pytest.raises(NotHeldError, match="nothing to take back"):
            undo(workspace, BEN)

    def test_not_while_somebody_verifies(self, workspace: Workspace) -> None:
        found = write_annotation(workspace, ANN)
        take(workspace, VERA, VERIFY, 1)
        with pytest.raises(NotHeldError, match="somebody is working on it"):
            undo(workspace, ANN)
        verify(workspace, VERA, 1, found, answers=(found.answer_a, found.answer_b))
        with pytest.raises(NotHeldError, match="somebody is working on it"):
            undo(workspace, ANN)
        assert state_of(workspace) == "verified"


def test_a_draft_has_its_limits(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="expected a draft of at most"):
        save_draft(workspace, ANN, 1, {"question": "x" * 9000})


def test_a_suggestion_is_of_its_own_pair(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="expected a suggestion about pair 1"):
        annotate(workspace, ANN, 1, annotation(), suggestion_id=7)
    assert state_of(workspace) == "queued"


def test_what_is_known_of_a_pair(workspace: Workspace) -> None:
    pair = find_pair(workspace, 1)
    assert (pair.near, pair.cos_near, pair.a["uri"], pair.b["caption"]) == (
        "near-x",
        0.97,
        "s3://data/2.jpg",
        "caption 3",
    )
    with pytest.raises(ConfigError, match="found none of number 9"):
        find_pair(workspace, 9)


def test_progress(workspace: Workspace) -> None:
    found = write_annotation(workspace, ANN, 1)
    reject(workspace, ANN, 2, "same")
    verify(workspace, VERA, 1, found, answers=(found.answer_a, found.answer_b))
    assert state_counts(workspace) == {"queued": 1, "annotated": 0, "disputed": 0, "verified": 1, "rejected": 1}
    counts = pattern_counts(workspace)
    assert counts[found.pattern] == {"annotated": 0, "disputed": 0, "verified": 1, "statements": 0}
    assert sum(sum(of.values()) for of in counts.values()) == 1
    assert [event.kind for event in own_work(workspace, ANN)] == ["rejected", "annotated"]
    newest = events(workspace)
    assert [event.event_id for event in newest] == sorted((event.event_id for event in newest), reverse=True)
    assert events(workspace, before=newest[0].event_id) == newest[1:]
