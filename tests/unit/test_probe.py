"""Probes: what is done to images, how words are asked for, what rows and summaries say, on a model with known answers."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmvp_ray.cluster import Inline
from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.probe_items import write_probe_items
from mmvp_ray.probe.changes import BLOCK_RGB, CHANGES, blocked, change, grey, mirrored
from mmvp_ray.probe.items import AskedWord, ProbeItem, read_items
from mmvp_ray.probe.masked_words import masked_text
from mmvp_ray.probe.measure import INVARIANCE, MATCH, SWAPPED, WORD, measure
from mmvp_ray.probe.models import PROBABILITY, WordQuestion, load_model
from mmvp_ray.probe.run import ProbeConfig, run_probe
from mmvp_ray.probe.summary import mean_interval, summarise
from mmvp_ray.report.probe_page import ProbeReport, render_probe_html
from tests.conftest import jpeg

_page = runpy.run_path(str(Path(__file__).with_name("test_report_page.py")))


def image(seed: int, height_px: int = 5, width_px: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def test_changes_do_what_their_names_say() -> None:
    before = image(0)
    assert (blocked(before) == np.array(BLOCK_RGB)).all()
    assert (mirrored(before)[:, 0] == before[:, -1]).all()
    assert (mirrored(mirrored(before)) == before).all()
    luma = np.asarray(Image.fromarray(before).convert("L")).astype(int)
    assert np.abs(grey(before).astype(int) - luma[..., None]).max() <= 1
    assert (grey(grey(before)) == grey(before)).all()
    for name in CHANGES:
        assert change(name, before).dtype == np.uint8
        assert change(name, before).shape == before.shape
    assert (before == image(0)).all()
    with pytest.raises(ConfigError, match="found 'upside-down'"):
        change("upside-down", before)


def write_items(folder: Path, lines: Sequence[dict]) -> str:
    path = folder / "items.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return str(path)


LINE = {
    "image": "a.jpg",
    "sentence": "The dog is left of the Left tree.",
    "words": [{"word": "left", "swapped": "right", "occurrence": 1}],
}


def test_a_line_separator_in_a_sentence_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(json.dumps({**LINE, "context": "one\u2028two"}, ensure_ascii=False).encode())
    (one,) = read_items(str(path))
    assert one.text(with_context=True).startswith("one\u2028two")


def test_items_are_read_and_words_found_in_their_place(tmp_path: Path) -> None:
    path = write_items(
        tmp_path, [LINE, {"image": "s3://b/x.png", "sentence": "A cat.", "context": "At home.", "key": "cat"}]
    )
    first, second = read_items(path)
    assert (first.key, second.key) == ("1", "cat")
    assert first.image_uri == f"{tmp_path}/a.jpg"
    assert second.image_uri == "s3://b/x.png"
    assert first.masked(first.words[0], "[M]", with_context=True) == "The dog is [M] of the Left tree."
    assert second.text(with_context=True) == "At home. A cat."
    assert second.text(with_context=False) == "A cat."


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    sentences = ["A dog.\u2028A cat.", "A dog.\x85A cat.", "A dog."]
    lines = [json.dumps({"image": "a.jpg", "sentence": sentence}, ensure_ascii=False) for sentence in sentences]
    path.write_bytes("\r\n".join(lines).encode())
    assert [item.sentence for item in read_items(str(path))] == sentences


def test_an_answer_is_prepared_as_the_text_around_it() -> None:
    from mmvp_ray.probe.albef_model import clean_text

    class Words:
        mask_token, unk_token_id = "[MASK]", 0

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [len(piece) for piece in re.findall(r"\w+|[^\w\s]", text)]}

    sentence = "A man in a T-shirt."
    item = ProbeItem(key="1", image_uri="a.jpg", sentence=sentence)
    word = AskedWord(word="T-shirt", start=sentence.index("T-shirt"), end=len(sentence) - 1)
    question = WordQuestion(item, word, word.word, with_context=False)
    assert masked_text(Words(), question, clean_text) == ("a man in a [MASK] [MASK]", [1, 5])
    assert masked_text(Words(), question) == ("A man in a [MASK] [MASK] [MASK].", [1, 1, 5])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of"),
        ('{"image": "a.jpg"}', 'the texts "image" and "sentence"'),
        (json.dumps({**LINE, "words": [{"word": "left"}]}), "found it 2 times; give its occurrence"),
        (json.dumps({**LINE, "words": [{"word": "lef"}]}), "found it 0 times"),
        (json.dumps({**LINE, "words": [{"word": "left", "occurrence": 3}]}), "from 1 to 2"),
        (json.dumps({**LINE, "words": ["left"]}), "objects with the text"),
        ("", "found none"),
    ],
)
def test_bad_items_are_one_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=message) as caught:
        read_items(str(path))
    assert "\n" not in str(caught.value)


def test_a_key_stands_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 'x' again in line 2"):
        read_items(write_items(tmp_path, [{**LINE, "key": "x"}, {**LINE, "key": "x"}]))


class Looks:
    """Matches by brightness, answers "left" with the red of the left half against the right, and has the corner colours as a vector."""

    match_kind = PROBABILITY

    def match(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        return np.array([len(text) / 100 + float(one.mean()) / 1000 for one, text in zip(images, texts, strict=True)])

    def words(self, images: Sequence[np.ndarray], questions: Sequence[WordQuestion]) -> np.ndarray:
        out = []
        for one, question in zip(images, questions, strict=True):
            half = one.shape[1] // 2
            left, right = float(one[:, :half, 0].mean()), float(one[:, -half:, 0].mean())
            out.append((left if question.answer == "left" else right) / (left + right))
        return np.array(out)

    def vectors(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([one[0, [0, -1]].ravel() + 1.0 for one in images], dtype=np.float32)


def world(folder: Path, num: int) -> str:
    lines = []
    for number in range(num):
        pixels = image(number, 20, 30)
        pixels[:, :15, 0] = 250
        pixels[:, 15:, 0] = number
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(
            {
                "image": f"{number}.png",
                "sentence": "The red is left.",
                "context": "A scene." if number % 2 else "",
                "words": [{"word": "left", "swapped": "right"}],
            }
        )
    return write_items(folder, lines)


def test_rows_equal_a_plain_loop(tmp_path: Path) -> None:
    items = read_items(world(tmp_path, 7))
    table = measure("looks", Looks(), items, changes=("mirrored", "grey"), batch_size=3)
    found = {
        (row["key"], row["change"], row["with_context"], row["measure"]): row["value"] for row in table.to_pylist()
    }
    expected = {}
    model = Looks()
    for item in items:
        pixels = np.asarray(Image.open(item.image_uri))
        for name in ("original", "mirrored", "grey"):
            shown = change(name, pixels)
            for context in (False, True) if item.context else (False,):
                expected[item.key, name, context, MATCH] = model.match([shown], [item.text(with_context=context)])[0]
                for kind, answer in ((WORD, "left"), (SWAPPED, "right")):
                    question = WordQuestion(item, item.words[0], answer, context)
                    expected[item.key, name, context, kind] = model.words([shown], [question])[0]
            if name != "original":
                a, b = (model.vectors([one])[0].astype(float) for one in (pixels, shown))
                expected[item.key, name, False, INVARIANCE] = a @ b / np.sqrt((a @ a) * (b @ b))
    assert found.keys() == expected.keys()
    assert all(abs(found[key] - expected[key]) < 1e-12 for key in expected)
    assert table.num_rows == len(expected)


def test_a_model_that_looks_follows_the_mirror(tmp_path: Path) -> None:
    items = read_items(world(tmp_path, 12))
    rows = measure("looks", Looks(), items, changes=("mirrored", "blocked"), batch_size=4).to_pylist()
    summary = summarise(rows, models=["looks", "mute"])
    wins = {(one.change, one.with_context): (one.num_true, one.num) for one in summary.choices}
    assert wins["original", False] == (12, 12)
    assert wins["mirrored", False] == (0, 12)
    assert wins["mirrored", True] == (0, 6)
    effects = {(one.measure, one.change, one.with_context): one for one in summary.effects}
    mirror = effects[WORD, "mirrored", False]
    values = {
        (row["key"], row["change"]): row["value"] for row in rows if row["measure"] == WORD and not row["with_context"]
    }
    differences = [values[item.key, "mirrored"] - values[item.key, "original"] for item in items]
    assert mirror.difference == pytest.approx(np.mean(differences))
    assert mirror.low <= mirror.difference <= mirror.high < 0
    assert effects[WORD, "original", False].difference is None
    assert effects[INVARIANCE, "mirrored", False].difference is None
    assert summary.not_applicable == {"mute": [MATCH, WORD, SWAPPED, INVARIANCE]}
    report = ProbeReport(
        created_at="2026-11-21T00:00:00Z",
        items_url="<b>x",
        num_items=12,
        models=["looks"],
        effects=summary.effects,
        choices=summary.choices,
        not_applicable=summary.not_applicable,
    )
    page = _page["Page"](render_probe_html(report))
    _page["assert_needs_nothing"](page)
    assert f"{mirror.difference:+.4f}" in page.by_id("word-table")["text"]
    assert "0/12" in page.by_id("choices-table")["text"]
    assert "mute" in page.by_id("not-applicable-table")["text"]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.integers(0, 5))
def test_an_interval_holds_the_mean_of_equal_numbers_and_lies_within_the_range(values: list[float], seed: int) -> None:
    sums = np.array(values)
    low, high = mean_interval(sums, np.ones(len(sums)), seed=seed, num_resamples=200)
    assert sums.min() - 1e-9 <= low <= high <= sums.max() + 1e-9
    assert mean_interval(np.full(5, 0.25), np.ones(5), num_resamples=50) == pytest.approx((0.25, 0.25))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = mean_interval(rng.normal(size=40), np.ones(40), seed=seed, num_resamples=400)
        hits += low <= 0 <= high
    assert 175 <= hits <= 200


def test_an_image_that_was_replaced_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("mmvp_ray.probe.run.load_model", lambda name, device: loaded.append(name) or Looks())
    config = ProbeConfig(items=world(tmp_path, 2), models=("looks",), out=str(tmp_path / "out"))

    def brightness() -> list[float]:
        found = run_probe(config, Inline(), device="cpu")
        rows = pq.read_table(found.rows["looks"]).to_pylist()
        return [row["value"] for row in rows if row["measure"] == MATCH and row["key"] == "1"]

    before = brightness()
    assert brightness() == before and loaded == ["looks"]
    Image.fromarray(np.full((20, 30, 3), 1, dtype=np.uint8)).save(tmp_path / "0.png")
    assert brightness()[0] < before[0] and loaded == ["looks", "looks"]


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1)[:200])
    items = read_items(write_items(tmp_path, [{**LINE}]))
    with pytest.raises(DataError, match=r"a\.jpg, found none that can be decoded"):
        measure("looks", Looks(), items, changes=(), batch_size=1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"items": ""}, "a file of items"),
        ({"models": ()}, "different models"),
        ({"models": ("a", "a")}, "different models"),
        ({"changes": ("x",)}, "found 'x' in --changes"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_a_config_out_of_range_is_one_line(more: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProbeConfig(**{"items": "x.jsonl", **more}).check()


def test_a_model_without_files_is_one_line() -> None:
    with pytest.raises(ConfigError, match="expected blip:PATH"):
        load_model("blip:", device="cpu")
    with pytest.raises(ConfigError, match="expected albef:CHECKPOINT,TOKENIZER"):
        load_model("albef:only.pth", device="cpu")


def test_the_miniature_world_gives_items_whose_words_turn_in_the_mirror(tmp_path: Path) -> None:
    first = write_probe_items(str(tmp_path / "a"), num_items=6)
    again = write_probe_items(str(tmp_path / "b"), num_items=6)
    assert Path(first).read_bytes() == Path(again).read_bytes()
    items = read_items(first)
    assert len(items) == 6
    assert all({item.words[0].word, item.words[0].swapped} == {"left", "right"} for item in items)
    assert all(Path(item.image_uri).is_file() for item in items)


def test_recipes_of_probes_are_configs() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs/probe").glob("*.yaml")):
        load_yaml(ProbeConfig, str(path)).check()
