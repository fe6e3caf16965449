"""What every page is made with: one template environment, one style sheet, pictures within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmvp_ray.report import numerals
from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.thumbnails import data_uri

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
# Base64 makes 4 bytes of 3: pictures take at most 4 MB of a page that stays below 5 MB.
MAX_PICTURE_BYTES = 3_000_000
# A long name may be broken after one of these, and only there.
_JOINTS = "/:_-.@"


class ShowsTwoImages(Protocol):
    """A card with two pictures."""

    @property
    def image_id_a(self) -> str: ...

    @property
    def image_id_b(self) -> str: ...


def render_page(template: str, **values: Any) -> str:
    """Return a page from one of the package's templates; every text is escaped unless it is Markup.

    Args:
        template: name of the template.
        **values: what it shows; the style sheet (``css``), ``track`` and the filters are there already.
    """
    from markupsafe import Markup

    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render(css=Markup(css), track=_track, **values)  # noqa: S704  the package's own file


def pictures_within_budget(
    cards: Sequence[ShowsTwoImages], thumbnails: Mapping[str, bytes]
) -> dict[tuple[int, str], str]:
    """Return (position of the card, side) -> data URI, in order of the page until its budget is spent.

    Raises:
        DataError: a thumbnail that is not WebP, JPEG or PNG.
    """
    pictures: dict[tuple[int, str], str] = {}
    num_bytes = 0
    for position, card in enumerate(cards):
        for side, image_id in (("a", card.image_id_a), ("b", card.image_id_b)):
            picture = thumbnails.get(image_id)
            if picture is None or num_bytes + len(picture) > MAX_PICTURE_BYTES:
                continue
            num_bytes += len(picture)
            pictures[position, side] = data_uri(picture)
    return pictures


def shown_date(created_at: str) -> str:
    """Return an ISO 8601 time in UTC to the minute, as a reader wants it."""
    return created_at[:16].replace("T", " ") + " UTC"


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=numerals.count,
        short_count=numerals.short,
        cosine=numerals.cosine,
        threshold=numerals.threshold,
        percent=numerals.percent,
        recall=numerals.recall,
        fact=numerals.fact,
        seconds=numerals.seconds,
        rate=numerals.rate,
        shown=shown_text,
        breakable=_breakable,
        plain_name=_plain_name,
        shown_date=shown_date,
    )
    return environment


def _breakable(text: str, max_chars: int = 80) -> Markup:
    """Return a name as a page shows it, with places where a narrow column may break it."""
    from markupsafe import Markup, escape

    joint = Markup("<wbr>")
    return Markup().join(
        escape(char) + joint if char in _JOINTS else escape(char) for char in shown_text(text, max_chars)
    )


def _plain_name(name: str) -> str:
    """A field's name as words: num_cells is "cells"."""
    return name.removeprefix("num_").removeprefix("is_").replace("_", " ")


def _track(cosine: float) -> str:
    """Place of a cosine on a line from 0 to 1, in percent; negative ones stand at its start."""
    return f"{100 * min(1.0, max(0.0, cosine)):.2f}"
