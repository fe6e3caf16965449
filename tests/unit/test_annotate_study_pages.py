"""A participant's pages as a browser without scripts sees them: link, consent, questions, thanks; and what is refused."""

from __future__ import annotations

import asyncio
import html
import json
import re

import httpx
import pytest

from mmvp_ray.annotate.studies import StudyNewConfig, new_study
from mmvp_ray.annotate.studying import participant_of
from mmvp_ray.annotate.web.app import build_app
from mmvp_ray.annotate.web.settings import WebSettings
from mmvp_ray.annotate.workspace import open_workspace
from mmvp_ray.miniature.benchmark import make_mmvp

ORIGIN = "http://127.0.0.1:8765"
HOSTILE = "<script>alert(1)</script>"


class Browser:
    """Requests of one browser, cookies kept, redirects followed, nothing run."""

    def __init__(self, app, prefix=""):
        self.transport, self.cookies, self.prefix = httpx.ASGITransport(app=app), httpx.Cookies(), prefix

    def ask(self, method, path, *, follows=True, **options):
        async def asking():
            async with httpx.AsyncClient(
                transport=self.transport, base_url=ORIGIN, cookies=self.cookies, follow_redirects=follows
            ) as client:
                response = await client.request(method, path, **options)
                self.cookies = client.cookies
                return response

        return asyncio.run(asking())

    def get(self, path="/study"):
        return self.ask("GET", self.prefix + path)

    def post(self, path, fields, *, origin=ORIGIN, follows=True):
        return self.ask("POST", self.prefix + path, data=fields, headers={"Origin": origin}, follows=follows)

    def enter(self, token):
        return self.post("/study/login", {"token": token})

    def send(self, path, page, **fields):
        """Send a page's form with its hidden fields, as it stands there."""
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))
        return self.post(path, {**hidden, **fields})


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_mmvp(tmp_path_factory.mktemp("benchmark"), num_pairs=3)


@pytest.fixture
def study(benchmark, tmp_path):
    lines = new_study(
        StudyNewConfig(
            workspace=str(tmp_path / "work"),
            name="first",
            benchmark=benchmark.url,
            participants=2,
            intro=f"Welcome.\n\n{HOSTILE}",
        )
    )
    workspace = open_workspace(tmp_path / "work")
    return workspace, [line.rpartition("#")[2] for line in lines[-2:]]


def test_from_link_to_thanks(study, benchmark):
    workspace, (token, _) = study
    browser = Browser(build_app(workspace))
    page = browser.get()
    assert page.status_code == 200 and "study_login.js" in page.text and 'name="token"' in page.text
    page = browser.enter(token)
    assert "I agree" in page.text and HOSTILE not in page.text and html.escape(HOSTILE) in page.text
    page = browser.send("/study/agree", page)
    seen = []
    for place in range(6):
        assert f"Question {place + 1} of 6" in page.text
        (image_id,) = re.findall(r'<img src="/images/(\w+)\.webp"', page.text)
        picture = browser.get(f"/images/{image_id}.webp")
        assert picture.status_code == 200 and picture.content[:4] == b"RIFF"
        (text,) = re.findall(r"<h1><bdi>(.*?)</bdi></h1>", page.text)
        question = next(
            one
            for one in benchmark.questions
            if benchmark.image_sha256[one.image_uri] == image_id and html.escape(one.text) == text
        )
        seen.append(question.key)
        assert re.findall(r"<kbd>\d</kbd> <bdi>(.*?)</bdi>", page.text) == list(question.options)
        # Nothing of the pair, its pattern, its file; ahead come pictures by id alone.
        assert benchmark.url not in page.text and "MMVP" not in page.text and ".jpg" not in page.text
        page = browser.send("/study/answer", page, choice="cannot-tell" if place == 2 else question.answer)
    assert "Thank you" in page.text and sorted(seen) == sorted(question.key for question in benchmark.questions)
    assert participant_of(workspace, token).has_finished
    rows = workspace.rows("SELECT choice, seconds FROM responses ORDER BY place")
    assert [row["choice"] for row in rows].count(-1) == 1 and all(row["seconds"] is None for row in rows)
    page = browser.send("/study/leave", page)
    assert 'name="token"' in page.text and len(browser.cookies) == 0


def test_cookies_headers_and_secrets(study):
    workspace, (token, _) = study
    browser = Browser(build_app(workspace, WebSettings(public_url="https://lab.org/annotate")), "/annotate")
    response = browser.post("/study/login", {"token": token}, follows=False)
    assert response.status_code == 303 and response.headers["location"] == "/annotate/study"
    cookie = response.headers["set-cookie"].casefold()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "secure", "path=/annotate"))
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    events = json.dumps([dict(row) for row in workspace.rows("SELECT kind, content FROM events")])
    assert token not in events


def test_under_a_prefix_every_link_has_it(study):
    workspace, (token, _) = study
    browser = Browser(build_app(workspace, WebSettings(public_url="http://127.0.0.1:8765/annotate")), "/annotate")
    page = browser.send("/study/agree", browser.enter(token))
    assert "Question 1 of 6" in page.text
    assert all(link.startswith("/annotate/") for link in re.findall(r'(?:src|href|action)="(/[^"]*)"', page.text))


def test_no_inline_script_or_style(study):
    workspace, (token, _) = study
    browser = Browser(build_app(workspace))
    pages = [browser.get(), browser.enter(token)]
    pages.append(browser.send("/study/agree", pages[-1]))
    pages.append(browser.post("/study/answer", {}))
    for page in pages:
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page.text)


def test_what_is_refused(study):
    workspace, (token, other) = study
    app = build_app(workspace)
    browser, stranger = Browser(app), Browser(app)
    for path in ("/study/agree", "/study/answer", "/study/leave"):
        assert stranger.post(path, {"csrf": "x", "place": 0, "choice": 0}).status_code == 403
    assert stranger.post("/study/login", {"token": token}, origin="https://evil.example").status_code == 403
    page = browser.enter(token)
    question = browser.send("/study/agree", page)
    assert browser.post("/study/answer", {"place": 0, "choice": 0}).status_code == 403
    theirs = Browser(app)
    foreign = re.findall(r'name="csrf" value="(\w+)"', theirs.enter(other).text)[0]
    assert browser.post("/study/answer", {"csrf": foreign, "place": 0, "choice": 0}).status_code == 403
    for fields in (
        {},
        {"choice": "x"},
        {"choice": "-1"},
        {"choice": "9"},
        {"choice": "\u0663"},
        {"place": "x", "choice": "0"},
    ):
        assert browser.send("/study/answer", question, **fields).status_code == 422
    assert browser.send("/study/answer", question, place="3", choice="0").status_code == 409
    assert participant_of(workspace, token).num_answered == 0
    assert "Question 2" in browser.send("/study/answer", question, choice="0").text
    # Sent again it counts once; another answer is no second thought.
    assert "Question 2" in browser.send("/study/answer", question, choice="0").text
    assert browser.send("/study/answer", question, choice="1").status_code == 409
    assert participant_of(workspace, token).num_answered == 1
    # A participant's cookie opens nothing of the annotators.
    for path in ("/", "/tasks/verify", "/overview", "/events"):
        assert "Log in" in browser.get(path).text


def test_wrong_links_are_counted_and_right_ones_are_not(study):
    workspace, (token, other) = study
    app = build_app(workspace, WebSettings(logins_per_minute=3))
    for _ in range(6):
        assert "I agree" in Browser(app).enter(token).text
    guesses = ["x", "", "y" * 500, "\u00e9", "z"]
    assert [Browser(app).enter(guess).status_code for guess in guesses] == [401, 401, 401, 429, 429]
    found = workspace.row("SELECT COUNT(*) AS num FROM events WHERE kind = 'study_login_failed'")
    assert found["num"] == 3
    assert "I agree" in Browser(app).enter(other).text
    half = Browser(app).ask(
        "POST",
        "/study/login",
        content='{"token": "\\ud800"}',
        headers={"Origin": ORIGIN, "Content-Type": "application/json"},
    )
    assert half.status_code == 429
