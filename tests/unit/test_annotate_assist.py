"""Proposals by a model: what is read of an answer, that it is kept whole, and that a model's failure is nobody else's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.annotate.annotating import annotate, live_annotation
from mmvp_ray.annotate.assist import MAX_WAITING, Assistant, read_proposal, suggest, suggestion_of
from mmvp_ray.annotate.rules import check_annotation
from mmvp_ray.errors import TransientError
from mmvp_ray.evaluate.responder import Ask, Reply
from tests.unit.annotate_workspace import ANN, BEN, kinds, make_workspace

WHOLE = {
    "difference": "One dog wears a hat.",
    "question": "Is the dog wearing a hat?",
    "options": ["(a) Yes", "(b) No"],
    "answer_a": 0,
    "answer_b": 1,
    "pattern": "presence of specific features",
}


class Scripted:
    """A responder that says what it was told to."""

    name = "scripted-1"

    def __init__(self, text: str | None, error: Exception | str | None = None) -> None:
        self.text, self.error, self.asked = text, error, []  # type: ignore[var-annotated]

    def identity(self) -> dict[str, str]:
        return {}

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            self.asked.append(ask)
            if isinstance(self.error, Exception):
                raise self.error
            yield Reply(key=ask.key, text=self.text, error=self.error)


def test_a_whole_proposal_fills_the_form_and_is_kept(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    answer = f"Sure!\n```json\n{json.dumps(WHOLE)}\n```"
    responder = Scripted(answer)
    found = suggest(workspace, ANN, 1, Assistant(responder))
    assert found.content["options"] == ["Yes", "No"] and found.content["pattern"] == "Presence of Specific Features"
    (ask,) = responder.asked
    assert len(ask.image_uris) == 2 and all(Path(uri).is_file() for uri in ask.image_uris)
    row = workspace.row("SELECT * FROM suggestions")
    assert row is not None and (row["answer"], row["model"], row["prompt"]) == (answer, "scripted-1", ask.prompt)
    assert suggestion_of(workspace, ANN, 1) == found.suggestion_id and suggestion_of(workspace, BEN, 1) is None
    checked = check_annotation(found.content)
    assert checked.annotation is not None
    annotate(workspace, ANN, 1, checked.annotation, suggestion_id=found.suggestion_id)
    live = live_annotation(workspace, 1)
    assert live is not None and live["suggestion_id"] == found.suggestion_id


@pytest.mark.parametrize("error", ["refused", TransientError("the endpoint stayed away")])
def test_a_model_that_fails_costs_nobody_their_work(tmp_path: Path, error: Any) -> None:
    workspace = make_workspace(tmp_path)
    found = suggest(workspace, ANN, 1, Assistant(Scripted(None, error)))
    assert found.suggestion_id is None and found.content == {} and "write your own" in found.message
    assert kinds(workspace) == ["suggestion_failed"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no JSON at all", {}),
        ("{broken", {}),
        ('{} {"question": "What?"}', {"question": "What?"}),
        (
            json.dumps(WHOLE | {"answer_a": 5, "pattern": "mood", "difference": 3}),
            {"question": WHOLE["question"], "options": ["Yes", "No"], "answer_b": 1},
        ),
        (json.dumps({"options": ["one"], "answer_a": 0}), {}),
        ("[" * 5000, {}),
    ],
)
def test_each_field_is_taken_only_if_it_is_what_it_should_be(text: str, wanted: dict[str, Any]) -> None:
    assert read_proposal(text) == wanted


@given(
    st.text()
    | st.recursive(st.none() | st.text(), lambda inner: st.dictionaries(st.sampled_from([*WHOLE]), inner)).map(
        json.dumps
    )
)
def test_no_answer_breaks_it(text: str) -> None:
    assert set(read_proposal(text)) <= set(WHOLE)


def test_those_who_wait_for_a_model_leave_threads_to_others() -> None:
    goes_on, waiting = threading.Event(), threading.Semaphore(0)

    class Slow(Scripted):
        def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
            waiting.release()
            goes_on.wait(120)
            yield from super().answer(asks)

    assistant = Assistant(Slow("text"))
    found: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(assistant.ask(Ask(key="k", prompt="p"))))
        for _ in range(MAX_WAITING)
    ]
    for thread in threads:
        thread.start()
    waiting.acquire()
    # Only looked at: who took a place to see whether one is free would take it from the last of them.
    while assistant._places._value:
        time.sleep(0.01)
    assert assistant.ask(Ask(key="k", prompt="p")) == ("", "too many ask at once")
    goes_on.set()
    for thread in threads:
        thread.join()
    assert found == [("text", "")] * MAX_WAITING
