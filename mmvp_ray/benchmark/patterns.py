"""The nine visual patterns of the paper: one canonical name each, what it means, and how every source spells it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """One visual pattern that CLIP models struggle with.

    Attributes:
        name: The canonical name: that of the paper's section 3.1 and its appendix.
        definition: What a question must be about to show it (after the paper's appendix).
        mmvp_vlm_type: What MMVP-VLM's Type column says, which is also the name of the folder of its images.
        aliases: Further spellings, each with where it is used.
    """

    name: str
    definition: str
    mmvp_vlm_type: str
    aliases: tuple[str, ...] = ()


NINE: Final = (
    Pattern(
        name="Orientation and Direction",
        definition="Which way something faces, points or moves, such as the side that an animal looks to.",
        mmvp_vlm_type="Orientation",
    ),
    Pattern(
        name="Presence of Specific Features",
        definition="Whether a certain thing or feature is in the picture at all.",
        mmvp_vlm_type="Presence",
    ),
    Pattern(
        name="State and Condition",
        definition="What state something is in: a flag that blows, ground that is wet, a door that is open.",
        mmvp_vlm_type="State",
    ),
    Pattern(
        name="Quantity and Count",
        definition="How many objects or features there are.",
        mmvp_vlm_type="Quantity",
    ),
    Pattern(
        name="Positional and Relational Context",
        definition="Where things stand in relation to each other and to their surroundings.",
        mmvp_vlm_type="Spatial",
        aliases=("Positional",),
    ),
    Pattern(
        name="Color and Appearance",
        definition="What colour something has.",
        mmvp_vlm_type="Color",
        aliases=("Colour", "Colour and Appearance"),
    ),
    Pattern(
        name="Structural and Physical Characteristics",
        definition="How something is built or shaped, and what it is made of.",
        mmvp_vlm_type="Structural Character",
        # The first is what the released scripts/evaluate_vlm.py calls it.
        aliases=("Structural Characteristics", "Structure"),
    ),
    Pattern(
        name="Text",
        definition="What letters, digits or symbols the picture shows.",
        mmvp_vlm_type="Text",
        # As in the released scripts/evaluate_vlm.py.
        aliases=("Texts",),
    ),
    Pattern(
        name="Viewpoint and Perspective",
        definition="From where the picture was taken.",
        mmvp_vlm_type="Camera Perspective",
        aliases=("Viewpoint", "Perspective", "Camera"),
    ),
)
"""The nine in the paper's order. Sources: paper, section 3.1 and appendix; MMVP-VLM's Questions.csv and README; scripts/evaluate_vlm.py
of tsb0601/MMVP at 7635005."""

PATTERNS: Final = tuple(pattern.name for pattern in NINE)
"""Canonical names in the paper's order."""

MMVP_VLM_TYPES: Final = {pattern.name: pattern.mmvp_vlm_type for pattern in NINE}
"""Canonical name -> what MMVP-VLM calls it."""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold().replace("&", " and ")).strip()


_BY_PLAIN: Final = {
    _plain(spelling): pattern
    for pattern in NINE
    for spelling in (pattern.name, pattern.mmvp_vlm_type, *pattern.aliases)
}


def find_pattern(name: str) -> Pattern | None:
    """The pattern of this name in any source's spelling; case, underscores, hyphens and white space do not matter. None if there is none."""
    return _BY_PLAIN.get(_plain(name))


def canonical(name: str) -> str:
    """The canonical name of a pattern given in any source's spelling, such as "Camera_Perspective".

    Raises:
        ConfigError: no source calls a pattern so.
    """
    found = find_pattern(name)
    if found is None:
        raise ConfigError(
            f"expected one of the nine visual patterns, {', '.join(PATTERNS)} (or MMVP-VLM's "
            f"{', '.join(MMVP_VLM_TYPES.values())}), found {name!r}"
        )
    return found.name
