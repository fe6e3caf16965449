"""The real app for browser tests: a workspace of drawn pairs, a server process that can be killed and started again, and its users."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mmvp_ray.annotate import accounts
from mmvp_ray.annotate.config import UsersConfig
from mmvp_ray.annotate.importing import FoundPair, import_pairs
from mmvp_ray.annotate.rules import Annotation
from mmvp_ray.annotate.workspace import Workspace, create_workspace
from tests.conftest import REPOSITORY, free_port

START_SECONDS = 90.0


@dataclass
class App:
    """A server process over a workspace.

    Attributes:
        workspace: For looking at what became of it.
        port: Where it listens, the same after a restart.
        public_url: How browsers reach it.
        log: What the process said, in all its lives.
        secrets: What must never stand in the log.
        flags: Further ones of the command.
    """

    workspace: Workspace
    log: Path
    port: int = field(default_factory=free_port)
    public_url: str | None = None
    secrets: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    num_users: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Start of every address."""
        return self.public_url or f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [sys.executable, "jobs/annotate.py", "serve", "--workspace", str(self.workspace.folder)]
        command += ["--port", str(self.port), *(["--public-url", self.public_url] if self.public_url else [])]
        command += self.flags
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it as an operator does; it has said nothing that it should not."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        said = self.log.read_text()
        assert not [secret for secret in self.secrets if secret in said]
        assert "Traceback" not in said, said

    def add_user(self, role: str, name: str | None = None) -> str:
        """A login link, as `users add` prints it."""
        self.num_users += 1
        name = name or f"{role.capitalize()} {self.num_users}"
        config = UsersConfig(workspace=str(self.workspace.folder), name=name, role=role, url=self.url)
        link = accounts.COMMANDS["add"](config)[-1]
        self.secrets.append(link.partition("#")[2])
        return link

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def make_app(
    folder: Path, pairs: Iterable[FoundPair], *, public_url: str | None = None, port: int | None = None
) -> App:
    """A workspace with these pairs, and its server, not yet started."""
    workspace = create_workspace(folder / "workspace")
    import_pairs(
        workspace, pairs, source="s3://runs/houses", title="houses", near="CLIP ViT-L/14", far="DINOv2 ViT-L/14"
    )
    return App(workspace, folder / "server.log", port=port or free_port(), public_url=public_url)


def written(number: int = 1, **changes: object) -> Annotation:
    """What somebody might write."""
    content: dict[str, object] = {
        "difference": f"The door of house {number} is blue in one and red in the other.",
        "question": "What colour is the door?",
        "options": ("Blue", "Red"),
        "answer_a": 0,
        "answer_b": 1,
        "pattern": "Color and Appearance",
    }
    return Annotation(**(content | changes))  # type: ignore[arg-type]


def pair_number(url: str) -> int:
    """The pair that an address is about."""
    found = re.search(r"/(\d+)(?:/|$)", url.partition("/tasks/")[2])
    assert found is not None, url
    return int(found[1])
