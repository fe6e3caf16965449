"""What guards every request before a page sees it: host, origin, body length, prefix; and the headers of every response."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmvp_ray.annotate.web.settings import WebSettings

POLICY: Final = (
    "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it browsers send "Origin: null" with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_PORT = re.compile(r":\d{1,5}$")


class Guard:
    """ASGI middleware.

    A request that changes something must say by Origin (or, where a browser leaves that out, by Sec-Fetch-Site) that it comes from
    this app; that stands beside the token of each form, not in its place.

    Args:
        app: What is guarded.
        settings: Hosts, origin, prefix, longest body.
    """

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is not None:
            await refused(scope, receive, _with_headers(send, scope))
            return
        num_bytes = 0
        has_begun = False
        guarded_send = _with_headers(send, scope)

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await guarded_send(message)

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._settings.max_body_bytes:
                raise BodyTooLongError
            return message

        try:
            await self._app(_under_prefix(scope, self._settings.prefix), limited, sending)
        except BodyTooLongError:
            response = PlainTextResponse("The request is too long.", 413, {"Connection": "close"})
            await response(scope, receive, guarded_send)
        except Exception:
            # The framework's own answer to a defect would go out without these headers; the defect still reaches the server's log.
            if not has_begun:
                await PlainTextResponse("Something went wrong here.", 500)(scope, receive, guarded_send)
            raise

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").casefold()
        name = _PORT.sub("", host)
        if "*" not in self._settings.hosts and name not in self._settings.hosts:
            return PlainTextResponse("This server is not reached by that name; see --public-url.", 421)
        if (
            headers.get("content-length", "0").isdigit()
            and int(headers.get("content-length", "0")) > self._settings.max_body_bytes
        ):
            return PlainTextResponse("The request is too long.", 413, {"Connection": "close"})
        if scope["method"] not in _SAFE_METHODS and not self._is_same_origin(headers, host, scope):
            return PlainTextResponse("The request comes from another site.", 403)
        return None

    def _is_same_origin(self, headers: Headers, host: str, scope: Scope) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") == "same-origin"
        allowed = {f"{scope['scheme']}://{host}"} | ({self._settings.origin} if self._settings.origin else set())
        return origin.casefold() in allowed


class BodyTooLongError(Exception):
    """More bytes came than a request may have."""


def _under_prefix(scope: Scope, prefix: str) -> Scope:
    """The scope as behind a reverse proxy, whether that strips the prefix or not."""
    if not prefix:
        return scope
    path = scope["path"]
    if path == prefix:
        # As people type it; the home page ends in a slash.
        path = prefix + "/"
    elif not path.startswith(prefix + "/"):
        path = prefix + path
    return {**scope, "path": path, "raw_path": path.encode(), "root_path": prefix}


def _with_headers(send: Send, scope: Scope) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Any = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
