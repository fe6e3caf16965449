"""report.html: the numbers of report.json, no script, no network, and hostile text as mere text."""

from __future__ import annotations

import dataclasses
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.report.data import MiningReport
from mmvp_ray.report.html import MAX_GALLERY_PAIRS, render_html
from mmvp_ray.report.thumbnails import thumbnail

_example = runpy.run_path(str(Path(__file__).with_name("test_report_example.py")))
example_report, zero_pairs_report = (
    _example["example_report"],
    _example["zero_pairs_report"],
)
_VOID = {"meta", "link", "img", "br", "input", "hr"}


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


REPORT = example_report(num_pairs=MAX_GALLERY_PAIRS + 5)
PICTURE = thumbnail(np.full((8, 8, 3), 200, dtype=np.uint8))
HTML = render_html(REPORT, {REPORT.pairs[0].image_id_a: PICTURE})
PAGE = Page(HTML)


def test_the_tiles_hold_the_numbers_of_the_twin():
    twin = MiningReport.from_json(REPORT.to_json())
    assert PAGE.by_id("tile-images")["values"] == [repr(twin.funnel_count("embedded"))]
    assert PAGE.by_id("tile-near")["values"] == [repr(twin.blindness.num_near)]
    assert PAGE.by_id("tile-blind")["values"] == [repr(twin.blindness.num_blind)]
    blindness = twin.blindness
    assert PAGE.by_id("tile-blindness")["values"] == [
        repr(each) for each in (blindness.fraction, blindness.low, blindness.high)
    ]
    assert PAGE.by_id("tile-selected")["values"] == [repr(twin.funnel_count("selected"))]


def test_the_tables_hold_the_numbers_of_the_twin():
    twin = MiningReport.from_json(REPORT.to_json())
    funnel = [row for row in PAGE.rows("funnel-table") if row]
    assert [row[0] for row in funnel] == [repr(step.count) for step in twin.funnel]
    assert [float(row[1]) for row in funnel if len(row) > 1] == [
        step.count / twin.funnel_count("read" if step.unit == "images" else "near")
        for step in twin.funnel
        if step.stage not in ("read", "near")
    ]
    grid = twin.sensitivity
    heat = [row for row in PAGE.rows("sensitivity-table") if row]
    assert heat[0] == [repr(far) for far in grid.far_thresholds]
    assert heat[1:] == [
        [repr(near), *map(repr, row)] for near, row in zip(grid.near_thresholds, grid.counts, strict=True)
    ]
    assert [row[0] for row in PAGE.rows("rejects-table") if row] == [repr(each.count) for each in twin.rejects]
    assert [row[0] for row in PAGE.rows("hubs-table") if row] == [repr(each.degree) for each in twin.hubs]
    assert [row for row in PAGE.rows("throughput-table") if row] == [
        [repr(each.count), repr(each.seconds), repr(each.per_second)] for each in twin.throughput
    ]
    quantiles = [row[0] for row in PAGE.rows("quantiles-far") if row]
    assert quantiles == [repr(each) for each in twin.random.far_quantiles.values()]
    rule = twin.rule
    assert [row[0] for row in PAGE.rows("rule-table") if row] == [
        repr(rule.near_above),
        repr(rule.far_below),
        repr(rule.floor),
    ]


@pytest.mark.usefixtures("without_figures")
def test_every_cell_of_the_sensitivity_is_there_and_the_runs_own_is_marked():
    own = PAGE.classed("own")
    assert [cell["values"] for cell in own] == [[repr(REPORT.blindness.num_blind)]]
    moved = dataclasses.replace(REPORT, rule=dataclasses.replace(REPORT.rule, near_above=0.9512))
    page = Page(render_html(moved, {}))
    assert not page.classed("own")
    assert "0.9512 and 0.60, are not among them" in page.by_id("sensitivity-table")["text"]


def test_the_gallery_shows_the_first_pairs_and_counts_the_rest():
    cards = [card for card in PAGE.classed("pair") if not any(each["tag"] == "details" for each in card["inside"])]
    assert len(cards) == MAX_GALLERY_PAIRS
    for card, pair in zip(cards, REPORT.pairs, strict=False):
        assert card["values"][:2] == [repr(pair.cos_near), repr(pair.cos_far)]
        assert pair.caption_a in card["text"] and pair.member_b in card["text"] and pair.uri_a in card["text"]
    text = " ".join(PAGE.by_id("gallery")["inside"][-1]["text"].split())
    assert "The first 60 of 100 selected pairs, by rank; the other 40 are in pairs.parquet." in text
    images = [each for each in PAGE.elements if each["tag"] == "img"]
    assert len(images) == 1 and images[0]["attrs"]["alt"].startswith("pair 1, image a: a photo of")
    num_misses = len(REPORT.nearest_misses)
    assert len(PAGE.classed("no-picture")) == 2 * (MAX_GALLERY_PAIRS + num_misses) - 1


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes most of a page's time; tests of other things leave it out."""
    monkeypatch.setattr("mmvp_ray.report.figures.hexbin_svg", lambda report: None)
    monkeypatch.setattr("mmvp_ray.report.figures.random_pairs_svg", lambda report, role: None)


def assert_needs_nothing(page: Page) -> None:
    for element in page.elements:
        assert element["tag"] not in {
            "script",
            "iframe",
            "object",
            "embed",
            "form",
            "base",
            "a",
            "video",
            "audio",
        }
        for name, value in element["attrs"].items():
            assert not name.startswith("on"), (element["tag"], name)
            if name in {
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


def test_the_page_needs_nothing_but_itself():
    assert_needs_nothing(PAGE)
    (policy,) = (each for each in PAGE.elements if each["attrs"].get("http-equiv") == "Content-Security-Policy")
    assert policy["attrs"]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_text_is_inert():
    html = render_html(example_report(hostile=True), {})
    page = Page(html)
    assert_needs_nothing(page)
    assert "&lt;script&gt;alert(1)" in html
    assert "{{ 7*7 }}" in page.by_id("gallery")["inside"][-1]["text"]
    assert not set(html) & set("\u202e\x00\x1b\ud800")
    assert "\\u202egnp.exe" in html
    assert html.encode("utf-8")
    assert {each["tag"] for each in page.elements} == {each["tag"] for each in PAGE.elements} - {"img"}


def test_the_page_is_well_made():
    levels = [int(each["tag"][1]) for each in PAGE.elements if re.fullmatch("h[1-6]", each["tag"])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(following - level <= 1 for level, following in pairwise(levels))
    ids = [each["attrs"]["id"] for each in PAGE.elements if "id" in each["attrs"]]
    assert len(ids) == len(set(ids))
    for element in PAGE.elements:
        for reference in (element["attrs"].get("aria-labelledby") or "").split():
            assert reference in ids
        if element["tag"] == "img":
            assert element["attrs"]["alt"]
        if element["tag"] == "table":
            assert any(each["tag"] == "caption" and element in each["inside"] for each in PAGE.elements)


def test_equal_input_gives_equal_bytes():
    thumbnails = {REPORT.pairs[0].image_id_a: PICTURE}
    assert render_html(MiningReport.from_json(REPORT.to_json()), thumbnails) == HTML


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("stand_in", [True, False])
def test_only_the_papers_encoders_find_clip_blind_pairs(stand_in):
    html = render_html(example_report(num_pairs=3, stand_in=stand_in), {})
    assert ("CLIP-blind" in html) is not stand_in
    text = " ".join(Page(html).classed("lead")[0]["text"].split())
    if stand_in:
        assert text.startswith("Blind pairs of miniature:clip seen by miniature:dino:")
    else:
        assert text.startswith("CLIP-blind pairs of open_clip:ViT-L-14/openai seen by hf:facebook/dinov2-large:")


def test_nothing_found_is_a_page_too():
    report = zero_pairs_report()
    page = Page(render_html(report, {}))
    text = "".join(each["text"] for each in page.elements if each["tag"] == "main")
    assert "No pair met both thresholds" in text and "That is a valid result" in text
    assert "No pair has a near cosine above the floor" in text
    assert report.advice[0] in text
    assert page.by_id("tile-blindness")["values"] == [""]
    assert not page.classed("pair") and not page.classed("bar")[4:]


@pytest.mark.usefixtures("without_figures")
def test_nearest_misses_stand_open_when_nothing_is_blind():
    report = zero_pairs_report(any_near=True)
    page = Page(render_html(report, {}))
    assert page.by_id("misses")["text"] == "The nearest misses"
    assert len(page.classed("pair")) == len(report.nearest_misses)
    assert page.by_id("tile-blindness")["values"][0] == "0.0"


@pytest.mark.usefixtures("without_figures")
def test_blind_pairs_of_which_none_was_selected():
    report = example_report()
    funnel = [dataclasses.replace(each, count=0) if each.stage == "selected" else each for each in report.funnel]
    text = Page(render_html(dataclasses.replace(report, funnel=funnel, pairs=[]), {})).elements[0]["text"]
    assert "No blind pair was selected" in " ".join(text.split())


@pytest.mark.usefixtures("without_figures")
def test_pictures_never_make_a_page_of_more_than_5_mb():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    picture = thumbnail(noise)
    pictures = {image_id: picture for pair in REPORT.pairs for image_id in (pair.image_id_a, pair.image_id_b)}
    assert len(picture) * len(pictures) > 3_000_000, "the example must be large enough to be cut"
    html = render_html(REPORT, pictures)
    assert len(html.encode()) < 5_000_000
    assert "no picture" in html and html.count("data:image/webp") > 20


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys, mmvp_ray.report.html, mmvp_ray.report.thumbnails;"
        "print(sorted({'matplotlib', 'jinja2', 'torch', 'ray', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
