"""How a job starts and ends: defaults, file and flags in their order; exit codes; one line for what went wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmvp_ray import errors, job, logs
from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    near_above: float = 0.95
    """Near enough."""
    license: tuple[str, ...] = ("cc0",)
    """Licences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    corpus: tuple[str, ...] = ("miniature=miniature:4096",)
    """Images."""
    more_words: tuple[str, ...] = ()
    """Words."""
    part: Part = field(default_factory=Part)
    """A part."""
    select: int = 150
    """Pairs."""
    out: str | None = None
    """Folder."""
    plan: bool = False
    """Do nothing."""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("corpus: [x=1, y=2]\nselect: 7\npart: {near_above: 0.5}\nmore_words: [a]\n")
    return str(path)


def parse(*argv: str) -> Recipe:
    return job.parse(Recipe, argv, description="what it does")


def test_defaults() -> None:
    assert parse() == Recipe()


@pytest.mark.parametrize("form", ["two words", "one word"])
def test_a_file_goes_over_defaults_and_flags_over_the_file(recipe: str, form: str) -> None:
    flags = ["--config", recipe] if form == "two words" else [f"--config={recipe}"]
    assert parse(*flags) == Recipe(corpus=("x=1", "y=2"), select=7, part=Part(near_above=0.5), more_words=("a",))
    found = parse("--select", "9", *flags, "--near-above", "0.25", "--out", "runs/x")
    assert found == Recipe(corpus=("x=1", "y=2"), select=9, part=Part(near_above=0.25), out="runs/x", more_words=("a",))


@pytest.mark.parametrize(
    "flags",
    [
        ["--corpus", "p=./p", "--corpus", "q=./q"],
        ["--corpus=p=./p", "--corpus=q=./q"],
    ],
)
def test_a_repeated_flag_replaces_what_the_file_and_the_defaults_say(recipe: str, flags: list[str]) -> None:
    assert parse(*flags).corpus == ("p=./p", "q=./q")
    found = parse("--config", recipe, *flags)
    assert found.corpus == ("p=./p", "q=./q") and found.more_words == ("a",)


@pytest.mark.parametrize("flag", ["--more-words", "--more_words"])
def test_both_spellings_of_a_repeated_flag_replace(recipe: str, flag: str) -> None:
    assert parse("--config", recipe, flag, "b").more_words == ("b",)


@pytest.mark.parametrize("form", ["two words", "one word"])
def test_a_repeated_flag_of_a_part_replaces_what_the_file_and_the_defaults_say(recipe: str, form: str) -> None:
    flags = ["--license", "cc-by"] if form == "two words" else ["--license=cc-by"]
    assert parse(*flags).part.license == ("cc-by",)
    Path(recipe).write_text("part: {near_above: 0.5, license: [any, none]}\n")
    assert parse("--config", recipe).part.license == ("any", "none")
    assert parse("--config", recipe, *flags).part == Part(near_above=0.5, license=("cc-by",))


@pytest.mark.parametrize("in_file", [True, False])
def test_a_switch_is_said_and_unsaid_whatever_the_file_says(recipe: str, in_file: bool) -> None:
    Path(recipe).write_text(f"plan: {str(in_file).lower()}\n")
    assert parse("--config", recipe).plan is in_file
    assert parse("--config", recipe, "--plan").plan is True
    assert parse("--config", recipe, "--no-plan").plan is False


def test_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        parse("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="expected a file after --config"):
        parse("--config")


@pytest.mark.parametrize("argv", [["--nosuch", "1"], ["--select", "many"], ["positional"]])
def test_a_wrong_flag_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_help_exits_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "what it does" in shown and "--near-above" in shown and "--corpus" in shown
    assert "--config" in shown and "--log-format" in shown


class TestRun:
    @pytest.mark.parametrize(("given", "code"), [(0, 0), (None, 0), (3, 3)])
    def test_the_code_of_main_is_the_code_of_the_job(self, given: int | None, code: int) -> None:
        with pytest.raises(SystemExit) as caught:
            job.run(lambda: given)
        assert caught.value.code == code

    @pytest.mark.parametrize(
        "kind", [errors.ConfigError, errors.DataError, errors.TransientError, errors.ResourceError]
    )
    def test_one_line_for_each_of_our_errors(
        self, kind: type[errors.MmvpError], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def main() -> int:
            raise kind("expected one thing,\n  found another\twith \x00 and \x1b[31m in it")

        with pytest.raises(SystemExit) as caught:
            job.run(main)
        assert caught.value.code == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith(f"{kind.__name__}: expected one thing, found another with")
        assert shown.err.count("\n") == 1 and shown.err.rstrip("\n").isprintable()

    def test_an_interrupt_says_how_to_go_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        def main() -> int:
            raise KeyboardInterrupt

        with pytest.raises(SystemExit) as caught:
            job.run(main)
        assert caught.value.code == 130
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_defect_keeps_its_traceback(self) -> None:
        def main() -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            job.run(main)


class TestLogFormat:
    @pytest.fixture(autouse=True)
    def _text_again(self) -> object:
        yield
        logs.setup("text")

    def run(self, main: object) -> tuple[int, str]:
        with contextlib.redirect_stderr(io.StringIO()) as stream:
            with pytest.raises(SystemExit) as caught:
                job.run(main)  # type: ignore[arg-type]
            logs.setup("text")
        return int(caught.value.code or 0), stream.getvalue()

    @pytest.mark.parametrize("flags", [["--log-format", "json"], ["--log-format=json"]])
    def test_the_flag_takes_effect_before_the_config_is_read(self, flags: list[str]) -> None:
        def main() -> int:
            parse(*flags, "--config", "no/such.yaml")
            return 0

        code, shown = self.run(main)
        (entry,) = map(json.loads, shown.splitlines())
        assert code == 1
        assert (entry["level"], entry["event"], entry["error"]) == ("error", "error", "ConfigError")
        assert entry["message"].startswith("ConfigError: expected a YAML file at no/such.yaml")

    def test_the_flag_is_no_field_of_the_config(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            assert parse("--log-format", "json", "--select", "9") == Recipe(select=9)
            logs.setup("text")

    def test_a_usage_error_and_a_defect_are_objects_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(logs.VARIABLE, "json")
        code, shown = self.run(lambda: parse("--nosuch", "1") and 0)
        assert code == 2
        assert any("nosuch" in json.loads(line)["message"] for line in shown.splitlines())
        code, shown = self.run(lambda: 1 // 0)
        (entry,) = map(json.loads, shown.splitlines())
        assert code == 1 and entry["error"] == "ZeroDivisionError" and "Traceback" in entry["traceback"]

    @pytest.mark.parametrize("argv", [["--log-format"], ["--log-format", "xml"]])
    def test_a_wrong_format(self, argv: list[str]) -> None:
        with pytest.raises(ConfigError, match="--log-format"):
            parse(*argv)


class TestStopping:
    """SIGTERM, in processes of their own."""

    def start(self, tmp_path: Path, body: str, **environment: str) -> subprocess.Popen[str]:
        script = tmp_path / "script.py"
        script.write_text(
            # Short sleeps: one that begins just after a signal came, before Python looks for it, is slept to its end.
            "import pathlib, sys, time\nfrom mmvp_ray import job\n"
            "def wait():\n    for _ in range(60_000):\n        time.sleep(0.01)\n"
            f"here = pathlib.Path({str(tmp_path)!r})\n" + textwrap.dedent(body) + "\njob.run(main)\n"
        )
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, **environment},
        )
        self.wait_for(tmp_path / "started", process)
        return process

    def wait_for(self, path: Path, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 200
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

    def test_one_that_is_ignored_stays_so(self, tmp_path: Path) -> None:
        """As nohup and shells do with what they start in the background."""
        process = self.start(
            tmp_path,
            """
            import os, signal
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            def main():
                (here / "started").touch()
                os.kill(os.getpid(), signal.SIGINT)
                print("goes on")
            """,
        )
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "goes on\n", "")

    def test_blocks_are_left_and_the_next_step_is_said(self, tmp_path: Path) -> None:
        process = self.start(
            tmp_path,
            """
            def main():
                try:
                    (here / "started").touch()
                    wait()
                finally:
                    (here / "left").touch()
            """,
        )
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143
        assert (out, err) == ("", "stopped by SIGTERM; the same command goes on where this one stopped\n")
        assert (tmp_path / "left").exists()

    def test_in_json(self, tmp_path: Path) -> None:
        process = self.start(
            tmp_path,
            """
            def main():
                (here / "started").touch()
                wait()
            """,
            MMVP_RAY_LOG_FORMAT="json",
        )
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        (entry,) = map(json.loads, err.splitlines())
        assert process.returncode == 143 and entry["event"] == "stopped"
        assert entry["message"] == "stopped by SIGTERM; the same command goes on where this one stopped"

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    @pytest.mark.parametrize("way", ["a second one", "too slow"])
    def test_what_does_not_end_is_cut_off(self, tmp_path: Path, way: str, number: int, code: int) -> None:
        process = self.start(
            tmp_path,
            f"""
            job.STOP_SECONDS = {0.2 if way == "too slow" else 600.0}
            def main():
                try:
                    (here / "started").touch()
                    wait()
                finally:
                    (here / "leaving").touch()
                    wait()
            """,
        )
        process.send_signal(number)
        if way == "a second one":
            self.wait_for(tmp_path / "leaving", process)
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert (
            err.startswith(("stopped by SIGTERM at once: ", "interrupted at once: ")[number == signal.SIGINT])
            and err.count("\n") == 1
        )

    def test_a_job_may_ask_for_longer(self, tmp_path: Path) -> None:
        process = self.start(
            tmp_path,
            """
            job.STOP_SECONDS = 0.2
            def main():
                with job.may_stop_for(600.0):
                    try:
                        (here / "started").touch()
                        wait()
                    finally:
                        time.sleep(1.0)
                        (here / "left").touch()
            """,
        )
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (
            143,
            "stopped by SIGTERM; the same command goes on where this one stopped\n",
        )
        assert (tmp_path / "left").exists()

    @pytest.mark.parametrize(
        ("raised", "code", "shown"),
        [
            ("SystemExit(15)", 143, "stopped by SIGTERM; the same command goes on where this one stopped\n"),
            ("SystemExit(3)", 3, ""),
        ],
    )
    def test_the_exit_of_rays_own_handler_counts_as_the_signal(
        self, raised: str, code: int, shown: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def main() -> int:
            raise {"SystemExit(15)": SystemExit(15), "SystemExit(3)": SystemExit(3)}[raised]

        with pytest.raises(SystemExit) as caught:
            job.run(main)
        assert (caught.value.code, capsys.readouterr().err) == (code, shown)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    @pytest.mark.parametrize("raised", ["RuntimeError('the actor died')", "TransientError('the store is unwell')"])
    def test_what_comes_of_the_interrupt_is_no_failure(
        self, tmp_path: Path, raised: str, number: int, code: int
    ) -> None:
        process = self.start(
            tmp_path,
            f"""
            from mmvp_ray.errors import TransientError
            def main():
                try:
                    (here / "started").touch()
                    wait()
                except BaseException:
                    raise {raised}
            """,
        )
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        way = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
        assert (process.returncode, err) == (code, f"{way}; the same command goes on where this one stopped\n")


def test_a_reader_that_goes_away_is_no_defect() -> None:
    job = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from mmvp_ray import job\njob.run(lambda: [print('x' * 1000) for _ in range(2000)] and 0)",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert job.stdout is not None
    assert job.stderr is not None
    job.stdout.read(10)
    job.stdout.close()
    assert job.stderr.read() == b""
    assert job.wait(60) == 141
