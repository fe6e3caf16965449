"""report.html: the numbers of report.json, no script, no network, and hostile text as mere text."""

from __future__ import annotations

import dataclasses
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.report.data import BlindnessCell, HubCard, MiningReport
from mmvp_ray.report.html import MAX_GALLERY_PAIRS, render_html
from mmvp_ray.report.search_view import audit_view
from mmvp_ray.report.thumbnails import thumbnail

_example = runpy.run_path(str(Path(__file__).with_name("test_report_example.py")))
example_report, zero_pairs_report = (
    _example["example_report"],
    _example["zero_pairs_report"],
)
_page = runpy.run_path(str(Path(__file__).with_name("test_report_page.py")))
Page, assert_needs_nothing = _page["Page"], _page["assert_needs_nothing"]


REPORT = example_report(num_pairs=MAX_GALLERY_PAIRS + 5)
PICTURE = thumbnail(np.full((8, 8, 3), 200, dtype=np.uint8))
HTML = render_html(REPORT, {REPORT.pairs[0].image_id_a: PICTURE})
PAGE = Page(HTML)


def test_the_tiles_hold_the_numbers_of_the_twin():
    twin = MiningReport.from_json(REPORT.to_json())
    assert PAGE.by_id("tile-images")["values"] == [repr(twin.funnel_count("embedded"))]
    assert PAGE.by_id("tile-near")["values"] == [repr(twin.blindness.num_near), repr(twin.audit.recall)]
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
@pytest.mark.parametrize(
    ("num_kept", "num_hubs", "said"),
    [
        (100, 423, "the first 40 of 423; the store's table hubs has all"),
        (60, 60, "the first 40 of 60; report.json has all"),
        (60, None, "the first 40 of 60; report.json has all"),
        (2, 2, "unusually many others."),
    ],
)
def test_the_table_of_hubs_says_how_many_there_are(num_kept, num_hubs, said):
    hubs = [HubCard(image_id=f"{number:032x}", degree=9000 - number) for number in range(num_kept)]
    page = Page(render_html(dataclasses.replace(REPORT, hubs=hubs, num_hubs=num_hubs), {}))
    assert said in page.by_id("hubs-table")["text"]


@pytest.mark.usefixtures("without_figures")
def test_every_cell_of_the_sensitivity_is_there_and_the_runs_own_is_marked():
    def own_cells(page):
        return [cell for cell in page.classed("own") if page.by_id("sensitivity-table") in cell["inside"]]

    own = own_cells(PAGE)
    assert [cell["values"] for cell in own] == [[repr(REPORT.blindness.num_blind)]]
    moved = dataclasses.replace(REPORT, rule=dataclasses.replace(REPORT.rule, near_above=0.9512))
    page = Page(render_html(moved, {}))
    assert not own_cells(page)
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


def test_the_page_needs_nothing_but_itself():
    assert_needs_nothing(PAGE)
    (policy,) = (each for each in PAGE.elements if each["attrs"].get("http-equiv") == "Content-Security-Policy")
    assert policy["attrs"]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text_of(page: Page, name: str) -> str:
    """The text of the section with a heading, in one line."""
    return " ".join(page.by_id(name)["inside"][-1]["text"].split())


def test_the_search_section_says_what_was_compared_and_how_much_of_it_was_found():
    engine, audit = REPORT.engine, REPORT.audit
    section = PAGE.by_id("search")["inside"][-1]
    assert section["values"][:3] == [
        repr(engine.num_compared),
        repr(engine.num_images),
        repr(engine.share_of_all_pairs),
    ]
    assert PAGE.by_id("engine-facts")["values"] == [repr(engine.facts["delta"]), repr(engine.facts["num_cells"])]
    assert "cells43" in " ".join(PAGE.by_id("engine-facts")["text"].split())
    assert PAGE.by_id("audit-recall")["values"] == [repr(audit.recall), repr(audit.low), repr(audit.high)]
    text = text_of(PAGE, "search")
    assert "1,000 images drawn at random were compared with all 4,190 images" in text
    assert "6,204 true near pairs (cosine above 0.93), and the engine had found 6,203 of them." in text
    assert "99.984 % recall 95 % interval 99.909 % to 99.997 % target 99.9 %" in text
    assert "That bears out the target of 99.9 %." in text
    assert not PAGE.classed("notice")[1:], "no warning where the audit bears out its target"


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("num_missed", "num_true_pairs", "warning"),
    [
        (0, 0, "The recall is not known."),
        (
            0,
            812,
            "812 true pairs, worth 812 independent ones, do not support a recall of 99.9 %: without a miss, at least 3,838 would be needed.",
        ),
        (40, 4_812, "The whole interval lies below the target of 99.9 %."),
    ],
)
def test_an_audit_that_supports_nothing_warns_and_says_why(num_missed, num_true_pairs, warning):
    audit = _example["example_audit"](num_missed=num_missed, num_true_pairs=num_true_pairs)
    page = Page(render_html(dataclasses.replace(REPORT, audit=audit, engine=None), {}))
    assert warning in " ".join(page.by_id("audit-warning")["text"].split())
    assert bool(page.classed("ruler")) is (num_true_pairs > 0)
    if num_true_pairs == 812:
        assert "the engine had found all 812 of them" in text_of(page, "search")


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_found_its_pairs_in_the_store_compared_none():
    engine = dataclasses.replace(REPORT.engine, num_compared=0, share_of_all_pairs=0.0, facts={"built_on": None})
    page = Page(render_html(dataclasses.replace(REPORT, engine=engine), {}))
    assert "engine had found the near pairs of these 4,190 images before; this run compared none anew." in text_of(
        page, "search"
    )
    assert "engine-facts" not in {each["attrs"].get("id") for each in page.elements}


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("num_missed", "low"), [(6, 0.9973), (4, 0.9979)])
def test_an_interval_on_both_sides_of_the_target_is_no_warning_and_no_support(num_missed, low):
    audit = _example["example_audit"](num_missed=num_missed, num_true_pairs=4_812)
    assert audit.low == pytest.approx(low, abs=1e-4) and audit.is_supported
    page = Page(render_html(dataclasses.replace(REPORT, audit=audit), {}))
    assert "The target of 99.9 % lies within the interval: it is neither borne out nor refuted." in text_of(
        page, "search"
    )
    assert "audit-warning" not in {each["attrs"].get("id") for each in page.elements}


@pytest.mark.usefixtures("without_figures")
def test_the_ruler_holds_interval_recall_and_target_in_their_order():
    for num_missed in (0, 1, 40, 2_000, 4_812):
        audit = _example["example_audit"](num_missed=num_missed, num_true_pairs=4_812)
        view = audit_view(audit)
        low, recall, target = (float(view[name]) for name in ("low", "recall", "target"))
        high = low + float(view["width"])
        assert view["start"] < min(audit.low, audit.target_recall) or audit.low == view["start"] == 0
        assert 0 <= low <= recall <= high <= 100.001
        assert recall == pytest.approx(100 * (audit.recall - view["start"]) / (1 - view["start"]), abs=0.01)
        assert target == pytest.approx(100 * (0.999 - view["start"]) / (1 - view["start"]), abs=0.01)


def test_the_matrix_has_a_cell_for_every_two_encoders_and_none_on_its_diagonal():
    rows = [row for row in PAGE.rows("matrix-table") if row]
    names = list(dict.fromkeys(cell.near for cell in REPORT.matrix))
    placed = {(cell.near, cell.far): cell for cell in REPORT.matrix}
    below = {cell.far: cell.far_below for cell in REPORT.matrix}
    assert rows[0] == [repr(below[name]) for name in names]
    for near, row in zip(names, rows[1:], strict=True):
        cells = [placed[near, far] for far in names if far != near]
        values = [(c.fraction, c.low, c.high, c.num_blind, c.num_near) for c in cells]
        assert row == [repr(cells[0].near_above), *(repr(value) for cell in values for value in cell)]
    blanks = PAGE.classed("blank")
    assert [blank["text"] for blank in blanks] == ["itself"] * len(names)
    (own,) = (cell for cell in PAGE.classed("own") if PAGE.by_id("matrix-table") in cell["inside"])
    assert own["values"][3:] == [repr(REPORT.blindness.num_blind), repr(REPORT.blindness.num_near)]


@pytest.mark.usefixtures("without_figures")
def test_a_matrix_of_few_rows_many_columns_and_own_thresholds():
    def cell(near, far, **more):
        given = {"near_above": 0.95, "far_below": 0.6, "num_near": 10, "num_blind": 4} | more
        return BlindnessCell.of(near=near, far=far, **given)

    cells = [cell("n", "f"), cell("n", "g", far_below=0.5), cell("m", "g", num_near=0, num_blind=0), cell("m", "n")]
    page = Page(render_html(dataclasses.replace(REPORT, matrix=cells), {}))
    # "n" has a row, so that its column stands first: an encoder meets itself on the diagonal.
    header = [
        each["text"] for each in page.elements if each["tag"] == "bdi" and page.by_id("matrix-table") in each["inside"]
    ]
    assert header == ["n", "f", "g", "n", "m"]
    text = " ".join(page.by_id("matrix-table")["text"].split())
    assert "no near pair" in text and "not measured" in text and "outlined" not in text
    assert text.count("near > 0.95, far <") == len(cells), "thresholds that differ in a column stand in the cells"
    steps = [re.search(r"ramp-(\d)", each["attrs"].get("class") or "") for each in page.elements if each["tag"] == "td"]
    assert {step[1] for step in steps if step} >= {"8"}


@pytest.mark.usefixtures("without_figures")
def test_what_an_older_run_does_not_know_is_not_shown():
    older = dataclasses.replace(REPORT, engine=None, audit=None, matrix=REPORT.matrix[:1], diff_href=None)
    page = Page(render_html(older, {}))
    ids = {each["attrs"].get("id") for each in page.elements}
    assert not ids & {"search", "audit", "matrix", "matrix-table"}
    assert not [each for each in page.elements if each["tag"] == "a"]


def test_the_link_to_the_comparison():
    (link,) = (each for each in PAGE.elements if each["tag"] == "a")
    assert link["attrs"] == {"href": "diff.html"}


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
