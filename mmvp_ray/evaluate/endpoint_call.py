"""One prompt at an endpoint: attempts and pauses until there is an answer, a reason why there is none, or a reason to stop the run."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import functools
import logging
import random
import time
from concurrent.futures import Executor
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from mmvp_ray.errors import ConfigError, DataError, TransientError
from mmvp_ray.evaluate import payload
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.image_payload import ImageUrls
from mmvp_ray.evaluate.rate import Rate
from mmvp_ray.evaluate.responder import Ask, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

log = logging.getLogger(__name__)

RETRIED_STATUS = frozenset((408, 409, 425, 429))
"""And every status of 500 and more."""
MAX_BACKOFF_SECONDS = 60.0
LONG_PAUSE_SECONDS = 5.0
"""A pause of all requests that is said."""
_MIN_SECRET_CHARACTERS = 8
_BLOCK_BYTES = 1 << 16


class _Again(Exception):  # noqa: N818  (it ends no run)
    """This attempt failed and the next may not."""

    def __init__(self, why: str, *, wait_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.wait_seconds = wait_seconds


class EndpointCall:
    """Asks prompts, any number at a time, in one asyncio loop.

    Args:
        config: Checked.
        key: The API key; None sends none.
        session: Open connections.
        rate: The limits of the run.
        images: Reads images.
        pool: Threads that read images and write bodies.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        key: str | None,
        session: aiohttp.ClientSession,
        rate: Rate,
        images: ImageUrls,
        pool: Executor,
    ) -> None:
        self._config = config
        self._session = session
        self._rate = rate
        self._images = images
        self._pool = pool
        self._url = config.url + "/chat/completions"
        self._proxy, self._proxy_headers = _proxy(config.url)
        self._secret = key.encode() if key is not None and len(key) >= _MIN_SECRET_CHARACTERS else None
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    async def prepare(self, ask: Ask) -> bytes | Reply:
        """The body of a request, or the reply that says why there is none: an image that cannot be read."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(self._body, ask))
        except (DataError, TransientError) as error:
            return Reply(key=ask.key, error=str(error), retry_helps=isinstance(error, TransientError))

    def _body(self, ask: Ask) -> bytes:
        return payload.request_body(ask, [self._images.get(uri) for uri in ask.image_uris], self._config)

    async def answer(self, ask: Ask, body: bytes) -> Reply:
        """Send a request until it is answered.

        Raises:
            ConfigError: the endpoint refuses this user, model or address, whatever the prompt. TransientError: it asks for a longer pause
                than `max_seconds`.
        """
        expected = payload.estimated_tokens(ask)
        started = None
        why = ""
        for attempt in range(1, self._config.num_retries + 2):
            await self._rate.turn(expected)
            started = time.monotonic() if started is None else started
            left = started + self._config.max_seconds - time.monotonic()
            if left <= 0:
                return self._given_up(ask, f"{why} and no time was left", attempt - 1, started)
            try:
                found = await self._attempt(ask.key, body, min(left, self._config.timeout_seconds))
            except _Again as error:
                why = str(error)
                wait = max(error.wait_seconds, self._backoff(attempt))
                if attempt > self._config.num_retries or time.monotonic() + wait > started + self._config.max_seconds:
                    return self._given_up(ask, why, attempt, started)
                await asyncio.sleep(wait)
                continue
            seconds = time.monotonic() - started
            if isinstance(found, str):
                return Reply(key=ask.key, error=found, num_attempts=attempt, seconds=seconds)
            answer, raw = found
            if answer.num_prompt_tokens is not None and answer.num_answer_tokens is not None:
                self._rate.settle(expected, answer.num_prompt_tokens + answer.num_answer_tokens)
            return Reply(
                key=ask.key,
                text=answer.text,
                finish=answer.finish,
                num_attempts=attempt,
                seconds=seconds,
                num_prompt_tokens=answer.num_prompt_tokens,
                num_answer_tokens=answer.num_answer_tokens,
                raw=raw,
            )
        raise AssertionError("the last attempt returns")

    async def _attempt(
        self, key: str, body: bytes, timeout_seconds: float
    ) -> tuple[payload.Answer, Mapping[str, object]] | str:
        """An answer with the body that it came in, or why the endpoint refuses this prompt."""
        import aiohttp

        try:
            # A redirect is not followed: it would carry the key and the images to a host that nobody named.
            async with self._session.post(
                self._url,
                data=body,
                headers=self._headers,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            ) as response:
                data = await self._read(response)
                status, headers = response.status, response.headers
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise ConfigError(
                f"expected a certificate that this machine trusts at {self._config.url}, found none ({_one_line(error)}); mend the "
                f"address, or name the authority in SSL_CERT_FILE"
            ) from error
        except TimeoutError as error:
            raise _Again(f"no whole answer from {self._config.url} within {timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(
                f"the connection to {self._config.url} failed ({type(error).__name__}: {_one_line(error)})"
            ) from error
        return self._judge(key, status, headers, data)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        blocks: list[bytes] = []
        num_bytes = 0
        async for block in response.content.iter_chunked(_BLOCK_BYTES):
            num_bytes += len(block)
            if num_bytes > self._config.max_answer_bytes:
                raise _Again(f"an answer of more than {self._config.max_answer_bytes} bytes from {self._config.url}")
            blocks.append(block)
        data = b"".join(blocks)
        # A server that repeats the request's headers does not bring the key into the log.
        return data if self._secret is None else data.replace(self._secret, b"***")

    def _judge(
        self, key: str, status: int, headers: Mapping[str, str], data: bytes
    ) -> tuple[payload.Answer, Mapping[str, object]] | str:
        url = self._config.url
        if 200 <= status < 300:
            try:
                raw = payload.read_json(data)
                return payload.read_answer(raw), raw
            except TransientError as error:
                raise _Again(f"{error} (status {status} from {url})") from error
        try:
            body = payload.read_json(data)
        except TransientError:
            body = {}
        said = payload.error_text(body) or " ".join(data[:200].decode("utf-8", "replace").split()) or "no reason"
        code = payload.error_code(body)
        is_refused = status in (401, 403) and not payload.is_moderated(body)
        if is_refused or (status == 400 and "api key" in said.lower()):
            raise ConfigError(
                f"expected {url} to accept the key in {self._config.key_env or 'no variable'}, found status {status} ({said}); set the "
                f"variable, or name another with --api-key-env"
            )
        if status in (404, 405) or 300 <= status < 400:
            moved = f", which points to {headers.get('Location', 'nowhere')}" if status < 400 else ""
            raise ConfigError(
                f"expected model {self._config.model!r} at {self._url}, found status {status}{moved} ({said}); mend --model or --base-url"
            )
        if status == 402 or code == "insufficient_quota":
            raise ConfigError(f"expected credit at {url}, found none ({said}); the same command goes on when there is")
        if status in RETRIED_STATUS or status >= 500:
            wait = retry_after_seconds(headers)
            if status == 429 and wait:
                self._pause(wait, said)
            raise _Again(f"status {status} from {url} ({said})", wait_seconds=wait)
        return f"{url} refused the prompt {key!r}: status {status} ({said})"

    def _pause(self, seconds: float, said: str) -> None:
        """Let all requests wait.

        Raises:
            TransientError: longer than a prompt may take.
        """
        if seconds > self._config.max_seconds:
            raise TransientError(
                f"expected {self._config.url} to ask for a pause of at most {self._config.max_seconds:g} s, found {seconds:,.0f} s ({said}); "
                f"the same command goes on after that"
            )
        if self._rate.pause(seconds) and seconds >= LONG_PAUSE_SECONDS:
            log.warning("%s asks to wait %.0f s (%s)", self._config.url, seconds, said)

    def _backoff(self, attempt: int) -> float:
        full = min(MAX_BACKOFF_SECONDS, self._config.backoff_seconds * 2.0 ** min(attempt - 1, 30))
        return full * random.uniform(0.5, 1.0)  # noqa: S311  (no secret)

    def _given_up(self, ask: Ask, why: str, num_attempts: int, started: float) -> Reply:
        return Reply(
            key=ask.key,
            error=f"{why}, after {num_attempts} attempt{'s' * (num_attempts != 1)}",
            num_attempts=num_attempts,
            seconds=time.monotonic() - started,
            retry_helps=True,
        )


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """Seconds that a response asks to wait (RFC 9110, section 10.2.3; OpenAI's retry-after-ms is finer); 0 if it does not."""
    for name, unit in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        text = headers.get(name, "").strip()
        try:
            return max(0.0, min(float(text) * unit, 1e9))
        except ValueError:
            pass
        date = email.utils.parsedate_tz(text) if text else None
        if date is not None:
            at_seconds: float = email.utils.mktime_tz(date)
            return max(0.0, at_seconds - time.time())
    return 0.0


def _proxy(url: str) -> tuple[str | None, Mapping[str, str] | None]:
    """The proxy that the environment names for a URL (HTTPS_PROXY, NO_PROXY), looked up once; aiohttp's own way also reads ~/.netrc.

    User and password are given apart: errors of aiohttp repeat the URL, and errors are kept in the log.
    """
    scheme, _, rest = url.partition("://")
    found = None if proxy_bypass(rest.partition("/")[0]) else getproxies().get(scheme)
    if found is None:
        return None, None
    parts = urlsplit(found if "://" in found else f"http://{found}")
    login, at, host = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    said = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    # aiohttp sends it on as Proxy-Authorization: to the proxy alone where the endpoint's own connection is encrypted.
    headers = {"Authorization": f"Basic {said}"} if at else None
    return parts._replace(netloc=host).geturl(), headers


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
