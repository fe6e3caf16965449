"""A matplotlib figure becomes an inline SVG that takes its colours from the page's CSS; equal figures, equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from mmvp_ray.report.scales import NUM_RAMP_STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib writes colours as hex numbers. Figures are drawn in these near-black ones, which no figure means as
# colours, and each is then replaced by the CSS variable of the same name: one SVG, light and dark.
_ROLES = (
    "ink",
    "muted",
    "line",
    "accent",
    "data",
    *(f"ramp-{step}" for step in range(NUM_RAMP_STEPS)),
)
COLOUR = {role: f"#0000{number:02x}" for number, role in enumerate(_ROLES, start=1)}

_PROLOG = re.compile(r"^.*?(?=<svg\b)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_STYLE_SHEET = re.compile(r"\s*<defs>\s*<style\b.*?</style>\s*</defs>", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_ROOT = re.compile(r"<svg\b[^>]*>")
_VIEW_BOX = re.compile(r'viewBox="([^"]*)"')
_FONT_FAMILY = re.compile(r"font-family: [^;\"]*;? ?")
_NO_ROTATION = re.compile(r' transform="rotate\(-0 [^"]*\)"')
_GROUP_CLASS = re.compile(r'<g id="class-([a-z]+)"')
_GROUP_ID = re.compile(r'<g id="[^"]*"')
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(?:xlink:)?(url\(#|href="#)')


@contextmanager
def drawing() -> Iterator[None]:
    """Give matplotlib its own defaults and reproducible SVG for one figure, whatever the user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "mmvp-ray",
                "svg.fonttype": "none",
                "font.family": "DejaVu Sans",
                "font.size": 9.5,
                "text.parse_math": False,
                "text.color": COLOUR["ink"],
                "axes.edgecolor": COLOUR["line"],
                "axes.facecolor": "none",
                "axes.labelcolor": COLOUR["ink"],
                "axes.linewidth": 0.8,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "figure.facecolor": "none",
                "xtick.color": COLOUR["line"],
                "xtick.labelcolor": COLOUR["muted"],
                "ytick.color": COLOUR["line"],
                "ytick.labelcolor": COLOUR["muted"],
            }
        )
        yield


def inline_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """Return the figure as one ``<svg>`` element for a page that defines the CSS variables --ink, --muted, --line, ...

    Call it inside ``drawing()``. An artist with gid "class-halo" becomes a group of class "halo".

    Args:
        figure: drawn in the colours of ``COLOUR``.
        name: prefix of every id, so that several figures share a page; letters and hyphens.
        title: short name for assistive technology; any text.
        description: what the figure shows, for those who cannot see it; any text.

    Returns:
        SVG text without prolog, scripts, style sheets or references outside itself.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = _PROLOG.sub("", buffer.getvalue(), count=1)
    for pattern in (_METADATA, _STYLE_SHEET, _COMMENT, _FONT_FAMILY, _NO_ROTATION):
        text = pattern.sub("", text)
    text = _GROUP_CLASS.sub(r'<g class="\1"', text)
    text = _GROUP_ID.sub("<g", text)
    text = _ID.sub(rf'id="{name}-\1"', text)
    text = _REFERENCE.sub(rf"\g<1>{name}-", text)
    for role, colour in COLOUR.items():
        text = text.replace(colour, f"var(--{role})")
    view_box = _VIEW_BOX.search(text)
    assert view_box is not None, "matplotlib writes a viewBox"
    root = (
        f'<svg viewBox="{view_box.group(1)}" role="img" aria-labelledby="{name}-title {name}-description" '
        'stroke-linejoin="round">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    )
    return _ROOT.sub(lambda _: root, text, count=1).strip()
