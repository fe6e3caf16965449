"""What a study found, as a table of answers, as JSON and as a page; the table feeds the evaluation report's human line."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from PIL import Image

from mmvp_ray import storage
from mmvp_ray.annotate.pictures import view_bytes
from mmvp_ray.annotate.rules import CANNOT_TELL
from mmvp_ray.annotate.studies import find_study
from mmvp_ray.annotate.study_order import largest_gap
from mmvp_ray.annotate.study_scores import CROSSED, pair_cards, pattern_rows, person_rows
from mmvp_ray.annotate.workspace import Row, Workspace, open_workspace
from mmvp_ray.benchmark.benchmark import AS_FOUND, collect
from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.benchmark.keys import published_key
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.baselines import baselines
from mmvp_ray.evaluate.human import COLUMNS, Response, human_baseline
from mmvp_ray.evaluate.paper_tables import paper_tables
from mmvp_ray.report.study_page import (
    StudyAgreement,
    StudyPair,
    StudyReport,
    StudyScore,
    hard_pairs,
    render_study_html,
)
from mmvp_ray.report.thumbnails import thumbnail
from mmvp_ray.report.twin import encode_dataclass

RESPONSES_FILE, JSON_FILE, PAGE_FILE = "responses.csv", "study.json", "study.html"
RESPONSE_COLUMNS: Final = (*COLUMNS, "place", "option_order", "answered_at")
"""place: in the participant's order, from 0. option_order: the question's own options as they were shown, JSON. answered_at: ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyReportConfig:
    """A study's report: responses.csv for `evaluate.py report --people`, study.json, study.html."""

    workspace: str = ""
    """Folder of the workspace."""
    name: str = ""
    """Name of the study."""
    out: str = ""
    """Folder that the files are written to (path or URL)."""

    def check(self) -> None:
        """Raise ConfigError for a value that is missing."""
        for name in ("workspace", "name", "out"):
            if not getattr(self, name):
                raise ConfigError(f"expected --{name}, found none")


def report_study(config: StudyReportConfig) -> list[str]:
    """Write a study's report; it may be under way, and whoever is not done is then left out and counted.

    Returns:
        Lines for the operator: the human score, and where the files are.

    Raises:
        ConfigError: no such workspace or study, or no folder to write to.
    """
    config.check()
    out = storage.normalise(config.out)
    workspace = open_workspace(config.workspace)
    study = find_study(workspace, config.name)
    questions = study_questions(workspace, study)
    rows = _answered(workspace, study)
    report = _report(workspace, study, questions, rows)
    files = {
        RESPONSES_FILE: _csv(questions, rows),
        JSON_FILE: encode_dataclass(report),
        PAGE_FILE: render_study_html(report, _thumbnails(workspace, hard_pairs(report))),
    }
    for name, text in files.items():
        storage.write_bytes(storage.join(out, name), text.encode())
    said = f"study {report.name}: {report.num_people} participants, {report.num_excluded} excluded, {report.num_invited} links"
    if report.pairs.value is not None and report.pairs.low is not None and report.pairs.high is not None:
        said += (
            f"; {100 * report.pairs.value:.1f} % of pairs right ({100 * report.pairs.low:.1f} to {100 * report.pairs.high:.1f})"
        )  # fmt: skip
    return [said, *(storage.join(out, name) for name in files)]


def study_questions(workspace: Workspace, study: Row) -> tuple[Question, ...]:
    """A study's questions in the order of its benchmark; image_uri is the image's id in the workspace."""
    return tuple(
        Question(
            pair_id=row["pair_id"],
            item=row["item"],
            image_uri=row["image_id"],
            text=row["question"],
            options=tuple(json.loads(row["options"])),
            answer=row["answer"],
            patterns=tuple(json.loads(row["patterns"])),
        )
        for row in workspace.rows("SELECT * FROM study_questions WHERE study_id = ? ORDER BY place", study["study_id"])
    )


def _answered(workspace: Workspace, study: Row) -> list[Row]:
    return workspace.rows(
        "SELECT participants.name AS name, responses.* FROM responses JOIN participants USING (participant_id) "
        "WHERE study_id = ? AND answered_at IS NOT NULL ORDER BY participants.name, responses.place",
        study["study_id"],
    )


def _responses(questions: Sequence[Question], rows: Sequence[Row]) -> list[Response]:
    return [
        Response(
            participant=row["name"],
            question=questions[row["question_place"]].key,
            option=None if row["choice"] == CANNOT_TELL else row["choice"],
            seconds=row["seconds"],
        )
        for row in rows
    ]


def _csv(questions: Sequence[Question], rows: Sequence[Row]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(RESPONSE_COLUMNS)
    for row, said in zip(rows, _responses(questions, rows), strict=True):
        at = _iso(row["answered_at"])
        writer.writerow(
            (said.participant, said.question, said.option, said.seconds, row["place"], row["option_order"], at)
        )
    return out.getvalue()


def _report(workspace: Workspace, study: Row, questions: Sequence[Question], rows: Sequence[Row]) -> StudyReport:
    responses = _responses(questions, rows)
    found = human_baseline(questions, responses)
    given = {(said.participant, said.question): said.option for said in responses}
    names = [one.name for one in found.participants]
    invited = workspace.row("SELECT COUNT(*) AS num FROM participants WHERE study_id = ?", study["study_id"])
    assert invited is not None
    answer_key = _answer_key(workspace, study)
    gap = min(study["min_gap"], largest_gap([question.pair_id for question in questions]))
    agreed = found.agreement
    return StudyReport(
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=study["name"],
        title=study["title"],
        benchmark=study["benchmark"],
        fingerprint=study["fingerprint"],
        answer_key=answer_key,
        num_pairs=len(pairs_of(questions)),
        num_questions=len(questions),
        num_invited=invited["num"],
        num_people=found.num_participants,
        num_excluded=len(found.excluded),
        pairs=StudyScore(
            value=found.pair_accuracy, low=found.pair_low, high=found.pair_high, interval=_interval(found.pair_accuracy)
        ),
        questions=StudyScore(
            value=found.question_accuracy,
            low=found.question_low,
            high=found.question_high,
            interval=_interval(found.question_accuracy),
        ),
        guessing=baselines(questions).guessing_pair_accuracy,
        published=_published(study, questions),
        agreement=StudyAgreement(
            num_questions=agreed.num_units,
            percent=agreed.percent,
            krippendorff_alpha=agreed.krippendorff_alpha,
            alpha_low=agreed.alpha_low,
            alpha_high=agreed.alpha_high,
            reason=agreed.reason,
        ),
        median_seconds=found.median_seconds,
        patterns=pattern_rows(questions, names, given),
        people=person_rows(found, responses),
        pair_difficulty=pair_cards(questions, names, given),
        gap=gap,
        shuffles_options=bool(study["shuffles_options"]),
        config={
            "seed": study["seed"],
            "min_gap": study["min_gap"],
            "intro": study["intro"],
            "made_at": _iso(study["created_at"]),
        },
        versions={name: importlib.metadata.version(name) for name in ("mmvp-ray", "numpy")},
    )


def _published(study: Row, questions: Sequence[Question]) -> float | None:
    """The paper's human score, if what was asked is the published MMVP; an image's id is the SHA-256 of its bytes."""
    again = collect(
        [replace(question, patterns=()) for question in questions],
        name=study["name"],
        image_sha256={question.image_uri: question.image_uri for question in questions},
    )
    if again.fingerprint != study["fingerprint"] or published_key(again) is None:
        return None
    return paper_tables().mmvp["Human"] / 100


def _answer_key(workspace: Workspace, study: Row) -> str:
    for row in workspace.rows("SELECT content FROM events WHERE kind = 'study_made'"):
        content: dict[str, Any] = json.loads(row["content"])
        if content.get("fingerprint") == study["fingerprint"] and content.get("study") == study["name"]:
            return str(content.get("key", AS_FOUND))
    return ""


def _thumbnails(workspace: Workspace, pairs: Sequence[StudyPair]) -> dict[str, bytes]:
    """Small pictures of the pairs, those called unsafe left out."""
    unsafe = {row["image_id"] for row in workspace.rows("SELECT image_id FROM images WHERE is_unsafe")}
    found = {}
    for image_id in {image_id for pair in pairs for image_id in (pair.image_id_a, pair.image_id_b)} - unsafe:
        with Image.open(io.BytesIO(view_bytes(workspace, image_id))) as view:
            found[image_id] = thumbnail(np.asarray(view.convert("RGB")))
    return found


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")


def _interval(share: float | None) -> str:
    """What bounds of the human line are (evaluate.human.crossed_interval)."""
    return "wilson" if share in (0.0, 1.0) else CROSSED
