"""From a miniature mining run to a benchmark that jobs/evaluate.py runs: scripted people who know only what the pages say, and the world."""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import json
import re
import runpy
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.annotate_people import find_problems
from benchmarks.annotate_server import Answer, Browser, Server
from mmvp_ray import MineConfig, mine_pairs, storage
from mmvp_ray.annotate.workspace import open_workspace
from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.evaluate.responder import Ask, Reply
from mmvp_ray.job import choose
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.questions import PairQuestion, questions_for_pair
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.miniature.world import Scene, scene_from_record
from mmvp_ray.pipeline import Progress
from mmvp_ray.report.evaluation_data import EvaluationReport

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.usefixtures("ray_session")]
REPOSITORY = Path(__file__).resolve().parents[2]
NUM_PAIRS, NUM_SELECTED = 30, 60
WHOLE, HALF = 12, 9
"""Pairs that the responder knows both images of, and one."""
ANNOTATE_JOB, EVALUATE_JOB = (
    runpy.run_path(str(REPOSITORY / f"jobs/{name}.py"))["COMMANDS"] for name in ("annotate", "evaluate")
)


def run(job: dict[str, Any], *args: object) -> str:
    """A job in this process; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert choose(job, [str(arg) for arg in args], description="") == 0
    return out.getvalue()


class World:
    """What the pictures of some shards show, by member and by the hash of their bytes."""

    def __init__(self, folder: Path) -> None:
        self.by_member: dict[str, Scene] = {}
        self.by_image: dict[str, Scene] = {}
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
            for name, data in files.items():
                if name.endswith(".jpg"):
                    scene = scene_from_record(json.loads(files[name.replace(".jpg", ".json")]))
                    self.by_member[name] = scene
                    self.by_image[hashlib.sha256(data).hexdigest()] = scene

    def look(self, image_id: str, question: str, options: Sequence[str]) -> str:
        """The option that is right for a picture, found by its attributes alone."""
        scene = self.by_image[image_id]
        for other in self.by_image.values():
            for asked in questions_for_pair(scene, other) if other.noun == scene.noun else ():
                if asked.question == question and set(asked.options) == set(options):
                    return asked.options[asked.answer_a]
        raise AssertionError(f"nobody can answer {question} {options} about {scene}")


@dataclass
class Person:
    """Somebody with a link, who works by pages."""

    browser: Browser
    world: World
    asked: dict[tuple[str, ...], PairQuestion] = field(default_factory=dict)
    patterns: Counter[str] = field(default_factory=Counter)
    num_rejected: int = 0

    @classmethod
    def by_link(cls, link: str, world: World) -> Person:
        """Log in with the token behind the link's #."""
        address, _, token = link.partition("/login#")
        browser = Browser(int(address.rsplit(":", 1)[1]))
        answer = browser.submit("/login", token=token)
        assert answer.status == 303, answer.body
        browser.cookie = answer.headers["Set-Cookie"].split(";")[0]
        assert browser.get("/").status == 200
        again = Browser(int(address.rsplit(":", 1)[1])).submit("/login", token=token)
        assert again.status == 401, "a link works once"
        return cls(browser, world)

    def pages(self, task: str) -> Iterator[Answer]:
        """The task's pages, one after the other, until nothing is left."""
        while "Nothing left here" not in (page := self.browser.get(f"/tasks/{task}")).body:
            assert page.status == 200, page.body
            yield page

    def annotate(self, num_pairs: int) -> None:
        """Ask about the pattern that came up least so far; reject what cannot be asked about."""
        for page in self.pages("annotate"):
            work = page.found(r'data-work="([^"]+)"')[0]
            members = members_of(page)
            a, b = (self.world.by_member[member] for member in members)
            questions = questions_for_pair(a, b) if a.noun == b.noun else []
            if not questions:
                answer = self.browser.send(
                    f"{work}/rejection", reason="no-difference" if a.noun == b.noun else "too-different"
                )
                assert answer.status == 200, answer.body
                self.num_rejected += 1
                continue
            chosen = min(questions, key=lambda one: self.patterns[one.pattern])
            if not self.asked:
                # A slip of the finger, taken back.
                assert self.browser.send(f"{work}/rejection", reason="same").status == 200
                assert json.loads(self.browser.send("/tasks/annotate/undo").body)["next"] == work
            content = {"question": chosen.question, "options": list(chosen.options), "pattern": chosen.pattern}
            wrong = {"difference": f"the {chosen.attribute}", "answer_a": 0, "answer_b": 0} | content
            assert "different answers" in self.browser.send(f"{work}/annotation", **wrong).body
            right = wrong | {"answer_a": chosen.answer_a, "answer_b": chosen.answer_b}
            answer = self.browser.send(f"{work}/annotation", **right)
            assert answer.status == 200, answer.body
            self.asked[members] = chosen
            self.patterns[chosen.pattern] += 1
            if len(self.asked) == num_pairs:
                return

    def verify(self) -> int:
        """Answer by looking; the first pair's second picture is answered wrongly. Gives the number of answers."""
        num_answers = 0
        for page in self.pages("verify"):
            (image_id,) = page.found(r'src="/images/(\w+)\.webp"')
            (question,) = map(html.unescape, page.found(r"<h1>([^<]*)</h1>"))
            options = [html.unescape(text) for text in page.found(r"<kbd>[1-9]</kbd> <span>([^<]*)</span>")]
            assert self.browser.get(f"/images/{image_id}.webp").status == 200
            right = self.world.look(image_id, question, options)
            choice = options.index(right) if num_answers != 1 else 1 - options.index(right)
            fields = {"side": page.found(r'name="side" value="(.)"')[0], "choice": str(choice), "seconds": "3"}
            answer = self.browser.submit(page.found(r'action="([^"]+/verify/\d+)"')[0], **fields)
            assert answer.status == 303, answer.body
            num_answers += 1
        return num_answers

    def write_sentences(self) -> int:
        """Say of each picture what the question asked about it."""
        num = 0
        for page in self.pages("state"):
            num += 1
            members = members_of(page)
            texts = {
                f"text_{side}": caption(self.world.by_member[member], named=self.asked[members].attribute)
                for side, member in zip("ab", members, strict=True)
            }
            answer = self.browser.submit(page.found(r'action="([^"]+/state/\d+)"')[0], **texts)
            assert answer.status == 303, answer.body
        return num

    def review(self, first_decision: str) -> int:
        """Look whether each sentence says of its picture what that is; the first one gets the decision that is given."""
        num = 0
        for page in self.pages("review"):
            num += 1
            texts = [html.unescape(text) for text in page.found(r"<dt>[AB]</dt><dd>([^<]*)</dd>")]
            scenes = [self.world.by_member[member] for member in members_of(page)]
            asked = html.unescape(page.found(r'<p class="asked">([^<]*)<')[0])
            (named,) = {one.attribute for one in questions_for_pair(*scenes) if one.question == asked}
            assert texts == [caption(scene, named=named) for scene in scenes]
            fields = {
                "decision": first_decision if num == 1 else "approve",
                "comment": "say it anew" if num == 1 else "",
            }
            answer = self.browser.submit(page.found(r'action="([^"]+/review/\d+)"')[0], **fields)
            assert answer.status == 303, answer.body
        return num


def members_of(page: Answer) -> tuple[str, ...]:
    """Files of both pictures, as the page says."""
    return tuple(page.found(r'class="source"><bdi>([^<]*)</bdi>'))


@dataclass
class Knows:
    """A model that answers by the bytes of a picture: rightly where it knows them, else the other option."""

    right: dict[tuple[str, str], tuple[str, bool]]
    name: str = "scripted"

    def identity(self) -> dict[str, str]:
        return {"answers": hashlib.sha256(repr(sorted(self.right.items())).encode()).hexdigest()}

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            (uri,) = ask.image_uris
            question, *lines = ask.prompt.splitlines()
            right, is_known = self.right[hashlib.sha256(storage.read_bytes(uri)).hexdigest(), question]
            labels = {line[4:]: line[:3] for line in lines if re.match(r"\([a-f]\) ", line)}
            text = labels[right] if is_known else next(label for option, label in labels.items() if option != right)
            yield Reply(key=ask.key, text=text)


MODEL: list[Knows] = []


def model() -> Knows:
    """For --model python:...:model."""
    return MODEL[-1]


def test_people_make_a_benchmark_of_mined_pairs_that_evaluation_runs(tmp_path: Path) -> None:
    write_shards(tmp_path / "world", WorldConfig(num_images=420, seed=77, images_per_shard=210))
    world = World(tmp_path / "world")
    config = MineConfig(
        corpus=(f"world={tmp_path / 'world'}",), out=str(tmp_path / "mined"), device="cpu", select=NUM_SELECTED,
        rule=RuleConfig(near_above=0.85, far_below=0.8), embed=EmbedConfig(num_threads=1),
    )  # fmt: skip
    mine_pairs(config, progress=Progress(stream=None))
    work = tmp_path / "work"
    assert f"{NUM_SELECTED} new pairs" in run(ANNOTATE_JOB, "import", "--workspace", work, "--run", tmp_path / "mined")
    again = run(ANNOTATE_JOB, "import", "--workspace", work, "--run", tmp_path / "mined")
    assert f"0 new pairs from mined, {NUM_SELECTED} known already" in again

    server = Server(work)
    try:
        url = f"http://127.0.0.1:{server.port}"
        ann, vera, rey = (
            Person.by_link(run(ANNOTATE_JOB, "users", "add", "--workspace", work, "--name", name, "--role", role, "--url", url).split()[-1], world)
            for name, role in (("Ann", "annotator"), ("Vera", "verifier"), ("Rey", "reviewer"))
        )  # fmt: skip
        ann.annotate(NUM_PAIRS)
        assert ann.browser.get("/tasks/adjudicate").status == 403
        assert vera.verify() == 2 * NUM_PAIRS
        (dispute,) = rey.browser.get("/tasks/adjudicate").found(r'data-work="([^"]+)"')
        assert json.loads(rey.browser.send(f"{dispute}/keep").body)["next"] == "/tasks/adjudicate"
        assert "Nothing left here" in rey.browser.get("/tasks/adjudicate").body
        assert ann.write_sentences() == NUM_PAIRS
        assert rey.review("return") == NUM_PAIRS
        assert ann.write_sentences() == 1
        assert rey.review("approve") == 1
    finally:
        server.stop()
    workspace = open_workspace(work)
    assert find_problems(workspace) == []

    said = run(ANNOTATE_JOB, "agreement", "--workspace", work)
    assert re.search(rf"all +{NUM_PAIRS} +96\.7%.* 1 +1 +0 +0 +0 +3\.0", said), said
    assert f"author and verifier agree in 98.3% of {2 * NUM_PAIRS}; Krippendorff's alpha 0.9" in said

    exports = {form: tmp_path / form for form in ("table", "mmvp", "mmvp_vlm")}
    for form, out in exports.items():
        per_pattern = ["--per-pattern", 1] if form == "mmvp_vlm" else []
        said = run(ANNOTATE_JOB, "export", "--workspace", work, "--form", form, "--out", out, *per_pattern)
        assert "CLIP" not in said
        texts = [
            path.read_text() for path in out.rglob("*") if path.suffix in (".csv", ".json", ".jsonl", ".md", ".yaml")
        ]
        # What stand-in encoders do not see is no CLIP-blind pair, and never called one.
        assert not any("CLIP" in text for text in texts)
    found = open_benchmark(str(exports["table"]))
    assert len(pairs_of(found.questions)) == NUM_PAIRS
    assert {pattern for one in found.questions for pattern in one.patterns} == set(ann.patterns)
    recorded = [
        json.loads(row["content"])
        for row in workspace.rows("SELECT content FROM events WHERE kind = 'exported' ORDER BY event_id")
    ]
    assert recorded[0]["fingerprint"] == found.fingerprint
    assert sum(recorded[0]["left_out"].values()) == NUM_SELECTED - NUM_PAIRS
    assert recorded[0]["left_out"].get("rejected", 0) == ann.num_rejected
    for question in found.questions:
        image_id = question.provenance["image_sha256"]
        assert question.options[question.answer] == world.look(image_id, question.text, question.options)
        assert question.provenance["near"] == "miniature:clip"
        assert (question.provenance["author"], question.provenance["verifier"]) == ("annotator-1", "annotator-2")
    assert Counter("adjudicator" in question.provenance for question in found.questions) == {
        True: 2,
        False: 2 * NUM_PAIRS - 2,
    }

    mmvp = open_benchmark(str(exports["mmvp"]))
    assert len(pairs_of(mmvp.questions)) == NUM_PAIRS
    pair_ids = list(pairs_of(found.questions))
    known = {(pair_id, "a") for pair_id in pair_ids[: WHOLE + HALF]} | {(pair_id, "b") for pair_id in pair_ids[:WHOLE]}
    right = {
        (one.provenance["image_sha256"], one.text): (one.options[one.answer], (one.pair_id, one.item) in known)
        for one in found.questions
    }
    assert len(right) == 2 * NUM_PAIRS
    MODEL.append(Knows(right))
    for name in ("table", "mmvp"):
        out = tmp_path / f"asked-{name}"
        said = run(
            EVALUATE_JOB, "mllm", "--benchmark", exports[name], "--model", f"python:{__name__}:model", "--out", out
        )
        assert f"pairs right 40.0% ({WHOLE}/{NUM_PAIRS}" in said
        assert f"questions right 55.0% ({2 * WHOLE + HALF}/{2 * NUM_PAIRS}" in said
        (score,) = EvaluationReport.from_json((out / "report.json").read_text()).scores
        assert (score.pairs.k, score.pairs.n, score.num_failed, score.num_unread) == (WHOLE, NUM_PAIRS, 0, 0)

    statements = open_benchmark(str(exports["mmvp_vlm"]))
    present = {pattern for one in statements.statements for pattern in one.patterns}
    assert len(pairs_of(statements.statements)) == len(present) >= len(PATTERNS) - 1
    flags = ["--benchmark", exports["mmvp_vlm"], "--device", "cpu", "--num-threads", 1, "--out", tmp_path / "encoded"]
    run(EVALUATE_JOB, "encoders", *flags)
    result = json.loads((tmp_path / "encoded/encoders.json").read_text())
    assert result["encoders"][0]["scores"]["text_to_image"]["pairs"]["num_total"] == len(present)
    workspace.close()
