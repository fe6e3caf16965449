"""report.json: what goes in comes out, in one form, and nothing else comes in."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.errors import DataError
from mmvp_ray.report.data import Blindness, BlindnessCell, JointHistogram, MiningReport, Sensitivity
from mmvp_ray.report.html import render_html

_example = runpy.run_path(str(Path(__file__).with_name("test_report_example.py")))
example_report, zero_pairs_report = (
    _example["example_report"],
    _example["zero_pairs_report"],
)


@pytest.mark.parametrize(
    "report",
    [
        example_report(),
        example_report(hostile=True),
        zero_pairs_report(),
        zero_pairs_report(any_near=True),
    ],
    ids=["full", "hostile", "nothing above the floor", "nothing blind"],
)
def test_json_round_trip_is_exact_and_stable(report):
    text = report.to_json()
    assert MiningReport.from_json(text) == report
    assert MiningReport.from_json(text).to_json() == text
    assert text.isascii() and text.endswith("}\n")
    keys = list(json.loads(text))
    assert keys == sorted(keys) == sorted(field.name for field in dataclasses.fields(report))


def test_numpy_numbers_become_plain_ones():
    plain = Blindness.of(num_blind=2, num_near=15)
    scalars = dataclasses.replace(
        plain,
        num_near=np.int64(15),
        low=np.float32(0.5),
        fraction=np.float64(plain.fraction),
    )
    report = dataclasses.replace(zero_pairs_report(), funnel=[], blindness=scalars)
    read = MiningReport.from_json(report.to_json()).blindness
    assert (type(read.num_near), type(read.low), type(read.fraction)) == (
        int,
        float,
        float,
    )
    assert read == dataclasses.replace(plain, low=0.5)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -np.inf, np.float32("nan")])
def test_a_number_that_is_not_finite_is_named(number):
    report = dataclasses.replace(example_report(), config={"rule": [{"near_above": number}]})
    with pytest.raises(
        DataError,
        match=r"MiningReport\.config\.rule\[0\]\.near_above: expected a finite number",
    ):
        report.to_json()


@pytest.mark.parametrize("value", [b"bytes", {1: "key"}, {1, 2}, np.zeros(2), Path("path")])
def test_what_json_cannot_hold_is_named(value):
    with pytest.raises(DataError, match=r"MiningReport\.config\.odd"):
        dataclasses.replace(example_report(), config={"odd": value}).to_json()


def _changed(change) -> str:
    plain = json.loads(example_report().to_json())
    change(plain)
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "schema_version 1, found None"),
        (
            _changed(lambda plain: plain.update(schema_version=2)),
            "schema_version 1, found 2",
        ),
        (_changed(lambda plain: plain.pop("title")), r"\['title'\] missing"),
        (_changed(lambda plain: plain.update(extra=1)), r"\['extra'\] unknown"),
        (
            _changed(lambda plain: plain["pairs"][3].update(rank="4")),
            r"pairs\[3\]\.rank: expected int, found str",
        ),
        (
            _changed(lambda plain: plain["pairs"][3].update(rank=True)),
            r"pairs\[3\]\.rank: expected int, found bool",
        ),
        (
            _changed(lambda plain: plain["near"].update(input_px=64)),
            r"near\.input_px: expected list, found int",
        ),
        (
            _changed(lambda plain: plain.update(rule=None)),
            r"rule: expected an object, found NoneType",
        ),
        (
            _changed(lambda plain: plain.update(versions=[])),
            r"versions: expected dict, found list",
        ),
        (
            _changed(lambda plain: plain["joint"]["counts"].pop()),
            r"joint\.counts: expected 70 rows of 120",
        ),
        (
            _changed(lambda plain: plain["rule"].update(floor=float("nan"))),
            r"rule\.floor: expected a finite number",
        ),
    ],
)
def test_another_files_json_is_refused_with_the_place(text, message):
    with pytest.raises(DataError, match=message):
        MiningReport.from_json(text)


def test_tables_must_agree_with_their_axes():
    with pytest.raises(DataError, match=r"joint\.counts: expected 1 rows of 2, found 1 rows of \[3\]"):
        JointHistogram(near_edges=[0.9, 1.0], far_edges=[0.0, 0.5, 1.0], counts=[[1, 2, 3]])
    with pytest.raises(DataError, match=r"sensitivity\.counts"):
        Sensitivity(near_thresholds=[0.9], far_thresholds=[0.5], counts=[])
    with pytest.raises(DataError, match=r"random\.far_counts: expected 200 bins, found 0"):
        dataclasses.replace(example_report().random, far_counts=[])


def test_one_count_has_one_value():
    report = example_report()
    with pytest.raises(DataError, match="one count of blind pairs"):
        dataclasses.replace(
            report,
            blindness=Blindness.of(num_blind=1, num_near=report.blindness.num_near),
        )


def test_an_audit_of_an_older_release_has_no_effective_pairs():
    report = example_report()
    plain = json.loads(report.to_json())
    del plain["audit"]["num_effective"]
    read = MiningReport.from_json(json.dumps(plain))
    assert read == dataclasses.replace(report, audit=dataclasses.replace(report.audit, num_effective=None))
    too_few = dataclasses.replace(read, audit=dataclasses.replace(read.audit, is_supported=False))
    assert "true pairs do not support a recall of" in render_html(too_few, {})


def test_json_of_an_older_release_lacks_what_has_a_default():
    report = dataclasses.replace(example_report(), engine=None, audit=None, matrix=[], diff_href=None)
    plain = json.loads(report.to_json())
    for name in ("engine", "audit", "matrix", "diff_href"):
        del plain[name]
    assert MiningReport.from_json(json.dumps(plain)) == report


@pytest.mark.parametrize(
    "href",
    ["javascript:alert(1)", "//example.org/", "/etc/passwd", "../x.html", "a b.html", "http://x/", "", '"><b>', ".x"],
)
def test_a_link_leads_to_a_file_beside_the_page_only(href):
    with pytest.raises(DataError, match="diff_href"):
        dataclasses.replace(example_report(), diff_href=href)


def test_a_matrix_has_one_cell_of_two_encoders():
    report = example_report()
    first = report.matrix[0]
    with pytest.raises(DataError, match="found two"):
        dataclasses.replace(report, matrix=[first, first])
    with pytest.raises(DataError, match="with itself"):
        dataclasses.replace(report, matrix=[dataclasses.replace(first, far=first.near)])
    with pytest.raises(DataError, match=r"expected \d+ blind of \d+ near pairs in the matrix's cell"):
        dataclasses.replace(report, matrix=[dataclasses.replace(first, num_blind=first.num_blind - 1)])


def test_a_cell_without_near_pairs_has_no_fraction():
    cell = BlindnessCell.of(near="n", far="f", near_above=0.95, far_below=0.6, num_near=0, num_blind=0)
    assert (cell.fraction, cell.low, cell.high) == (None, 0.0, 1.0)


def test_an_audit_counts_what_it_found_among_the_true_pairs():
    audit = example_report().audit
    with pytest.raises(DataError, match="at most all 6204 true pairs"):
        dataclasses.replace(audit, num_found=6_205)
    with pytest.raises(DataError, match="recall exactly where"):
        dataclasses.replace(audit, recall=None)
