"""The MMVP-VLM layout: types come from the column, pairs from Question ID, and no cell is ever a path."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from mmvp_ray.benchmark import PATTERNS, Statement, open_benchmark, read_mmvp_vlm, write_mmvp_vlm
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp_vlm, mmvp_vlm_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs, of Text and of Camera Perspective, made by hand."""
    for number, kind in ((1, "Text"), (2, "Text"), (3, "Camera Perspective"), (4, "Camera Perspective")):
        images = tmp_path / "MLLM_VLM Images" / kind
        images.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(images / f"{number}.jpg")
    (tmp_path / "Questions.csv").write_text(
        "Question ID,Type,Statement\n"
        '1,Text,"a sign, that says HI"\n2,Text,a sign that says NO\n'
        "3,Camera Perspective,a cat from above\n4,Camera Perspective,a cat from the side\n"
    )
    return tmp_path


def rewrite(folder: Path, old: str, new: str) -> None:
    table = folder / "Questions.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def test_a_folder_made_by_hand(folder: Path) -> None:
    statements, notes = read_mmvp_vlm(str(folder))
    assert [(s.pair_id, s.item, s.text, s.patterns) for s in statements] == [
        ("1", "a", "a sign, that says HI", ("Text",)),
        ("1", "b", "a sign that says NO", ("Text",)),
        ("2", "a", "a cat from above", ("Viewpoint and Perspective",)),
        ("2", "b", "a cat from the side", ("Viewpoint and Perspective",)),
    ]
    assert all(Path(s.image_uri).is_file() for s in statements)
    assert any("evaluate_vlm.py" in note for note in notes)


@pytest.mark.parametrize("root", ["MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images", "mllm_vlm images"])
@pytest.mark.parametrize("kind", ["Camera Perspective", "Camera_Perspective", "Viewpoint and Perspective"])
def test_folders_by_every_spelling_in_use(folder: Path, root: str, kind: str) -> None:
    wanted = open_benchmark(str(folder)).fingerprint
    (folder / "MLLM_VLM Images" / "Camera Perspective").rename(folder / "MLLM_VLM Images" / kind)
    (folder / "MLLM_VLM Images").rename(folder / root)
    assert open_benchmark(str(folder)).fingerprint == wanted


def test_rows_in_any_order_and_types_in_any_order_keep_their_patterns(tmp_path: Path) -> None:
    made = make_mmvp_vlm(tmp_path / "x", pairs_per_pattern=2)
    table = tmp_path / "x" / "Questions.csv"
    header, *rows = table.read_text().splitlines()
    random.Random(1).shuffle(rows)
    table.write_text("\n".join([header, *rows]))
    found = open_benchmark(str(tmp_path / "x"))
    assert found.items == made.items
    assert [s.patterns[0] for s in found.statements] == [name for name in PATTERNS for _ in range(4)]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("1,Text", "1,Shape", "a Type among .*line 2"),
        ("1,Text", "1,../../../etc", "a Type among .*line 2"),
        ("1,Text", "1,Color", "a folder 'Color'.*line 2"),
        ("2,Text", "1,Text", "each Question ID once"),
        ("4,Camera", "6,Camera", r"image 6\.jpg"),
        ("2,Text,a sign that says NO\n", "", "no 2 but 3"),
        ("3,Camera Perspective,a cat from above", "3,Camera Perspective,", "expected a statement.*line 4"),
    ],
)
def test_a_flaw_in_a_row_names_file_and_line(folder: Path, old: str, new: str, says: str) -> None:
    rewrite(folder, old, new)
    with pytest.raises(DataError, match=says) as raised:
        read_mmvp_vlm(str(folder))
    assert "\n" not in str(raised.value)


def test_halves_of_two_types_are_an_error(folder: Path) -> None:
    images = folder / "MLLM_VLM Images"
    (images / "Camera Perspective" / "2.jpg").write_bytes((images / "Text" / "2.jpg").read_bytes())
    rewrite(folder, "2,Text", "2,Camera Perspective")
    with pytest.raises(DataError, match="one Type for both halves"):
        read_mmvp_vlm(str(folder))


def test_two_folders_of_one_pattern_are_an_error(folder: Path) -> None:
    (folder / "MLLM_VLM Images" / "Texts").mkdir()
    with pytest.raises(DataError, match="one folder for 'Text'"):
        read_mmvp_vlm(str(folder))


def test_the_layout_as_the_released_script_reads_it(tmp_path: Path) -> None:
    """scripts/evaluate_vlm.py (tsb0601/MMVP 7635005), lines 33-71: rows two by two, image 'MLLM_VLM Images/<Type>/<id>.jpg', the odd id
    is the first image, the pattern of pair k is categories[k // 15]."""
    import csv

    made = make_mmvp_vlm(tmp_path / "x", pairs_per_pattern=15, seed=4)
    assert made.num_pairs == 135
    assert made.notes == ()
    with (tmp_path / "x" / "Questions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["Question ID", "Type", "Statement"]
    for pair, (first, second) in enumerate(zip(rows[1::2], rows[2::2], strict=True)):
        assert (int(first[0]), int(second[0])) == (2 * pair + 1, 2 * pair + 2)
        statements = made.statements[2 * pair : 2 * pair + 2]
        for row, statement in zip((first, second), statements, strict=True):
            path = tmp_path / "x" / "MLLM_VLM Images" / first[1] / f"{row[0]}.jpg"
            assert str(path) == statement.image_uri
            assert path.is_file()
            assert row[2] == statement.text
            assert statement.patterns == (PATTERNS[pair // 15],)


def test_written_statements_are_sorted_by_pattern_and_kept(tmp_path: Path) -> None:
    made = make_mmvp_vlm(tmp_path / "x", pairs_per_pattern=2, seed=1)
    shuffled = list(made.statements)
    random.Random(2).shuffle(shuffled)
    write_mmvp_vlm(str(tmp_path / "y"), shuffled)
    again = open_benchmark(str(tmp_path / "y"))
    assert [s.patterns for s in again.statements] == [s.patterns for s in made.statements]
    assert {(s.text, Path(s.image_uri).read_bytes()) for s in again.statements} == {
        (s.text, Path(s.image_uri).read_bytes()) for s in made.statements
    }


@pytest.mark.parametrize("patterns", [(), ("Shape",)])
def test_a_statement_without_one_of_the_nine_is_refused(
    folder: Path, tmp_path: Path, patterns: tuple[str, ...]
) -> None:
    first, *rest = open_benchmark(str(folder)).statements
    odd = Statement(pair_id="1", item="a", image_uri=first.image_uri, text="x", patterns=patterns)
    with pytest.raises(DataError, match=r"nine patterns.*pair '1'"):
        write_mmvp_vlm(str(tmp_path / "out"), [odd, *rest])
    with pytest.raises(ConfigError, match="remove it"):
        write_mmvp_vlm(str(folder), [first, *rest])


def test_miniature_statements_are_true_of_their_own_image_alone() -> None:
    for pair in mmvp_vlm_pairs(15, 0):
        value_a, value_b = (getattr(scene.attributes, pair.attribute) for scene in (pair.a, pair.b))
        assert value_a != value_b
        assert pair.a.noun == pair.b.noun
        assert pair.a.place == pair.b.place
