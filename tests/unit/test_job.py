"""How a job starts and ends: defaults, file and flags in their order; exit codes; one line for what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmvp_ray import errors, job
from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    near_above: float = 0.95
    """Near enough."""


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
