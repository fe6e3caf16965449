"""Everything on the page can be read in both schemes: WCAG 2.2 level AA, 4.5 to 1 for text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmvp_ray.report import html
from mmvp_ray.report.scales import NUM_RAMP_STEPS

_CSS = (Path(html.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
_LIGHT, _DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", _CSS, re.S)
)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [_LIGHT, _DARK], ids=["light", "dark"])
def test_text_stands_out(colours):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    grounds = [("paper", text) for text in ("ink", "muted", "accent")] + [
        ("card", "ink"),
        ("card", "muted"),
        ("well", "muted"),
    ]
    cells = [(f"ramp-{step}", "on-pale" if step <= 4 else "on-deep") for step in range(NUM_RAMP_STEPS)]
    for ground, text in grounds + cells:
        assert contrast(colours[ground], colours[text]) >= 4.5, (ground, text)
    assert contrast(colours["paper"], colours["data"]) >= 3


def test_the_cells_use_the_text_that_was_checked():
    for step in range(NUM_RAMP_STEPS):
        text = "on-pale" if step <= 4 else "on-deep"
        assert f".ramp-{step} {{ background: var(--ramp-{step}); color: var(--{text}); }}" in _CSS
