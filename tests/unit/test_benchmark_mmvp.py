"""The MMVP layout: what is written reads back, rows may stand in any order, and every flaw names file and line."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmvp_ray.benchmark import Question, open_benchmark, read_mmvp, write_mmvp
from mmvp_ray.benchmark.csv_rows import csv_bytes, read_rows
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp

HEADER = "Index,Question,Options,Correct Answer"
ROW = "{},Is it open?,(a) Open (b) Closed,({})"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs in the layout, made by hand."""
    images = tmp_path / "MMVP Images"
    images.mkdir()
    for number in range(1, 5):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(images / f"{number}.jpg")
    lines = [HEADER, *(ROW.format(number, "ab"[(number + 1) % 2]) for number in range(1, 5))]
    (tmp_path / "Questions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def rewrite(folder: Path, old: str, new: str) -> None:
    table = folder / "Questions.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def test_a_folder_made_by_hand(folder: Path) -> None:
    questions, notes = read_mmvp(str(folder))
    assert [(q.pair_id, q.item, q.answer, q.options, q.text) for q in questions] == [
        ("1", "a", 0, ("Open", "Closed"), "Is it open?"),
        ("1", "b", 1, ("Open", "Closed"), "Is it open?"),
        ("2", "a", 0, ("Open", "Closed"), "Is it open?"),
        ("2", "b", 1, ("Open", "Closed"), "Is it open?"),
    ]
    assert [q.image_uri for q in questions] == [str(folder / "MMVP Images" / f"{n}.jpg") for n in range(1, 5)]
    assert notes == []


def test_rows_in_any_order_are_the_same_benchmark(tmp_path: Path) -> None:
    straight = make_mmvp(tmp_path / "x", num_pairs=9)
    table = tmp_path / "x" / "Questions.csv"
    header, *rows = table.read_text().splitlines()
    random.Random(0).shuffle(rows)
    assert rows != table.read_text().splitlines()[1:]
    table.write_text("\n".join([header, *rows]))
    shuffled = open_benchmark(str(tmp_path / "x"))
    assert shuffled.items == straight.items
    assert shuffled.fingerprint == straight.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("Index", "lndex"),
        lambda text: text.replace("Index,Question", " index ,QUESTION"),
        lambda text: text + "\n\n",
        lambda text: text.replace("Is it open?", '"Is it open?"'),
        lambda text: text.replace("\n", ",\n").replace(HEADER + ",", HEADER + ",Pattern"),
    ],
)
def test_the_same_table_as_other_programs_save_it(folder: Path, change: object) -> None:
    wanted = read_mmvp(str(folder))[0]
    text = (folder / "Questions.csv").read_text()
    (folder / "Questions.csv").write_bytes(change(text).encode())  # type: ignore[operator]
    found = read_mmvp(str(folder))[0]
    assert [(q.key, q.text, q.options, q.answer, q.image_uri) for q in found] == [
        (q.key, q.text, q.options, q.answer, q.image_uri) for q in wanted
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("3,Is", "7,Is", "image 7.jpg .*line 4"),
        ("3,Is", "2,Is", "each Index once.*line 3.*line 4"),
        ("3,Is", "0,Is", "number from 1.*line 4"),
        ("3,Is", "3.0,Is", "number from 1.*line 4"),
        ("3,Is", "-3,Is", "number from 1.*line 4"),
        ("3,Is", "\u0663,Is", "number from 1.*line 4"),
        ("3,Is it open?,(a) Open (b) Closed,(a)\n", "", "no 3 but 4"),
        ("4,Is it open?,(a) Open (b) Closed,(b)\n", "", "even number of rows"),
        ("4,Is it open?,(a) Open (b) Closed,(b)", "4,Is it open?,(a) Open (b) Closed,(c)", "answer among .*line 5"),
        ("4,Is it open?,(a) Open (b) Closed,(b)", "4,Is it open?,Open or Closed,(b)", "options like .*line 5"),
        ("4,Is it open?,(a) Open (b) Closed,(b)", "4,Is it open?,(a) Open (b) Open,(b)", "different options.*line 5"),
        ("4,Is it open?", "4,  ", "expected a question.*line 5"),
        ("4,Is it open?", "4,Is it open, or not?", "quote fields that hold commas"),
        ("4,Is it open?", '4,"Is it open?', "line 5"),
        (HEADER, "Index,Question,Options", "columns Index, Question, Options, Correct Answer"),
        (HEADER, "Index,Question,Options,Correct Answer,index", "each column once"),
    ],
)
def test_a_flaw_in_a_row_names_file_and_line(folder: Path, old: str, new: str, says: str) -> None:
    rewrite(folder, old, new)
    with pytest.raises(DataError, match=says) as raised:
        read_mmvp(str(folder))
    assert "\n" not in str(raised.value)
    assert "Questions.csv" in str(raised.value)


def test_a_line_break_inside_quotes_does_not_shift_the_lines_that_messages_name(folder: Path) -> None:
    rewrite(folder, "1,Is it open?", '1,"Is it\nopen?"')
    rewrite(folder, "4,Is it open?", "9,Is it open?")
    with pytest.raises(DataError, match="line 6"):
        read_mmvp(str(folder))


@pytest.mark.parametrize(
    "data", [b"\xff\xfe1,2", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", b"", b"\n\n"]
)
def test_a_table_that_is_none(folder: Path, data: bytes) -> None:
    (folder / "Questions.csv").write_bytes(data)
    with pytest.raises(DataError, match=r"Questions\.csv"):
        read_mmvp(str(folder))


def test_images_may_be_jpeg_or_png_by_any_usual_extension(folder: Path) -> None:
    images = folder / "MMVP Images"
    (images / "1.jpg").rename(images / "1.JPG")
    (images / "2.jpg").rename(images / "2.jpeg")
    Image.open(images / "3.jpg").save(images / "3.png")
    (images / "3.jpg").unlink()
    uris = [question.image_uri.rsplit("/", 1)[1] for question in open_benchmark(str(folder)).questions]
    assert uris == ["1.JPG", "2.jpeg", "3.png", "4.jpg"]


def test_two_images_of_one_number_are_an_error(folder: Path) -> None:
    (folder / "MMVP Images" / "1.png").write_bytes(b"x")
    with pytest.raises(DataError, match="one image of number 1"):
        read_mmvp(str(folder))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<!DOCTYPE html><html>", "expected an image"),
        (b"", "expected an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_image_is_an_error(folder: Path, data: bytes, says: str) -> None:
    (folder / "MMVP Images" / "2.jpg").write_bytes(data)
    with pytest.raises(DataError, match=says):
        open_benchmark(str(folder))


def test_images_without_a_row_are_noted(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "MMVP Images" / "5.jpg")
    (folder / "MMVP Images" / "notes.txt").write_text("x")
    assert open_benchmark(str(folder)).notes == ("1 images that no row names, such as number 5",)


def test_pairs_that_a_constant_answer_gets_right_are_noted(folder: Path) -> None:
    rewrite(folder, "2,Is it open?,(a) Open (b) Closed,(b)", "2,Is it open?,(a) Open (b) Closed,(a)")
    assert (
        "1 pairs ask the same of both images and have the same answer, such as pair 1"
        in open_benchmark(str(folder)).notes
    )


@pytest.mark.parametrize("target", ["../outside.jpg", "absolute"])
def test_a_link_out_of_the_folder_is_refused(
    folder: Path, target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("private") / "outside.jpg"
    Image.new("RGB", (8, 8)).save(outside)
    link = folder / "MMVP Images" / "2.jpg"
    link.unlink()
    if target == "absolute":
        link.symlink_to(outside)
    else:
        outside = outside.rename(folder.parent / "outside.jpg")
        link.symlink_to(Path("..") / ".." / "outside.jpg")
    with pytest.raises(DataError, match="link out of it"):
        read_mmvp(str(folder))


def test_a_folder_of_images_that_is_a_link_out_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
    (folder / "MMVP Images").rename(elsewhere)
    (folder / "MMVP Images").symlink_to(elsewhere)
    with pytest.raises(DataError, match="link out of it"):
        read_mmvp(str(folder))


def test_a_table_that_is_a_link_out_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "Questions.csv"
    (folder / "Questions.csv").rename(elsewhere)
    (folder / "Questions.csv").symlink_to(elsewhere)
    with pytest.raises(DataError, match="link out of it"):
        read_mmvp(str(folder))


def test_links_within_the_folder_and_a_hub_cache_are_fine(folder: Path, tmp_path: Path) -> None:
    """huggingface_hub keeps <repo>/snapshots/<revision>/<path> as links to <repo>/blobs/<digest>."""
    repository = tmp_path / "datasets--MMVP--MMVP"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    for path in [folder / "Questions.csv", *(folder / "MMVP Images").iterdir()]:
        blob = repository / "blobs" / path.name
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    assert open_benchmark(str(snapshot)).fingerprint == open_benchmark(str(folder)).fingerprint
    inner = folder / "MMVP Images" / "2.jpg"
    inner.rename(folder / "second.jpg")
    inner.symlink_to(folder / "second.jpg")
    assert open_benchmark(str(folder)).fingerprint == open_benchmark(str(snapshot)).fingerprint


def test_written_files_are_what_the_released_scripts_read(tmp_path: Path) -> None:
    """scripts/evaluate_mllm.py (tsb0601/MMVP 7635005), lines 52-85: pandas.read_csv, row["Question"] + " " + row["Options"],
    "MMVP Images/{row + 1}.jpg", row["Correct Answer"]; scripts/gpt_grader.py pairs rows 2i and 2i+1."""
    pandas = pytest.importorskip("pandas")
    made = make_mmvp(tmp_path / "x", num_pairs=9, seed=3)
    frame = pandas.read_csv(tmp_path / "x" / "Questions.csv")
    assert list(frame.columns) == HEADER.split(",")
    for row, question in zip(frame.to_dict("records"), made.questions, strict=True):
        assert row["Question"] == question.text
        assert row["Options"] == f"(a) {question.options[0]} (b) {question.options[1]}"
        assert row["Correct Answer"] == "(ab)".replace("ba"[question.answer], "")
    for number in range(1, 19):
        with Image.open(tmp_path / "x" / "MMVP Images" / f"{number}.jpg") as image:
            assert image.format == "JPEG"
            assert image.size == (64, 64)


def test_the_typo_of_published_copies_can_be_written_and_is_read(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "x", num_pairs=2)
    write_mmvp(str(tmp_path / "y"), made.questions, header_typo=True)
    assert (tmp_path / "y" / "Questions.csv").read_text().startswith("lndex,Question,")
    assert open_benchmark(str(tmp_path / "y")).fingerprint == made.fingerprint


def test_identical_copies_keep_every_byte_and_reencoded_ones_lose_their_metadata(folder: Path, tmp_path: Path) -> None:
    secret = b"GPS of my house"
    exif = Image.Exif()
    exif[0x9286] = secret
    exif[0x0112] = 6  # turn by a quarter
    picture = Image.new("RGB", (16, 8), (200, 0, 0))
    picture.save(folder / "MMVP Images" / "1.jpg", exif=exif, comment=b"a comment")
    before = (folder / "MMVP Images" / "1.jpg").read_bytes()
    assert secret in before
    questions = open_benchmark(str(folder)).questions
    write_mmvp(str(tmp_path / "same"), questions)
    assert (tmp_path / "same" / "MMVP Images" / "1.jpg").read_bytes() == before
    write_mmvp(str(tmp_path / "new"), questions, images="reencoded")
    after = (tmp_path / "new" / "MMVP Images" / "1.jpg").read_bytes()
    assert secret not in after
    assert b"a comment" not in after
    with Image.open(tmp_path / "new" / "MMVP Images" / "1.jpg") as image:
        assert image.size == (8, 16)
        assert not image.getexif()


def test_formats_that_the_layout_does_not_know_need_encoding_anew(folder: Path, tmp_path: Path) -> None:
    questions = [*open_benchmark(str(folder)).questions]
    webp = tmp_path / "one.webp"
    Image.new("RGB", (8, 8)).save(webp)
    questions[0] = Question(
        pair_id="1", item="a", image_uri=str(webp), text="Is it open?", options=("Open", "Closed"), answer=0
    )
    with pytest.raises(DataError, match="reencoded"):
        write_mmvp(str(tmp_path / "same"), questions)
    write_mmvp(str(tmp_path / "new"), questions, images="reencoded")
    assert sorted(path.name for path in (tmp_path / "new" / "MMVP Images").iterdir()) == [
        f"{n}.jpg" for n in range(1, 5)
    ]


def test_writing_refuses_what_the_layout_cannot_hold(folder: Path, tmp_path: Path) -> None:
    questions = open_benchmark(str(folder)).questions
    uri = questions[0].image_uri
    extra = Question(pair_id="1", item="c", image_uri=uri, text="x", options=("a", "b"), answer=0)
    odd = Question(pair_id="1", item="a", image_uri=uri, text="x", options=("p (b)", "(b) q"), answer=0)
    with pytest.raises(DataError, match="2 questions in each pair"):
        write_mmvp(str(tmp_path / "a"), [*questions, extra])
    with pytest.raises(DataError, match="question '1/a'"):
        write_mmvp(str(tmp_path / "b"), [odd, *questions[1:]])
    with pytest.raises(ConfigError, match="remove it or name another"):
        write_mmvp(str(folder), questions)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(str.strip).filter(bool)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
@settings(max_examples=60)
def test_any_texts_survive_the_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(csv_bytes(("One", "Two"), rows))
    assert [(row.cells["One"], row.cells["Two"]) for row in read_rows(str(path), {"One": (), "Two": ()})] == rows
    with path.open(newline="") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == rows


@given(st.lists(st.tuples(TEXTS, st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=4))
@settings(max_examples=25)
def test_any_questions_read_back(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, int, int]]) -> None:
    folder = tmp_path_factory.mktemp("round")
    picture = folder / "picture.jpg"
    Image.new("RGB", (8, 8)).save(picture)
    questions = [
        Question(
            pair_id=str(number),
            item=item,
            image_uri=str(picture),
            text=text,
            options=("Yes", f"No, {number}"),
            answer=answer,
        )
        for number, (text, *answers) in enumerate(pairs, start=1)
        for item, answer in zip("ab", answers, strict=True)
    ]
    write_mmvp(str(folder / "out"), questions)
    found, _ = read_mmvp(str(folder / "out"))
    assert [(q.key, q.text, q.options, q.answer) for q in found] == [
        (q.key, q.text, q.options, q.answer) for q in questions
    ]


def test_options_with_odd_spaces_are_kept_as_they_were_written(tmp_path: Path) -> None:
    make_mmvp(tmp_path, num_pairs=2, seed=1)
    table = tmp_path / "Questions.csv"
    lines = table.read_text().splitlines()
    first = read_mmvp(str(tmp_path))[0][0]
    joined = " ".join(f"({letter}) {text}" for letter, text in zip("ab", first.options, strict=True))
    assert "options_text" not in first.provenance
    odd = joined.replace(" (b)", "  (b)")
    table.write_text("\n".join([lines[0], lines[1].replace(joined, odd), *lines[2:]]) + "\n")
    again = read_mmvp(str(tmp_path))[0][0]
    assert again.options == first.options
    assert again.provenance["options_text"] == odd
