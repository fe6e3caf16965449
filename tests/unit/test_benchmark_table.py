"""Our layout: nothing is lost on the way, images keep their bytes, and strangers' tables are looked at before they are believed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.benchmark import Question, Statement, open_benchmark, write_table
from mmvp_ray.benchmark.table import QUESTIONS, STATEMENTS
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm
from tests.conftest import jpeg

TEXT = st.text(min_size=1, max_size=15).filter(lambda text: bool(text.strip()))
SHARED = {
    "patterns": st.lists(st.text(max_size=8), max_size=3).map(tuple),
    "provenance": st.dictionaries(st.text(max_size=6), st.text(max_size=12), max_size=3),
}


@st.composite
def pairs(draw: st.DrawFn, asks: bool) -> list[dict[str, object]]:
    """Rows of one benchmark, without images."""
    rows: list[dict[str, object]] = []
    for pair_id in draw(st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True)):
        for item in draw(st.lists(st.text(max_size=4), min_size=2, max_size=3, unique=True)):
            row: dict[str, object] = {"pair_id": pair_id, "item": item, "text": draw(TEXT)}
            row |= {name: draw(values) for name, values in SHARED.items()}
            if asks:
                options = draw(st.lists(TEXT, min_size=2, max_size=4, unique=True))
                row |= {"options": tuple(options), "answer": draw(st.integers(0, len(options) - 1))}
            rows.append(row)
    return rows


def without_place(items: tuple[object, ...]) -> list[tuple[object, ...]]:
    return [
        tuple(getattr(item, name) for name in item.__slots__ if name != "image_uri")  # type: ignore[attr-defined]
        for item in items
    ]


@given(pairs(asks=True), st.text(max_size=10), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_questions_round_trip_without_loss(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], name: str, order: object
) -> None:
    folder = tmp_path_factory.mktemp("table")
    order.shuffle(rows)  # type: ignore[attr-defined]
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    items = [Question(image_uri=str(folder / f"{k % 3}.jpg"), **row) for k, row in enumerate(rows)]  # type: ignore[arg-type]
    write_table(str(folder / "out"), items, name=name, key="mine")
    found = open_benchmark(str(folder / "out"))
    assert without_place(found.items) == without_place(tuple(items))
    assert [Path(q.image_uri).read_bytes() for q in found.items] == [Path(q.image_uri).read_bytes() for q in items]
    assert (found.name, found.key, found.layout, found.kind) == (name or "out", "mine", "table", "questions")


@given(pairs(asks=False))
@settings(max_examples=25)
def test_statements_round_trip_without_loss(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    (folder / "0.jpg").write_bytes(jpeg(0))
    items = [Statement(image_uri=str(folder / "0.jpg"), **row) for row in rows]  # type: ignore[arg-type]
    write_table(str(folder / "out"), items, name="n")
    found = open_benchmark(str(folder / "out"))
    assert without_place(found.items) == without_place(tuple(items))
    assert found.kind == "statements"


def test_all_layouts_of_the_same_content_have_one_fingerprint(tmp_path: Path) -> None:
    for made in (make_mmvp(tmp_path / "m", num_pairs=4), make_mmvp_vlm(tmp_path / "v", pairs_per_pattern=1)):
        out = tmp_path / f"{made.kind}_table"
        write_table(str(out), made.items, name="x")
        assert open_benchmark(str(out)).fingerprint == made.fingerprint


def test_images_are_kept_once_under_their_digest_and_other_tools_read_the_table(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "m", num_pairs=2)
    write_table(str(tmp_path / "out"), made.questions, name="mini")
    for path in (tmp_path / "out" / "images").iterdir():
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    rows = duckdb.sql(
        f"select pair_id, item, options, answer, patterns from '{tmp_path / 'out' / 'questions.parquet'}'"
    ).fetchall()
    assert rows == [(q.pair_id, q.item, list(q.options), q.answer, []) for q in made.questions]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    made = make_mmvp(tmp_path / "m", num_pairs=2)
    write_table(str(tmp_path / "out"), made.questions, name="mini")
    return tmp_path / "out" / "questions.parquet"


def change(table: Path, column: str, value: object) -> None:
    """Write the table again with a first cell of another value."""
    found = pq.read_table(table)
    values = found[column].to_pylist()
    values[0] = value
    field = found.schema.field(column)
    changed = found.set_column(
        found.schema.get_field_index(column), field.with_nullable(True), pa.array(values, field.type)
    )
    pq.write_table(changed, table)


@pytest.mark.parametrize(
    "path",
    [
        "../../secret.jpg",
        "/etc/passwd",
        "images/../../x.jpg",
        "images/x.jpg",
        "s3://bucket/x.jpg",
        "images/" + "a" * 64 + ".jpg\n",
        "",
    ],
)
def test_an_image_path_that_is_not_our_own_is_refused(table: Path, path: str) -> None:
    change(table, "image", path)
    with pytest.raises(DataError, match=r"images/<SHA-256>.*row 1"):
        open_benchmark(str(table.parent))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("answer", 2, "answer from 0 to 1"),
        ("answer", -1, "answer from 0 to 1"),
        ("options", ["x"], "different options"),
        ("options", ["x", "x"], "different options"),
        ("item", "b", "twice"),
        ("question", " ", "expected a text"),
        ("question", None, "no empty cells"),
        ("pair_id", "alone", "at least 2 items"),
    ],
)
def test_a_broken_row_is_refused(table: Path, column: str, value: object, says: str) -> None:
    change(table, column, value)
    with pytest.raises(DataError, match=says):
        open_benchmark(str(table.parent))


def test_other_versions_columns_and_files_are_refused(table: Path) -> None:
    found = pq.read_table(table)
    pq.write_table(found.replace_schema_metadata({**found.schema.metadata, b"mmvp_ray.benchmark_version": b"2"}), table)
    with pytest.raises(DataError, match="version 2"):
        open_benchmark(str(table.parent))
    pq.write_table(found.drop_columns(["answer"]), table)
    with pytest.raises(DataError, match=r"found no \['answer'\]"):
        open_benchmark(str(table.parent))
    pq.write_table(found.replace_schema_metadata(None), table)
    with pytest.raises(DataError, match="version none"):
        open_benchmark(str(table.parent))
    table.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="Parquet table"):
        open_benchmark(str(table.parent))


def test_an_image_that_was_changed_or_is_missing_is_an_error(table: Path) -> None:
    path = next((table.parent / "images").iterdir())
    path.write_bytes(jpeg(99))
    with pytest.raises(DataError, match="whose SHA-256 is its name"):
        open_benchmark(str(table.parent))
    path.unlink()
    with pytest.raises(DataError, match="images"):
        open_benchmark(str(table.parent))


def test_a_text_that_is_no_unicode_and_a_second_table_are_refused(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "m", num_pairs=1)
    odd = [
        Question(
            pair_id="1", item=item, image_uri=made.items[0].image_uri, text="half \ud83d", options=("x", "y"), answer=0
        )
        for item in "ab"
    ]
    with pytest.raises(DataError, match="Unicode"):
        write_table(str(tmp_path / "out"), odd, name="x")
    write_table(str(tmp_path / "good"), made.questions, name="x")
    with pytest.raises(ConfigError, match="remove it"):
        write_table(str(tmp_path / "good"), made.questions, name="x")
    with pytest.raises(ConfigError, match="questions alone"):
        write_table(
            str(tmp_path / "mixed"),
            [*made.questions, Statement(pair_id="1", item="z", image_uri="", text="x")],
            name="x",
        )  # type: ignore[list-item]


def test_the_schemas_are_what_the_documentation_says() -> None:
    assert QUESTIONS.names == ["pair_id", "item", "image", "question", "options", "answer", "patterns", "provenance"]
    assert STATEMENTS.names == ["pair_id", "item", "image", "statement", "patterns", "provenance"]
