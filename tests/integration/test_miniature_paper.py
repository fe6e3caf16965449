"""The whole paper in miniature at its smallest: every stage, one page whose links lead somewhere, and going on from what is there."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.pair_questions import ask_pairs, mined_pairs
from mmvp_ray.pipeline.paper import PAGE, run_paper
from mmvp_ray.pipeline.paper_config import MiniaturePaperConfig
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.run import open_run
from mmvp_ray.report.evaluation_data import EvaluationReport

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("paper")
    return out, run_paper(MiniaturePaperConfig(out=str(out), scale="smoke"), progress=Progress(stream=None))


def test_the_page_tells_every_chapter_and_its_links_lead_to_reports(made: tuple[Path, list[str]]) -> None:
    out, lines = made
    page = (out / PAGE).read_text()
    for number in range(1, 8):
        assert re.search(rf"<h2[^>]*>{number}\. ", page)
    links = re.findall(r'<a href="([^"]+)">', page)
    assert len(links) == 4 and all((out / html.unescape(link)).is_file() for link in links)
    assert "This was a smoke run" in page and "CLIP-blind" not in page
    assert "<script" not in page and "None" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.S)
    assert lines[-1].endswith(PAGE)


def test_its_numbers_are_those_of_the_stages(made: tuple[Path, list[str]]) -> None:
    out, lines = made
    evaluation = EvaluationReport.from_json((out / "evaluation/report.json").read_text())
    blindness = open_run(str(out / "experiment/mined")).report()["blindness"]
    results = json.loads((out / "experiment/results.json").read_text())
    assert f"{blindness['num_blind']:,} of {blindness['num_near']:,}" in lines[1]
    # The evaluation's own job and the experiment read the same answers of the same models.
    by_mode = {row["mode"]: row["pairs"]["num_right"] for row in results["rows"]}
    assert {name.model.split("/trained/")[1].split("-seed1")[0]: name.pairs.k for name in evaluation.scores} == {
        mode.replace(":", "-"): right for mode, right in by_mode.items()
    }
    page = (out / PAGE).read_text()
    assert all(f">{mode}<" in page for mode in by_mode) and "hf:" not in page.split("<pre")[0]


def test_the_sentences_are_of_the_questions_pairs(made: tuple[Path, list[str]]) -> None:
    out, _ = made
    questions = open_benchmark(str(out / "experiment/benchmark")).questions
    statements = open_benchmark(str(out / "statements")).statements
    assert [one.key for one in statements] == [one.key for one in questions]
    assert [one.patterns for one in statements] == [one.patterns for one in questions]
    asked, _ = ask_pairs(mined_pairs(open_run(str(out / "experiment/mined")).pairs().to_pylist()))
    first = asked[0]
    assert statements[0].text == caption(first.pair.a, named=first.question.attribute) != statements[1].text


def test_again_it_goes_on_with_what_is_there(made: tuple[Path, list[str]]) -> None:
    out, lines = made
    trained = sorted(path.stat().st_mtime_ns for path in (out / "experiment/trained").rglob("*.safetensors"))
    again = run_paper(MiniaturePaperConfig(out=str(out), scale="smoke"), progress=Progress(stream=None))
    assert again[:-2] == lines[:-2]
    assert trained == sorted(path.stat().st_mtime_ns for path in (out / "experiment/trained").rglob("*.safetensors"))
    with pytest.raises(ConfigError, match="choose another folder"):
        run_paper(MiniaturePaperConfig(out=str(out)), progress=Progress(stream=None))
