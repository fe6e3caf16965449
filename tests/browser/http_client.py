"""A program that talks to the app as a browser does, or as no browser would."""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass, field
from urllib.parse import urlencode

from tests.browser.app_under_test import App


@dataclass
class Answer:
    """Of the server."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Client:
    """What a program, or a site of somebody else, can send."""

    app: App
    address: str = "10.9.9.9"
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""

    def ask(self, method: str, path: str, *, body: object = None, **headers: str) -> Answer:
        """Send a request; headers by name with _ for -, None leaves one out."""
        sent: dict[str, str | None] = {"Origin": f"http://127.0.0.1:{self.app.port}", "X-Forwarded-For": self.address}
        if isinstance(body, dict):
            sent["Content-Type"] = "application/json"
            body = json.dumps(body)
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if self.csrf:
            sent["X-CSRF-Token"] = self.csrf
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.app.port, timeout=60)
        try:
            connection.request(
                method,
                path,
                body=body,
                headers={k: v for k, v in sent.items() if v is not None},
                encode_chunked=hasattr(body, "__next__"),
            )
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
        finally:
            connection.close()

    def log_in(self, link: str) -> Answer:
        """As the login page does."""
        answer = self.ask(
            "POST",
            "/login",
            body=urlencode({"token": link.partition("#")[2]}),
            Content_Type="application/x-www-form-urlencoded",
        )
        if answer.status == 303:
            name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
            self.cookies[name] = value
            self.app.secrets.append(value)
            found = re.search(r'data-csrf="([^"]+)"', self.ask("GET", "/").body)
            assert found is not None
            self.csrf = found[1]
            self.app.secrets.append(self.csrf)
        return answer


def visitor(app: App) -> Client:
    """Nobody yet, from an address of their own: logins are limited for each."""
    app.num_users += 1
    return Client(app, address=f"10.1.{app.num_users // 250}.{app.num_users % 250 + 1}")


def member(app: App, role: str) -> Client:
    """A new user, logged in."""
    client = visitor(app)
    assert client.log_in(app.add_user(role)).status == 303
    return client
