#!/usr/bin/env python
"""docs/reference.md out of the code: the flags of every job, the columns of every table, the tables of an annotation workspace.

python docs/make_reference.py            writes docs/reference.md
python docs/make_reference.py --check    writes nothing, and ends with 1 if it differs
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import itertools
import re
import sqlite3
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "reference.md"
sys.path.insert(0, str(REPOSITORY))

from mmvp_ray import job, schema  # noqa: E402
from mmvp_ray.annotate import tables  # noqa: E402
from mmvp_ray.benchmark import table as benchmark_table  # noqa: E402
from mmvp_ray.ingest import aesthetic_scores  # noqa: E402
from mmvp_ray.store import layout, takedown_record  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
        name: With its dashes.
        key: Where a --config file has it: a dot for each nesting.
        kind: STR, INT, FLOAT, "switch", or the words that it takes, separated by " or ".
        is_repeatable: It may stand several times.
        default: What it is without the flag, for people.
        help: What the config's class says below the field.
    """

    name: str
    key: str
    kind: str
    is_repeatable: bool
    default: str
    help: str


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a job: the words before its flags, what it is for, and the class that its flags fill."""

    words: tuple[str, ...]
    about: str
    config: type[Any]


class Parsing(BaseException):
    """Raised in place of parsing: a job asked for its config. No Exception, so that no job catches it."""

    def __init__(self, config: type[Any], description: str) -> None:
        """Keep what was asked for."""
        super().__init__(config.__name__)
        self.config, self.description = config, description


class Choosing(BaseException):
    """Raised in place of choosing a command of a job."""

    def __init__(self, commands: Mapping[str, Callable[[list[str]], int]]) -> None:
        """Keep the commands."""
        super().__init__(", ".join(commands))
        self.commands = commands


@functools.cache
def load_job(name: str) -> types.ModuleType:
    """The module of jobs/<name>.py, not run."""
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", REPOSITORY / "jobs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job_names() -> list[str]:
    """Every job, by name."""
    return sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py"))


def commands_of(name: str) -> list[Command]:
    """The commands of a job; one without words for a job that has none."""
    return [command for word in words_of(name) for command in commands_at(name, word)]


def words_of(name: str) -> list[str]:
    """The first words of a job's commands; an empty one for a job without commands."""
    return list(getattr(load_job(name), "COMMANDS", [""]))


@functools.cache
def commands_at(name: str, word: str) -> list[Command]:
    """The commands that begin with a word of `words_of`, without looking at (and importing for) the others."""
    module = load_job(name)
    if not word:
        return list(_walk((), lambda _: module.main()))
    return list(_walk((word,), module.COMMANDS[word]))


def _walk(words: tuple[str, ...], command: Callable[[list[str]], int]) -> Iterator[Command]:
    """What `command` is, learnt by calling it up to where it would parse its flags or choose a command of its own."""

    def parse(cls: type[Any], argv: Any, *, description: str) -> None:
        raise Parsing(cls, description)

    def choose(commands: Mapping[str, Callable[[list[str]], int]], argv: Any, *, description: str) -> None:
        raise Choosing(commands)

    before = job.parse, job.choose, sys.argv
    job.parse, job.choose, sys.argv = parse, choose, ["job"]  # type: ignore[assignment]
    parsing, choosing = None, None
    try:
        command([])
    except Parsing as found:
        parsing = found
    except Choosing as found:
        choosing = found
    finally:
        job.parse, job.choose, sys.argv = before
    if parsing is not None:
        about = inspect.cleandoc(parsing.description).split("\n\n")[0]
        yield Command(words, " ".join(about.split()), parsing.config)
    for word, inner in () if choosing is None else choosing.commands.items():
        yield from _walk((*words, word), inner)


def flags_of(cls: type[Any]) -> list[Flag]:
    """The flags of a config class, as job.parse makes them: nested classes without a prefix, in the order of the fields."""
    return list(_flags(cls, cls(), ()))


def _flags(cls: type[Any], default: Any, path: tuple[str, ...]) -> Iterator[Flag]:
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    nested = []
    for field in dataclasses.fields(cls):
        kind, value = _without_none(hints[field.name]), getattr(default, field.name)
        key = (*path, field.name)
        if dataclasses.is_dataclass(kind):
            nested.append((kind, value, key))
            continue
        is_repeatable = typing.get_origin(kind) is tuple
        if is_repeatable:
            kind = typing.get_args(kind)[0]
        dashed = field.name.replace("_", "-")
        name = f"--no-{dashed}" if kind is bool and value is True else f"--{dashed}"
        text = docs.get(field.name, "")
        yield Flag(name, ".".join(key), _shown_kind(kind), is_repeatable, _shown_default(value), text)
    for kind, value, key in nested:
        yield from _flags(kind, value, key)


def field_docs(cls: type[Any]) -> dict[str, str]:
    """What stands below each field of a dataclass and of those that it is made from."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        docs |= dict(_documented(body.body))
    return docs


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Names that are assigned, each with the text below it on one line; without a text it is empty."""
    for at, statement in enumerate(body):
        target = None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        if not isinstance(target, ast.Name):
            continue
        below = body[at + 1] if at + 1 < len(body) else None
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        text = below.value.value if is_text else ""  # type: ignore[union-attr]
        yield target.id, " ".join(str(text).split())


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        return kinds[0] if len(kinds) == 1 else typing.Union[tuple(kinds)]  # noqa: UP007
    return kind


def _shown_kind(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(str(value) for value in typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(_shown_kind(one) for one in typing.get_args(kind))
    return "switch" if kind is bool else str(kind.__name__).upper()


def _shown_default(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_shown_default(one) for one in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if value != "" else "empty"


def reference() -> str:
    """The whole page."""
    lines = [
        "# Reference",
        "",
        "Made from the code by `python docs/make_reference.py`; change the code, not this page. A test fails while the two differ.",
        "",
        "* [Flags of the jobs](#flags-of-the-jobs)",
        "* [Tables](#tables): [store and runs](#tables-of-a-store-and-of-a-run), [benchmarks](#tables-of-a-benchmark),",
        "  [annotation workspaces](#tables-of-an-annotation-workspace)",
        "",
        *_jobs(),
        *_tables(),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _jobs() -> Iterator[str]:
    yield from (
        "## Flags of the jobs",
        "",
        "Defaults < the file of `--config FILE.yaml` < flags. *Key* is the flag's name in such a file; a dot is a nesting:",
        "`rule.near_above` is `near_above` below `rule:`. A repeatable flag is a list there, and given on the command line it replaces that list.",
        "A switch takes no value; beside a file, which may have set it, `--no-` before its name takes it back. A default of none means: not",
        "set, see the text. `--help` shows the same.",
        "",
        *job.COMMON_FLAGS.strip().splitlines(),
        "",
    )
    for name in job_names():
        yield from (f"### jobs/{name}.py", "")
        # Commands that take the same flags, as those about people do, share one table.
        for (about, config), group in itertools.groupby(commands_of(name), lambda one: (one.about, one.config)):
            words = [" ".join(command.words) for command in group]
            if words != [""]:
                yield from (f"#### {name} {', '.join(words)}", "")
            yield from (about, "", "| flag | key | takes | default | |", "|---|---|---|---|---|")
            for flag in flags_of(config):
                takes = flag.kind + (", repeatable" if flag.is_repeatable else "")
                yield _row((f"`{flag.name}`", f"`{flag.key}`", takes, f"`{flag.default}`", flag.help))
            yield ""


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _tables() -> Iterator[str]:
    yield from (
        "## Tables",
        "",
        "Parquet, which DuckDB, Polars and pandas read without mmvp-ray. *Null* says whether a cell may be empty. Each file carries",
        f"`mmvp_ray.schema_version` {schema.SCHEMA_VERSION} (benchmarks: `mmvp_ray.benchmark_version` {benchmark_table.TABLE_VERSION}) in its metadata.",
        "",
        "### Tables of a store and of a run",
        "",
        "Where they lie in a store (`blind_pairs`, `pairs`, `pieces` and `diff` lie in the folder of a run):",
        "",
        *[line for line in str(layout.__doc__).splitlines() if line.startswith("    ROOT/")],
        "",
    )
    yield from _of_module(schema)
    for name, made, about in (
        ("embeddings", schema.embeddings_schema(7), "A unit-length vector of D numbers for each distinct image of a piece."),
    ):  # fmt: skip
        yield from _schema(name, made, about)
    yield from _of_module(aesthetic_scores)
    yield from _of_module(takedown_record)
    yield from (
        "### Tables of a benchmark",
        "",
        "In the folder of a benchmark in our own layout ([benchmark.md](benchmark.md)).",
        "",
    )
    yield from _of_module(benchmark_table)
    yield from _workspace()


def _of_module(module: types.ModuleType) -> Iterator[str]:
    """The schemas that a module assigns to names in capitals, each with the text below it."""
    import pyarrow as pa

    for name, text in _documented(ast.parse(inspect.getsource(module)).body):
        found = getattr(module, name, None)
        if isinstance(found, pa.Schema) and name.isupper():
            yield from _schema(name.lower(), found, text)


def _schema(name: str, found: Any, about: str) -> Iterator[str]:
    yield from (f"#### {name}", "", " ".join(about.split()), "", "| column | type | null |", "|---|---|---|")
    for field in found:
        kind = str(field.type)
        for number, letter in (("[7]", "[D]"), ("[14]", "[2 D]"), ("[22]", "[2 D of the other space]")):
            kind = kind.replace(number, letter)
        yield _row((f"`{field.name}`", f"`{kind}`", "yes" if field.nullable else "no"))
    yield ""


def _workspace() -> Iterator[str]:
    yield from (
        "### Tables of an annotation workspace",
        "",
        f"`annotate.sqlite` in the workspace's folder ([annotate.md](annotate.md)), version {tables.TABLES_VERSION} in `meta`. Its SQL, with keys and triggers, is in",
        "`mmvp_ray/annotate/tables.py`. A column with `?` may be null.",
        "",
    )
    database = sqlite3.connect(":memory:")
    database.executescript(tables.TABLES)
    for number, part in enumerate(re.split(r"((?:^--.*\n)+)", tables.TABLES, flags=re.MULTILINE)):
        if number % 2:
            said = " ".join(line.removeprefix("--").strip() for line in part.splitlines())
            yield from ("", said, "")
        for name in re.findall(r"^CREATE TABLE (\w+)", part, flags=re.MULTILINE):
            columns = database.execute('SELECT name, "notnull", pk FROM pragma_table_info(?)', (name,)).fetchall()
            shown = ", ".join(f"`{column}{'' if required or key else '?'}`" for column, required, key in columns)
            yield f"* **{name}**: {shown}"
    database.close()


def main(argv: list[str]) -> int:
    """Write the page, or compare it."""
    if argv not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/make_reference.py [--check]\n")
        return 2
    made = reference()
    if not argv:
        PAGE.write_text(made)
        return 0
    there = PAGE.read_text() if PAGE.exists() else ""
    changed = list(
        difflib.unified_diff(there.splitlines(), made.splitlines(), "docs/reference.md", "the code", lineterm="", n=0)
    )
    if changed:
        sys.stderr.write(
            "\n".join(
                [*changed[:40], "docs/reference.md is not what the code says: run python docs/make_reference.py", ""]
            )
        )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
