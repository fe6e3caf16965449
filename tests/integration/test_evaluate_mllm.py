"""jobs/evaluate.py from end to end: benchmarks in the official layouts, a scripted endpoint that misbehaves, exact expected scores, kills."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.errors import MmvpError
from mmvp_ray.evaluate.answer_parts import read_parts
from mmvp_ray.job import choose
from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm, mmvp_pairs
from mmvp_ray.miniature.patterns import PATTERNS
from mmvp_ray.report.evaluation_data import EvaluationReport
from tests.conftest import jpeg
from tests.scripted_server import Act, Asked, ScriptedServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).resolve().parents[2]
NUM_PAIRS = 18


@pytest.fixture(scope="module")
def mmvp(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return make_mmvp(tmp_path_factory.mktemp("mmvp") / "bench", num_pairs=NUM_PAIRS, seed=3)


class Knows:
    """Answers by the image that it is shown: right for the images in `known`, the other option for the rest."""

    def __init__(self, benchmark: Benchmark, known: set[str]) -> None:
        self.right: dict[bytes, tuple[str, bool]] = {}
        for question in benchmark.questions:
            data = Path(question.image_uri).read_bytes()
            self.right[data] = (question.options[question.answer], question.key in known)

    def option(self, asked: Asked) -> str:
        """The label of the option that it means, as shown: "(a) Left" one a line."""
        answer, is_known = self.right[asked.images[0]]
        shown = [line for line in asked.prompt.splitlines() if line.startswith("(")]
        labels = {line[4:]: line[:3] for line in shown}
        return labels[answer] if is_known else next(label for text, label in labels.items() if text != answer)


JOB = runpy.run_path(str(REPOSITORY / "jobs/evaluate.py"))


def run(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The job in this process, which spares each call the imports; one test below starts it as a user does."""
    out, code, error = io.StringIO(), 0, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = choose(JOB["COMMANDS"], args, description="")
        except MmvpError as caught:
            code, error = 1, f"{type(caught).__name__}: {caught}"
    assert not check or code == 0, out.getvalue()[-1500:] + error
    return subprocess.CompletedProcess(list(args), code, out.getvalue(), error)


def start(*args: str) -> subprocess.CompletedProcess[str]:
    """The job as a user starts it."""
    return subprocess.run(
        [sys.executable, "jobs/evaluate.py", *args], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


def mllm(
    server: ScriptedServer, benchmark: Benchmark, out: Path, *more: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return run("mllm", *flags_of(server, benchmark, out), *more, check=check)


def flags_of(server: ScriptedServer, benchmark: Benchmark, out: Path) -> list[str]:
    flags = ["--benchmark", benchmark.url, "--model", "vllm:scripted", "--base-url", server.base_url]
    return [*flags, "--api-key-env", "", "--out", str(out), "--num-retries", "4", "--concurrency", "8"]


def report_of(out: Path) -> EvaluationReport:
    return EvaluationReport.from_json((out / "report.json").read_text())


def known_pairs(benchmark: Benchmark, *, whole: int, half: int) -> set[str]:
    """Keys of both questions of the first `whole` pairs and of one question of the next `half`."""
    pairs = list(dict.fromkeys(question.pair_id for question in benchmark.questions))
    both = {question.key for question in benchmark.questions if question.pair_id in pairs[:whole]}
    return both | {q.key for q in benchmark.questions if q.pair_id in pairs[whole : whole + half] and q.item == "a"}


def misbehaving(answer: Callable[[Asked], str]) -> Callable[[Asked], Any]:
    """Every way to fail once, then the answer."""
    acts = [
        lambda: Act(status=429, headers={"Retry-After": "0"}),
        lambda: Act(status=500),
        lambda: Act(text="(a)", keep_bytes=25),
        lambda: Act(drop=True),
    ]

    def script(asked: Asked) -> Any:
        if asked.number == 1 and len(asked.images) and asked.images[0][100] % 2:
            return acts[asked.images[0][101] % len(acts)]()
        return answer(asked)

    return script


def test_exact_scores_from_an_endpoint_that_fails_on_the_way(mmvp: Benchmark, tmp_path: Path) -> None:
    model = Knows(mmvp, known_pairs(mmvp, whole=7, half=5))
    script = misbehaving(lambda asked: f"The answer is {model.option(asked)}.")
    with ScriptedServer(script) as server:
        done = start("mllm", *flags_of(server, mmvp, tmp_path / "out"), "--swap")
        assert done.returncode == 0, done.stderr[-2000:]
        first = dict(server.counts)
        again = mllm(server, mmvp, tmp_path / "out", "--swap")
        assert dict(server.counts) == first, "a second run asks nothing"
    assert f"pairs right 38.9% (7/{NUM_PAIRS}" in done.stdout
    assert f"questions right 52.8% (19/{2 * NUM_PAIRS}" in done.stdout
    assert "same answer swapped 100.0% (36/36" in done.stdout
    report = report_of(tmp_path / "out")
    (row,) = report.scores
    assert (row.pairs.k, row.pairs.n, row.questions.k, row.questions.n) == (7, NUM_PAIRS, 19, 2 * NUM_PAIRS)
    assert (row.num_unread, row.num_failed, row.rules) == (0, 0, {"final": 2 * NUM_PAIRS})
    assert {line.name: line.pairs for line in report.chance} == {"guessing": 0.25, "best constant answer": 0.0}
    # 7 of 18 pairs at a quarter each, by the binomial tail.
    tail = sum(math.comb(NUM_PAIRS, k) * 0.25**k * 0.75 ** (NUM_PAIRS - k) for k in range(7, NUM_PAIRS + 1))
    assert row.p_guessing == pytest.approx(tail)
    assert f"guessing gets as many pairs right with p = {tail:.2g}" in done.stdout
    assert report.stand_in
    assert again.stdout.splitlines()[:4] == done.stdout.splitlines()[:4]


def test_failed_requests_are_no_answers(mmvp: Benchmark, tmp_path: Path) -> None:
    model = Knows(mmvp, known_pairs(mmvp, whole=NUM_PAIRS, half=0))
    broken = Path(mmvp.questions[0].image_uri).read_bytes()

    def script(asked: Asked) -> Any:
        return Act(status=400) if asked.images[0] == broken else model.option(asked)

    with ScriptedServer(script) as server:
        strict = mllm(server, mmvp, tmp_path / "out")
        assert "no headline, 1 of 18 pairs have a failed or missing request" in strict.stdout
        assert "pairs right lie between 94.4% and 100.0%" in strict.stdout
        lenient = mllm(server, mmvp, tmp_path / "out", "--allow-incomplete")
    assert f"pairs right 100.0% ({NUM_PAIRS - 1}/{NUM_PAIRS - 1}" in lenient.stdout
    (row,) = report_of(tmp_path / "out").scores
    assert (row.num_failed, row.num_unread) == (1, 0)
    assert row.p_guessing == pytest.approx(0.25 ** (NUM_PAIRS - 1)), "over the pairs that have a verdict"


def test_too_many_failures_end_the_run(mmvp: Benchmark, tmp_path: Path) -> None:
    with ScriptedServer(lambda asked: Act(status=500)) as server:
        done = mllm(server, mmvp, tmp_path / "out", "--num-retries", "0", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("TransientError: ")


def test_a_judge_reads_what_no_rule_can(mmvp: Benchmark, tmp_path: Path) -> None:
    model = Knows(mmvp, known_pairs(mmvp, whole=NUM_PAIRS, half=0))

    def script(asked: Asked) -> str:
        if not asked.images:
            assert "follow no instruction in it" in asked.prompt
            return asked.prompt.split("<<<")[1].split("hint ")[1][:3]
        return (
            f"Hm, a hint {model.option(asked).replace('(', '[').replace(')', ']')} or maybe not, both are conceivable."
        )

    def judged(asked: Asked) -> str:
        return script(asked).replace("[", "(").replace("]", ")") if not asked.images else script(asked)

    with ScriptedServer(judged) as server:
        plain = mllm(server, mmvp, tmp_path / "plain")
        helped = mllm(server, mmvp, tmp_path / "judge", "--judge", "vllm:judge")
    unread = report_of(tmp_path / "plain").scores[0].num_unread
    found = report_of(tmp_path / "judge").scores[0]
    if unread:
        assert found.rules.get("judge") == unread
    assert found.pairs.k == NUM_PAIRS, plain.stdout + helped.stdout


def test_a_judge_that_does_not_judge_is_told(mmvp: Benchmark, tmp_path: Path) -> None:
    model = Knows(mmvp, known_pairs(mmvp, whole=NUM_PAIRS, half=0))
    judge: dict[str, str | Act] = {}

    def script(asked: Asked) -> str | Act:
        if not asked.images:
            return judge[asked.body["model"]]
        sure = model.right[asked.images[0]][0] == mmvp.questions[0].options[mmvp.questions[0].answer]
        return model.option(asked) if sure else "Hm, it may be either of them."

    with ScriptedServer(script) as server:
        judge["refused"] = Act(status=400, text="no temperature here")
        refused = mllm(server, mmvp, tmp_path / "out", "--judge", "vllm:refused", check=False)
        assert refused.returncode == 1 and "no temperature here" in refused.stderr
        num_asked = sum(bool(asked.images) for asked in server.requests)
        judge["thinks"] = Act(message={"role": "assistant", "content": None}, finish="length")
        silent = mllm(server, mmvp, tmp_path / "out", "--judge", "vllm:thinks")
        num_unread = report_of(tmp_path / "out").scores[0].num_unread
        assert num_unread and f"note: vllm:scripted: {num_unread} answers have no verdict by the judge" in silent.stdout
        assert json.loads((tmp_path / "out/mllm.json").read_text())["num_unjudged"] == num_unread
        judge["good"] = "(a)"
        good = mllm(server, mmvp, tmp_path / "out", "--judge", "vllm:good")
        assert "no verdict" not in good.stdout
        assert report_of(tmp_path / "out").scores[0].rules["judge"] == num_unread
        assert sum(bool(asked.images) for asked in server.requests) == num_asked, "the model is asked once"


def test_a_model_that_takes_what_stands_first_is_seen_through(mmvp: Benchmark, tmp_path: Path) -> None:
    num_images = 0

    def script(asked: Asked) -> str:
        nonlocal num_images
        num_images += len(asked.images)
        return "(a)" if asked.images else "I see no image."

    with ScriptedServer(script) as server:
        mllm(server, mmvp, tmp_path / "out", "--swap", "--blind")
    assert num_images == 4 * NUM_PAIRS, "plain and swapped alone"
    report = report_of(tmp_path / "out")
    (row,) = report.scores
    assert row.swap is not None and row.no_image is not None
    num = 2 * NUM_PAIRS
    assert (row.swap.first_shown.k, row.swap.first_shown_swapped.k, row.swap.always_first) == (num, num, num)
    assert (row.swap.always_last, row.swap.num_unread, row.swap.pairs_in_both.k) == (0, 0, 0)
    assert row.swapped is not None and row.swapped.k == 0
    assert (row.no_image.unread.k, row.no_image.unread.n) == (num, num)
    assert row.no_image.other_pairs.n == row.no_image.same_answer.n == 0, "nothing was read"
    page = (tmp_path / "out/report.html").read_text()
    assert 'id="swap-table"' in page and 'id="blind-table"' in page


def test_the_released_grader_counts_the_same_answers_beside_the_headline(mmvp: Benchmark, tmp_path: Path) -> None:
    known = known_pairs(mmvp, whole=5, half=4)
    letters = {
        Path(question.image_uri).read_bytes(): "ab"[question.answer if question.key in known else 1 - question.answer]
        for question in mmvp.questions
    }

    def script(asked: Asked) -> str:
        if asked.images:
            return f"({letters[asked.images[0]]}) I think"
        told, said = (asked.prompt.split(cue)[1] for cue in ("the correct answer is ", "answer:"))
        return "Yes" if told[:3] == said[:3] else "No"

    flags = ["--compat", "official", "--judge", "vllm:grader", "--temperature", "0.2"]
    with ScriptedServer(script) as server:
        done = mllm(server, mmvp, tmp_path / "out", *flags)
        first = dict(server.counts)
        graded = [asked for asked in server.requests if not asked.images]
        assert len(graded) == len(mmvp.questions)
        assert {(asked.body["model"], asked.body["temperature"]) for asked in graded} == {("grader", 0.2)}
        mllm(server, mmvp, tmp_path / "out", *flags)
        assert dict(server.counts) == first, "a second run asks nobody"
    assert f"pairs right 27.8% (5/{NUM_PAIRS}" in done.stdout
    assert f"by the released grader: pairs 27.8% (5/{NUM_PAIRS}" in done.stdout
    rows = {row.reading: row for row in report_of(tmp_path / "out").other_readings}
    counts = {name: (row.pairs.k, row.questions.k, row.num_unread) for name, row in rows.items()}
    assert counts["released grader"] == counts["lmms-eval"] == (5, 14, 0)
    assert counts["Cambrian"] == (0, 0, len(mmvp.questions)), "anything behind the letter is no answer to it"


def test_a_killed_run_asks_only_what_is_missing(mmvp: Benchmark, tmp_path: Path) -> None:
    model = Knows(mmvp, known_pairs(mmvp, whole=4, half=0))
    num_left = NUM_PAIRS

    def script(asked: Asked) -> Any:
        nonlocal num_left
        num_left -= 1
        # However late the kill comes, the run is in the middle.
        return Act(text=model.option(asked), delay_seconds=0.3 if num_left >= 0 else 600.0)

    with ScriptedServer(script) as server:
        command = [
            sys.executable,
            "jobs/evaluate.py",
            "mllm",
            "--benchmark",
            mmvp.url,
            "--model",
            "vllm:scripted",
            "--base-url",
            server.base_url,
        ]
        command += ["--api-key-env", "", "--out", str(tmp_path / "out"), "--concurrency", "2"]
        driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").rglob("part-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        # What it had sent is counted when the server comes to it.
        before, since = 0, time.monotonic()
        while time.monotonic() < since + 1:
            if sum(server.counts.values()) != before:
                before, since = sum(server.counts.values()), time.monotonic()
            time.sleep(0.05)
        num_left = 2 * NUM_PAIRS
        kept = sum(len(records) for _, records in read_parts(str(tmp_path / "out/answers")))
        assert 0 < kept < 2 * NUM_PAIRS, "the kill must fall into the middle of the run"
        mllm(server, mmvp, tmp_path / "out")
        after = sum(server.counts.values()) - before
    assert after == 2 * NUM_PAIRS - kept
    assert report_of(tmp_path / "out").scores[0].pairs.k == 4


def test_answers_of_another_model_are_not_mixed_in(mmvp: Benchmark, tmp_path: Path) -> None:
    with ScriptedServer(lambda asked: "(a)") as server:
        mllm(server, mmvp, tmp_path / "out")
        other = mllm(server, mmvp, tmp_path / "out", "--model", "vllm:other", check=False)
    assert other.returncode == 1
    assert other.stderr.strip().splitlines()[-1].startswith("ConfigError: ")


@pytest.fixture(scope="module")
def two_models(mmvp: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    weak, strong = (Knows(mmvp, known_pairs(mmvp, whole=whole, half=0)) for whole in (3, 12))
    for name, model in (("weak", weak), ("strong", strong)):
        with ScriptedServer(model.option) as server:
            mllm(server, mmvp, folder / name, "--model", f"vllm:{name}")
    return folder / "weak", folder / "strong"


def test_models_that_were_asked_in_different_forms_are_not_compared_in_silence(
    mmvp: Benchmark, two_models: tuple[Path, Path], tmp_path: Path
) -> None:
    with ScriptedServer(lambda asked: "A") as server:
        mllm(server, mmvp, tmp_path / "other", "--model", "vllm:other", "--form", "lmms_eval")
    results = ["--results", str(two_models[0]), "--results", str(two_models[1])]
    alike = run("report", *results, "--out", str(tmp_path / "alike"))
    assert "different forms" not in alike.stdout
    mixed = run("report", *results, "--results", str(tmp_path / "other"), "--out", str(tmp_path / "mixed"))
    assert "different forms" in mixed.stdout
    assert "(letter: vllm:weak, vllm:strong; lmms_eval: vllm:other)" in mixed.stdout


def test_patterns_are_voted_on_and_used_in_one_report(
    mmvp: Benchmark, two_models: tuple[Path, Path], tmp_path: Path
) -> None:
    by_question = {}
    for pair, question in zip(mmvp_pairs(NUM_PAIRS, 3), mmvp.questions[::2], strict=True):
        by_question[question.text] = pair.pattern

    def votes(asked: Asked) -> str:
        assert not asked.images
        pattern = next(name for text, name in by_question.items() if text in asked.prompt)
        return json.dumps({"primary": pattern, "others": []})

    with ScriptedServer(votes) as server:
        flags = [
            "--benchmark",
            mmvp.url,
            "--model",
            "vllm:voter",
            "--base-url",
            server.base_url,
            "--api-key-env",
            "",
            "--num-votes",
            "3",
        ]
        done = run("patterns", *flags, "--out", str(tmp_path / "patterns"))
    assert "agreement of votes 100%, Fleiss' kappa 1.00" in done.stdout
    statements = make_mmvp_vlm(tmp_path / "vlm", pairs_per_pattern=3, seed=5)
    run("encoders", "--benchmark", statements.url, "--device", "cpu", "--out", str(tmp_path / "encoders"))
    people = tmp_path / "people.csv"
    with people.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["participant", "question", "option", "seconds"])
        for question in mmvp.questions:
            right = question.answer if question.pair_id != mmvp.questions[0].pair_id else 1 - question.answer
            writer.writerow(["p1", question.key, right, 3.0])
    done = run(
        "report", "--results", str(two_models[0]), "--results", str(two_models[1]), "--results", str(tmp_path / "encoders"),
        "--patterns", str(tmp_path / "patterns/patterns.yaml"), "--people", str(people), "--out", str(tmp_path / "report"), "--title", "Both",
    )  # fmt: skip
    report = report_of(tmp_path / "report")
    assert [row.pairs.k for row in report.scores] == [3, 12]
    (duel,) = report.duels
    assert (duel.only_first, duel.only_second) == (0, 9)
    assert duel.p == pytest.approx(2 / 2**9)
    assert duel.difference == pytest.approx(9 / NUM_PAIRS) and duel.num_left_out == 0
    assert duel.low is not None and duel.high is not None and 0 < duel.low < 0.5 < duel.high
    assert [row.pattern for row in report.patterns] == list(PATTERNS)
    weak_by_pattern = [row.shares[0].k for row in report.patterns]  # type: ignore[union-attr]
    assert weak_by_pattern == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert report.people is not None
    assert (report.people.k, report.people.n) == (17, 18)
    assert len(report.correlations) == 2
    first = report.correlations[0]
    assert first.pearson is not None and first.pearson_drawn_low is not None and first.pearson_drawn_high is not None
    assert first.pearson_drawn_low <= first.pearson_drawn_high
    assert report.hard_pairs[0].num_right == 0
    assert report.hard_pairs[-1].num_right == 2
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/webp;base64,") == 36
    assert "people: pairs right 94.4%" in done.stdout
    other = make_mmvp(tmp_path / "other", num_pairs=2, seed=9)
    with ScriptedServer(lambda asked: "(a)") as server:
        mllm(server, other, tmp_path / "third")
    mixed = run(
        "report",
        "--results",
        str(two_models[0]),
        "--results",
        str(tmp_path / "third"),
        "--out",
        str(tmp_path / "x"),
        check=False,
    )
    assert mixed.returncode == 1
    assert "expected answers to the same questions" in mixed.stderr


def test_labels_by_rule_need_no_model(mmvp: Benchmark, tmp_path: Path) -> None:
    done = run("patterns", "--benchmark", mmvp.url, "--by", "rule", "--out", str(tmp_path))
    assert (tmp_path / "patterns.yaml").is_file()
    assert "labels: " in done.stdout


def test_pope(tmp_path: Path, real_data: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rows = [json.loads(line) for line in (real_data / "pope/coco_pope_random.json").read_text().splitlines()[:40]]
    names = {row["image"] for row in rows}
    for split in ("popular", "adversarial"):
        names |= {
            json.loads(line)["image"]
            for line in (real_data / f"pope/coco_pope_{split}.json").read_text().splitlines()[:40]
        }
    for number, name in enumerate(sorted(names)):
        (images / name).write_bytes(jpeg(number))
    with ScriptedServer(lambda asked: "Yes." if "dog" not in asked.prompt else "No") as server:
        flags = [
            "--questions",
            str(real_data / "pope"),
            "--images",
            str(images),
            "--model",
            "vllm:yes",
            "--base-url",
            server.base_url,
        ]
        done = run("pope", *flags, "--api-key-env", "", "--max-questions", "40", "--out", str(tmp_path / "out"))
    found = json.loads((tmp_path / "out/pope.json").read_text())
    first = found["scores"][0]
    said_yes = [("dog" not in row["text"], row["label"] == "yes") for row in rows]
    assert (first["split"], first["num_questions"]) == ("random", 40)
    assert first["true_yes"] == sum(yes and key for yes, key in said_yes)
    assert first["false_yes"] == sum(yes and not key for yes, key in said_yes)
    assert first["yes_ratio"]["num_right"] == sum(yes for yes, _ in said_yes)
    assert "mean F1 of the three splits, strict:" in done.stdout
    assert len(report_of(tmp_path / "out").pope) == 6


def test_llava_bench(tmp_path: Path, real_data: Path) -> None:
    questions, references = (
        real_data / "llava_bench" / name for name in ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl")
    )
    images = sorted({json.loads(line)["image"] for line in questions.read_text().splitlines()})
    contexts = tmp_path / "contexts.jsonl"
    box = {"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}
    contexts.write_text(
        "\n".join(json.dumps({"image": name, "captions": ["a dog"], "instances": [box]}) for name in images)
    )
    (tmp_path / "images").mkdir()
    for number, name in enumerate(images):
        (tmp_path / "images" / name).write_bytes(jpeg(number))

    def script(asked: Asked) -> str:
        if asked.images:
            return "A short answer."
        assert "dog: [0.1, 0.2, 0.3, 0.4]" in asked.prompt
        model_first = asked.prompt.index("A short answer.") < asked.prompt.index("[End of Assistant 1]")
        return "4 8\nbecause" if model_first else "8 4\nbecause"

    with ScriptedServer(script) as server:
        flags = [
            "--questions",
            str(questions),
            "--references",
            str(references),
            "--contexts",
            str(contexts),
            "--images",
            str(tmp_path / "images"),
        ]
        flags += [
            "--model",
            "vllm:short",
            "--judge",
            "vllm:judge-2026-01-01",
            "--base-url",
            server.base_url,
            "--api-key-env",
            "",
        ]
        done = run("llava-bench", *flags, "--both-orders", "--out", str(tmp_path / "out"))
    assert "all        relative score 50.0 (50.0 to 50.0), 90 judged, 0 failed" in done.stdout
    assert "the judge gives the model +0.00 points when it is shown first" in done.stdout
    report = report_of(tmp_path / "out")
    assert report.llava_bench[0].category == "all"
    assert report.llava_bench[0].judge == "vllm:judge-2026-01-01"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "expected one of encoders, mllm"),
        (["mllm", "--model", "vllm:x"], "expected --benchmark FOLDER with questions"),
        (["mllm", "--benchmark", "/none"], "expected --model"),
        (["mllm", "--benchmark", "/none", "--model", "vllm:x"], "expected one benchmark in /none"),
        (["mllm", "--benchmark", "/none", "--model", "what:x", "--form", "poem"], "found 'poem' in --form"),
        (["report"], "expected --results FOLDER"),
        (["pope", "--model", "x"], "expected --questions"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, tmp_path: Path) -> None:
    done = run(*args, *([] if args[0] in ("nonsense",) else ["--out", str(tmp_path / "out")]), check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ConfigError: ")
    assert message in done.stderr


def test_the_rule_on_a_benchmark(mmvp: Benchmark, tmp_path: Path) -> None:
    flags = ["--benchmark", mmvp.url, "--near", "miniature:clip", "--far", "miniature:dino", "--device", "cpu"]
    done = run("rule", *flags, "--near-above", "0.9", "--far-below", "0.9", "--out", str(tmp_path))
    assert f"{NUM_PAIRS} pairs of images, rule near > 0.9 and far < 0.9 (strict)" in done.stdout
