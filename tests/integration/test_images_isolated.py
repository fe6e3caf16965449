"""decode_isolated with decoders that abort, crash, hang, eat memory, print and lie."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvp_ray.errors import ResourceError
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.isolated import decode_isolated
from mmvp_ray.images.isolated_child import QUESTION, READY
from mmvp_ray.images.isolated_process import END_SECONDS, Ended, IsolatedProcess
from mmvp_ray.images.limits import MAX_DECODER_MEMORY_BYTES
from mmvp_ray.images.reasons import Rejected

pytestmark = pytest.mark.integration

DECODER = "decoder_that_dies:decode_or_die"
SOURCE = f"""
    import ctypes, os, signal, sys, time
    import numpy as np
    from mmvp_ray.images.decode import Decoded, decode
    from mmvp_ray.images.reasons import Rejected, RejectReason

    def decode_or_die(data):
        if data == b"abort":
            os.abort()
        if data == b"segfault":
            ctypes.string_at(0)
        if data == b"exit":
            os._exit(3)
        if data == b"raise":
            raise RuntimeError("a bug in the decoder")
        if data == b"hang":
            time.sleep(3600)
        if data == b"memory":
            try:
                np.empty({MAX_DECODER_MEMORY_BYTES} + 1, dtype=np.uint8)
            except MemoryError:
                return Rejected(RejectReason.TOO_MUCH_MEMORY, "no more")
        if data == b"chatter":
            os.write(1, b"libfoo: hello\\n" * 10_000)
            os.write(2, b"libfoo: warning\\n" * 10_000)
            return Rejected(RejectReason.CORRUPT, "talks")
        if data.startswith(b"unlucky "):
            # The first process that has it is killed by somebody else, who waits for this file.
            path = data.split(b" ", 1)[1].decode()
            if not os.path.exists(path):
                with open(path + ".new", "w") as file:
                    file.write(str(os.getpid()))
                os.replace(path + ".new", path)
                time.sleep(3600)
            return Rejected(RejectReason.CORRUPT, "asked again")
        if data.startswith(b"killer "):
            with open(data.split(b" ", 1)[1], "ab") as file:
                file.write(b"asked ")
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"lie":
            return Decoded(form=np.zeros((2, 2, 3), dtype=np.uint8), width_px=2**31, height_px=2**31)
        return decode(data)
"""


@pytest.fixture
def dying_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that only sys.path knows of, as in a Ray worker's working directory."""
    (tmp_path / "decoder_that_dies.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(str(tmp_path))
    return DECODER


def png() -> bytes:
    buffer = io.BytesIO()
    noise_HWC = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def outcome(result: Decoded | Rejected) -> str:
    return "decoded" if isinstance(result, Decoded) else result.reason.value


def test_no_items_start_no_child() -> None:
    assert decode_isolated([], decoder="no_such_module:decode") == []


def test_results_equal_those_of_this_process() -> None:
    items = [png(), b"", b"garbage", png()[:200]]
    isolated = decode_isolated(items)
    assert [outcome(result) for result in isolated] == [
        "decoded",
        "empty",
        "not_an_image",
        "truncated",
    ]
    first, here = isolated[0], decode(items[0])
    assert isinstance(first, Decoded)
    assert isinstance(here, Decoded)
    assert (first.width_px, first.height_px) == (40, 30)
    np.testing.assert_array_equal(first.image_HWC, here.image_HWC)
    assert isolated[1:] == [decode(data) for data in items[1:]]


def test_a_dying_decoder_costs_one_image_each_time(dying_decoder: str) -> None:
    items = [
        png(),
        b"abort",
        png(),
        b"segfault",
        b"exit",
        b"raise",
        b"lie",
        png(),
        b"abort",
    ]
    results = decode_isolated(items, decoder=dying_decoder)
    crashed = "decoder_crashed"
    assert [outcome(result) for result in results] == [
        "decoded",
        crashed,
        "decoded",
        crashed,
        crashed,
        crashed,
        crashed,
        "decoded",
        crashed,
    ]
    details = [result.detail for result in results if isinstance(result, Rejected)]
    for detail, named in zip(
        details,
        ["SIGABRT", "SIGSEGV", "exit code 3", "a bug in the decoder"],
        strict=False,
    ):
        assert named in detail


def test_a_hanging_decoder_costs_one_image(dying_decoder: str) -> None:
    results = decode_isolated([png(), b"hang", png()], timeout_seconds=4, decoder=dying_decoder)
    assert [outcome(result) for result in results] == [
        "decoded",
        "decoder_timed_out",
        "decoded",
    ]
    assert isinstance(results[1], Rejected)
    assert "4 s" in results[1].detail


def test_an_image_whose_child_others_killed_is_asked_again_and_one_that_kills_twice_is_not(
    dying_decoder: str, tmp_path: Path
) -> None:
    taken, asked = tmp_path / "taken", tmp_path / "asked"

    def kill() -> None:
        """As the kernel does that is out of memory: it chooses whom it likes."""
        while not taken.exists():
            time.sleep(0.01)
        os.kill(int(taken.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    items = [png(), f"unlucky {taken}".encode(), f"killer {asked}".encode(), png()]
    results = decode_isolated(items, decoder=dying_decoder)
    killer.join()
    assert [outcome(result) for result in results] == ["decoded", "corrupt", "decoder_crashed", "decoded"]
    assert isinstance(results[1], Rejected) and results[1].detail == "asked again"
    assert isinstance(results[2], Rejected) and "SIGKILL" in results[2].detail
    assert asked.read_bytes() == b"asked asked "


def test_a_child_that_dies_while_it_starts_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "decoder_of_bad_luck.py").write_text(
        f"""
import os, pathlib, signal
if not (begun := pathlib.Path({str(begun)!r})).exists():
    begun.touch()
    os.kill(os.getpid(), signal.SIGKILL)
from mmvp_ray.images.decode import decode
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert outcome(decode_isolated([png()], decoder="decoder_of_bad_luck:decode")[0]) == "decoded"
    assert begun.exists()


def test_memory_is_limited_and_chatter_stays_out_of_the_answers(
    dying_decoder: str,
) -> None:
    results = decode_isolated([b"memory", b"chatter", png()], decoder=dying_decoder)
    assert [outcome(result) for result in results] == [
        "too_much_memory",
        "corrupt",
        "decoded",
    ]


def test_calls_from_several_threads_do_not_disturb_each_other(
    dying_decoder: str,
) -> None:
    outcomes: dict[int, list[str]] = {}

    def decode_some(index: int) -> None:
        items = [png(), b"abort", png()]
        outcomes[index] = [outcome(result) for result in decode_isolated(items, decoder=dying_decoder)]

    threads = [threading.Thread(target=decode_some, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(outcomes.values()) == [["decoded", "decoder_crashed", "decoded"]] * 3


def test_a_child_that_cannot_start_is_an_error_that_says_why() -> None:
    with pytest.raises(ResourceError, match="no_such_module") as caught:
        decode_isolated([b"x"], decoder="no_such_module:decode")
    assert "\n" not in str(caught.value)


def test_a_child_that_takes_long_to_end_keeps_its_exit_status() -> None:
    """An interpreter that has torch to take down ends seconds after its last word."""
    slow = f"import os, time; os.close(1); time.sleep({END_SECONDS + 1.0}); os._exit(3)"
    with IsolatedProcess(["-c", slow]) as child:
        found = child.ask(lambda _, answers: answers.read(1) or None, seconds=60.0)
    assert isinstance(found, Ended) and found.how == "ended with exit code 3"


def test_an_orphan_that_hangs_ends_itself(dying_decoder: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mmvp_ray.images.isolated_child",
        dying_decoder,
        "0.5",
    ]
    environment = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), str(tmp_path)])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(len(READY)) == READY
        process.stdin.write(QUESTION.pack(4) + b"hang")
        process.stdin.flush()
        assert process.wait(60) < 0
