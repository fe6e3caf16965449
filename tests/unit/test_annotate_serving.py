"""Links that the operator's commands print begin where the workspace was served last."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray.annotate import accounts, serving
from mmvp_ray.annotate.config import AnnotateServeConfig, UsersConfig
from mmvp_ray.annotate.workspace import create_workspace
from tests.conftest import free_port


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    return str(create_workspace(tmp_path / "work").folder)


def served(monkeypatch: pytest.MonkeyPatch, workspace: str, **options: Any) -> str:
    """What `serve` says once it listens; here it ends at once."""
    said: list[str] = []

    async def end_at_once(self: Any, sockets: list[socket.socket]) -> None:
        self._greet()
        sockets[0].close()

    monkeypatch.setattr(serving._Server, "serve", end_at_once)
    serving.serve(AnnotateServeConfig(workspace=workspace, **options), said.append)
    return said[0]


def link(workspace: str, name: str, **options: Any) -> str:
    return accounts.add(UsersConfig(workspace=workspace, name=name, **options))[-1].partition("/login#")[0]


def test_links_begin_where_the_workspace_was_served_last(monkeypatch: pytest.MonkeyPatch, workspace: str) -> None:
    assert link(workspace, "Ada") == "http://127.0.0.1:8765"
    port = free_port()
    assert f"http://127.0.0.1:{port} " in served(monkeypatch, workspace, port=port)
    assert link(workspace, "Bob") == f"http://127.0.0.1:{port}"
    served(monkeypatch, workspace, port=port, public_url="https://lab.org/annotate/")
    assert link(workspace, "Cyd") == "https://lab.org/annotate"
    assert link(workspace, "Dan", url="http://elsewhere:1/") == "http://elsewhere:1"


def test_all_addresses_are_no_beginning_of_a_link(monkeypatch: pytest.MonkeyPatch, workspace: str) -> None:
    port = free_port()
    served(monkeypatch, workspace, host="0.0.0.0", port=port, allow_plain_http=True)
    assert link(workspace, "Ada") == f"http://127.0.0.1:{port}"
