"""Serve a workspace: uvicorn in this process, without an access log, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from mmvp_ray.annotate.assist import Assistant
from mmvp_ray.annotate.config import AnnotateServeConfig
from mmvp_ray.annotate.links import keep_served_url
from mmvp_ray.annotate.web.app import build_app
from mmvp_ray.annotate.web.settings import LOOPBACK_HOSTS, WebSettings
from mmvp_ray.annotate.workspace import open_workspace
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.named_responders import open_responder

STOP_SECONDS = 5
"""How long requests that are being answered have when the server stops."""
KEEP_ALIVE_SECONDS = 75
"""How long a connection stays open between requests: longer than a proxy keeps it, which could else lose a POST."""


def serve(config: AnnotateServeConfig, say: Callable[[str], None]) -> None:
    """Serve until stopped.

    Raises:
        ConfigError: no workspace, a port that is taken, an assistant that cannot be used.
    """
    workspace = open_workspace(config.workspace)
    assistant = None
    if config.assistant is not None:
        endpoint = EndpointConfig(base_url=config.assistant_url, api_key_env=config.assistant_key_env)
        assistant = Assistant(open_responder(config.assistant, endpoint=endpoint))
    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    if config.allow_plain_http and config.host not in LOOPBACK_HOSTS and config.public_url is None:
        # Whoever opens it to a network without a name for it is reached by whatever address that network knows.
        hosts = ("*",)
    app = build_app(workspace, WebSettings(public_url=config.public_url, hosts=hosts), assistant)
    listener = _listen(config.host, config.port)
    where = _where(config)
    keep_served_url(workspace, where)
    # No access log: it would hold addresses of people and nothing that the audit trail has not.
    options = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        lifespan="off",
    )
    server = _Server(options, lambda: say(_greeting(config.workspace, where)))
    asyncio.run(server.serve(sockets=[listener]))


def _where(config: AnnotateServeConfig) -> str:
    # At all addresses is at none that a link could begin with; this machine's own is one of them.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    return config.public_url or f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


def _greeting(workspace: str, where: str) -> str:
    return f"annotation of {workspace} at {where} (stop with Ctrl-C); `jobs/annotate.py users add --workspace {workspace}` makes a login"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named: asyncio sets TCP_NODELAY only where the protocol says TCP, and without it each answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"expected a free port at {host}:{port}, found {error.strerror}; give another --port or --host"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Says where it is once it listens."""

    def __init__(self, config: uvicorn.Config, greet: Callable[[], None]) -> None:
        super().__init__(config)
        self._greet = greet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._greet()
