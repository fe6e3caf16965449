"""docs/performance.md is what benchmarks/results render to; and every benchmark's JSON becomes claims and tables that say what it found."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import page
from benchmarks.__main__ import main, outcome_of
from benchmarks.catalogue import BENCHMARKS, Benchmark, benchmarks
from benchmarks.outcome import RESULTS, Outcome, read_outcomes, write_outcome
from benchmarks.page import NO_GPU, NOT_RUN, PAGE, render
from benchmarks.section import Claim, Section, median_of, rounded, table
from tests.unit.benchmark_samples import MACHINE, RAW

BY_NAME = {one.name: one for one in BENCHMARKS}


def outcome(name: str, raw: dict[str, Any] | None = None, **more: Any) -> Outcome:
    found = outcome_of(
        BY_NAME[name], raw or RAW[name], dict(MACHINE), date="2026-11-22 03:06", command=f"python -m benchmarks.{name}"
    )
    return Outcome(**{field: getattr(found, field) for field in Outcome.__dataclass_fields__} | more)


def rendered(*outcomes: Outcome) -> str:
    return render({one.name: BY_NAME[one.name] for one in outcomes}, {one.name: one for one in outcomes})


def lines_of(text: str, sign: str) -> list[str]:
    return [line for line in text.splitlines() if sign in line]


def test_the_page_is_made_of_the_results() -> None:
    assert PAGE.read_text() == render(benchmarks(), read_outcomes(RESULTS)), "run python -m benchmarks --page-only"


def test_what_is_kept_names_no_place_of_a_machine() -> None:
    for path in RESULTS.glob("*.json"):
        assert not re.findall(r"[\" ](/[a-z]\w*/[^\"]*)", path.read_text()), path.name
        assert path.stat().st_size < 20_000, path.name
        assert path.stem in BY_NAME


def test_a_page_that_differs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--results", str(tmp_path / "results"), "--page", str(tmp_path / "page.md")]
    write_outcome(tmp_path / "results", outcome("mof"))
    assert main(["--check", *where]) == 1
    assert main(["--page-only", *where]) == 0
    assert main(["--check", *where]) == 0
    (tmp_path / "page.md").write_text((tmp_path / "page.md").read_text().replace("1.04", "1.14"))
    assert main(["--check", *where]) == 1
    said = capsys.readouterr().err
    assert "1.14" in said and "run python -m benchmarks --page-only" in said


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "scaling"])
def test_every_benchmark_is_shown(name: str) -> None:
    before = copy.deepcopy(RAW[name])
    text = rendered(outcome(name))
    assert RAW[name] == before, "what a benchmark wrote is left as it is"
    assert f"## {BY_NAME[name].title}\n" in text
    assert (
        f"`python -m benchmarks.{name}`, 2026-11-22 03:06 UTC, [machine 1](#machines), load 0.31 at the start" in text
    )
    assert not re.findall(r"None|nan|/somewhere|\{|\}", text)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count(" | ") for line in block.splitlines() if not line.startswith("|---")}) == 1, block
    # As it is kept: in a file, sorted, with fewer digits.
    section = BY_NAME[name].section
    kept = json.loads(json.dumps(rounded(section.keep(RAW[name])), sort_keys=True))
    assert section.tables(kept) == section.tables(section.keep(RAW[name]))


SAID = {
    "start_up": ["**2.60 s** | at most 2 s | **no**", "24.8 s |  |", "40.0 s | at most 120 s | yes", "| 2.600 (2.500 to 2.700) | 260.0 |"],
    "memory": ["3.00 GiB | at most 6 GiB | yes", "| driver | 1 | 1,024 | 1,024 | 512 |", "3,072 (2,048 to 4,096) MiB"],
    "store": ["1.0035 times", "2.25 times as fast", "| its markers | 0.2 | 0.0001 |", "0.200 (0.100 to 0.300)"],
    "embed": ["0.94 | at least 0.8 | yes", "not measured | at least 0.9 |", "420.0 (410.0 to 430.0)"],
    "decode": ["0.80 times as fast", "| Pillow alone | 250 | 1.25 | 100.0000% | 0 | 1.000000 |", "left out: imagecodecs", "resized by pil; medians of 5"],
    "clip_retrieval": ["**0.97 times as fast** | at least 1.3", "**1.15** | at most 1 | **no**", "| mmvp-ray | 69.9 | 17.3 | 3.74 |"],
    "search": [
        "N = 100,000 | 0.78 | at least 0.75 | yes", "N = 50,000 | not measured", "bare-bf16 (extrapolated from 50.0% of the tiles)",
        "1.00000 of 11,407", "failed, ivfpq: ValueError", "speed of exact / bare-bf16 | 0.78",
    ],
    "search_growth": ["1.04 | at most 1.6 | yes", "1.30 % | at most 5 % | yes", "**0.98000** | at least 0.99", "0.069 | at most 0.1 | yes"],
    "copies": ["0.99950 | at least 0.999 | yes", "46,308, 5,000"],
    "drivers": ["several processes | 1.1 ms |", "| 48 | 2 | 5.5 | 25.0 | 1.1 |", "| 48 | 1 | 5.5 | 28.0 | the same |"],
    "passes": ["1.50 times as fast", "| ids of images tables, read whole | 119 | 98 | 3 | 240 | 360 | 1.50 |"],
    "hygiene": ["**5.00 GiB** | at most 4 GiB | **no**", "| hygiene | 52.1 | 1.00 | 2.0 | left 18,293,363 |"],
    "mof": ["1.04 | at least 0.9 | yes", "2,700 (2,500 to 2,800)"],
    "ingest": ["0.90 | at least 0.8 | yes", "**0.70** | at least 0.8 | **no**"],
    "asking": ["0.938 | at least 0.9 | yes", "| 20,000, 1 round | 300.0 | 0.938 |"],
    "annotate": ["11.3 ms | at most 100 ms | yes", "**5** | at most 0 | **no**", "20,217 acknowledged acts", "problems: none"],
    "job_start": ["22.5 s | at most 60 s | yes", "| 2 | 4.5 | 6.5 | 8.1 | 20.0 | 20.2 | 40.0 |"],
    "chaos": ["**0.50** | at least 1 | **no**", "3: 1 driver, 1 node, 1 worker", "* lost: 3 files differ"],
    "gpu": [
        "Measured on a GPU: NVIDIA H100.", "NVIDIA H100, 79.1 GiB; Some CPU", "CUDA 13.0", "**0.58** | at least 0.6", "**30.0 %** | at most 25 %",
        "| compiled | 64 | 1,250 | 58.0% |", "| 1,000,000 | 2.000 | 380.0 | 54.0% |", "0.01 s + 4e-07 s N + 2e-12 s N^2 foretells 200 s",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_figures_and_verdicts(name: str) -> None:
    text = rendered(outcome(name))
    for said in SAID[name]:
        assert said in text, text


def test_what_was_not_run_is_said_with_its_goal_and_command() -> None:
    text = render({"asking": BY_NAME["asking"]}, {})
    assert lines_of(text, "| not run | at least 0.9 |")
    assert "`python -m benchmarks.asking --rounds 3`" in text and NOT_RUN in text
    assert "## Machines" not in text


def test_nothing_is_measured_on_a_gpu_until_a_result_has_the_name_of_one() -> None:
    assert NO_GPU in rendered(outcome("mof"))
    on_cpu = RAW["gpu"] | {"machine": MACHINE | {"gpu": None}}
    assert NO_GPU in rendered(outcome("gpu", on_cpu))
    assert NO_GPU in rendered(outcome("gpu", is_quick=True))
    assert NO_GPU not in rendered(outcome("gpu"))


def test_small_sizes_and_failures_are_said() -> None:
    quick = rendered(outcome("mof", is_quick=True))
    assert lines_of(quick, "1.04, small sizes only | at least 0.9 |  |") and "only show that it runs" in quick
    assert "**This run failed: a check**" in rendered(outcome("mof", failed="a check"))


def test_machines_are_told_apart() -> None:
    text = rendered(outcome("mof"), outcome("asking", machine=MACHINE | {"cores": 64}), outcome("copies"))
    assert len(lines_of(text, "[machine 1]")) == 2 and len(lines_of(text, "[machine 2]")) == 1
    assert "2. Some CPU, 64 cores (avx2), 23.5 GiB; Python 3.11.7, numpy 2.4.6" in text


def test_a_benchmark_may_write_its_own_section(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def own(results: dict[str, dict[str, Any]]) -> str:
        given.update(results)
        return "## Mine\n\nall of it\n"

    monkeypatch.setattr(page.importlib, "import_module", lambda name: SimpleNamespace(page=own))
    section = Section(claims=(), tables=lambda figures: [])
    mine = Benchmark(
        name="mine", module="benchmarks.mine", title="Mine", about="", section=section, writes_section=True
    )
    text = render({"mine": mine}, {"hygiene": outcome("hygiene"), "mof": outcome("mof", is_quick=True)})
    assert "## Mine\n\nall of it\n" in text
    assert set(given) == {"hygiene"}, "small sizes are no unit costs"
    assert given["hygiene"]["num_pairs"] == 100_000_000
    assert given["hygiene"]["machine"]["date"] == "2026-11-22" and given["hygiene"]["machine"]["cores"] == 2


def test_claims() -> None:
    more = Claim(what="speed", of=lambda figures: None, unit=" times", at_least=1.3)
    less = Claim(what="seconds", of=lambda figures: None, digits=1, unit=" s", at_most=1400)
    none = Claim(what="bytes", of=lambda figures: None, digits=0)
    assert (more.goal, less.goal, none.goal) == ("at least 1.3 times", "at most 1,400 s", "")
    assert (more.is_met(1.3), more.is_met(1.29), less.is_met(1400), less.is_met(1401)) == (True, False, True, False)
    assert none.is_met(5) is None and none.said(12_345.6) == "12,346" and less.said(2) == "2.0 s"


def test_tables_and_numbers() -> None:
    assert table(("a", "b"), [("x|y", "1")]) == ["| a | b |", "|---|---|", "| x\\|y | 1 |", ""]
    assert median_of([3.0]) == "3.00" and median_of([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert rounded({"a": [1.23456789, 123_456_789, None, "x"], "b": (0.0000123456,)}) == {
        "a": [1.2346, 123_456_789, None, "x"],
        "b": [1.2346e-05],
    }


def test_outcomes_are_kept_and_read(tmp_path: Path) -> None:
    kept = outcome("asking", seconds=1.23456789)
    write_outcome(tmp_path, kept)
    (found,) = read_outcomes(tmp_path).values()
    assert found.seconds == 1.2346 and found.figures["rounds"] == rounded(kept.figures["rounds"])
    assert found.figures.keys() == RAW["asking"].keys() - {"machine"}
    (tmp_path / "odd.json").write_text('{"name": "odd"}')
    with pytest.raises(SystemExit, match=r"found .* in .*odd\.json; remove the file"):
        read_outcomes(tmp_path)
