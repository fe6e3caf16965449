"""LLaVA's JSON to rows: the stream against json.loads, records one by one, and a conversion that breaks off anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.data import convert as convert_module
from mmvp_ray.mof.data.array_stream import ArrayStream
from mmvp_ray.mof.data.convert import ConvertConfig, convert
from mmvp_ray.mof.data.records import Read, RejectReason, read_record
from mmvp_ray.mof.data.rows import load_rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in chunks of these sizes, again and again."""
    chunks, at, turn = [], 0, 0
    while at < len(data):
        chunks.append(data[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    return chunks


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(VALUES, max_size=8),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    start=st.sampled_from([b"", b"\xef\xbb\xbf", b" \r\n\t", b"\xef\xbb\xbf\n "]),
    end=st.sampled_from([b"", b" \n"]),
)
def test_the_stream_gives_what_json_loads_gives(
    values: list[Any], sizes: list[int], indent: int | None, ascii_only: bool, start: bytes, end: bytes
) -> None:
    data = start + json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass") + end
    stream = ArrayStream(cut(data, sizes), where="x.json")
    found, positions = [], []
    for value in stream:
        found.append(value)
        positions.append(stream.position)
    assert found == values == json.loads(data.decode("utf-8-sig"))
    # From behind any element the rest comes out the same.
    for number, position in enumerate(positions, start=1):
        assert list(ArrayStream(cut(data[position:], sizes), where="x.json", start_byte=position)) == values[number:]


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(VALUES, min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    at=st.integers(0, 10**6),
)
def test_every_cut_of_an_array_is_an_error(values: list[Any], sizes: list[int], at: int) -> None:
    data = json.dumps(values, ensure_ascii=False).encode()
    data = data[: at % len(data)]
    found = []
    with pytest.raises(DataError) as error:
        found.extend(ArrayStream(cut(data, sizes), where="x.json"))
    assert "\n" not in str(error.value) and "x.json" in str(error.value)


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(VALUES, min_size=1, max_size=4),
    size=st.integers(1, 40),
    at=st.integers(0, 10**6),
    byte=st.integers(0, 255),
)
def test_a_changed_byte_is_read_as_json_loads_reads_it(values: list[Any], size: int, at: int, byte: int) -> None:
    data = bytearray(json.dumps(values, ensure_ascii=False).encode())
    data[at % len(data)] = byte
    try:
        expected = json.loads(bytes(data).decode())
    except ValueError:
        expected = None
    if isinstance(expected, list) and repr(expected).find("nan") == -1:
        assert list(ArrayStream(cut(bytes(data), [size]), where="x.json")) == expected
    elif not isinstance(expected, list):
        with pytest.raises(DataError):
            list(ArrayStream(cut(bytes(data), [size]), where="x.json"))


def test_what_is_no_array_is_said_in_one_line() -> None:
    for data, message in (
        (b"", "expected a JSON array, which begins with .*, found the end of the file"),
        (b'{"id": 1}', "expected a JSON array, which begins with"),
        (b"[1] [2]", "expected nothing behind the array, found '.2.' at byte 4 of x.json"),
        (b"[1 2]", "expected a whole JSON array"),
        (b"[1, \xff]", "expected UTF-8"),
        (b"[" * 200_000, "expected JSON that Python can hold .RecursionError"),
    ):
        with pytest.raises(DataError, match=message):
            list(ArrayStream([data], where="x.json"))


def test_a_file_that_never_ends_an_element_is_not_held_whole() -> None:
    taken = 0

    def chunks() -> Any:
        nonlocal taken
        yield b'["'
        while taken < 1000:
            taken += 1
            yield b"x" * 1000

    with pytest.raises(DataError, match="an element of at most 5000 characters"):
        list(ArrayStream(chunks(), where="x.json", max_element_chars=5000))
    assert taken < 20


def talk(*texts: str, first: str = "human") -> list[dict[str, str]]:
    other = {"human": "gpt", "gpt": "human"}
    speakers = [first if number % 2 == 0 else other[first] for number in range(len(texts))]
    return [{"from": speaker, "value": text} for speaker, text in zip(speakers, texts, strict=True)]


GOOD = {"id": 7, "image": "coco/a.jpg", "conversations": talk("<image>\nWhat is it?", "A red cat.")}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], RejectReason.NOT_AN_OBJECT),
        (GOOD | {"id": True}, RejectReason.BAD_ID),
        (GOOD | {"id": 1.5}, RejectReason.BAD_ID),
        (GOOD | {"image": 3}, RejectReason.BAD_IMAGE),
        (GOOD | {"image": ""}, RejectReason.BAD_IMAGE),
        (GOOD | {"conversations": None}, RejectReason.BAD_CONVERSATION),
        (GOOD | {"conversations": [{"from": "human"}]}, RejectReason.BAD_CONVERSATION),
        (GOOD | {"conversations": [{"from": "system", "value": "x"}]}, RejectReason.UNKNOWN_SPEAKER),
        (GOOD | {"conversations": talk("<image>", "a") + talk("b", first="gpt")}, RejectReason.NOT_ALTERNATING),
        (GOOD | {"conversations": talk("<image>", "  ")}, RejectReason.NO_ANSWER),
        (GOOD | {"conversations": talk("<image>")}, RejectReason.NO_ANSWER),
        (GOOD | {"conversations": talk("what", "a")}, RejectReason.IMAGE_COUNT),
        (GOOD | {"conversations": talk("what", "<image> a")}, RejectReason.IMAGE_COUNT),
        (GOOD | {"image": None}, RejectReason.IMAGE_COUNT),
        (GOOD | {"image": ["a", "b"]}, RejectReason.IMAGE_COUNT),
        (GOOD | {"conversations": talk("<image>", "a", "<image>", "b")}, RejectReason.IMAGE_COUNT),
        (GOOD | {"conversations": talk("<image>", "half \ud800")}, RejectReason.NOT_UNICODE),
    ],
)
def test_bad_records_have_a_reason(value: Any, reason: RejectReason) -> None:
    found = read_record(value, "default")
    assert not isinstance(found, Read) and found.reason == reason and found.detail.isprintable()


def test_good_records_keep_their_turns() -> None:
    found = read_record(GOOD, "default")
    assert isinstance(found, Read)
    assert (found.id, found.images, found.num_words) == ("7", ("coco/a.jpg",), 7)
    assert found.turns == (("human", "<image>\nWhat is it?"), ("gpt", "A red cat."))
    # LLaVA leaves out an answer before the first question; a question without an answer teaches nothing.
    odd = read_record({"conversations": talk("hello", "what", "a <image> tag", "and", first="gpt")}, "default")
    assert isinstance(odd, Read) and odd.id is None and odd.leading_answer_dropped and odd.trailing_question_dropped
    assert odd.turns == (("human", "what"), ("gpt", "a <image> tag"))
    several = read_record(GOOD | {"conversations": talk("<image>\nWhat <image> is it?", "a")}, "default")
    assert isinstance(several, Read)
    two = read_record(GOOD | {"image": ["a", "b"], "conversations": talk("<image>", "a", "<image>", "b")}, "default")
    assert isinstance(two, Read) and two.images == ("a", "b")
    assert isinstance(read_record(GOOD, "plain"), Read)
    caption = read_record({"conversations": talk("hi", "a")}, "plain")
    assert not isinstance(caption, Read) and caption.reason == RejectReason.NOT_A_CAPTION


def mix(count: int) -> list[Any]:
    """Every third row is text alone, every eleventh is bad; ids int, str or absent."""
    values: list[Any] = []
    for number in range(count):
        words = "word " * (number % 7)
        value: dict[str, Any] = {"conversations": talk(f"{words}é?", f"answer {number}")}
        if number % 3:
            value = {"image": f"d/{number}.jpg", "conversations": talk(f"<image>\n{words}é?", f"answer {number}")}
        if number % 4:
            value["id"] = number if number % 2 else str(number)
        values.append("bad" if number % 11 == 5 else value)
    return values


def written(tmp_path: Path, values: list[Any]) -> str:
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    return str(path)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_in_the_order_of_the_file_rejects_beside_them(tmp_path: Path) -> None:
    values = mix(100)
    config = ConvertConfig(
        source=written(tmp_path, values), out=str(tmp_path / "rows"), num_records_per_part=16, max_reject_fraction=0.2
    )
    converted = convert(config)
    good = [(record, value) for record, value in enumerate(values) if isinstance(value, dict)]
    rows = load_rows(str(tmp_path / "rows"))
    assert rows.num_rows == converted.num_rows == len(good) and rows.template == "default"
    found = rows.at(range(len(good)))
    for number, ((_, value), row) in enumerate(zip(good, found, strict=True)):
        assert row.row == number and row.id == (str(value["id"]) if "id" in value else None)
        assert row.images == ((value["image"],) if "image" in value else ())
        assert [{"from": speaker, "value": text} for speaker, text in row.turns] == value["conversations"]
        assert rows.num_images_N[number] == len(row.images)
        assert rows.num_words_N[number] == sum(len(text.split()) for _, text in row.turns)
    assert rows.at([40, 3])[0] == found[40]
    with pytest.raises(ConfigError, match="expected rows from 0 to"):
        rows.at([len(good)])
    tables = [pq.read_table(path) for path in sorted((tmp_path / "rows").glob("rejects-*.parquet"))]
    rejected = [record for table in tables for record in table.column("record").to_pylist()]
    assert rejected == [record for record, value in enumerate(values) if value == "bad"]
    lines = "\n".join(converted.lines())
    assert f"100 records, {len(good)} rows" in lines and f"rejected as not_an_object: {len(rejected)}" in lines


@pytest.mark.parametrize("num_writes", range(1, 16))
def test_a_conversion_that_broke_off_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    values = mix(64)
    source = written(tmp_path, values)
    whole = ConvertConfig(source=source, out=str(tmp_path / "whole"), num_records_per_part=16, max_reject_fraction=0.2)
    broken = ConvertConfig(
        source=source, out=str(tmp_path / "broken"), num_records_per_part=16, max_reject_fraction=0.2
    )
    convert(whole)
    left = num_writes
    write = storage.write_bytes

    def failing(uri: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", failing)
    interrupted = False
    try:
        convert(broken)
    except KeyboardInterrupt:
        interrupted = True
        with pytest.raises(ConfigError, match="convert the JSON first"):
            load_rows(str(tmp_path / "broken"))
    monkeypatch.setattr(storage, "write_bytes", write)
    assert interrupted == (num_writes < len(files(tmp_path / "whole")))
    starts: list[int] = []
    chunks = convert_module._chunks
    monkeypatch.setattr(
        convert_module, "_chunks", lambda source, start: (starts.append(start), chunks(source, start))[1]
    )
    convert(broken)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    # A part with its marker is not read again; each has three files but a last, empty one.
    if 3 <= num_writes < 12:
        assert starts[0] > 0


def test_done_already_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ConvertConfig(source=written(tmp_path, mix(40)), out=str(tmp_path / "rows"), max_reject_fraction=0.2)
    first = convert(config)
    monkeypatch.setattr(convert_module, "_chunks", None)
    assert convert(config) == first


def test_a_folder_of_another_data_set_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "rows")
    convert(ConvertConfig(source=written(tmp_path, mix(4)), out=out))
    source = written(tmp_path, mix(5))
    with pytest.raises(ConfigError, match="expected an empty folder or an unfinished conversion of the same file"):
        convert(ConvertConfig(source=source, out=out))


def test_bad_input_is_said_in_one_line(tmp_path: Path) -> None:
    source, out = written(tmp_path, mix(40)), str(tmp_path / "out")
    for config, error, message in (
        (ConvertConfig(out=out), ConfigError, "expected a path or URL in --source"),
        (ConvertConfig(source=str(tmp_path / "absent.json"), out=out), ConfigError, "found none"),
        (ConvertConfig(source=source, out=out, num_records_per_part=0), ConfigError, "--num-records-per-part"),
        (
            ConvertConfig(source=source, out=out, max_reject_fraction=0.01),
            DataError,
            "expected at most 1.0% of the records .* to be rejected, found 4 of 40",
        ),
    ):
        with pytest.raises(error, match=message) as raised:
            convert(config)
        assert "\n" not in str(raised.value)
    # More rejects allowed: the parts are there already.
    assert convert(ConvertConfig(source=source, out=out, max_reject_fraction=0.2)).num_rows == 36
    empty = written(tmp_path, [])
    with pytest.raises(DataError, match="found an empty array"):
        convert(ConvertConfig(source=empty, out=str(tmp_path / "empty")))


def test_a_shard_of_other_rows_is_not_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "rows"
    convert(
        ConvertConfig(source=written(tmp_path, mix(64)), out=str(out), num_records_per_part=16, max_reject_fraction=0.2)
    )
    (out / "rows-000001.parquet").write_bytes((out / "rows-000002.parquet").read_bytes())
    with pytest.raises(DataError, match=r"expected the rows .* found others"):
        load_rows(str(out))
