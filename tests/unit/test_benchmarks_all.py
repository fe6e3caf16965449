"""`python -m benchmarks` runs what there is, keeps what it finds, names what fails and goes on; the catalogue names only what runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.catalogue import BENCHMARKS, Benchmark, Wishes, benchmarks, lacks_clip_retrieval
from benchmarks.memory import kind_of, tally
from benchmarks.outcome import read_outcomes, write_outcome
from benchmarks.section import Claim, Section, at
from tests.unit.benchmark_samples import RAW
from tests.unit.test_docs import REPOSITORY, Line, parse_module

STUB = Section(
    claims=(Claim(what="the number", of=at("number"), at_least=2),),
    tables=lambda figures: [f"rounds: {figures['rounds']}"],
)


def stub(name: str, arguments: str, **more: Any) -> Benchmark:
    return Benchmark(
        name=name,
        module="tests.unit.benchmark_stub",
        title=name.title(),
        about="",
        section=STUB,
        arguments=arguments,
        **more,
    )


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Benchmark]:
    """Benchmarks of no seconds in place of all."""
    found = {
        "good": stub("good", "--number 3 --rounds 2", quick="--number 1"),
        "broken": stub("broken", "--fail before"),
        "wrong": stub("wrong", "--number 1 --fail after"),
        "rich": stub("rich", "", lacks=lambda wishes: "a million"),
    }
    monkeypatch.setattr(command, "benchmarks", lambda: found)
    monkeypatch.setattr(command, "LOGS", tmp_path / "logs")
    return found


def run(folder: Path, *words: str) -> int:
    return command.main([*words, "--results", str(folder / "results"), "--page", str(folder / "page.md")])


def test_one_that_fails_is_named_and_the_others_go_on(
    known: dict[str, Benchmark], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 1
    said = capsys.readouterr()
    assert "rich: left out, it needs a million" in said.out
    wrong = "wrong failed: tests/unit/benchmark_stub.py found a number that is wrong"
    assert said.err.splitlines() == ["broken failed: expected a number, found none", wrong]
    kept = read_outcomes(tmp_path / "results")
    assert set(kept) == {"good", "wrong"}
    good = kept["good"]
    assert good.command == "python -m tests.unit.benchmark_stub --number 3 --rounds 2" and not good.failed
    assert good.figures == {"number": 3.0, "rounds": 2} and good.seconds is not None and good.seconds > 0
    assert {"cpu", "cores", "load_at_start", "versions", "memory_gib"} <= good.machine.keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", good.date)
    text = (tmp_path / "page.md").read_text()
    assert "| the number | 3.00 | at least 2 | yes | [good](#good) |" in text and "rounds: 2" in text
    assert "| the number | **1.00** | at least 2 | **no** | [wrong](#wrong) |" in text
    assert "**This run failed: tests/unit/benchmark_stub.py found a number that is wrong**" in text
    assert "| the number | not run | at least 2 |  | [broken](#broken) |" in text


def test_one_alone_replaces_its_own_part(known: dict[str, Benchmark], tmp_path: Path) -> None:
    assert run(tmp_path, "--only", "good") == 0
    before = read_outcomes(tmp_path / "results")["good"]
    known["broken"] = stub("broken", "--number 4")
    assert run(tmp_path, "--skip", "good", "wrong") == 0
    after = read_outcomes(tmp_path / "results")
    assert after["good"] == before and after["broken"].figures["number"] == 4
    assert "3.00" in (tmp_path / "page.md").read_text()
    assert run(tmp_path, "--only", "good", "--rounds", "7") == 0
    assert read_outcomes(tmp_path / "results")["good"].command.endswith("--number 3 --rounds 7")


def test_small_sizes_do_not_replace_what_counts(
    known: dict[str, Benchmark], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--only", "good", "--quick") == 0
    assert "1.00, small sizes only" in (tmp_path / "page.md").read_text()
    assert run(tmp_path, "--only", "good") == 0
    assert run(tmp_path, "--only", "good", "--quick") == 0
    assert "not kept" in capsys.readouterr().out
    kept = read_outcomes(tmp_path / "results")["good"]
    assert kept.figures["number"] == 3 and not kept.is_quick


def test_one_that_hangs_is_ended(
    known: dict[str, Benchmark], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known["hangs"] = stub("hangs", "--hang", limit_seconds=0.5)
    assert run(tmp_path, "--only", "hangs") == 1
    assert "hangs failed: expected an end within 0 s, found none; see" in capsys.readouterr().err
    assert not read_outcomes(tmp_path / "results")


def test_taking_what_was_measured_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(RAW["gpu"]))
    assert run(tmp_path, "--take", f"gpu={tmp_path}/gpu.json") == 0
    kept = read_outcomes(tmp_path / "results")["gpu"]
    assert kept.gpu == "NVIDIA H100" and kept.seconds is None
    assert "Measured on a GPU: NVIDIA H100." in (tmp_path / "page.md").read_text()
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"found no machine in .*empty"):
        run(tmp_path, "--take", f"gpu={tmp_path}/empty.json")
    with pytest.raises(SystemExit, match="expected NAME=FILE, a NAME out of start_up"):
        run(tmp_path, "--take", "gpuu=x")


def taken(folder: Path, *raws: dict[str, Any]) -> str:
    """The page after files from a GPU were taken, one after the other."""
    for number, raw in enumerate(raws):
        (folder / f"{number}.json").write_text(json.dumps(raw))
        assert run(folder, "--take", f"gpu={folder}/{number}.json") == 0
    return (folder / "page.md").read_text()


def of_gpu(*parts: str, **more: Any) -> dict[str, Any]:
    """What benchmarks.gpu wrote by a call for these parts."""
    arguments = {**RAW["gpu"]["arguments"], "parts": ",".join(parts)}
    facts = {"machine": RAW["gpu"]["machine"], "arguments": arguments, "failed": {}}
    return {**facts, **{part: RAW["gpu"][part] for part in parts if part in RAW["gpu"]}, **more}


@pytest.mark.parametrize(("flag", "value"), [("device", "cpu"), ("scale", "smoke")])
def test_figures_that_only_show_that_it_runs_are_not_taken(flag: str, value: str, tmp_path: Path) -> None:
    raw = of_gpu("peak", "embed")
    raw["arguments"][flag] = value
    with pytest.raises(
        SystemExit, match=rf"expected figures of --{flag} (cuda|full), found --{flag} {value} in .*0.json"
    ):
        taken(tmp_path, raw)
    assert not (tmp_path / "page.md").exists()


def test_two_calls_on_one_gpu_stand_beside_each_other_with_both_commands(tmp_path: Path) -> None:
    later = of_gpu("peak", "join")
    later["arguments"]["join_vectors"] = 10_000_000
    later["peak"] = {"float16": {"best": 7.2e14, "by_size": {}}}
    later["machine"] = {**later["machine"], "load_at_start": [9.0]}
    text = taken(tmp_path, of_gpu("peak", "embed", "pipeline", "mof"), later)
    assert "**0.55** | at least 0.6" in text and "**30.0 %** | at most 25 %" in text and "0.41" in text
    assert "| float16 | 720.0 |" in text and "| float16 | 710.0 |" not in text
    assert set(read_outcomes(tmp_path / "results")["gpu"].figures["commands"]) == {
        "peak",
        "embed",
        "pipeline",
        "join",
        "mof",
    }
    first, second = read_outcomes(tmp_path / "results")["gpu"].command.split(" && ")
    assert first == "python -m benchmarks.gpu --device cuda --scale full --parts peak,embed,pipeline,mof"
    assert second == "python -m benchmarks.gpu --device cuda --scale full --parts peak,join --join-vectors 10000000"
    # What comes from another machine stands alone.
    other = of_gpu("peak")
    other["machine"] = {**other["machine"], "gpu": "NVIDIA H200"}
    assert "CLIP ViT-L/14 and DINOv2-L/14 together, share of the GPU's measured peak | not measured" in taken(
        tmp_path, other
    )


def test_a_part_that_failed_anew_keeps_the_command_of_its_figures(tmp_path: Path) -> None:
    taken(tmp_path, of_gpu("peak", "mof"))
    path = tmp_path / "results" / "gpu.json"
    # As it is kept where the benchmark ran on the machine itself.
    kept = json.loads(path.read_text())
    del kept["figures"]["commands"]
    path.write_text(json.dumps(kept))
    taken(tmp_path, of_gpu("join", failed={"mof": "cut off"}))
    commands = read_outcomes(tmp_path / "results")["gpu"].figures["commands"]
    assert commands["mof"] == commands["peak"] == kept["command"] != commands["join"]


def test_a_part_that_failed_is_said_until_it_is_measured(tmp_path: Path) -> None:
    text = taken(tmp_path, of_gpu("peak", "embed", failed={"join": "RuntimeError: no memory"}))
    assert "**This run failed: part join: RuntimeError: no memory**" in text
    assert "join: RuntimeError" in taken(tmp_path, of_gpu("mof"))
    assert "join: RuntimeError" not in taken(tmp_path, of_gpu("join"))


def test_the_list_and_an_unknown_name(known: dict[str, Benchmark], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert "good            Good: python -m tests.unit.benchmark_stub --number 3 --rounds 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--only", "best"])
    assert "choose from" in capsys.readouterr().err


def test_every_benchmark_is_in_the_catalogue() -> None:
    modules = {one.module for one in BENCHMARKS}
    for path in sorted((REPOSITORY / "benchmarks").glob("*.py")):
        if 'if __name__ == "__main__"' in path.read_text() and path.stem != "__main__":
            assert f"benchmarks.{path.stem}" in modules, path.name
    assert len({one.name for one in BENCHMARKS}) == len({one.title for one in BENCHMARKS}) == len(BENCHMARKS)
    assert set(benchmarks()) <= {one.name for one in BENCHMARKS}


@pytest.mark.parametrize(
    "wishes", [Wishes(), Wishes(is_quick=True), Wishes(num_rounds=2)], ids=["full", "quick", "rounds"]
)
@pytest.mark.parametrize("name", benchmarks())
def test_commands_parse(name: str, wishes: Wishes) -> None:
    text = f"{benchmarks()[name].command(wishes).removeprefix('python -m ')} --json FILE"
    parse_module(Line("catalogue", text))


def test_its_own_commands_in_the_docs_parse() -> None:
    pages = [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    said = [
        words for page in pages for words in re.findall(r"python -m benchmarks((?: [^`\n.]*)?)[`\n]", page.read_text())
    ]
    assert said
    for words in [*said, " --only store asking --quick --rounds 3 --page-only", " --take gpu=FILE"]:
        parse_module(Line("docs", f"benchmarks.__main__{words}"))


def test_rounds_of_kills_are_not_rounds_of_a_measurement() -> None:
    known = {one.name: one for one in BENCHMARKS}
    assert known["chaos"].words(Wishes(num_rounds=3)) == known["chaos"].words(Wishes())
    assert known["mof"].words(Wishes(num_rounds=9)) == ["--steps", "40", "--rounds", "9"]
    assert "PATH" in known["clip_retrieval"].words(Wishes(clip_retrieval_python="/somewhere/python"))


def test_clip_retrieval_is_left_out_without_its_environment(tmp_path: Path) -> None:
    assert "--clip-retrieval-python PATH" in lacks_clip_retrieval(Wishes())
    python = tmp_path / "python"
    assert lacks_clip_retrieval(Wishes(clip_retrieval_python=str(python))) == f"clip-retrieval beside {python}"
    (tmp_path / "clip-retrieval").touch()
    assert not lacks_clip_retrieval(Wishes(clip_retrieval_python=str(python)))


def test_what_runs_benchmarks_leaves_torch_and_ray_out() -> None:
    names = ["__main__", "catalogue", "outcome", "page", "section", "contest"]
    paths = [REPOSITORY / "benchmarks" / f"{name}.py" for name in names]
    for path in [*paths, *(REPOSITORY / "benchmarks" / "sections").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            found = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in found if name.split(".")[0] in ("torch", "ray", "mmvp_ray")], path.name


def test_processes_are_told_apart_and_counted_at_their_peaks() -> None:
    assert kind_of("python jobs/mine.py", is_first=True) == "driver"
    assert kind_of("ray::MapWorker(MapBatches(EmbedActor)).submit", is_first=False) == "encoder actor"
    assert kind_of("ray::MapBatches(decode_row)", is_first=False) == "decode workers"
    raylet = "/x/ray/core/src/ray/raylet/raylet --socket=/t/raylet --python_worker_command=python default_worker.py"
    assert kind_of(raylet, is_first=False) == "Ray's raylet"
    assert kind_of("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/t", is_first=False) == "Ray's gcs"
    assert (
        kind_of("python /x/ray/_private/workers/default_worker.py --raylet-name=/t/raylet", is_first=False)
        == "idle workers"
    )
    assert kind_of("ray::join_part", is_first=False) == "workers of the search"
    assert kind_of("python /x/site-packages/ray/_private/log_monitor.py", is_first=False) == "Ray's monitors and agents"
    assert kind_of("python -m something", is_first=False) == "other child processes"
    found = tally([{"driver": [5], "idle workers": [3, 4]}, {"driver": [9], "idle workers": [1]}, {"driver": [2, 8]}])
    assert found["peak_bytes"] == 12 and found["samples"] == 3
    idle = {"num_processes": 2, "largest_bytes": 4, "together_bytes": 7, "at_peak_bytes": 7}
    assert found["kinds"]["idle workers"] == idle
    assert found["kinds"]["driver"] == {
        "num_processes": 2,
        "largest_bytes": 9,
        "together_bytes": 10,
        "at_peak_bytes": 5,
    }


def test_a_result_of_every_sample_goes_through_a_file(tmp_path: Path) -> None:
    known = {one.name: one for one in BENCHMARKS}
    for name, raw in RAW.items():
        made = command.outcome_of(known[name], raw, dict(raw["machine"]), date="2026-11-22 03:06", command="c")
        write_outcome(tmp_path, made)
    assert set(read_outcomes(tmp_path)) == set(RAW)
