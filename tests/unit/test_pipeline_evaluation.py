"""What a report of evaluations may put together, and what it says of the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmvp_ray.errors import ConfigError
from mmvp_ray.pipeline.evaluation import compose_report
from mmvp_ray.report.evaluation_html import render_evaluation_html


def results(folder: Path, fingerprint: str) -> str:
    folder.mkdir()
    content = {
        "benchmark": "statements", "benchmark_fingerprint": fingerprint, "num_pairs": 135, "encoders": [], "claims": [], "notes": [],
    }  # fmt: skip
    (folder / "encoders.json").write_text(json.dumps(content))
    return str(folder)


def test_encoders_of_different_statements_are_not_set_beside_each_other(tmp_path: Path) -> None:
    folders = [results(tmp_path / name, mark * 64) for name, mark in (("a", "1"), ("b", "1"), ("c", "2"))]
    assert compose_report(folders[:2], title="t")[0].num_pairs == 135
    with pytest.raises(
        ConfigError, match=rf"same statements.*1{{12}}.*found.*2{{12}}.*{folders[2]}; report them apart"
    ):
        compose_report(folders, title="t")


def test_a_report_of_encoders_alone_does_not_say_that_its_benchmark_is_another_than_the_published_one(
    tmp_path: Path,
) -> None:
    report, pictures = compose_report([results(tmp_path / "a", "1" * 64)], title="t")
    page = render_evaluation_html(report, pictures)
    assert "This is not the published benchmark" not in page
    assert "not known here whether statements is the published MMVP-VLM" in page
