"""What all pages share: pictures within a budget, names that break at their joints; and a reader of pages for the other tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.report import numerals, page, scales

_VOID = {"meta", "link", "img", "br", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Every element with its attributes, its text and the values of the ``<data>`` in it, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[dict] = []
        self.open: list[dict] = []
        self.feed(html)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        element = {
            "tag": tag,
            "attrs": dict(attrs),
            "text": "",
            "values": [],
            "inside": list(self.open),
        }
        self.elements.append(element)
        if tag == "data":
            for each in self.open:
                each["values"].append(attrs[0][1])
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for each in self.open:
            each["text"] += data

    def by_id(self, name: str) -> dict:
        (element,) = (each for each in self.elements if each["attrs"].get("id") == name)
        return element

    def rows(self, table: str) -> list[list[str]]:
        return [each["values"] for each in self.elements if each["tag"] == "tr" and self.by_id(table) in each["inside"]]

    def classed(self, name: str) -> list[dict]:
        return [each for each in self.elements if name in (each["attrs"].get("class") or "").split()]


def assert_needs_nothing(page: Page) -> None:
    """No script, nothing from elsewhere; a link leads to a page beside this one and nowhere else."""
    for element in page.elements:
        assert element["tag"] not in {
            "script",
            "iframe",
            "object",
            "embed",
            "form",
            "base",
            "video",
            "audio",
        }
        for name, value in element["attrs"].items():
            assert not name.startswith("on"), (element["tag"], name)
            if element["tag"] == "a" and name == "href":
                assert value in ("diff.html", "report.html"), value
            elif name in {
                "src",
                "href",
                "xlink:href",
                "srcset",
                "action",
                "data",
                "poster",
            }:
                assert value.startswith(("data:", "#")), (
                    element["tag"],
                    name,
                    value[:60],
                )
            if name == "style" or name == "clip-path":
                assert "url(" not in value.replace("url(#", ""), value
        if element["tag"] == "style":
            assert "url(" not in element["text"] and "@import" not in element["text"]


@dataclass(frozen=True)
class Card:
    image_id_a: str
    image_id_b: str


def test_pictures_are_put_in_until_the_budget_is_spent(monkeypatch):
    picture = b"\x89PNG\r\n\x1a\n" + bytes(92)
    monkeypatch.setattr(page, "MAX_PICTURE_BYTES", 250)
    cards = [Card("a", "b"), Card("c", "a"), Card("d", "e")]
    found = page.pictures_within_budget(cards, dict.fromkeys("abd", picture))
    assert list(found) == [(0, "a"), (0, "b")]
    assert all(uri.startswith("data:image/png;base64,") for uri in found.values())


def test_a_name_breaks_at_its_joints_and_stays_text():
    shown = str(page._breakable("hf:a/<b>-c_d.e"))
    assert shown == "hf:<wbr>a/<wbr>&lt;b&gt;-<wbr>c_<wbr>d.<wbr>e"
    assert len(re.sub("<wbr>", "", str(page._breakable("x" * 200)))) == 80


@pytest.mark.parametrize(
    ("share", "target", "shown"),
    [
        (0.99983881, 0.999, "99.984"),
        (1.0, 0.999, "100"),
        (0.0, 0.999, "0"),
        (0.9999999, 0.999, ">99.999"),
        (0.98, 0.99, "98"),
        (0.98765, 0.99, "98.77"),
        (0.123456, 0.999, "12.346"),
        (0.9999, 1.0, "99.99"),
    ],
)
def test_a_recall_is_as_fine_as_its_target(share, target, shown):
    assert f">{shown}\u202f%<".replace(">>", ">&gt;") in str(numerals.recall(share, target))
    assert f'value="{share!r}"' in str(numerals.recall(share, target))


def test_a_recall_that_was_not_measured_is_a_dash():
    assert str(numerals.recall(None)) == '<data value="">\u2013</data>'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "yes"),
        (None, "\u2013"),
        (12_345, '<data value="12345">12,345</data>'),
        (-0.09315, '<data value="-0.09315">\u22120.09315</data>'),
        ("<b>", "&lt;b&gt;"),
        ([1, "<"], "[1, &#34;&lt;&#34;]"),
        ("x" * 500, "x" * 119 + "\u2026"),
    ],
)
def test_a_fact_of_any_kind_is_shown_and_inert(value, shown):
    assert str(numerals.fact(value)) == shown


@given(st.floats(1e-12, 1e12))
def test_rounding_up_leaves_one_digit_and_never_goes_below(value):
    up = scales.round_up(value)
    assert value * (1 - 1e-8) <= up <= 2 * value * (1 + 1e-8)
    assert f"{up:e}".rstrip("0").split("e")[0].rstrip("0").rstrip(".").isdigit()


def test_steps_of_shares_span_the_ramp():
    last = scales.NUM_RAMP_STEPS - 1
    assert [scales.step_of_share(share, 0.2) for share in (0.0, 0.1, 0.2)] == [0, last // 2, last]
    assert scales.step_of_share(0.0, 0.0) == 0
