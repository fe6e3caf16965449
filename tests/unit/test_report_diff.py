"""The comparison of two runs: diff.json comes back as it went, diff.html shows its numbers, and hostile text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.errors import DataError
from mmvp_ray.report.diff_data import CHANGES, ChangedPair, RunCard, RunDiff
from mmvp_ray.report.diff_figure import WORDS, flow_svg, spread
from mmvp_ray.report.diff_html import GALLERIES, render_diff_html
from mmvp_ray.report.thumbnails import thumbnail

_here = Path(__file__)
_example = runpy.run_path(str(_here.with_name("test_report_example.py")))
_page = runpy.run_path(str(_here.with_name("test_report_page.py")))
Page, assert_needs_nothing = _page["Page"], _page["assert_needs_nothing"]
HOSTILE = _example["HOSTILE"]


def example_diff(*, hostile: bool = False, num_examples: int = 12, **counts: int) -> RunDiff:
    """A run with another far encoder and one corpus more, against the example report."""
    numbers = {"still_blind": 4_103, "fixed": 2_570, "gone": 22, "new_blind": 611, "new_images": 1_240, **counts}
    num_old = numbers["still_blind"] + numbers["fixed"] + numbers["gone"]
    num_new = numbers["still_blind"] + numbers["new_blind"] + numbers["new_images"]
    report = dataclasses.replace(_example["example_report"](hostile=hostile), funnel=[], matrix=[])
    blindness = type(report.blindness)
    earlier = dataclasses.replace(report, blindness=blindness.of(num_blind=num_old, num_near=37_301 if num_old else 0))
    later = dataclasses.replace(
        report,
        created_at="2026-12-01T07:30:00Z",
        far=dataclasses.replace(report.far, name="miniature:dino-b", fingerprint="00ff00ff00ff00ff"),
        corpora=[
            *report.corpora,
            dataclasses.replace(report.corpora[0], name=HOSTILE if hostile else "more", num_images=812),
        ],
        blindness=blindness.of(num_blind=num_new, num_near=41_002),
    )
    examples = {
        change: [_changed(rank, change, hostile) for rank in range(1, min(num_examples, numbers[change]) + 1)]
        for change in GALLERIES
    }
    return RunDiff(
        old=RunCard.of("s3://bucket/runs/2026-11", earlier),
        new=RunCard.of(HOSTILE if hostile else "/data/runs/2026-12", later),
        **{f"num_{change}": count for change, count in numbers.items()},
        examples=examples,
        notes=[
            HOSTILE if hostile else "The far encoder changed: a pair may be fixed or newly blind because of it alone."
        ],
    )


def _changed(rank: int, change: str, hostile: bool) -> ChangedPair:
    pair = _example["_pair"](rank, 0.97 - rank / 1_000, 0.2 + rank / 50, hostile, 5_000 + 1_000 * CHANGES.index(change))
    texts = {
        f"{name}_{side}": getattr(pair, f"{name}_{side}")
        for name in ("uri", "member", "caption", "label", "url", "license")
        for side in ("a", "b")
    }
    near, far = pair.cos_near, pair.cos_far
    return ChangedPair(
        rank=rank,
        image_id_a=pair.image_id_a,
        image_id_b=pair.image_id_b,
        cos_near_old=None if change == "new_images" else near,
        cos_far_old=None if change == "new_images" else far + (0.45 if change == "new_blind" else 0.0),
        cos_near_new=None if rank == 3 and change == "fixed" else near,
        cos_far_new=None if rank == 3 and change == "fixed" else far + (0.45 if change == "fixed" else -0.01),
        **texts,
    )


def diff_pictures(diff: RunDiff) -> dict[str, bytes]:
    """A picture for every image of the examples."""
    pairs = [card for cards in diff.examples.values() for card in cards]
    drawn = _example["example_pictures"](type("Cards", (), {"pairs": pairs, "nearest_misses": []}))
    return {name: thumbnail(picture) for name, picture in drawn.items()}


DIFF = example_diff()
PICTURES = diff_pictures(DIFF)
HTML = render_diff_html(DIFF, PICTURES)
PAGE = Page(HTML)
EMPTY = dict.fromkeys(CHANGES, 0)


@pytest.mark.parametrize(
    "diff", [DIFF, example_diff(hostile=True), example_diff(**EMPTY)], ids=["full", "hostile", "nothing"]
)
def test_json_round_trip_is_exact_and_stable(diff):
    text = diff.to_json()
    assert RunDiff.from_json(text) == diff
    assert RunDiff.from_json(text).to_json() == text
    assert text.isascii() and text.endswith("}\n")


def test_the_counts_are_those_of_the_runs():
    with pytest.raises(DataError, match=r"expected 6695 blind pairs of the old run, as its report says, found 6696"):
        dataclasses.replace(DIFF, num_fixed=DIFF.num_fixed + 1)
    with pytest.raises(DataError, match=r"blind pairs of the new run"):
        dataclasses.replace(DIFF, num_new_images=0)
    with pytest.raises(DataError, match="expected schema_version 1, found 2"):
        RunDiff.from_json(json.dumps(json.loads(DIFF.to_json()) | {"schema_version": 2}))


def test_a_pair_that_is_gone_is_not_shown_again():
    with pytest.raises(DataError, match=r"expected examples of .* found \['gone'\]"):
        dataclasses.replace(DIFF, examples={"gone": DIFF.examples["fixed"]})


def test_the_table_of_changes_holds_the_counts_and_shares():
    old, new = DIFF.old.blindness.num_blind, DIFF.new.blindness.num_blind
    rows = [row for row in PAGE.rows("changes-table") if row]
    expected = [(DIFF.count(change), old) for change in ("fixed", "gone", "still_blind")]
    expected += [(DIFF.count(change), new) for change in ("still_blind", "new_blind", "new_images")]
    assert rows == [[repr(count), repr(count / of)] for count, of in expected]
    assert PAGE.classed("lead")[0]["values"] == [
        repr(each) for each in (old, DIFF.num_fixed, DIFF.num_still_blind, DIFF.num_gone, 1_851, new)
    ]


def test_the_table_of_the_runs_marks_what_was_set_otherwise():
    assert [each["inside"][-1]["text"] for each in PAGE.classed("differs")] == [
        "far encoder changed",
        "corpora changed",
    ]
    values = PAGE.by_id("runs-table")["values"]
    for run in (DIFF.old, DIFF.new):
        assert {repr(run.blindness.num_blind), repr(run.blindness.low), repr(run.rule.near_above)} <= set(values)


def test_what_a_run_did_not_record_has_not_changed():
    older = dataclasses.replace(DIFF, old=dataclasses.replace(DIFF.old, engine=None, audit=None))
    page = Page(render_diff_html(older, {}))
    assert [each["inside"][-1]["text"] for each in page.classed("differs")] == [
        "far encoder changed",
        "corpora changed",
    ]
    assert "not recorded" in page.by_id("runs-table")["text"]


def test_the_galleries_show_both_runs_cosines_and_the_pictures():
    assert [each["attrs"]["id"] for each in PAGE.elements if each["attrs"].get("id") in CHANGES] == list(GALLERIES)
    for change in GALLERIES:
        section = PAGE.by_id(change)["inside"][-1]
        cards = [each for each in PAGE.classed("pair") if section in each["inside"]]
        assert len(cards) == len(DIFF.examples[change])
        for card, pair in zip(cards, DIFF.examples[change], strict=True):
            known = [pair.cos_near_old, pair.cos_far_old, pair.cos_near_new, pair.cos_far_new]
            assert card["values"][:4] == [repr(value) for value in known if value is not None]
            assert pair.caption_a in card["text"] and pair.member_b in card["text"]
            assert ("not in that run" in card["text"]) is (change == "new_images")
            assert ("not measured" in card["text"]) is (change == "fixed" and pair.rank == 3)
    images = [each for each in PAGE.elements if each["tag"] == "img"]
    assert len(images) == 2 * sum(map(len, DIFF.examples.values()))
    assert len({each["attrs"]["alt"] for each in images}) == len(images)


def test_the_page_needs_nothing_but_itself_and_is_well_made():
    assert_needs_nothing(PAGE)
    assert [each["attrs"]["href"] for each in PAGE.elements if each["tag"] == "a"] == ["report.html"]
    ids = [each["attrs"]["id"] for each in PAGE.elements if "id" in each["attrs"]]
    assert len(ids) == len(set(ids))
    for element in PAGE.elements:
        for reference in (element["attrs"].get("aria-labelledby") or "").split():
            assert reference in ids
        if element["tag"] == "table":
            assert any(each["tag"] == "caption" and element in each["inside"] for each in PAGE.elements)
    assert render_diff_html(RunDiff.from_json(DIFF.to_json()), PICTURES) == HTML


def test_hostile_text_is_inert():
    html = render_diff_html(example_diff(hostile=True, num_examples=2), {})
    page = Page(html)
    assert_needs_nothing(page)
    assert "&lt;script&gt;alert(1)" in html and "\\u202egnp.exe" in html
    assert not set(html) & set("\u202e\x00\x1b\ud800")
    assert html.encode("utf-8")
    assert {each["tag"] for each in page.elements} <= {each["tag"] for each in PAGE.elements}


def test_two_runs_without_a_blind_pair_are_a_page_too():
    page = Page(render_diff_html(example_diff(**EMPTY), {}))
    text = " ".join(page.elements[0]["text"].split())
    assert "Neither run has a blind pair." in text and not page.classed("pair")
    assert flow_svg(example_diff(**EMPTY)) is None


@pytest.mark.parametrize(
    "counts", [{}, {"fixed": 1, "gone": 1, "new_blind": 0, "new_images": 1}, EMPTY | {"new_images": 5}]
)
def test_the_figure_names_every_count_that_is_not_zero(counts):
    diff = example_diff(num_examples=0, **counts)
    svg = flow_svg(diff)
    root = ET.fromstring(svg)
    texts = [each.text for each in root.iter() if each.tag.endswith("text")]
    shown = [change for change in CHANGES if diff.count(change)]
    expected = [text for change in shown for text in (f"{diff.count(change):,}", WORDS[change])]
    expected += expected[:2] if diff.num_still_blind else []
    totals = [f"{run.blindness.num_blind:,}" for run in (diff.old, diff.new)]
    assert sorted(texts) == sorted([*expected, *totals, "earlier run", "new run"])
    assert root[0].text and f"{diff.num_new_images:,} are from new images" in root[1].text
    assert not re.search(r"#[0-9a-f]{6}\b", svg) and flow_svg(diff) == svg


@given(st.lists(st.floats(0, 1), max_size=6), st.floats(0.01, 0.19))
def test_labels_are_moved_apart_and_stay_in_order(heights, step):
    heights = sorted(heights)
    moved = spread(heights, step, lowest=0.0)
    assert len(moved) == len(heights) and all(-1e-9 <= height <= 1 + 1e-9 for height in moved)
    assert (np.diff(moved) >= step - 1e-9).all()
    if (np.diff(heights) >= step).all():
        assert moved == pytest.approx(heights)
