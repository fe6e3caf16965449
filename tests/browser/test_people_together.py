"""Several people at once: nobody holds another's pair, and one pair goes all the way to approved sentences without anybody seeing too much."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from playwright.sync_api import Page, Response, expect

from mmvp_ray.annotate.annotating import annotate
from mmvp_ray.annotate.holding import take_next
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import ANNOTATE
from tests.browser.app_under_test import App, make_app, written
from tests.browser.conftest import Person, has_keys
from tests.browser.scenes import pair

DIFFERENCE = "SECRET: the door is blue here and red there."
COMMENT = "I am not sure about the door"
Enter = Callable[..., Person]


def fill(page: Page, *, answers: tuple[str, str] = ("Blue", "Red")) -> None:
    """Write an annotation: the first answer is right for A, the second for B."""
    has_keys(page)
    page.get_by_label("What differs").fill(DIFFERENCE)
    page.get_by_label("One question").fill("What colour is the door?")
    for number, (answer, side) in enumerate(zip(answers, "AB", strict=True), start=1):
        page.get_by_label(f"Answer {number}", exact=True).fill(answer)
        page.locator(".option").nth(number - 1).get_by_role("radio", name=side).check()
    page.get_by_role("radio", name=re.compile("Color and Appearance")).check()


def state(app: App) -> str:
    """Of the one pair there is."""
    found = app.workspace.row("SELECT state FROM pairs")
    assert found is not None
    return str(found["state"])


def answer(person: Person, text: str, *, comment: str = "") -> None:
    """Answer the question that is shown."""
    page = person.page
    has_keys(page)
    page.get_by_role("radio", name=re.compile(text)).check()
    if comment:
        page.get_by_label("Is something wrong").fill(comment)
    with page.expect_navigation():
        page.get_by_role("button", name="Next").click()


def test_two_annotators_never_hold_the_same_pair(tmp_path, enter: Enter):
    app = make_app(tmp_path, [pair(1), pair(2)])
    app.start()
    try:
        ann, ben, cid = (enter(app, "annotator") for _ in range(3))
        for person in (ann, ben):
            person.open("/tasks/annotate")
            has_keys(person.page)
        assert ann.page.title() != ben.page.title()
        cid.open("/tasks/annotate")
        expect(cid.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        # Neither by number.
        theirs = re.findall(r"\d+", ann.page.title())[0]
        cid.watch.expects(409, f"/tasks/annotate/{theirs}")
        cid.open(f"/tasks/annotate/{theirs}")
        expect(cid.page.get_by_role("heading")).to_have_text(f"Somebody else is working on pair {theirs}.")
        with ann.page.expect_navigation():
            ann.press("s")
        expect(ann.page).to_have_title(re.compile(f"^Pair {theirs} "))
        has_keys(ann.page)
        # A page that lost its pair says so, and what was written stays on it.
        with app.workspace.transaction() as connection:
            connection.execute("UPDATE leases SET expires_at = 0 WHERE pair_id = ?", (theirs,))
        cid.open("/tasks/annotate")
        expect(cid.page).to_have_title(re.compile(f"^Pair {theirs} "))
        ann.watch.expects(409, f"/tasks/annotate/{theirs}")
        fill(ann.page)
        ann.press("Control+Enter")
        expect(ann.page.locator("#status")).to_have_text(f"Somebody else is working on pair {theirs}.")
        expect(ann.page.get_by_label("What differs")).to_have_value(DIFFERENCE)
    finally:
        app.stop()


def test_one_pair_from_the_queue_to_approved_sentences(tmp_path, enter: Enter):
    app = make_app(tmp_path, [pair(1)])
    app.start()
    try:
        ann, vera, rey, ria = (enter(app, role) for role in ("annotator", "verifier", "reviewer", "reviewer"))
        ann.open("/tasks/annotate")
        fill(ann.page)
        ann.page.get_by_role("button", name="Accept").click()
        expect(ann.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        # The author does not verify.
        ann.open("/tasks/verify")
        expect(ann.page.get_by_role("heading", name="Nothing left here")).to_be_visible()

        bodies = seen_by(vera.page)
        vera.open("/tasks/verify")
        expect(vera.page.get_by_text("Image 1 of 2.")).to_be_visible()
        assert vera.page.locator("img").count() == 1
        answer(vera, "Blue", comment=COMMENT)
        expect(vera.page.get_by_text("Image 2 of 2.")).to_be_visible()
        assert vera.page.locator("img").count() == 1
        answer(vera, "I cannot tell")
        expect(vera.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        vera.open("/")
        # What became of the pair would tell whether the answers were right.
        expect(vera.page.get_by_role("heading", name="All pairs")).to_be_visible()
        expect(vera.page.get_by_role("heading", name="Your last decisions")).to_have_count(0)
        bodies.append(vera.page.content())
        assert state(app) == "disputed"
        shown = "\n".join(bodies)
        assert "What colour is the door?" in shown
        for secret in (
            "SECRET",
            "Color and Appearance",
            "answer_a",
            "disputed</b>",
            "verified</b>",
            "agrees",
            ann.name,
        ):
            assert secret not in shown, secret

        rey.open("/tasks/adjudicate")
        has_keys(rey.page)
        dispute = rey.page.get_by_role("region", name="The dispute")
        expect(dispute).to_contain_text("cannot tell")
        expect(dispute).to_contain_text(COMMENT)
        expect(dispute).to_contain_text(f"{ann.name} wrote")
        rey.watch.expects(422, "/correct")
        rey.page.get_by_label("One question").fill("")
        rey.press("Control+Enter")
        expect(rey.page.locator("#problem-question")).to_have_text("Ask one question.")
        rey.page.get_by_label("One question").fill("Is the door blue or red?")
        rey.press("Control+Enter")
        expect(rey.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        assert state(app) == "annotated"

        # The corrected question is verified anew, by somebody who did not write it; agreeing by digit and Enter.
        ria.open("/tasks/verify")
        for _ in range(2):
            has_keys(ria.page)
            side = ria.page.locator("[name=side]").get_attribute("value")
            wanted = {"a": "Blue", "b": "Red"}[str(side)]
            digit = ria.page.locator("label.choice", has_text=wanted).locator("kbd").text_content()
            with ria.page.expect_navigation():
                ria.press(str(digit), "Enter")
        expect(ria.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        assert state(app) == "verified"

        # Sentences: proposed, written, given back with a comment, mended, approved.
        ann.open("/tasks/state")
        has_keys(ann.page)
        first, second = ann.page.get_by_role("textbox").all()
        first.fill("The door is blue.")
        second.fill("The door is BLUE.")
        ann.watch.expects(422, "/tasks/state/")
        ann.press("Control+Enter")
        expect(ann.page.locator("#problem-b")).to_have_text("The sentences must differ.")
        has_keys(ann.page)
        ann.page.locator("#text-b").fill("The door is red.")
        ann.press("Control+Enter")
        expect(ann.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        rey.open("/tasks/review")
        has_keys(rey.page)
        rey.watch.expects(422, "/tasks/review/")
        rey.page.get_by_role("button", name="Give back").click()
        expect(rey.page.locator("#problem-comment")).to_have_text("Say in the comment what to reword.")
        rey.page.get_by_label("What must be mended").fill("Say house door.")
        rey.page.get_by_role("button", name="Give back").click()
        expect(rey.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        ann.open("/tasks/state")
        has_keys(ann.page)
        expect(ann.page.get_by_text("Say house door.")).to_be_visible()
        expect(ann.page.locator("#text-a")).to_have_value("The door is blue.")
        ann.page.locator("#text-a").fill("The house door is blue.")
        ann.press("Control+Enter")
        expect(ann.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        rey.open("/tasks/review")
        has_keys(rey.page)
        rey.press("a")
        expect(rey.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        approved = app.workspace.row("SELECT * FROM statements WHERE state = 'approved'")
        assert approved is not None
        assert (approved["text_a"], approved["text_b"]) == ("The house door is blue.", "The door is red.")

        # The pages of those who answer for it.
        rey.open("/overview")
        expect(rey.page.get_by_role("row", name=re.compile("^Color and Appearance")).first).to_contain_text("14 short")
        ada = enter(app, "admin")
        ada.open("/events")
        expect(ada.page.get_by_role("row").filter(has_text="statement approved")).to_have_count(1)
        ada.page.get_by_role("row").filter(has_text="statement approved").get_by_role("link").click()
        expect(ada.page.get_by_role("heading", name="What happened")).to_be_visible()
        expect(ada.page.get_by_text("corrected", exact=True)).to_be_visible()
    finally:
        app.stop()


def test_a_dispute_is_kept_or_dropped_by_keys(tmp_path, enter: Enter):
    app = make_app(tmp_path, [pair(1), pair(2)])
    app.start()
    try:
        rey = enter(app, "reviewer")
        vera = enter(app, "verifier")
        ann = user_of(app, enter(app, "annotator").name)
        for _ in range(2):
            held = take_next(app.workspace, ann, ANNOTATE)
            assert held is not None
            annotate(app.workspace, ann, held.pair_id, written())
        vera.open("/tasks/verify")
        for _ in range(4):
            answer(vera, "I cannot tell")
        rey.open("/tasks/adjudicate")
        has_keys(rey.page)
        first = rey.page.title()
        rey.press("k")
        expect(rey.page).not_to_have_title(first)
        has_keys(rey.page)
        rey.press("r", "4")
        expect(rey.page.get_by_role("heading", name="Nothing left here")).to_be_visible()
        assert [row["state"] for row in app.workspace.rows("SELECT state FROM pairs ORDER BY pair_id")] == [
            "verified",
            "rejected",
        ]
        event = app.workspace.row("SELECT content FROM events WHERE kind = 'dropped'")
        assert event is not None
        assert json.loads(event["content"])["reason"] == "ambiguous"
    finally:
        app.stop()


def seen_by(page: Page) -> list[str]:
    """Every text that comes to this browser from now on."""
    bodies: list[str] = []

    def keep(response: Response) -> None:
        if response.status < 300 and "/images/" not in response.url and "/static/" not in response.url:
            bodies.append(response.text())

    page.on("response", keep)
    return bodies


def user_of(app: App, name: str) -> User:
    """A user as the functions below the pages know them."""
    row = app.workspace.row("SELECT user_id, name, role FROM users WHERE name = ?", name)
    assert row is not None
    return User(**dict(row), csrf="")
