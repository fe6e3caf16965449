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
from numpy.typing import NDArray
from PIL import Image

from mmvp_ray import storage
from mmvp_ray.annotate.pictures import view_bytes
from mmvp_ray.annotate.rules import CANNOT_TELL
from mmvp_ray.annotate.studies import find_study
from mmvp_ray.annotate.study_order import largest_gap
from mmvp_ray.annotate.workspace import Row, Workspace, open_workspace
from mmvp_ray.benchmark.benchmark import AS_FOUND, collect
from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.benchmark.keys import published_key
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.baselines import baselines
from mmvp_ray.evaluate.human import COLUMNS, HumanBaseline, Response, crossed_interval, human_baseline
from mmvp_ray.evaluate.paper_tables import paper_tables
from mmvp_ray.intervals import wilson_interval
from mmvp_ray.report.study_page import (
    AskedQuestion,
    StudyAgreement,
    StudyPair,
    StudyPattern,
    StudyPerson,
    StudyReport,
    StudyScore,
    hard_pairs,
    render_study_html,
)
from mmvp_ray.report.thumbnails import thumbnail
from mmvp_ray.report.twin import encode_dataclass

# Legend: M participants, P pairs.

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
        storage.write_bytes(storage.join(config.out, name), text.encode())
    said = f"study {report.name}: {report.num_people} participants, {report.num_excluded} excluded, {report.num_invited} links"
    if report.pairs.value is not None and report.pairs.low is not None and report.pairs.high is not None:
        said += (
            f"; {100 * report.pairs.value:.1f} % of pairs right ({100 * report.pairs.low:.1f} to {100 * report.pairs.high:.1f})"
        )  # fmt: skip
    return [said, *(storage.join(config.out, name) for name in files)]


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
        pairs=StudyScore(value=found.pair_accuracy, low=found.pair_low, high=found.pair_high, interval=_CROSSED),
        questions=StudyScore(
            value=found.question_accuracy, low=found.question_low, high=found.question_high, interval=_CROSSED
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
        patterns=_patterns(questions, names, given),
        people=_people(found, responses),
        pair_difficulty=_difficulty(questions, names, given),
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


_CROSSED: Final = "people and pairs"


def _patterns(
    questions: Sequence[Question], names: Sequence[str], given: dict[tuple[str, str], int | None]
) -> list[StudyPattern]:
    by_pattern: dict[str, list[tuple[Question, ...]]] = {}
    for pair in pairs_of(questions).values():
        if pair[0].patterns:
            by_pattern.setdefault(pair[0].patterns[0], []).append(pair)
    rows = []
    for pattern in sorted(by_pattern, key=lambda name: (PATTERNS.index(name) if name in PATTERNS else 99, name)):
        pairs = by_pattern[pattern]
        share_MP = np.asarray(
            [[_num_right(pair, name, given) for pair in pairs] for name in names], np.float64
        ).reshape(len(names), len(pairs))  # fmt: skip
        sizes_P = np.asarray([len(pair) for pair in pairs], np.float64)
        right_MP = (share_MP == sizes_P).astype(np.float64)
        rows.append(
            StudyPattern(
                pattern=pattern,
                num_pairs=len(pairs),
                pairs=_score(right_MP, np.ones(len(pairs))),
                questions=_score(share_MP, sizes_P),
            )
        )
    return rows


def _score(value_MP: NDArray[np.float64], size_P: NDArray[np.float64]) -> StudyScore:
    if not value_MP.size:
        return StudyScore(value=None, low=None, high=None, interval=_CROSSED)
    num_people, num_pairs = value_MP.shape
    value = float(value_MP.sum() / (num_people * size_P.sum()))
    if value in (0, 1):
        # Drawing anew would show no spread at all; people's answers to one pair are not independent, so pairs are counted once.
        low, high = wilson_interval(num_pairs if value else 0, num_pairs)
        return StudyScore(value=value, low=low, high=high, interval="wilson")
    bounds = crossed_interval(value_MP, size_P)
    return StudyScore(value=value, low=bounds[0], high=bounds[1], interval=_CROSSED)


def _people(found: HumanBaseline, responses: Sequence[Response]) -> list[StudyPerson]:
    scored = {one.name: one for one in found.participants}
    people = []
    for name in sorted({said.participant for said in responses}):
        mine = [said for said in responses if said.participant == name]
        seconds = [said.seconds for said in mine if said.seconds is not None]
        people.append(
            StudyPerson(
                name=name,
                num_answered=len(mine),
                pair_accuracy=scored[name].pair_accuracy if name in scored else None,
                question_accuracy=scored[name].question_accuracy if name in scored else None,
                num_cannot_tell=sum(said.option is None for said in mine),
                median_seconds=float(np.median(seconds)) if seconds else None,
            )
        )
    return people


def _difficulty(
    questions: Sequence[Question], names: Sequence[str], given: dict[tuple[str, str], int | None]
) -> list[StudyPair]:
    cards = []
    for pair_id, pair in pairs_of(questions).items():
        asked = []
        for question in pair:
            said = [given[name, question.key] for name in names]
            asked.append(
                AskedQuestion(
                    item=question.item,
                    image_id=question.image_uri,
                    text=question.text,
                    options=list(question.options),
                    answer=question.answer,
                    chosen=[said.count(option) for option in range(len(question.options))],
                    num_cannot_tell=said.count(None),
                )
            )
        num_right = sum(_num_right(pair, name, given) == len(pair) for name in names)
        pattern = pair[0].patterns[0] if pair[0].patterns else ""
        cards.append(
            StudyPair(pair_id=pair_id, pattern=pattern, num_right=num_right, num_people=len(names), questions=asked)
        )
    return sorted(cards, key=lambda card: (card.num_right, sum(one.num_right for one in card.questions)))


def _num_right(pair: Sequence[Question], name: str, given: dict[tuple[str, str], int | None]) -> int:
    return sum(given[name, question.key] == question.answer for question in pair)


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
