#!/usr/bin/env python
"""From mined pairs to a benchmark, by people: what differs, one question, verified blind by a second person, and a study of what people reach.

  import     pairs of a mining run into a workspace (a folder)
  users      add | token | disable | list: people and their one-time links
  serve      the web app: annotate, verify, decide, write sentences, studies
  agreement  how far people agree
  export     verified pairs as a benchmark: table, mmvp, mmvp_vlm, huggingface, lmms_eval, vlmevalkit
  study      new | add | report: people answer a benchmark; the result is the human line of jobs/evaluate.py report

  python jobs/annotate.py import --workspace work --run out/mine
  python jobs/annotate.py users add --workspace work --name Ada --role admin
  python jobs/annotate.py serve --workspace work
  python jobs/annotate.py export --workspace work --form mmvp --out my_mmvp
  python jobs/annotate.py study new --workspace work --name first --benchmark my_mmvp --participants 5

docs/annotate.md. Flags override --config FILE.yaml, which overrides the defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.job import Command, parse_checked, said


def import_pairs(argv: list[str]) -> int:
    """Queue the pairs of a mining run; pairs that are there already stay as they are."""
    from mmvp_ray.annotate.config import ImportConfig

    config = parse_checked(ImportConfig, argv, import_pairs)

    from mmvp_ray.pipeline.annotation import import_run

    return said(import_run(config, say=lambda line: print(line, flush=True)))


def serve(argv: list[str]) -> int:
    """The web app of a workspace, for this machine alone unless --host says otherwise."""
    from mmvp_ray.annotate.config import AnnotateServeConfig

    config = parse_checked(AnnotateServeConfig, argv, serve)

    from mmvp_ray.annotate.serving import serve as serve_workspace

    serve_workspace(config, lambda line: print(line, flush=True))
    return 0


def users(argv: list[str]) -> int:
    """People of a workspace: add | token | disable | list. Links with tokens are shown once and work once."""
    from mmvp_ray.annotate import accounts
    from mmvp_ray.annotate.config import UsersConfig

    commands: dict[str, Command] = {
        name: lambda rest, act=act: said(act(parse_checked(UsersConfig, rest, users)))  # type: ignore[misc]
        for name, act in accounts.COMMANDS.items()
    }
    return job.choose(commands, argv, description=inspect.getdoc(users) or "")


def agreement(argv: list[str]) -> int:
    """How far people agree: authors and blind verifiers, per person and pattern."""
    from mmvp_ray.annotate.config import AgreementConfig

    config = parse_checked(AgreementConfig, argv, agreement)

    from mmvp_ray import storage
    from mmvp_ray.annotate.agreeing import agreement_lines, agreement_report
    from mmvp_ray.annotate.workspace import open_workspace

    report = agreement_report(open_workspace(config.workspace))
    if config.json is not None:
        storage.write_json(storage.normalise(config.json), dataclasses.asdict(report))
    return said(agreement_lines(report))


def export(argv: list[str]) -> int:
    """Verified pairs as a benchmark in one of six forms; docs/annotate.md."""
    from mmvp_ray.annotate.exporting import ExportConfig
    from mmvp_ray.annotate.exporting import export as export_pairs

    return said(export_pairs(parse_checked(ExportConfig, argv, export)))


def study(argv: list[str]) -> int:
    """A human study of a benchmark: new | add | report."""

    def new(rest: list[str]) -> int:
        """Ask a benchmark's questions of people who come by links."""
        from mmvp_ray.annotate.studies import StudyNewConfig, new_study

        return said(new_study(parse_checked(StudyNewConfig, rest, new)))

    def add(rest: list[str]) -> int:
        """More links to a study that is under way."""
        from mmvp_ray.annotate.studies import StudyAddConfig, add_to_study

        return said(add_to_study(parse_checked(StudyAddConfig, rest, add)))

    def report(rest: list[str]) -> int:
        """What people reached: responses.csv, study.json and study.html."""
        from mmvp_ray.annotate.study_report import StudyReportConfig, report_study

        return said(report_study(parse_checked(StudyReportConfig, rest, report)))

    return job.choose({"new": new, "add": add, "report": report}, argv, description=inspect.getdoc(study) or "")


COMMANDS: dict[str, Command] = {
    "import": import_pairs,
    "users": users,
    "serve": serve,
    "agreement": agreement,
    "export": export,
    "study": study,
}


if __name__ == "__main__":
    job.run(lambda: job.choose(COMMANDS, sys.argv[1:], description=__doc__ or ""))
