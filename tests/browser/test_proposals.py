"""A model's proposal on the page: G fills the form, a person changes a word and accepts, and both are kept; a model that is away is said so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.browser.app_under_test import App, make_app
from tests.browser.conftest import Person, has_keys
from tests.browser.scenes import pair
from tests.scripted_server import Asked, ScriptedServer

PROPOSAL = {
    "difference": "The door is blue in A and red in B.",
    "question": "What colour is the door?",
    "options": ["Blue", "Red"],
    "answer_a": 0,
    "answer_b": 1,
    "pattern": "Color",
}


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedServer]:
    def propose(asked: Asked) -> str:
        assert len(asked.images) == 2
        return f"```json\n{json.dumps(PROPOSAL)}\n```"

    with ScriptedServer(propose) as server:
        yield server


@pytest.fixture(scope="module")
def assisted(tmp_path_factory: pytest.TempPathFactory, model: ScriptedServer) -> Iterator[App]:
    found = make_app(tmp_path_factory.mktemp("assisted"), [pair(number) for number in range(2)])
    found.flags = ["--assistant", "vllm:helper", "--assistant-url", model.base_url, "--assistant-key-env", ""]
    found.start()
    yield found
    found.stop()


def test_a_person_decides_about_what_a_model_proposes(assisted: App, enter: Callable[..., Person]) -> None:
    from playwright.sync_api import expect

    person = enter(assisted, "annotator")
    person.open("/tasks/annotate")
    page = person.page
    has_keys(page)
    person.press("g")
    expect(page.get_by_text("Proposed by a model: check every word.")).to_be_visible()
    expect(page.get_by_label("One question")).to_have_value(PROPOSAL["question"])
    expect(page.get_by_label("Color and Appearance")).to_be_checked()
    page.get_by_label("One question").fill("Which colour has the door?")
    with page.expect_navigation():
        person.press("Control+Enter")
    row = assisted.workspace.row("SELECT * FROM annotations JOIN suggestions USING (suggestion_id)")
    assert row is not None
    assert (row["question"], row["answer_a"], row["answer_b"]) == ("Which colour has the door?", 0, 1)
    assert PROPOSAL["question"] in row["answer"] and row["model"] == "helper"


def test_without_a_model_there_is_no_such_button(app: App, enter: Callable[..., Person]) -> None:
    from playwright.sync_api import expect

    person = enter(app, "annotator")
    person.open("/tasks/annotate")
    has_keys(person.page)
    expect(person.page.locator('[data-key="g"]')).to_have_count(0)
    # The key is nobody's, and does nothing.
    person.press("g")
    expect(person.page.get_by_text("Asking the model")).to_have_count(0)
