"""Exports opened again: what was annotated is what is asked, every pair is in it or counted, images are as asked, and people have no names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mmvp_ray import storage
from mmvp_ray.annotate.adjudicating import keep
from mmvp_ray.annotate.collecting import collect_pairs
from mmvp_ray.annotate.exporting import FORMS_WITHOUT_PROVENANCE, ExportConfig, export
from mmvp_ray.annotate.importing import FoundPair, Picture, import_pairs
from mmvp_ray.annotate.people import add_user
from mmvp_ray.annotate.statements import review, write
from mmvp_ray.annotate.studies import StudyNewConfig, new_study
from mmvp_ray.annotate.workspace import Workspace, create_workspace, open_workspace
from mmvp_ray.benchmark import FORMS, PATTERNS, Question, Statement, open_benchmark
from mmvp_ray.errors import ConfigError, DataError
from tests.conftest import jpeg
from tests.unit.annotate_workspace import (
    ANN,
    BEN,
    PEOPLE,
    PHOTOGRAPHER,
    REY,
    VERA,
    make_disputed,
    make_verified,
    make_workspace,
    picture,
    verify,
    write_annotation,
)

NUM_PAIRS = 14
VERIFIED = [1, 2, 3, 4, 10, 11]
"""Pair k is of pattern (k - 1) mod 9: two of the first (1, 10), two of the second (2, 11), one each of the third and fourth."""
STATED = [2, 3, 11]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Six verified pairs, three with statements; the others in every other state."""
    workspace = make_workspace(tmp_path / "w", NUM_PAIRS)
    make_verified(workspace, [pair_id for pair_id in VERIFIED if pair_id != 4])
    make_disputed(workspace, 4)
    keep(workspace, REY, 4)
    for pair_id in STATED:
        write(workspace, BEN, pair_id, f"Dog {pair_id} faces right.", f"Dog {pair_id} faces left.")
        review(workspace, REY, pair_id, True)
    write(workspace, BEN, 1, "Dog 1 faces right.", "Dog 1 faces left.")
    review(workspace, REY, 1, False, "no")
    write_annotation(workspace, ANN, 5)
    make_disputed(workspace, 6)
    with workspace.transaction() as connection:
        connection.execute("UPDATE pairs SET state = 'rejected' WHERE pair_id = 7")
    return workspace


def configured(workspace: Workspace, tmp_path: Path, **changes: object) -> ExportConfig:
    return replace(ExportConfig(workspace=str(workspace.folder), out=str(tmp_path / "out")), **changes)  # type: ignore[arg-type]


def exported_events(workspace: Workspace) -> list[dict[str, object]]:
    return [json.loads(row["content"]) for row in workspace.rows("SELECT content FROM events WHERE kind = 'exported'")]


class KilledError(Exception):
    """Stands for SIGKILL."""


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked(pair_id: int, side: str) -> tuple[object, ...]:
    return (
        f"Is dog {pair_id} facing left, right or away?",
        ("Left", "Right", "Away"),
        {"a": 1, "b": 0}[side],
        picture(2 * pair_id + "ab".index(side)),
    )


def test_our_table_is_what_was_annotated(workspace: Workspace, tmp_path: Path):
    export(configured(workspace, tmp_path, name="Dogs"))
    found = open_benchmark(str(tmp_path / "out"))
    assert (found.name, found.kind, found.num_pairs) == ("Dogs", "questions", 6)
    assert [question.key for question in found.questions] == [
        f"{pair_id:05d}/{side}" for pair_id in VERIFIED for side in "ab"
    ]
    for question in found.questions:
        pair_id = int(question.pair_id)
        read = (question.text, question.options, question.answer, Path(question.image_uri).read_bytes())
        assert read == asked(pair_id, question.item)
        assert question.patterns == (PATTERNS[(pair_id - 1) % 9],)


def test_provenance_tells_where_an_item_comes_from(workspace: Workspace, tmp_path: Path):
    export(configured(workspace, tmp_path))
    items = {question.key: question.provenance for question in open_benchmark(str(tmp_path / "out")).questions}
    first = workspace.row("SELECT annotation_id, image_a FROM annotations JOIN pairs USING (pair_id) WHERE pair_id = 1")
    assert items["00001/a"] == {
        "source": "s3://runs/one",
        "image_sha256": first["image_a"],
        "width_px": "24",
        "height_px": "16",
        "uri": "s3://data/2.jpg",
        "url": "https://example.org/2",
        "license": "cc-by-4.0",
        "near": "near-x",
        "far": "far-y",
        "cos_near": "0.97",
        "cos_far": "0.41",
        "rank": "0",
        "annotation_id": str(first["annotation_id"]),
        "author": f"annotator-{ANN.user_id}",
        "verifier": f"annotator-{VERA.user_id}",
    }
    assert items["00002/b"]["caption"] == "caption 5"
    assert items["00004/a"]["adjudicator"] == f"annotator-{REY.user_id}"


def test_an_unfinished_verification_neither_hides_nor_doubles_a_pair(workspace: Workspace):
    """Somebody began, went away, and somebody else finished."""
    with workspace.transaction() as connection:
        connection.execute(
            "INSERT INTO verifications (annotation_id, verifier, first_side, option_order, shown_at) "
            "SELECT annotation_id, 2, 'a', '[0, 1, 2]', 0 FROM annotations WHERE replaced_at IS NULL AND pair_id IN (1, 5)"
        )
    collected = collect_pairs(workspace, "questions")
    assert [pair.candidate.pair_id for pair in collected.pairs] == VERIFIED
    assert len(collected.pairs) + sum(collected.left_out.values()) == NUM_PAIRS


@pytest.mark.parametrize("form", ["table", "huggingface", "mmvp_vlm"])
def test_statements_in_every_form_that_holds_them(workspace: Workspace, tmp_path: Path, form: str):
    lines = export(configured(workspace, tmp_path, form=form, kind="statements"))
    expected = [
        (f"Dog {pair_id} faces {word}.", PATTERNS[(pair_id - 1) % 9], picture(2 * pair_id + number))
        for pair_id in ([2, 11, 3] if form == "mmvp_vlm" else STATED)
        for number, word in enumerate(("right", "left"))
    ]
    if form == "huggingface":
        rows = pq.read_table(tmp_path / "out" / "data" / "test-00000-of-00001.parquet").to_pylist()
        assert [(row["statement"], row["patterns"][0], row["image"]["bytes"]) for row in rows] == expected
    else:
        found = open_benchmark(str(tmp_path / "out"))
        read = [(item.text, item.patterns[0], Path(item.image_uri).read_bytes()) for item in found.statements]
        assert read == expected
    assert lines[-1].endswith(
        "left out: 5 not annotated yet, 3 no approved statement, 1 disputed, 1 not verified yet, 1 rejected"
    )


def test_statements_name_their_people_by_number(workspace: Workspace):
    (first, *_) = collect_pairs(workspace, "statements").pairs
    assert isinstance(first.items[0], Statement)
    people = {name: first.items[0].provenance[name] for name in ("statement_author", "statement_reviewer", "author")}
    assert people == {
        "statement_author": f"annotator-{BEN.user_id}",
        "statement_reviewer": f"annotator-{REY.user_id}",
        "author": f"annotator-{ANN.user_id}",
    }


def test_mmvp_layout(workspace: Workspace, tmp_path: Path):
    export(configured(workspace, tmp_path, form="mmvp"))
    found = open_benchmark(str(tmp_path / "out"))
    assert found.layout == "mmvp"
    for question in found.questions:
        pair_id = VERIFIED[int(question.pair_id) - 1]
        read = (question.text, question.options, question.answer, Path(question.image_uri).read_bytes())
        assert read == asked(pair_id, question.item)


def test_hugging_face_rows_and_card(workspace: Workspace, tmp_path: Path):
    with workspace.transaction() as connection:
        connection.execute(
            "UPDATE images SET license = NULL WHERE image_id = (SELECT image_a FROM pairs WHERE pair_id = 1)"
        )
    export(configured(workspace, tmp_path, form="huggingface", license="cc-by-sa-4.0"))
    rows = pq.read_table(tmp_path / "out" / "data" / "test-00000-of-00001.parquet").to_pylist()
    assert [
        (row["question"], tuple(row["options"]), "ABC".index(row["answer"]), row["image"]["bytes"]) for row in rows
    ] == [asked(pair_id, side) for pair_id in VERIFIED for side in "ab"]
    assert [row["license"] for row in rows] == ["", *["cc-by-4.0"] * 11]
    text = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "cc-by-sa-4.0"
    assert "| cc-by-4.0 | 11 |" in text and "| unknown | 1 |" in text


def test_lmms_eval_and_vlmevalkit_hold_every_question(workspace: Workspace, tmp_path: Path):
    export(configured(workspace, tmp_path, form="lmms_eval", name="My dogs"))
    task = yaml.load((tmp_path / "out" / "my_dogs.yaml").read_text().replace("!function", ""), Loader=yaml.SafeLoader)
    assert task["task"] == "my_dogs"
    rows = pq.read_table(tmp_path / "out" / "data" / "my_dogs.parquet").to_pylist()
    assert [(row["pair_id"], row["item"]) for row in rows] == [
        (f"{pair_id:05d}", side) for pair_id in VERIFIED for side in "ab"
    ]
    export(configured(workspace, tmp_path, form="vlmevalkit", name="My dogs"))
    table = pd.read_csv(tmp_path / "out" / "my_dogs.tsv", sep="\t")
    assert list(table["answer"]) == ["B", "A"] * 6
    assert list(table["category"]) == [PATTERNS[(pair_id - 1) % 9] for pair_id in VERIFIED for _ in "ab"]


@pytest.mark.parametrize("form", ["table", "mmvp", "huggingface", "lmms_eval"])
def test_images_keep_every_byte_or_lose_all_metadata(workspace: Workspace, tmp_path: Path, form: str):
    for images in ("identical", "reencoded"):
        export(configured(workspace, tmp_path, form=form, images=images, out=str(tmp_path / images)))
    written = {}
    for images in ("identical", "reencoded"):
        files = sorted((tmp_path / images).rglob("*.jpg")) or sorted((tmp_path / images).rglob("*.parquet"))
        written[images] = [
            row["image"]["bytes"]
            for file in files
            if file.suffix == ".parquet"
            for row in pq.read_table(file).to_pylist()
        ] or [file.read_bytes() for file in files]
    assert sorted(written["identical"]) == sorted(picture(2 * pair_id + k) for pair_id in VERIFIED for k in (0, 1))
    assert len(written["reencoded"]) == 12
    for data in written["reencoded"]:
        image = Image.open(io.BytesIO(data))
        assert PHOTOGRAPHER not in data and "comment" not in image.info and image.size == (24, 16)


@pytest.mark.parametrize("form", FORMS)
def test_nobody_s_name_and_no_other_secret_leaves_the_workspace(workspace: Workspace, tmp_path: Path, form: str):
    secret = workspace.row("SELECT value FROM meta WHERE name = 'secret'")["value"]
    for name in PEOPLE:
        with workspace.transaction() as connection:
            connection.execute("UPDATE users SET name = ? WHERE name = ?", (f"{name}-Lastname", name))
    export(configured(workspace, tmp_path, form=form, images="reencoded"))
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    texts = [
        str(pq.read_table(file).to_pylist()).encode() if file.suffix == ".parquet" else file.read_bytes()
        for file in files
    ]
    assert files
    for hidden in ("Lastname", secret, "SECRET-DIFFERENCE"):
        assert not any(hidden.encode() in text for text in texts)


def test_every_pair_is_exported_or_counted(workspace: Workspace, tmp_path: Path):
    lines = export(configured(workspace, tmp_path))
    assert lines[0] == f"  6 pairs, 12 questions, as table to {tmp_path / 'out'}; images identical"
    assert [line.split()[-1] for line in lines[1:10]] == ["2", "2", "1", "1", "0", "0", "0", "0", "0"]
    assert lines[10] == "  left out: 5 not annotated yet, 1 disputed, 1 not verified yet, 1 rejected"
    (event,) = exported_events(workspace)
    assert event["pairs"] == VERIFIED and event["form"] == "table"
    assert event["fingerprint"] == open_benchmark(str(tmp_path / "out")).fingerprint
    assert len(event["pairs"]) + sum(event["left_out"].values()) == NUM_PAIRS


def test_balanced_to_one_pair_of_each_pattern(workspace: Workspace, tmp_path: Path):
    lines = export(configured(workspace, tmp_path, per_pattern=1))
    found = open_benchmark(str(tmp_path / "out"))
    assert [int(question.pair_id) for question in found.questions[::2]] == [1, 2, 3, 4]
    assert lines[1].split()[-1] == "1" and lines[5].endswith("0  (1 short of 1)")
    assert lines[10].startswith("  missing for 1 of each pattern: 5 pairs (") and "Text 1" in lines[10]
    assert "2 pattern is full" in lines[11]


def test_an_image_is_used_once_unless_asked(tmp_path: Path):
    workspace = make_workspace(tmp_path / "w", 10)
    make_verified(workspace, [1, 10])
    with workspace.transaction() as connection:
        connection.execute(
            "UPDATE pairs SET image_a = (SELECT image_a FROM pairs WHERE pair_id = 1) WHERE pair_id = 10"
        )
    lines = export(configured(workspace, tmp_path, per_pattern=2))
    assert lines[0].startswith("  1 pairs") and "1 image is used already" in lines[-1]
    lines = export(configured(workspace, tmp_path, per_pattern=2, uses_per_image=2, out=str(tmp_path / "two")))
    assert lines[0].startswith("  2 pairs")
    assert len({question.image_uri for question in open_benchmark(str(tmp_path / "two")).questions}) == 3


def test_unsafe_pairs_only_where_asked(workspace: Workspace, tmp_path: Path):
    with workspace.transaction() as connection:
        connection.execute(
            "UPDATE images SET is_unsafe = 1 WHERE image_id = (SELECT image_b FROM pairs WHERE pair_id = 3)"
        )
    lines = export(configured(workspace, tmp_path))
    assert lines[0].startswith("  5 pairs") and "1 unsafe" in lines[-1]
    lines = export(configured(workspace, tmp_path, include_unsafe=True, out=str(tmp_path / "all")))
    assert lines[0].startswith("  6 pairs") and "unsafe" not in lines[-1]


def test_nothing_is_written_over_and_what_failed_is_no_export(workspace: Workspace, tmp_path: Path):
    export(configured(workspace, tmp_path))
    before = (tmp_path / "out" / "questions.parquet").read_bytes()
    with pytest.raises(ConfigError, match="found one"):
        export(configured(workspace, tmp_path, name="other"))
    assert (tmp_path / "out" / "questions.parquet").read_bytes() == before
    assert len(exported_events(workspace)) == 1


@pytest.mark.parametrize("form", ["lmms_eval", "vlmevalkit"])
def test_several_in_one_folder_keep_their_own_provenance(workspace: Workspace, tmp_path: Path, form: str):
    export(configured(workspace, tmp_path, form=form, name="first", per_pattern=1))
    before = {path: data for path, data in files_in(tmp_path / "out").items() if "first" in path.name}
    assert sum("provenance" in path.name for path in before) == 1
    export(configured(workspace, tmp_path, form=form, name="second"))
    after = files_in(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    assert sum("provenance" in path.name for path in after) == 2


@pytest.mark.parametrize("form", FORMS)
def test_an_export_that_was_killed_behind_any_write_is_made_whole_by_the_next(
    workspace: Workspace, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
):
    """A folder that counts as a benchmark, and is not written over, has everything that belongs to it."""
    whole = tmp_path / "whole"
    export(configured(workspace, tmp_path, form=form, out=str(whole)))
    expected = files_in(whole)
    assert any(path.name.endswith("provenance.csv") for path in expected) == (form in FORMS_WITHOUT_PROVENANCE)
    left = 0

    def killed_behind(write: Callable[..., object]) -> Callable[..., object]:
        def killed(*args: object, **options: object) -> object:
            nonlocal left
            found = write(*args, **options)
            left -= 1
            if not left:
                raise KilledError
            return found

        return killed

    # Images, tables, cards and scripts.
    for name in ("write_bytes", "write_file"):
        monkeypatch.setattr(storage, name, killed_behind(getattr(storage, name)))
    for num_writes in range(1, len(expected) + 1):
        out = tmp_path / f"killed behind {num_writes}"
        left = num_writes
        with pytest.raises(KilledError):
            export(configured(workspace, tmp_path, form=form, out=str(out)))
        left = 0
        if num_writes < len(expected):
            export(configured(workspace, tmp_path, form=form, out=str(out)))
        else:
            with pytest.raises(ConfigError, match="found one"):
                export(configured(workspace, tmp_path, form=form, out=str(out)))
        assert files_in(out) == expected, num_writes


def test_a_benchmark_that_is_there_keeps_what_stands_beside_it(workspace: Workspace, tmp_path: Path):
    export(configured(workspace, tmp_path, form="mmvp"))
    before = files_in(tmp_path / "out")
    with pytest.raises(ConfigError, match="found one"):
        export(configured(workspace, tmp_path, form="mmvp", per_pattern=1))
    assert files_in(tmp_path / "out") == before


def test_nothing_to_export_says_why(tmp_path: Path):
    workspace = make_workspace(tmp_path / "w")
    write_annotation(workspace, ANN, 1)
    with pytest.raises(DataError, match=r"found none in .*: 2 not annotated yet, 1 not verified yet"):
        export(configured(workspace, tmp_path))
    make_verified(workspace, [2])
    with pytest.raises(DataError, match="1 no approved statement"):
        export(configured(workspace, tmp_path, form="mmvp_vlm"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workspace": ""}, "--workspace"),
        ({"out": ""}, "--out"),
        ({"form": "word"}, "--form"),
        ({"kind": "pictures"}, "--kind"),
        ({"form": "mmvp", "kind": "statements"}, "holds statements"),
        ({"form": "mmvp_vlm", "kind": "questions"}, "--kind"),
        ({"images": "smaller"}, "--images"),
        ({"name": " "}, "--name"),
        ({"name": "a\nb"}, "--name"),
        ({"per_pattern": 0}, "--per-pattern"),
        ({"uses_per_image": 0}, "--uses-per-image"),
        ({"license": ""}, "--license"),
        ({"license": "mit"}, "beside --license"),
    ],
)
def test_configurations_that_make_no_sense(changes: dict[str, object], said: str):
    config = replace(ExportConfig(workspace="w", out="o"), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said) as caught:
        config.check()
    assert "\n" not in str(caught.value)


def test_no_workspace(tmp_path: Path):
    with pytest.raises(ConfigError, match="found none"):
        export(ExportConfig(workspace=str(tmp_path / "nowhere"), out=str(tmp_path / "out")))


def test_from_import_to_benchmark(tmp_path: Path):
    """The whole way with real imports: PNG and JPEG pictures decoded in a child process, annotated, verified, exported, opened."""
    workspace = create_workspace(tmp_path / "w")
    for name, role in PEOPLE.items():
        add_user(workspace, name, role)
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(7))).save(out, "PNG")
    sides = [
        Picture(data=data, uri=f"s3://x/{number}", member=f"{number}.bin", license="cc0-1.0")
        for number, data in enumerate((jpeg(5), out.getvalue()))
    ]
    pair = FoundPair(rank=0, cos_near=0.96, cos_far=0.3, a=sides[0], b=sides[1])
    assert import_pairs(workspace, [pair], source="run", title="Run", near="n", far="f").num_new == 1
    found = write_annotation(workspace, ANN)
    verify(workspace, VERA, 1, found, answers=(1, 0))
    export(configured(workspace, tmp_path, form="mmvp"))
    opened = open_benchmark(str(tmp_path / "out"))
    assert [Path(item.image_uri).read_bytes() for item in opened.items] == [side.data for side in sides]
    assert [Path(item.image_uri).suffix for item in opened.items] == [".jpg", ".png"]
    (collected,) = collect_pairs(workspace, "questions").pairs
    assert all(isinstance(item, Question) and item.provenance["license"] == "cc0-1.0" for item in collected.items)
    assert [item.provenance["member"] for item in collected.items] == ["0.bin", "1.bin"]


def test_what_a_form_has_no_room_for_stands_beside_it_and_unsafe_pictures_stay_known(tmp_path: Path):
    workspace = make_workspace(tmp_path / "mine")
    make_verified(workspace, [1])
    with workspace.transaction() as connection:
        connection.execute(
            "UPDATE images SET is_unsafe = 1 WHERE image_id = (SELECT image_a FROM pairs WHERE pair_id = 1)"
        )
        connection.execute(
            "UPDATE images SET caption = '=HYPERLINK(1)' WHERE image_id = (SELECT image_b FROM pairs WHERE pair_id = 1)"
        )
    for form in ("mmvp", "table"):
        export(ExportConfig(workspace=str(workspace.folder), out=str(tmp_path / form), form=form, include_unsafe=True))
    with (tmp_path / "mmvp/provenance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["item"], row["license"], row["unsafe"]) for row in rows] == [
        ("a", "cc-by-4.0", "yes"),
        ("b", "cc-by-4.0", ""),
    ]
    # A spreadsheet takes no stranger's caption for a formula, and a negative cosine for no text.
    assert rows[1]["caption"] == "'=HYPERLINK(1)" and float(rows[0]["cos_near"]) == 0.97
    assert not (tmp_path / "table/provenance.csv").exists()
    # A study of the export blurs what was blurred.
    new_study(
        StudyNewConfig(workspace=str(tmp_path / "other"), name="s", benchmark=str(tmp_path / "table"), participants=1)
    )
    flags = open_workspace(tmp_path / "other").rows(
        "SELECT is_unsafe FROM images JOIN study_questions USING (image_id) ORDER BY item"
    )
    assert [row["is_unsafe"] for row in flags] == [1, 0]
