"""Templates: one environment, links under the app's prefix, texts of strangers made harmless and readable."""

from __future__ import annotations

import datetime
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse

from mmvp_ray.report.hostile_text import shown_text

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"
SMALL_PX: Final = 400
"""Images up to this side are enlarged without smoothing: single pixels are what differs."""


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template.

    Args:
        request: For the prefix of links and the user of the header (request.state.user, if there is one).
        template: Its file name.
        status: Of HTTP.
        **values: What it shows; every text is escaped.
    """
    prefix = prefix_of(request)

    def url(path: str) -> str:
        return f"{prefix}{path}"

    def static(name: str) -> str:
        return f"{prefix}/static/{name}?v={_version(name)}"

    user = getattr(request.state, "user", None)
    html = _environment().get_template(template).render(url=url, static=static, user=user, **values)
    return HTMLResponse(html, status)


def prefix_of(request: Request) -> str:
    """What every link of the app begins with: the path of --public-url, or where another app has mounted this one."""
    # Below a mount of its own, such as /static, root_path goes on with that mount's path.
    found: str = request.scope.get("app_root_path", request.scope.get("root_path", ""))
    return found


def see_other(request: Request, path: str) -> RedirectResponse:
    """Lead a browser that sent a form to a page of this app."""
    return RedirectResponse(f"{prefix_of(request)}{path}", 303)


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["SMALL_PX"] = SMALL_PX
    environment.filters.update(shown=shown_text, date=_date, cosine=lambda value: f"{value:.3f}", percent=_percent)
    return environment


@lru_cache
def _version(name: str) -> str:
    """Changes with the file, which browsers may therefore keep for good."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _percent(fraction: float | None) -> str:
    return "none yet" if fraction is None else f"{100 * fraction:.1f} %"
