"""The miniature paper at its smallest, and the Mixture-of-Features experiment within: every stage, a page with links, going on from what is there, the same through Ray Train."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.cluster import Session
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.instructions import (
    InstructionConfig,
    caption_rows,
    conversation_rows,
    held_out_questions,
    write_instructions,
)
from mmvp_ray.miniature.language_model import LanguageModelConfig, write_language_model
from mmvp_ray.miniature.pair_questions import ask_pairs, mined_pairs
from mmvp_ray.miniature.tower_folders import write_tower_folder
from mmvp_ray.mof.data.convert import ConvertConfig, convert
from mmvp_ray.pipeline.mof_experiment import PAGE, RESULTS, TABLE, closing_lines, run_experiment
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig
from mmvp_ray.pipeline.paper import PAGE as PAPER_PAGE
from mmvp_ray.pipeline.paper import run_paper
from mmvp_ray.pipeline.paper_config import MiniaturePaperConfig
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.run import open_run
from mmvp_ray.report.evaluation_data import EvaluationReport

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

pytest.importorskip("torch")


def smallest(finished: Path) -> MofExperimentConfig:
    return MiniaturePaperConfig(out=str(finished.parent), scale="smoke").experiment


@pytest.fixture(scope="module")
def quiet() -> Progress:
    return Progress(stream=None)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory, ray_session: None, quiet: Progress) -> tuple[Path, list[str]]:
    """(folder, lines) of the whole paper."""
    out = tmp_path_factory.mktemp("paper")
    return out, run_paper(MiniaturePaperConfig(out=str(out), scale="smoke"), progress=quiet)


@pytest.fixture(scope="module")
def finished(paper: tuple[Path, list[str]]) -> Path:
    """The folder of its experiment."""
    return paper[0] / "experiment"


def test_results_are_whole(finished: Path) -> None:
    results = json.loads((finished / RESULTS).read_text())
    assert [row["mode"] for row in results["rows"]] == ["none", "additive:0.5", "interleaved"]
    benchmark = open_benchmark(str(finished / "benchmark"))
    num_pairs = benchmark.num_pairs
    assert num_pairs + sum(results["facts"]["left_out"].values()) == 12
    for row in results["rows"]:
        assert row["pairs"]["num_total"] == num_pairs and row["questions"]["num_total"] == 2 * num_pairs
        assert row["examination"]["all"]["num_total"] == 44
        assert (row["compared"] is None) == (row["mode"] == "none")
    for name in ("none", "additive-0.5", "interleaved"):
        said = json.loads((finished / "answers" / f"{name}-seed1.json").read_text())
        assert set(said["benchmark"]) == {question.key for question in benchmark.questions}
        assert len(said["examination"]) == 44
        assert len(results["losses"][f"{name}-seed1"]["finetune"]) == 2
    assert [one["features"] for one in results["readouts"]] == [
        "clip, pooled",
        "clip, patch tokens",
        "dino, pooled",
        "dino, patch tokens",
    ]
    page = (finished / PAGE).read_text()
    assert page.count("data:image/jpeg") == 2 * num_pairs and "<script" not in page
    assert "| interleaved |" in (finished / TABLE).read_text()


def test_no_picture_of_the_benchmark_was_trained_on(finished: Path) -> None:
    import hashlib

    digests = {
        name: {hashlib.sha256(path.read_bytes()).hexdigest() for path in (finished / folder).rglob("*.jpg")}
        for name, folder in (
            ("train", "instructions/images/train"),
            ("held-out", "instructions/images/held-out"),
            ("benchmark", "benchmark/images"),
        )
    }
    assert len(digests["train"]) == 48 and len(digests["held-out"]) == 11 and digests["benchmark"]
    names = list(digests)
    assert not any(digests[a] & digests[b] for a in names for b in names if a != b)
    for pair in pairs_of(open_benchmark(str(finished / "benchmark")).questions).values():
        assert pair[0].answer != pair[1].answer and pair[0].text == pair[1].text


def test_started_again_it_trains_and_asks_nothing_twice(finished: Path, quiet: Progress) -> None:
    kept = {
        path: path.stat().st_mtime_ns
        for path in finished.rglob("*")
        if path.is_file() and ({"answers", "model", "align", "llm"} & set(path.parts) or path.name == "curve.parquet")
    }
    assert len(kept) > 12
    before = json.loads((finished / RESULTS).read_text())
    (finished / RESULTS).unlink()
    report = run_experiment(smallest(finished), progress=quiet)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = json.loads((finished / RESULTS).read_text())
    assert after["rows"] == before["rows"] and after["readouts"] == before["readouts"]
    assert any("interleaved" in line for line in closing_lines(report, smallest(finished)))


def test_other_settings_do_not_take_its_models_for_theirs(finished: Path, quiet: Progress) -> None:
    for change in ({"finetune_steps": 4}, {"num_train_images": 56}):
        with pytest.raises(ConfigError, match="expected an experiment with the same"):
            run_experiment(dataclasses.replace(smallest(finished), **change), progress=quiet)


def test_the_page_tells_every_chapter_and_its_links_lead_to_reports(paper: tuple[Path, list[str]]) -> None:
    out, lines = paper
    page = (out / PAPER_PAGE).read_text()
    for number in range(1, 8):
        assert re.search(rf"<h2[^>]*>{number}\. ", page)
    links = re.findall(r'<a href="([^"]+)">', page)
    assert len(links) == 4 and all((out / html.unescape(link)).is_file() for link in links)
    assert "This was a smoke run" in page and "CLIP-blind" not in page
    assert "<script" not in page and "None" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.S)
    assert lines[-1].endswith(PAPER_PAGE)


def test_its_numbers_are_those_of_the_stages(paper: tuple[Path, list[str]]) -> None:
    out, lines = paper
    evaluation = EvaluationReport.from_json((out / "evaluation/report.json").read_text())
    blindness = open_run(str(out / "experiment/mined")).report()["blindness"]
    results = json.loads((out / "experiment/results.json").read_text())
    assert f"{blindness['num_blind']:,} of {blindness['num_near']:,}" in lines[1]
    # The evaluation's own job and the experiment read the same answers of the same models.
    by_mode = {row["mode"]: row["pairs"]["num_right"] for row in results["rows"]}
    assert {name.model.split("/trained/")[1].split("-seed1")[0]: name.pairs.k for name in evaluation.scores} == {
        mode.replace(":", "-"): right for mode, right in by_mode.items()
    }
    page = (out / PAPER_PAGE).read_text()
    assert all(f">{mode}<" in page for mode in by_mode) and "hf:" not in page.split("<pre")[0]


def test_the_sentences_are_of_the_questions_pairs(paper: tuple[Path, list[str]]) -> None:
    out, _ = paper
    questions = open_benchmark(str(out / "experiment/benchmark")).questions
    statements = open_benchmark(str(out / "statements")).statements
    assert [one.key for one in statements] == [one.key for one in questions]
    assert [one.patterns for one in statements] == [one.patterns for one in questions]
    asked, _ = ask_pairs(mined_pairs(open_run(str(out / "experiment/mined")).pairs().to_pylist()))
    first = asked[0]
    assert statements[0].text == caption(first.pair.a, named=first.question.attribute) != statements[1].text


def test_the_paper_again_goes_on_with_what_is_there(paper: tuple[Path, list[str]]) -> None:
    out, lines = paper
    trained = sorted(path.stat().st_mtime_ns for path in (out / "experiment/trained").rglob("*.safetensors"))
    again = run_paper(MiniaturePaperConfig(out=str(out), scale="smoke"), progress=Progress(stream=None))
    assert again[:-2] == lines[:-2]
    assert trained == sorted(path.stat().st_mtime_ns for path in (out / "experiment/trained").rglob("*.safetensors"))
    with pytest.raises(ConfigError, match="choose another folder"):
        run_paper(MiniaturePaperConfig(out=str(out)), progress=Progress(stream=None))


@pytest.mark.long
def test_one_process_gives_what_ray_train_gives(finished: Path, tmp_path: Path, ray_session: None) -> None:
    from safetensors.numpy import load_file

    from mmvp_ray.mof.training.run import train
    from mmvp_ray.pipeline.mof_experiment_alone import product, train_alone

    config = smallest(finished)
    recipe = config.recipe(
        "interleaved",
        clip=str(finished / "towers" / "clip"),
        ssl=str(finished / "towers" / "dino"),
        llm=str(finished / "llm"),
    )
    stages = {
        name: config.stage(
            "align",
            recipe,
            rows=str(finished / "rows" / "captions"),
            images=str(finished / "instructions"),
            out=str(tmp_path / name),
            seed=1,
        )
        for name in ("alone", "ray")
    }
    points = train_alone(stages["alone"])
    with Session() as session:
        trained = train(stages["ray"], config.scale(), session=session)
    np.testing.assert_allclose(
        [point.loss for point in points], [point.loss for point in trained.points], rtol=1e-6, atol=0
    )
    one, other = load_file(product(stages["alone"])), load_file(trained.product)
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6)


def test_models_are_asked_in_the_words_they_were_taught(tmp_path: Path) -> None:
    from mmvp_ray.evaluate.local_spec import LocalModelConfig
    from mmvp_ray.evaluate.responder import Ask
    from mmvp_ray.mof.answering import mof_responder
    from mmvp_ray.mof.data.collate import CollateConfig, messages_of
    from mmvp_ray.mof.data.image_places import FolderImages
    from mmvp_ray.mof.data.images import ImageLoader, MissingConfig
    from mmvp_ray.mof.data.records import Row
    from mmvp_ray.mof.recipe import MoFRecipe

    data = InstructionConfig(num_train_images=4, num_text_rows=2, num_held_out_images=6)
    written = write_instructions(str(tmp_path / "data"), data)
    llm = write_language_model(
        str(tmp_path / "llm"),
        list(conversation_rows(data)),
        LanguageModelConfig(width=32, depth=1, num_steps=1, batch_rows=2),
    )
    recipe = MoFRecipe(
        clip=write_tower_folder("clip", str(tmp_path / "clip")),
        ssl=write_tower_folder("dino", str(tmp_path / "dino")),
        llm=llm.folder,
        mode="interleaved",
    )
    model, processor = recipe.build()
    assert model.config.num_image_tokens == 128
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    responder = mof_responder(str(tmp_path / "model"), LocalModelConfig(device="cpu", dtype="float32"))
    (held_out, *_) = held_out_questions(data)
    turns = (("human", f"<image>\n{held_out.question.text}"), ("gpt", held_out.question.answer))
    row = Row(row=0, id="x", images=(held_out.image,), turns=turns)
    sample = ImageLoader(FolderImages(written.folder), MissingConfig(), num_rows=1).load(row)
    assert sample is not None
    taught = processor.apply_chat_template(
        [messages_of(row, sample.images_HWC)], chat_template=CollateConfig().template, tokenize=False
    )[0]
    ask = Ask(
        key="x",
        prompt=held_out.question.text,
        image_uris=(str(Path(written.folder) / held_out.image),),
        max_tokens=4,
    )
    list(responder.answer([ask]))
    assert responder._loaded is not None
    assert taught == responder._loaded.text(ask) + f" {held_out.question.answer}</s>"


def test_the_language_model_learns_to_speak_and_repeats_itself(tmp_path: Path) -> None:
    rows = list(conversation_rows(InstructionConfig(num_train_images=64, num_text_rows=8)))
    config = LanguageModelConfig(width=32, depth=1, num_steps=40, batch_rows=2, learning_rate=2e-2)
    spoken = [write_language_model(str(tmp_path / name), rows, config) for name in ("a", "b")]
    assert spoken[0].last_loss < 0.8 * spoken[0].first_loss
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_captions_convert_without_a_reject(tmp_path: Path) -> None:
    data = InstructionConfig(num_train_images=12, num_text_rows=3, num_held_out_images=2)
    written = write_instructions(str(tmp_path / "data"), data)
    for name, template, rows in (
        ("captions", "plain", list(caption_rows(data))),
        ("conversations", "default", list(conversation_rows(data))),
    ):
        found = convert(
            ConvertConfig(
                source=getattr(written, name),
                out=str(tmp_path / name),
                template=template,  # type: ignore[arg-type]
            )
        )
        assert found.num_rows == len(rows) and found.counts["num_rejects"] == 0


def test_readouts_find_what_is_linear_and_nothing_else() -> None:
    from mmvp_ray.pipeline.mof_experiment_probe import Ridges

    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 300)).astype(np.float32)
    values = (features[:, :3] @ np.eye(3)).argmax(axis=1)
    found = Ridges(features[:150]).fit(values[:150], 3, 1e-3)
    centred = features[:150] - features[:150].mean(axis=0, dtype=np.float64)
    penalty = 1e-3 * (centred**2).sum() + 1e-12
    wanted = np.linalg.solve(
        centred.T @ centred + penalty * np.eye(300), centred.T @ (np.eye(3)[values[:150]] - found.bias_V)
    )
    np.testing.assert_allclose(found.weight_FV, wanted, atol=1e-7)
