"""Numbers as a page shows them: short for the eye, and exact in the ``value`` of a ``<data>`` element."""

from __future__ import annotations

import json
import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, SupportsFloat

from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.scales import short_count

if TYPE_CHECKING:
    from markupsafe import Markup

_MINUS = "\N{MINUS SIGN}"
_NOT_MEASURED = "\N{EN DASH}"
MAX_FACT_CHARS = 120


def count(value: int) -> Markup:
    """Return a count with its thousands parted: 12,345."""
    return _data(value, f"{value:,}")


def short(value: int) -> Markup:
    """Return a count in full up to a million, above that to three digits: 304M."""
    return _data(value, f"{value:,}" if value < 1_000_000 else short_count(value))


def cosine(value: float) -> Markup:
    """Return a cosine to four decimals."""
    return _data(value, f"{value:.4f}".replace("-", _MINUS))


def threshold(value: float) -> Markup:
    """Return a threshold to two decimals, up to four where it has them: 0.95, 0.9312."""
    return _data(value, threshold_text(value))


def threshold_text(value: float) -> str:
    """Return a threshold as plain text."""
    return f"{value:.4f}".removesuffix("00").replace("-", _MINUS)


def percent(fraction: float | None) -> Markup:
    """Return a fraction in percent: one decimal, two digits below 1 %, a dash for none; only all is 100 %."""
    if fraction is None:
        return _data(None, _NOT_MEASURED)
    in_percent = 100 * fraction
    if in_percent in (0, 100):
        text = f"{in_percent:.0f}"
    elif in_percent < 0.001:
        text = "<0.001"
    elif in_percent < 1:
        text = f"{in_percent:.2g}"
    else:
        text = f"{in_percent:.1f}" if in_percent < 99.95 else ">99.9"
    return _data(fraction, f"{text}\N{NARROW NO-BREAK SPACE}%")


def recall(fraction: float | None, target: float = 0.999) -> Markup:
    """Return a share that should be almost all in percent, as finely as its target asks for: 99.974 % beside 99.9 %.

    Args:
        fraction: the share; a dash for None. Only all is 100 %.
        target: the share aimed at; three digits of what it leaves out set the decimals of every share beside it.
    """
    if fraction is None or fraction in (0, 1):
        return percent(fraction)
    num_decimals = 2 - math.floor(math.log10(100 * (1 - target))) if target < 1 else 4
    text = f"{100 * fraction:.{num_decimals}f}"
    if float(text) == 100:
        text = f">{100 - 10.0**-num_decimals:.{num_decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return _data(fraction, f"{text}\N{NARROW NO-BREAK SPACE}%")


def fact(value: object) -> Markup:
    """Return a value of unknown kind: counts with their thousands parted, other numbers to four digits, the rest as text."""
    from markupsafe import escape

    if isinstance(value, bool):
        return escape("yes" if value else "no")
    if value is None:
        return escape(_NOT_MEASURED)
    if isinstance(value, Integral):
        return count(int(value))
    if isinstance(value, Real):
        return _data(value, f"{value:.4g}".replace("-", _MINUS))
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return escape(shown_text(text, MAX_FACT_CHARS))


def seconds(value: float) -> Markup:
    """Return a duration: 12.3 s, 2 min 05 s, 3 h 20 min."""
    whole = round(value)
    if value < 59.95:
        text = f"{value:.1f} s"
    elif whole < 3600:
        text = f"{whole // 60} min {whole % 60:02d} s"
    else:
        text = f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
    return _data(value, text)


def rate(value: float | None) -> Markup:
    """Return how many per second, to three digits; a dash where nothing was done."""
    if value is None:
        return _data(None, _NOT_MEASURED)
    rounded = float(f"{value:.3g}")
    return _data(value, f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:.3g}")


def _data(value: SupportsFloat | None, text: str) -> Markup:
    from markupsafe import Markup

    exact = "" if value is None else repr(int(value) if isinstance(value, Integral) else float(value))
    return Markup('<data value="{}">{}</data>').format(exact, text)
