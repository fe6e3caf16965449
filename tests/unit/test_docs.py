"""The docs name only what there is: commands and flags that parse, files, links and headings that exist; and docs/reference.md is made of the code."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mmvp_ray import job
from mmvp_ray.config import load_yaml
from mmvp_ray.errors import MmvpError

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CONFIG_OF = {
    "": ("mine", ()),
    "evaluate": ("evaluate", ("encoders",)),
    "ingest/imagenet.yaml": ("ingest", ("imagenet",)),
    "ingest/laion_aesthetics.yaml": ("ingest", ("laion",)),
    "mof": ("train_mof", ("plan",)),
    "mof/stages": ("train_mof", ("train",)),
    "probe": ("probe", ()),
}
"""Whose --config a file below configs/ is: by its path or by its folder."""


def _load_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_reference", REPOSITORY / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_reference"] = module
    spec.loader.exec_module(module)
    return module


maker = _load_maker()


class WrongDocs(Exception):
    """What a checker found."""


class Parsed(BaseException):
    """A job or a module has read its command line."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True)
class Line:
    """A command in a page, as words, with the variables of its block filled in."""

    page: str
    text: str
    is_span: bool = False

    def words(self) -> list[str]:
        words = shlex.split(self.text, comments=True)
        end = next(
            (at for at, word in enumerate(words) if word in ("&&", "||", "|", "&", ";", ">", "2>&1")), len(words)
        )
        return [word.removesuffix(";") for word in words[:end]]


def blocks(text: str) -> Iterator[str]:
    """Fenced and indented code blocks, continued lines joined."""
    for fenced in re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        yield re.sub(r"\\\n\s*", " ", fenced)
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    for indented in re.findall(r"(?:^ {4,}[^\n]*(?:\n|\Z)|^\s*\n(?= {4}))+", text, flags=re.MULTILINE):
        yield re.sub(r"\\\n\s*", " ", indented)


def commands(page: str, text: str, start: str) -> list[Line]:
    """The rest of each line of a code block, and of each span of code in the text, that begins with the pattern `start`."""
    found = []
    for block in blocks(text):
        for name, value in re.findall(r"^\s*([A-Z_]+)=(\S+)\s*$", block, flags=re.MULTILINE):
            block = re.sub(rf"\${name}\b", value, block)
        lines = (re.sub(r"\s#\s.*$|\s{2,}\([^)]*\)$", "", line) for line in block.splitlines())
        begins = rf"(?:(?:^|\s)(?:uv run |python )|^\s*(?:[\w -]+:\s+)?){start}(\s.*)?$"
        found.extend(Line(page, _joined(match)) for match in (re.search(begins, line) for line in lines) if match)
    spans = (re.match(rf"(?:uv run |python )?{start}(\s.*)?$", span) for span in _spans(text))
    found.extend(Line(page, _joined(match), is_span=True) for match in spans if match)
    return found


def _spans(text: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def _joined(match: re.Match[str]) -> str:
    return "".join(group or "" for group in match.groups())


JOB = r"jobs/(\w+\.py)"
MODULE = r"-m ((?:benchmarks|mmvp_ray)[\w.]*)"


def job_lines(page: str, text: str) -> list[Line]:
    return commands(page, text, JOB)


def module_lines(page: str, text: str) -> list[Line]:
    return commands(page, text, MODULE)


def parse_job(line: Line) -> Any:
    """What the job makes of the words.

    Placeholders stand for values: words in capitals for numbers and choices, `...` for whatever is left out, and files that do not exist,
    unless they are named as ours, for a --config.
    """
    name, *words = line.words()
    name = name.removesuffix(".py")
    if name not in maker.job_names():
        raise WrongDocs(f"{line.page}: no jobs/{name}.py in {line.text!r}")
    said = [word for word in words if word not in ("...", "--help")]
    starts = maker.words_of(name)
    if starts != [""] and not said:
        return None  # the job itself
    start = "" if starts == [""] else said[0]
    if start not in starts:
        raise WrongDocs(f"{line.page}: expected one of {starts}, found {start!r} in {line.text!r}")
    known = {command.words: command for command in maker.commands_at(name, start)}
    at = max((len(one) for one in known if tuple(words[: len(one)]) == one), default=-1)
    if at < 0:
        if any(one[: len(said)] == tuple(said) for one in known):
            return None  # a group of its commands
        raise WrongDocs(f"{line.page}: expected one of {sorted(known)}, found {words[:2]} in {line.text!r}")
    command = known[tuple(words[:at])]
    words = _filled(line, words[at:], {flag.name: flag for flag in maker.flags_of(command.config)})
    if "--help" in words:
        return None
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(told):
        try:
            config = job.parse(command.config, words, description="")
        except SystemExit:
            raise WrongDocs(f"{line.page}: {' '.join(told.getvalue().split())} in {line.text!r}") from None
        except MmvpError as error:
            raise WrongDocs(f"{line.page}: {error} in {line.text!r}") from error
    return config


def _filled(line: Line, words: list[str], flags: dict[str, Any]) -> list[str]:
    """The words with values in place of placeholders."""
    if line.is_span and words and words[-1] in flags and flags[words[-1]].kind != "switch":
        words = [*words, "..."]  # as in "`jobs/evaluate.py mllm --model` takes"
    filled: list[str] = []
    for word in words:
        name, is_joined, value = word.partition("=") if word.startswith("--") else ("", "", word)
        for path in re.findall(r"(?<![\w/])configs/[\w./*-]+", value):
            if not any(REPOSITORY.glob(path)):
                raise WrongDocs(f"{line.page}: no file {path} in {line.text!r}")
        if filled and filled[-1] == "--config" and not (REPOSITORY / value).is_file():
            filled.pop()
            continue
        flag = flags.get(name if is_joined else (filled[-1] if filled else ""))
        if value == "..." and (flag is None or flag.kind == "switch"):
            continue
        if flag is not None and flag.kind not in ("STR", "switch") and re.fullmatch(r"[A-Z][A-Z0-9_]*|\.\.\.", value):
            value = "1" if flag.kind in ("INT", "FLOAT") else flag.kind.split(" or ")[0]
        filled.append(f"{name}={value}" if is_joined else word if word.startswith("--") else value)
    return filled[:-1] if filled and filled[-1] == "--config" else filled


def parse_module(line: Line) -> None:
    """Read the words as `python -m` of one of our modules would."""
    name, *words = line.words()
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise WrongDocs(f"{line.page}: no module {name} in {line.text!r}")
    if "__main__" not in Path(str(found.origin)).read_text():
        raise WrongDocs(f"{line.page}: {name} cannot be run in {line.text!r}")
    module = importlib.import_module(name)
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        raise Parsed(parse_args(parser, words))

    if "argparse" not in Path(str(found.origin)).read_text():
        return
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *words])
        try:
            module.main()
        except Parsed:
            return
        except SystemExit:
            raise WrongDocs(f"{line.page}: {' '.join(said.getvalue().split())} in {line.text!r}") from None
    raise WrongDocs(f"{line.page}: {name} read no command line")


def headings(text: str) -> set[str]:
    """What GitHub makes of the headings of a page: the words behind # in links."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for head in re.findall(r"^#{1,6} (.*)$", text, flags=re.MULTILINE):
        head = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", head).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def wrong_links(page: Path, text: str) -> list[str]:
    """Relative links that lead nowhere."""
    wrong = []
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in headings(text if target == page else target.read_text())):
            wrong.append(f"{page.name}: {link}")
    return wrong


def wrong_paths(page: Path, text: str) -> list[str]:
    """Paths of the repository that a page names in code and that are not there."""
    named = r"(?<![\w./-])(?:configs|jobs|docs|tests|benchmarks|k8s|mmvp_ray)/[\w./*-]*\w"
    paths = [path for span in _spans(text) for path in re.findall(named, span)]
    return [f"{page.name}: {path}" for path in paths if not any(REPOSITORY.glob(path))]


def imports(text: str) -> Iterator[tuple[str, str]]:
    """What code blocks import from our package: module and name."""
    for block in blocks(text):
        for module, names in re.findall(r"^\s*from (mmvp_ray[\w.]*) import ([\w, ]+)", block, flags=re.MULTILINE):
            yield from ((module, name.strip()) for name in names.split(","))


def defined(module: str) -> set[str]:
    """Names that a module defines or imports at its top, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    found: set[str] = set()
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


TEXTS = {page.name: page.read_text() for page in PAGES}
"""Every page; the docstring of each job and the comments of each recipe have commands as well."""
SAID = TEXTS | {
    f"{path.parent.name}/{path.name}": re.sub(r"(?m)^#", "    ", path.read_text())
    for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))
}


def of_jobs() -> dict[str, str]:
    docs = {}
    for name in maker.job_names():
        text = ast.get_docstring(ast.parse((REPOSITORY / "jobs" / f"{name}.py").read_text())) or ""
        docs[f"jobs/{name}.py"] = re.sub(r"(?m)^  (?=\S)", "    ", text)
    return docs


def test_the_reference_is_made_of_the_code() -> None:
    there = (REPOSITORY / "docs" / "reference.md").read_text()
    assert there == maker.reference(), "run python docs/make_reference.py"


def test_a_reference_that_differs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "reference.md"
    monkeypatch.setattr(maker, "PAGE", page)
    monkeypatch.setattr(maker, "reference", lambda: "# Reference\n\none\n")
    assert maker.main(["--check"]) == 1
    assert maker.main([]) == 0
    assert maker.main(["--check"]) == 0
    page.write_text("# Reference\n\ntwo\n")
    assert maker.main(["--check"]) == 1
    assert "-two" in capsys.readouterr().err
    assert maker.main(["--chek"]) == 2


@pytest.mark.parametrize("name", maker.job_names())
def test_the_reference_has_the_flags_that_help_shows(name: str) -> None:
    for command in maker.commands_of(name):
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
            job.parse(command.config, ["--help"], description="")
        shown = set(re.findall(r"^\W*(--[a-z][\w-]*)", said.getvalue(), flags=re.MULTILINE)) - {"--help"}
        assert shown == {flag.name for flag in maker.flags_of(command.config)}, command.words
        without_help = [flag.name for flag in maker.flags_of(command.config) if not flag.help]
        assert not without_help, without_help


WITH_COMMANDS = SAID | of_jobs()


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for line in job_lines(page, WITH_COMMANDS[page]):
        parse_job(line)


def test_there_are_commands() -> None:
    lines = {page: len(job_lines(page, text)) for page, text in TEXTS.items()}
    assert lines["README.md"] >= 12 and lines["guide.md"] >= 5 and lines["reproduce.md"] >= 8
    assert sum(lines.values()) > 80
    assert sum(len(module_lines(page, text)) for page, text in TEXTS.items()) > 8


@pytest.mark.parametrize("page", TEXTS)
def test_modules_run(page: str) -> None:
    for line in module_lines(page, TEXTS[page]):
        parse_module(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    assert not wrong_links(page, page.read_text())
    assert not wrong_paths(page, page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_exist(page: Path) -> None:
    for module, name in imports(page.read_text()):
        assert importlib.util.find_spec(module) is not None, module
        assert name in defined(module) or (module == "mmvp_ray" and name in importlib.import_module(module).__all__), (
            module,
            name,
        )


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load(path: Path) -> None:
    place = path.relative_to(REPOSITORY / "configs")
    folder = "" if str(place.parent) == "." else str(place.parent)
    name, words = CONFIG_OF.get(str(place)) or CONFIG_OF[folder]
    (config,) = {one.config for one in maker.commands_at(name, words[0] if words else "")}
    load_yaml(config, str(path))


WRONG = {
    "an unknown job": "    python jobs/minne.py",
    "an unknown command": "    uv run jobs/evaluate.py encode --out runs/x",
    "an unknown flag": "    python jobs/mine.py --corpora photos=./photos",
    "an unknown flag behind a continuation": "    python jobs/mine.py --out runs/x \\\n        --nearest x",
    "a wrong type": "```bash\nuv run jobs/mine.py --select many\n```",
    "a wrong choice": "    ray job submit --working-dir . -- python jobs/mine.py --engine brute",
    "a recipe that is not there": "    python jobs/mine.py --config configs/imagenett.yaml",
    "a recipe of another job": "    python jobs/mine.py --config configs/probe/study.yaml",
    "a wrong flag behind a variable": "    RECIPE=configs/imagenet.yaml\n    python jobs/mine.py --config $RECIPE --neer x",
    "in the text": "Say `jobs/mine.py --near-over 0.9` then.",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_the_checker_finds_a_wrong_command(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (line,) = job_lines("page", f"Text.\n\n{text}\n\nMore.\n")
    with pytest.raises(WrongDocs):
        parse_job(line)


RIGHT = {
    "nothing": ("python jobs/mine.py", {}),
    "a comment": ("pip install -q uv && uv run jobs/mine.py        # sets up", {}),
    "a pipe": ("uv run jobs/mine.py --plan | tee plan.txt", {"plan": True}),
    "a placeholder for a number": ("python jobs/mine.py --select NUM", {"select": 1}),
    "a placeholder for a text": ("python jobs/mine.py --out OUT", {"out": "OUT"}),
    "a recipe of ones own": ("python jobs/mine.py --config my.yaml --out x", {"out": "x"}),
    "a recipe of ours": ("python jobs/mine.py --config configs/imagenet.yaml", {"device": "cuda"}),
    "dots": ("python jobs/mine.py --device cpu ...", {"device": "cpu"}),
}


@pytest.mark.parametrize(("text", "expected"), RIGHT.values(), ids=RIGHT.keys())
def test_the_checker_takes_what_is_right(text: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (line,) = job_lines("page", f"Text.\n\n    {text}\n\nMore.\n")
    config = parse_job(line)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "text",
    [
        "python -m benchmarks.nothing",
        "python -m benchmarks.vectors",
        "python -m benchmarks.mof --stepps 4",
        "python -m benchmarks.mof --steps few",
    ],
)
def test_the_checker_finds_a_wrong_module(text: str) -> None:
    (line,) = module_lines("page", f"Run `{text}`.")
    with pytest.raises(WrongDocs):
        parse_module(line)


def test_the_checker_finds_wrong_links() -> None:
    page = REPOSITORY / "docs" / "search.md"
    text = "# Some `code`, and more\n\n[a](#some-code-and-more) [b](mine.md) [c](#nothing) [d](scoring.md#pope) [e](scoring.md#pop) [f](https://x.y/z)\n"
    assert wrong_links(page, text) == ["search.md: mine.md", "search.md: #nothing", "search.md: scoring.md#pop"]
    assert wrong_paths(page, "`jobs/mine.py` and `configs/none.yaml`, `s3://bucket/configs/x`") == [
        "search.md: configs/none.yaml"
    ]
