"""Configs out of mappings and YAML: strict about names and types, and clear about what was wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import config
from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    above: float = 0.95
    num_pairs: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    corpus: tuple[str, ...] = ("a=b",)
    numbers: tuple[int, ...] = ()
    rule: Inner = field(default_factory=Inner)
    collapse: Literal["none", "near"] = "none"
    limit: int | None = None
    share: float = 0.05
    plan: bool = False
    out: str | None = None
    device: Literal["cuda", "cpu"] | None = None


def read(values: Any) -> Outer:
    return config.from_mapping(Outer, values, where="my.yaml")


def test_nothing_gives_the_defaults() -> None:
    assert read({}) == Outer()


def test_everything_arrives_with_its_type() -> None:
    found = read(
        {
            "corpus": ["x=1", "y=2"],
            "numbers": [1, 2],
            "rule": {"above": 1},
            "collapse": "near",
            "limit": 7,
            "share": 1,
            "plan": True,
            "out": "runs/x",
            "device": None,
        }
    )
    assert found == Outer(
        corpus=("x=1", "y=2"),
        numbers=(1, 2),
        rule=Inner(above=1.0),
        collapse="near",
        limit=7,
        share=1.0,
        plan=True,
        out="runs/x",
    )
    assert type(found.rule.above) is float and type(found.share) is float


def test_a_mapping_of_corpora_becomes_a_list_of_flags() -> None:
    assert read({"corpus": {"photos": "./photos", "more": "s3://b"}}).corpus == ("photos=./photos", "more=s3://b")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colapse": "near"}, ["'colapse'", "did you mean collapse", "corpus, numbers, rule", "my.yaml"]),
        ({"rule": {"abov": 1}}, ["'abov'", "did you mean above", "above, num_pairs", "my.yaml: rule"]),
        ({"zzz": 1}, ["'zzz'", "corpus, numbers", "my.yaml"]),
        ({1: 2}, ["found 1 in my.yaml"]),
        ({"limit": "7"}, ["expected a value of type int", "'7'", "my.yaml: limit"]),
        ({"limit": True}, ["expected a value of type int", "True"]),
        ({"limit": 7.0}, ["expected a value of type int", "7.0"]),
        ({"share": "0.05"}, ["expected a value of type float", "my.yaml: share"]),
        ({"share": True}, ["expected a value of type float"]),
        ({"share": None}, ["expected a value of type float", "None"]),
        ({"plan": "yes"}, ["expected a value of type bool"]),
        ({"plan": 1}, ["expected a value of type bool"]),
        ({"collapse": "far"}, ["expected one of none, near", "'far'", "my.yaml: collapse"]),
        ({"collapse": False}, ["expected one of none, near", "False"]),
        ({"device": "tpu"}, ["expected one of cuda, cpu", "'tpu'"]),
        ({"corpus": 3}, ["expected a list", "my.yaml: corpus"]),
        ({"corpus": [1]}, ["expected a value of type str", "my.yaml: corpus"]),
        ({"corpus": {"photos": None}}, ["my.yaml: corpus"]),
        ({"corpus": {"photos": ["a", "b"]}}, ["my.yaml: corpus"]),
        ({"numbers": ["1"]}, ["expected a value of type int"]),
        ({"rule": 0.95}, ["expected names with values (above, num_pairs)", "0.95", "my.yaml: rule"]),
        ({"rule": None}, ["expected names with values"]),
        ([1, 2], ["expected names with values", "[1, 2]", "my.yaml"]),
        ("text", ["expected names with values", "'text'"]),
        ({"limit": "x" * 5000}, ["expected a value of type int"]),
    ],
)
def test_mistakes_are_named(values: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(values)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 500


class TestYaml:
    def test_a_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text("# a recipe\nrule:\n  above: 0.9\ncorpus:\n  photos: ./photos\n")
        assert config.load_yaml(Outer, str(path)) == Outer(rule=Inner(above=0.9), corpus=("photos=./photos",))

    @pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
    def test_an_empty_file_gives_the_defaults(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        assert config.load_yaml(Outer, str(path)) == Outer()

    @pytest.mark.parametrize(
        "data",
        [
            b"a: [1, 2",
            b"\xff\xfe\x00bad",
            b"\x00",
            b"- 1",
            b"!!python/object/apply:os.system ['true']",
            b"plan: true\nplan: false\n",
            b"rule: {above: 0.9, above: 0.8}",
        ],
    )
    def test_what_is_no_config_says_so_in_one_line(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"recipe\.yaml") as caught:
            config.load_yaml(Outer, str(path))
        assert "\n" not in str(caught.value)

    def test_a_number_that_yaml_takes_for_text_is_explained(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text("share: 1e-3\n")
        with pytest.raises(ConfigError, match=r"1\.0e-3"):
            config.load_yaml(Outer, str(path))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.yaml"):
            config.load_yaml(Outer, str(tmp_path / "none.yaml"))
        with pytest.raises(ConfigError, match="directory"):
            config.load_yaml(Outer, str(tmp_path))


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        Outer,
        corpus=st.lists(st.text()).map(tuple),
        numbers=st.lists(st.integers()).map(tuple),
        rule=st.builds(Inner, above=st.floats(allow_nan=False, allow_infinity=False), num_pairs=st.integers()),
        collapse=st.sampled_from(["none", "near"]),
        limit=st.none() | st.integers(),
        out=st.none() | st.text(),
    )
)
def test_to_mapping_and_back(found: Outer) -> None:
    assert read(config.to_mapping(found)) == found


def test_fingerprint_depends_on_values_and_not_on_order() -> None:
    one = config.fingerprint({"a": 1, "b": [1.5, None]})
    assert one == config.fingerprint({"b": [1.5, None], "a": 1})
    assert one != config.fingerprint({"a": 1, "b": [1.5, 0]})
    assert len(one) == 16 and int(one, 16) >= 0
