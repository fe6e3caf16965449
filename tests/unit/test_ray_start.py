"""What Ray prints of its workers and its raylet leaves standard output to results."""

from __future__ import annotations

import pytest

from mmvp_ray.ray_start import keep_standard_output


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_worker_logs", worker.print_worker_logs)
    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    keep_standard_output()
    keep_standard_output()


@pytest.mark.parametrize("is_err", [False, True])
@pytest.mark.parametrize("pid", ["raylet", "1234"])
def test_lines_go_to_standard_error_once(
    kept: None, capsys: pytest.CaptureFixture[str], pid: str, is_err: bool
) -> None:
    from ray._private import worker

    said = f"a library prints {'xyz'[is_err]} for {pid}"
    line = {"lines": [said], "pid": pid, "is_err": is_err, "ip": "127.0.0.1", "actor_name": None, "task_name": None}
    worker.print_to_stdstream(line, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert out == "" and err.count(said) == 1
