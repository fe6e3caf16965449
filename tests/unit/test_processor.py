"""Whether bfloat16 products are in hardware: what the CPU says, unless the user forbids it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmvp_ray import processor
from mmvp_ray.processor import ISA_VARIABLES, multiplies_bf16


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ISA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    multiplies_bf16.cache_clear()
    yield
    multiplies_bf16.cache_clear()


@pytest.fixture
def with_amx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx512f amx_bf16 amx_tile\n")
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")


@pytest.mark.usefixtures("with_amx")
def test_a_cpu_with_amx_does() -> None:
    assert multiplies_bf16()


@pytest.mark.parametrize("flags", ["flags : fpu avx512f amx_tile amx_int8\n", ""])
def test_other_cpus_do_not(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    assert not multiplies_bf16()


def test_nor_one_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "none")
    assert not multiplies_bf16()


@pytest.mark.usefixtures("with_amx")
@pytest.mark.parametrize("name", ISA_VARIABLES)
@pytest.mark.parametrize(
    ("most", "expected"),
    [
        ("AVX512_CORE", False),
        ("avx2", False),
        ("AVX512_CORE_BF16", False),
        ("AVX512_CORE_AMX", True),
        ("AVX10_1_512_AMX_FP16", True),
        ("ALL", True),
        ("DEFAULT", True),
        ("", True),
    ],
)
def test_what_onednn_may_not_use_counts_as_absent(
    name: str, most: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, most)
    assert multiplies_bf16() == expected


@pytest.mark.usefixtures("with_amx")
def test_the_newer_name_goes_before_the_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert multiplies_bf16()
