"""open_benchmark: layouts are told apart, and the fingerprint changes with everything that a score depends on and with nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmvp_ray.benchmark import Benchmark, Question, Statement, collect, detect_layout, open_benchmark, write_table
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm, mmvp_pairs, picture_bytes


def test_each_layout_is_recognised(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "m", num_pairs=2)
    make_mmvp_vlm(tmp_path / "v", pairs_per_pattern=1)
    write_table(str(tmp_path / "t"), made.questions, name="x")
    assert [detect_layout(str(tmp_path / name)) for name in "mvt"] == ["mmvp", "mmvp_vlm", "table"]
    assert open_benchmark(f"{tmp_path}/m/").name == "m"
    assert open_benchmark(f"file://{tmp_path}/m", name="other").name == "other"


@pytest.mark.parametrize("content", [[], ["Questions.csv"], ["1.jpg"], ["MMVP Images/1.jpg"]])
def test_an_unknown_folder_lists_what_was_looked_for(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"questions\.parquet.*MMVP Images.*MLLM_VLM Images.*found none") as raised:
        open_benchmark(str(tmp_path))
    assert all(name.split("/")[0] in str(raised.value) for name in content)


def test_two_layouts_in_one_folder_are_an_error(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "m", num_pairs=1)
    shutil.copytree(tmp_path / "m", tmp_path / "both")
    write_table(str(tmp_path / "both"), made.questions, name="x")
    with pytest.raises(ConfigError, match="found 2 of them"):
        open_benchmark(str(tmp_path / "both"))


def test_what_is_asked_of_the_wrong_kind_is_an_error(tmp_path: Path) -> None:
    asks, states = make_mmvp(tmp_path / "m", num_pairs=1), make_mmvp_vlm(tmp_path / "v", pairs_per_pattern=1)
    with pytest.raises(ConfigError, match="statements such as MMVP-VLM, found one of questions"):
        _ = asks.statements
    with pytest.raises(ConfigError, match="questions such as MMVP, found one of statements"):
        _ = states.questions
    with pytest.raises(ConfigError, match="benchmark of statements"):
        open_benchmark(states.url, key="corrected")


def picture(path: Path, colour: int) -> str:
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path)
    return str(path)


@pytest.fixture
def made(tmp_path: Path) -> Benchmark:
    uris = [picture(tmp_path / f"{number}.png", number * 50) for number in range(4)]
    return collect(
        [
            Question(
                pair_id=str(k // 2), item="ab"[k % 2], image_uri=uris[k], text="t", options=("x", "y"), answer=k % 2
            )
            for k in range(4)
        ],
        name="n",
    )


Change = Callable[[Question, Path], Question]


@pytest.mark.parametrize(
    "change",
    [
        lambda q, _: replace(q, text="t2"),
        lambda q, _: replace(q, options=("x", "z")),
        lambda q, _: replace(q, options=("x", "y", "z")),
        lambda q, _: replace(q, options=("y", "x")),
        lambda q, _: replace(q, item="c"),
        lambda q, _: replace(q, pair_id="0", item="c"),
        lambda q, folder: replace(q, image_uri=picture(folder / "new.png", 251)),
    ],
)
def test_the_fingerprints_change_with_whatever_is_asked(made: Benchmark, tmp_path: Path, change: Change) -> None:
    items = list(made.questions)
    items[3] = change(items[3], tmp_path)
    if items[3].pair_id == "0":
        items[2] = replace(items[2], pair_id="0", item="d")
    changed = collect(items, name="n")
    assert changed.fingerprint != made.fingerprint
    assert changed.asked_fingerprint != made.asked_fingerprint


def test_an_answer_changes_the_one_fingerprint_alone(made: Benchmark) -> None:
    items = [replace(made.questions[0], answer=1), *made.questions[1:]]
    changed = collect(items, name="n")
    assert changed.fingerprint != made.fingerprint
    assert changed.asked_fingerprint == made.asked_fingerprint


def test_order_place_labels_and_provenance_do_not_enter(made: Benchmark, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    shutil.copy(made.items[0].image_uri, copy)
    items = [
        replace(made.questions[0], image_uri=str(copy), patterns=("Text",), provenance={"x": "y"}),
        *made.questions[1:],
    ]
    other = collect(reversed(items), name="another")
    assert (other.fingerprint, other.asked_fingerprint) == (made.fingerprint, made.asked_fingerprint)


def test_one_flipped_bit_of_an_image_changes_the_fingerprint(tmp_path: Path) -> None:
    before = make_mmvp(tmp_path / "m", num_pairs=1)
    path = Path(before.items[1].image_uri)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert open_benchmark(before.url).fingerprint != before.fingerprint


def test_collect_refuses_what_is_no_benchmark(made: Benchmark, tmp_path: Path) -> None:
    first = made.questions[0]
    statement = Statement(pair_id="0", item="s", image_uri=first.image_uri, text="x")
    for items, error, says in (
        ([], DataError, "found no items"),
        ([first, statement], ConfigError, "found both"),
        ([first], DataError, "at least 2 items"),
        ([first, first], DataError, "twice"),
        ([first, replace(first, item="b", text=" ")], DataError, "expected a text"),
        ([first, replace(first, item="b", image_uri=str(tmp_path / "none.png"))], DataError, r"none\.png"),
    ):
        with pytest.raises(error, match=says):
            collect(items, name="n")  # type: ignore[arg-type]


def test_miniature_benchmarks_are_the_same_for_the_same_seed_and_differ_otherwise(tmp_path: Path) -> None:
    folders = [make_mmvp(tmp_path / name, num_pairs=9, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert folders[0].fingerprint == folders[1].fingerprint != folders[2].fingerprint
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 19
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_miniature_questions_have_the_answers_that_their_scenes_give(tmp_path: Path) -> None:
    """The right option names the attribute's value of the image's own scene; the other one that of the other scene."""
    made = make_mmvp(tmp_path / "m", num_pairs=27, seed=5)
    asked = {question.key: question for question in made.questions}
    for pair in mmvp_pairs(27, 5):
        a, b = asked[f"{pair.number}/a"], asked[f"{pair.number}/b"]
        assert (a.text, a.options, a.answer) == (b.text, b.options, 1 - b.answer)
        assert Path(a.image_uri).read_bytes() == picture_bytes(pair.a)
        assert Path(b.image_uri).read_bytes() == picture_bytes(pair.b)
        if pair.attribute in ("direction", "colour", "text", "surface"):
            assert a.options[a.answer].casefold() == str(getattr(pair.a.attributes, pair.attribute)).casefold()
            assert b.options[b.answer].casefold() == str(getattr(pair.b.attributes, pair.attribute)).casefold()
