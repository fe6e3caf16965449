"""A study from links to its report: two people by keyboard alone, one of them with a pause, a third who stops half way; and axe on their pages."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmvp_ray.annotate.studies import StudyNewConfig, new_study
from mmvp_ray.annotate.study_report import StudyReportConfig, report_study
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.evaluate.human import human_baseline, read_responses
from mmvp_ray.miniature.benchmark import make_mmvp
from tests.browser.app_under_test import App, make_app
from tests.browser.conftest import Person, has_keys
from tests.browser.scenes import pair
from tests.browser.test_accessibility import violations

NUM_QUESTIONS = 6


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return make_mmvp(tmp_path_factory.mktemp("bench") / "mmvp", num_pairs=NUM_QUESTIONS // 2)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    found = make_app(tmp_path_factory.mktemp("study"), [pair(0)])
    found.start()
    yield found
    found.stop()


def links_of(lines: list[str]) -> list[str]:
    return [word for line in lines for word in line.split() if "/study#" in word]


def answer_next(person: Person, benchmark: Benchmark, *, rightly: bool) -> None:
    """Answer the question that the page shows, by keys: its text and options, and the picture's bytes, say which one it is."""
    from playwright.sync_api import expect

    page = person.page
    has_keys(page)
    text = page.get_by_role("heading", level=1).inner_text()
    image = page.locator(".picture img").get_attribute("src")
    assert image is not None
    image_id = image.rsplit("/", 1)[-1].removesuffix(".webp")
    (question,) = [
        one for one in benchmark.questions if one.text == text and benchmark.image_sha256[one.image_uri] == image_id
    ]
    choice = question.answer if rightly else (question.answer + 1) % len(question.options)
    options = page.locator(".choice bdi").all_inner_texts()
    person.press(str(1 + options.index(question.options[choice])))
    expect(page.locator(".choice input:checked")).to_have_count(1)
    with page.expect_navigation():
        person.press("Enter")


def test_a_study_from_link_to_report(
    studied: App, benchmark: Benchmark, visit: Callable[..., Person], tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    workspace = str(studied.workspace.folder)
    links = links_of(
        new_study(
            StudyNewConfig(workspace=workspace, name="first", benchmark=benchmark.url, participants=3, url=studied.url)
        )
    )
    assert len(links) == 3
    studied.secrets.extend(link.partition("#")[2] for link in links)
    people = []
    for link in links:
        person = visit(studied)
        person.page.goto(link)
        expect(person.page.get_by_role("button", name="I agree")).to_be_visible()
        # The link's secret leaves the address as soon as it was read.
        assert "#" not in person.page.url
        person.page.get_by_role("button", name="I agree").focus()
        with person.page.expect_navigation():
            person.press("Enter")
        people.append(person)
    first, second, third = people
    assert violations(first.page) == []
    # Two at once, in turns; the second one is wrong about one question, and comes back by the link in the middle.
    for number in range(NUM_QUESTIONS):
        answer_next(first, benchmark, rightly=True)
        answer_next(second, benchmark, rightly=number != 2)
        if number == 3:
            second.page.goto("about:blank")
            second.page.goto(links[1])
            expect(second.page.get_by_text(f"Question {number + 2} of {NUM_QUESTIONS}")).to_be_visible()
    for person in (first, second):
        expect(person.page.get_by_role("heading", level=1)).to_contain_text("Thank")
        assert violations(person.page) == []
    answer_next(third, benchmark, rightly=True)
    # Pictures of others are none of theirs.
    other = studied.workspace.row("SELECT image_a FROM pairs")
    assert other is not None
    first.watch.expects(401, other["image_a"])
    assert first.page.request.get(f"{studied.url}/images/{other['image_a']}.webp").status == 401

    lines = report_study(StudyReportConfig(workspace=workspace, name="first", out=str(tmp_path / "out")))
    found = json.loads((tmp_path / "out/study.json").read_text())
    responses = read_responses(str(tmp_path / "out/responses.csv"))
    people_line = human_baseline(benchmark.questions, responses)
    num_pairs = benchmark.num_pairs
    assert people_line.num_participants == 2 and list(people_line.excluded.values()) == [NUM_QUESTIONS - 1]
    assert people_line.pair_accuracy == pytest.approx((1 + (num_pairs - 1) / num_pairs) / 2)
    assert people_line.question_accuracy == pytest.approx((2 * NUM_QUESTIONS - 1) / (2 * NUM_QUESTIONS))
    assert f"{people_line.pair_accuracy:.1%}" in "\n".join(lines).replace(" %", "%")
    assert json.dumps(people_line.pair_accuracy) in json.dumps(found)
    with (tmp_path / "out/responses.csv").open() as file:
        assert all(float(row["seconds"]) > 0 for row in csv.DictReader(file))
    report = visit(studied)
    report.page.goto((tmp_path / "out/study.html").as_uri())
    expect(report.page.locator("h1")).to_be_visible()
