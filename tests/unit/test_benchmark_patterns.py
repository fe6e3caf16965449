"""The nine patterns: names, order, and every spelling that a source uses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.benchmark.patterns import MMVP_VLM_TYPES, NINE, PATTERNS, canonical, find_pattern
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE

MMVP_VLM = [
    "Orientation",
    "Presence",
    "State",
    "Quantity",
    "Spatial",
    "Color",
    "Structural Character",
    "Text",
    "Camera Perspective",
]
"""Values of MMVP-VLM's Type column in its order (paper.md section 3)."""
SCRIPT = [
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
]
"""`categories` of scripts/evaluate_vlm.py, tsb0601/MMVP 7635005, lines 22-28."""


@pytest.mark.parametrize("spellings", [MMVP_VLM, SCRIPT, list(PATTERNS), [name.replace(" ", "_") for name in MMVP_VLM]])
def test_every_source_names_the_nine_in_the_same_order(spellings: list[str]) -> None:
    assert [canonical(name) for name in spellings] == list(PATTERNS)


def test_names_are_those_of_the_miniature_world() -> None:
    assert tuple(PATTERN_BY_ATTRIBUTE.values()) == PATTERNS
    assert list(MMVP_VLM_TYPES.values()) == MMVP_VLM


def test_no_spelling_stands_for_two_patterns() -> None:
    spellings = [name for pattern in NINE for name in {pattern.name, pattern.mmvp_vlm_type, *pattern.aliases}]
    for pattern in NINE:
        for name in (pattern.name, pattern.mmvp_vlm_type, *pattern.aliases):
            assert canonical(name) == pattern.name
    assert len({name.casefold() for name in spellings}) == len(spellings)


@given(st.sampled_from(MMVP_VLM + SCRIPT), st.sampled_from(["_", "-", "  "]), st.booleans())
def test_case_and_separators_do_not_matter(name: str, separator: str, upper: bool) -> None:
    changed = name.replace(" ", separator)
    assert canonical(f" {changed.upper() if upper else changed.lower()} ") == canonical(name)


@pytest.mark.parametrize("name", ["", "Shape", "../Text", "Orientation/..", "Text and more"])
def test_an_unknown_pattern_is_refused_with_the_known_ones(name: str) -> None:
    assert find_pattern(name) is None
    with pytest.raises(ConfigError, match="Viewpoint and Perspective"):
        canonical(name)
