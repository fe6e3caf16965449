"""The nine visual patterns of the paper, and which attribute of the miniature world switches each of them."""

from __future__ import annotations

from typing import Final

PATTERN_BY_ATTRIBUTE: Final[dict[str, str]] = {
    "direction": "Orientation and Direction",
    "hat": "Presence of Specific Features",
    "state": "State and Condition",
    "count": "Quantity and Count",
    "ball": "Positional and Relational Context",
    "colour": "Color and Appearance",
    "surface": "Structural and Physical Characteristics",
    "text": "Text",
    "view": "Viewpoint and Perspective",
}
"""Field of `Attributes` -> name of the pattern, in the paper's order. Source: paper, section 3.1."""

PATTERNS: Final[tuple[str, ...]] = tuple(PATTERN_BY_ATTRIBUTE.values())
"""The nine patterns in the paper's order."""
