"""What requests may look like and what every answer carries: origins, hosts, lengths, bodies, headers, cookies."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
from starlette.types import Message, Receive, Scope, Send

from mmvp_ray.annotate.web.security import Guard
from mmvp_ray.annotate.web.settings import WebSettings
from tests.browser.app_under_test import App, make_app
from tests.browser.http_client import Answer, visitor


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "http://localhost", "", None]
)
def test_other_sites_are_refused(app, client, origin):
    assert client.ask("POST", "/tasks/annotate/1/draft", body={}, Origin=origin).status == 403
    assert visitor(app).ask("POST", "/login", body="token=x", Origin=origin).status == 403


def test_what_a_browser_says_without_an_origin(client):
    for said, status in (("same-origin", 200), ("same-site", 403), ("cross-site", 403), ("none", 403)):
        assert client.ask("POST", "/tasks/annotate/1/draft", body={}, Origin=None, Sec_Fetch_Site=said).status == status


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "127.0.0.1:80:80", "localhost@evil"]
)
def test_other_names_are_refused(client, host):
    for path in ("/", "/healthz", "/static/app.css"):
        assert client.ask("GET", path, Host=host).status == 421


def test_long_bodies_are_refused(app, client):
    long = json.dumps({"difference": "x" * 70_000})
    assert client.ask("POST", "/tasks/annotate/1/draft", body=long, Content_Type="application/json").status == 413
    # Without a Content-Length the length shows only as it comes.
    pieces = (b"x" * 1000 for _ in range(70))
    answer = client.ask(
        "POST", "/tasks/annotate/1/draft", body=pieces, Content_Type="application/json", Transfer_Encoding="chunked"
    )
    assert answer.status == 413
    assert visitor(app).ask("POST", "/login", body="token=" + "x" * 70_000).status == 413
    # A draft that fits a request and no form.
    assert client.ask("POST", "/tasks/annotate/1/draft", body={"difference": "x" * 9000}).status == 422


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 50_000, b'{"a":' * 10_000, b'"x"', b"null", b""],
    ids=["half", "list", "no UTF-8", "NaN", "deep list", "deep object", "text", "null", "empty"],
)
def test_bodies_that_are_none(client, body):
    assert client.ask("POST", "/tasks/annotate/1/draft", body=body, Content_Type="application/json").status == 400


def test_odd_bodies(app, client):
    assert client.ask("POST", "/tasks/annotate/1/draft", body=b"x", Content_Type="text/xml").status == 415
    many = "&".join(f"a{number}=1" for number in range(200))
    assert visitor(app).ask("POST", "/login", body=many, Content_Type="application/x-www-form-urlencoded").status == 400
    # Half an emoji is kept as a question mark.
    assert (
        client.ask(
            "POST", "/tasks/annotate/1/draft", body=b'{"difference": "a\\ud83d"}', Content_Type="application/json"
        ).status
        == 200
    )
    found = app.workspace.row("SELECT content FROM drafts WHERE pair_id = 1")
    assert json.loads(found["content"])["difference"] == "a?"
    content = {
        "difference": {},
        "question": 1,
        "options": {"a": 1},
        "answer_a": True,
        "answer_b": 1e300,
        "pattern": ["x"],
    }
    answer = client.ask("POST", "/tasks/annotate/1/annotation", body=content)
    assert answer.status == 422
    assert set(json.loads(answer.body)["problems"]) == {"difference", "question", "options", "answers", "pattern"}
    assert client.ask("POST", "/tasks/annotate/1/draft", body=content).status == 200
    assert client.ask("GET", "/tasks/annotate/1").status == 200


HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/login", 200),
        ("GET", "/static/app.css", 200),
        ("GET", "/static/nothing.css", 404),
        ("GET", "/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/favicon.ico", 308),
        ("GET", "/healthz", 200),
        ("GET", "/tasks/annotate/none", 404),
        ("GET", "/tasks/annotate/99999999999999999999999", 404),
        ("GET", "/tasks/annotate/0", 404),
        ("GET", "/tasks/annotate/4444", 409),
        ("GET", "/events?before=x", 404),
        ("POST", "/", 405),
        ("POST", "/tasks/annotate/1/draft", 400),
        ("DELETE", "/tasks/annotate/1/draft", 405),
        ("POST", "/tasks/annotate/1/suggestion", 404),
        ("GET", "/tasks/annotate/../../../etc/passwd", 404),
    ],
)
def test_every_answer_has_the_headers(client, method, path, status):
    body = b"{" if status == 400 else b"{}"
    for accept in ("text/html", "application/json"):
        answer = client.ask(
            method, path, body=body if method == "POST" else None, Accept=accept, Content_Type="application/json"
        )
        assert answer.status == status
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert "server" not in answer.headers
        assert "cache-control" in answer.headers
        if status >= 400 and accept == "text/html":
            assert 'href="/static/app.css' in answer.body or status in (400,)


def test_refusals_have_the_headers_too(client):
    answers = [
        client.ask("GET", "/", Host="evil.example"),
        client.ask("POST", "/", Origin="http://evil.example"),
        client.ask("POST", "/login", body="x" * 70_000),
    ]
    assert [answer.status for answer in answers] == [421, 403, 413]
    for answer in answers:
        assert HEADERS.items() <= answer.headers.items()


def test_defects_have_the_headers_too():
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    sent: list[Message] = []

    async def ask() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "scheme": "http", "headers": [(b"host", b"localhost")]}
        with pytest.raises(ZeroDivisionError):
            await Guard(broken, WebSettings())(scope, receive, send)

    # In a thread of its own: Playwright has an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, ask()).result()
    assert sent[0]["status"] == 500
    assert HEADERS.items() <= {name.decode(): value.decode() for name, value in sent[0]["headers"]}.items()


def test_cookies(app):
    cookie = member_cookie(app)
    assert {"httponly", "samesite=strict", "path=/"} <= cookie
    assert "secure" not in cookie


def test_cookies_behind_https_and_a_prefix(tmp_path):
    found = make_app(tmp_path, [], public_url="https://lab.example/pairs-of-images")
    found.start()
    try:
        client = visitor(found)
        answer = client.ask(
            "POST",
            "/login",
            body=urlencode({"token": found.add_user("annotator").partition("#")[2]}),
            Origin="https://lab.example",
            Host="lab.example",
        )
        assert (answer.status, answer.headers["location"]) == (303, "/pairs-of-images/")
        assert {"httponly", "samesite=strict", "secure", "path=/pairs-of-images"} <= parts(answer)
    finally:
        found.stop()


def member_cookie(app: App) -> set[str]:
    """What a browser is told about the session's cookie."""
    return parts(visitor(app).log_in(app.add_user("annotator")))


def parts(answer: Answer) -> set[str]:
    """Of the cookie that an answer sets."""
    return {part.strip().casefold() for part in answer.headers["set-cookie"].split(";")[1:]}
