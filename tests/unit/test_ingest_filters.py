"""Filters of LAION's metadata against a loop over rows; deny lists; what the releases call their columns."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.ingest.deny_list import DenyList, read_deny_list
from mmvp_ray.ingest.filters import REASONS, DropReason, LaionFilters, counts_of, judge
from mmvp_ray.ingest.laion_metadata import COLUMNS, map_columns, parse_overrides, plan_schema

DENY = DenyList(
    domains=frozenset(["denied.example", "b.co.uk"]),
    url_digests=frozenset([hashlib.sha256(b"http://a.example/denied.jpg").digest()]),
    ids=frozenset(["13"]),
)
URLS = [
    None,
    "http://a.example/1.jpg",
    "https://a.example:444/2.jpg",
    "http://a.example/denied.jpg",
    "http://A.example/denied.jpg",
    "http://denied.example/",
    "http://www.denied.example./x",
    "http://notdenied.example/x",
    "http://denied.example.org/x",
    "http://co.uk/x",
    "http://a.b.co.uk:81/x",
    "http://denied.example@a.example/",
    "ftp://a.example/x",
    "no url",
]


def numbers(*values: float) -> st.SearchStrategy[float | None]:
    return st.sampled_from([None, *values])


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "url": st.sampled_from(URLS),
            "laion_id": st.sampled_from([None, "12", "13"]),
            "laion_width": numbers(1.0, 100.0, 101.0, 300.0),
            "laion_height": numbers(1.0, 100.0, 150.0, 300.0),
            "similarity": numbers(0.1, 0.3, 0.30001),
            "punsafe": numbers(0.0, 0.5, 0.9),
            "nsfw": st.sampled_from([None, "UNLIKELY", "unlikely ", "NSFW"]),
            "pwatermark": numbers(0.0, 0.8, 0.81),
            "aesthetic": numbers(4.9, 5.0, 7.0),
            "license": st.sampled_from([None, "?", "CC-BY"]),
        }
    ),
    max_size=30,
)
FILTERS = st.builds(
    LaionFilters,
    min_similarity=numbers(0.3),
    max_punsafe=numbers(0.5),
    nsfw_tag=st.sampled_from([(), ("UNLIKELY",), ("unlikely", "NSFW")]),
    max_pwatermark=numbers(0.8),
    min_aesthetic=numbers(5.0),
    min_width_px=st.sampled_from([None, 101]),
    max_width_px=st.sampled_from([None, 200]),
    min_height_px=st.sampled_from([None, 100]),
    max_height_px=st.sampled_from([None, 299]),
    max_aspect=numbers(1.0, 1.5, 3.0),
    license=st.sampled_from([(), ("cc-by",)]),
    unknown=st.sampled_from(["drop", "keep"]),
)


def oracle(row: dict[str, Any], filters: LaionFilters, deny: DenyList) -> str | None:
    """The first reason, one row at a time, in plain words."""
    drops_unknown = filters.unknown == "drop"
    if row["url"] is None:
        return "no_url"

    def beyond(value: float | None, name: str, low: float | None, high: float | None) -> str | None:
        if low is None and high is None:
            return None
        if value is None:
            return f"{name}_unknown" if drops_unknown else None
        return name if (low is not None and value < low) or (high is not None and value > high) else None

    def among(value: str | None, name: str, allowed: tuple[str, ...]) -> str | None:
        if not allowed:
            return None
        if value is None:
            return f"{name}_unknown" if drops_unknown else None
        return None if value.strip().lower() in [text.lower() for text in allowed] else name

    found = [
        beyond(row["similarity"], "similarity", filters.min_similarity, None),
        beyond(row["punsafe"], "unsafe", None, filters.max_punsafe),
        among(row["nsfw"], "nsfw_tag", filters.nsfw_tag),
        beyond(row["pwatermark"], "watermark", None, filters.max_pwatermark),
        beyond(row["aesthetic"], "aesthetic", filters.min_aesthetic, None),
    ]
    width, height = row["laion_width"], row["laion_height"]
    sizes = [
        beyond(width, "size", filters.min_width_px, filters.max_width_px),
        beyond(height, "size", filters.min_height_px, filters.max_height_px),
    ]
    if filters.max_aspect is not None:
        sizes += ["size_unknown" if drops_unknown and None in (width, height) else None]
        is_long = None not in (width, height) and max(width, height) / min(width, height) > filters.max_aspect
        sizes += ["aspect" if is_long else None]
    found += sorted((size for size in sizes if size), key=["size", "size_unknown", "aspect"].index)
    found.append(among(row["license"], "license", filters.license))
    for reason in found:
        if reason:
            return reason
    if row["laion_id"] in deny.ids:
        return "id_denied"
    url = row["url"]
    if not url.startswith(("http://", "https://")):
        return "scheme_refused"
    if "@" in url:
        return "bad_url"
    if "denied.jpg" in url:
        return "url_denied"
    host = (urlsplit(url).hostname or "").rstrip(".")
    if any(("." + host).endswith("." + domain) for domain in deny.domains):
        return "domain_denied"
    return None


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    schema = plan_schema([name for name in COLUMNS if name not in ("caption", "language")])
    return pa.Table.from_pylist(rows, schema=schema)


@settings(max_examples=40)
@given(ROWS, FILTERS)
def test_rows_are_judged_as_by_a_loop(rows: list[dict[str, Any]], filters: LaionFilters) -> None:
    codes_N, kept = judge(table_of(rows), filters, DENY)
    expected = [oracle(row, filters, DENY) for row in rows]
    found = [None if code == 0 else str(REASONS[code - 1]) for code in codes_N]
    assert found == expected
    assert len(kept) == expected.count(None)
    counts = counts_of(codes_N)
    assert sum(counts.values()) + len(kept) == len(rows)
    assert counts == {str(reason): expected.count(reason) for reason in REASONS if expected.count(reason)}


def test_every_reason_fits_the_codes() -> None:
    assert len(REASONS) < np.iinfo(np.int8).max
    assert REASONS[-1] == DropReason.DUPLICATE_URL


def test_deny_lists_as_people_write_them(tmp_path: Path) -> None:
    domains = tmp_path / "domains.txt"
    domains.write_text("\ufeff# ours\nExample.COM.\n*.b\u00fccher.example  # umlauts\n\n.c.example\n")
    listed = tmp_path / "urls.txt"
    digest = hashlib.sha256(b"http://x.example/1").hexdigest()
    listed.write_text(f"http://Y.example/2 # asked for\n{digest.upper()}\n12345\n")
    deny = read_deny_list(domains=("d.example",), domain_files=(str(domains),), files=(str(listed),))
    assert deny.domains == {"example.com", "xn--bcher-kva.example", "c.example", "d.example"}
    assert deny.ids == {"12345"}
    assert deny.denies_url("http://x.example/1")
    assert deny.denies_url("http://y.example/2")
    assert not deny.denies_url("http://x.example/3")
    for host in ("example.com", "a.example.com", "a.b.example.com", "d.example"):
        assert deny.denies_host(host)
    for host in ("com", "anexample.com", "example.com.org", "", "example"):
        assert not deny.denies_host(host)


@pytest.mark.parametrize("text", ["http://example.com", "a b", "example.com/x", "", "a..b"])
def test_a_domain_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a domain"):
        read_deny_list(domains=(text,))


def test_a_deny_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a deny list at"):
        read_deny_list(files=(str(tmp_path / "no.txt"),))
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected UTF-8"):
        read_deny_list(domain_files=(str(tmp_path / "odd.txt"),))


RELEASES: dict[str, tuple[dict[str, pa.DataType], dict[str, str]]] = {
    "laion-400m": (
        dict.fromkeys(("URL", "TEXT", "LICENSE", "NSFW"), pa.string())
        | {"SAMPLE_ID": pa.int64(), "HEIGHT": pa.float64(), "WIDTH": pa.float64(), "similarity": pa.float64()},
        {"url": "URL", "caption": "TEXT", "license": "LICENSE", "nsfw": "NSFW", "laion_id": "SAMPLE_ID"}
        | {"laion_height": "HEIGHT", "laion_width": "WIDTH", "similarity": "similarity"},
    ),
    "laion2B-en-aesthetic": (
        {"URL": pa.string(), "TEXT": pa.string(), "WIDTH": pa.int32(), "HEIGHT": pa.int32(), "hash": pa.int64()}
        | dict.fromkeys(("similarity", "punsafe", "pwatermark", "aesthetic"), pa.float32()),
        {"url": "URL", "caption": "TEXT", "laion_width": "WIDTH", "laion_height": "HEIGHT", "laion_id": "hash"}
        | {name: name for name in ("similarity", "punsafe", "pwatermark", "aesthetic")},
    ),
    "laion-aesthetics v2": (
        {"URL": pa.string(), "TEXT": pa.string(), "AESTHETIC_SCORE": pa.float64(), "__index_level_0__": pa.int64()},
        {"url": "URL", "caption": "TEXT", "aesthetic": "AESTHETIC_SCORE"},
    ),
    "laion-coco": (
        dict.fromkeys(("URL", "TEXT", "top_caption"), pa.string()) | {"all_captions": pa.list_(pa.string())},
        {"url": "URL", "caption": "TEXT"},
    ),
    "img2dataset": (
        dict.fromkeys(("url", "caption", "key"), pa.string())
        | dict.fromkeys(("width", "height", "original_width", "original_height"), pa.int32()),
        {"url": "url", "caption": "caption", "laion_id": "key"}
        | {"laion_width": "original_width", "laion_height": "original_height"},
    ),
    "numbers as NSFW": (
        {"url": pa.large_string(), "NSFW": pa.float32(), "TEXT": pa.null()},
        {"url": "url", "punsafe": "NSFW", "caption": "TEXT"},
    ),
}


@pytest.mark.parametrize("release", RELEASES)
def test_columns_of_releases(release: str) -> None:
    columns, expected = RELEASES[release]
    assert map_columns(pa.schema(columns.items()), {}, where="here") == expected


def test_columns_that_are_named() -> None:
    schema = pa.schema({"URL": pa.string(), "TEXT": pa.string(), "top_caption": pa.string(), "score": pa.float64()})
    overrides = parse_overrides(("caption=top_caption", "aesthetic=score"))
    found = map_columns(schema, overrides, where="here")
    assert found == {"url": "URL", "caption": "top_caption", "aesthetic": "score"}
    with pytest.raises(ConfigError, match=r"expected a column of numbers named 'TEXT' for --column punsafe"):
        map_columns(schema, {"punsafe": "TEXT"}, where="here")
    with pytest.raises(ConfigError, match="expected a column of URLs"):
        map_columns(pa.schema({"link": pa.string()}), {}, where="here")
    for text in ("caption", "caption=", "size=WIDTH"):
        with pytest.raises(ConfigError, match="expected NAME=COLUMN"):
            parse_overrides((text,))


@pytest.mark.parametrize(
    "changes", [{"max_punsafe": 50.0}, {"min_width_px": 0}, {"max_aspect": 0.5}, {"max_aspect": math.nan}]
)
def test_filters_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        LaionFilters(**changes).check()
