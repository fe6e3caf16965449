"""EndpointResponder: many prompts at a time to an OpenAI-compatible endpoint, behind a plain iterator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from mmvp_ray.evaluate.endpoint_call import EndpointCall
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.image_payload import ImageUrls
from mmvp_ray.evaluate.rate import Rate
from mmvp_ray.evaluate.responder import Ask, Reply

PROMPTS_AHEAD = 2
"""Prompts that are drawn, per request in flight: the second is read and encoded while the first is on its way."""
MAX_READING_THREADS = 32

_Found: TypeAlias = Reply | BaseException | int
"""What comes to the reader: replies, what ends the run before its time, and, once, how many prompts there were."""


class EndpointResponder:
    """A model behind POST /v1/chat/completions; light and picklable, connections are open only while `answer` runs.

    Args:
        config: Which endpoint, and how it is asked.

    Raises:
        ConfigError: a field cannot be used.
    """

    def __init__(self, config: EndpointConfig) -> None:
        config.check()
        self.config = config

    @property
    def name(self) -> str:
        """The model's name at the service."""
        return self.config.model

    def identity(self) -> dict[str, str]:
        """What answers depend on: model, service, sampling, further fields, and how images are sent."""
        config = self.config
        images = {
            "max_side_px": config.max_image_side_px,
            "max_bytes": config.max_image_bytes,
            "detail": config.image_detail,
        }
        return {
            "responder": "endpoint",
            "model": config.model,
            "endpoint": config.served_as or config.url,
            "temperature": str(config.temperature),
            "seed": str(config.seed),
            "extra_body": json.dumps(config.extra_fields(), sort_keys=True),
            "images": json.dumps(images, sort_keys=True),
        }

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See `Responder.answer`. At most `concurrency` requests are in flight, and at most twice as many prompts are drawn and not yet replied to.

        Prompts are drawn in another thread, so that replies are given as they come, however long the next prompt takes. Leaving waits for the
        prompt that is being drawn.

        Raises:
            ConfigError: the endpoint refuses this key, model or address; what was answered by then is yielded before.
            TransientError: the endpoint asks for a longer pause than `max_seconds`.
        """
        key = self.config.read_key()
        found: queue.SimpleQueue[_Found] = queue.SimpleQueue()
        line = _Line(self.config, key, found)
        source = _Source(asks, line.put, found, num_ahead=PROMPTS_AHEAD * self.config.concurrency)
        num_replies, num_asks = 0, None
        try:
            while num_replies != num_asks:
                one = found.get()
                if isinstance(one, BaseException):
                    yield from _others(found)
                    raise one
                if isinstance(one, int):
                    num_asks = one
                    continue
                num_replies += 1
                source.draw_one_more()
                yield one
        finally:
            source.stop()
            line.close()
            source.join()


def _others(found: queue.SimpleQueue[_Found]) -> Iterator[Reply]:
    """What was answered beside the reply that ends the run: it was paid for."""
    while not found.empty():
        reply = found.get()
        if isinstance(reply, Reply):
            yield reply


class _Source:
    """Draws the prompts, in a thread of its own: one that waits for an unwell store would hold up answers that are there already.

    Args:
        asks: The prompts.
        put: Called with each of them.
        found: Gets their number when all are drawn, or what they raise.
        num_ahead: Prompts that are drawn before `draw_one_more` is called.
    """

    def __init__(
        self, asks: Iterable[Ask], put: Callable[[Ask], None], found: queue.SimpleQueue[_Found], *, num_ahead: int
    ) -> None:
        self._asks = asks
        self._put = put
        self._found = found
        # The first is drawn without asking.
        self._room = threading.Semaphore(num_ahead - 1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint-source", daemon=True)
        self._thread.start()

    def draw_one_more(self) -> None:
        """A reply was given away: its place is free."""
        self._room.release()

    def stop(self) -> None:
        """Draw no more, behind the one that is being drawn."""
        self._stopped.set()
        self._room.release()

    def join(self) -> None:
        """Wait until nobody draws: the prompts are the caller's again."""
        self._thread.join()

    def _run(self) -> None:
        num_asks = 0
        try:
            for ask in self._asks:
                self._put(ask)
                num_asks += 1
                self._room.acquire()
                if self._stopped.is_set():
                    return
            self._found.put(num_asks)
        except BaseException as error:
            self._found.put(error)


class _Line:
    """The asyncio loop, in a thread of its own, so that requests go on while the reader of replies works."""

    def __init__(self, config: EndpointConfig, key: str | None, found: queue.SimpleQueue[_Found]) -> None:
        self._config = config
        self._key = key
        self._found = found
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()
        self._ready.wait()

    def put(self, ask: Ask) -> None:
        """Send a prompt on its way."""
        # A loop that has ended has said why in `found`.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin, ask)

    def close(self) -> None:
        """Cancel what is on its way and close all connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._work())
        except BaseException as error:
            self._found.put(error)
        finally:
            self._ready.set()
            self._loop.close()

    async def _work(self) -> None:
        import aiohttp

        config = self._config
        self._turns = asyncio.Semaphore(config.concurrency)
        connector = aiohttp.TCPConnector(limit=0)
        pool = ThreadPoolExecutor(min(MAX_READING_THREADS, config.concurrency), thread_name_prefix="endpoint-images")
        try:
            async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
                self._call = EndpointCall(
                    config,
                    key=self._key,
                    session=session,
                    rate=Rate(config.requests_per_minute, config.tokens_per_minute),
                    images=ImageUrls(max_bytes=config.max_image_bytes, max_side_px=config.max_image_side_px),
                    pool=pool,
                )
                self._ready.set()
                await self._closing.wait()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, ask: Ask) -> None:
        if self._closing.is_set():
            return
        task = self._loop.create_task(self._reply(ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, ask: Ask) -> None:
        try:
            body = await self._call.prepare(ask)
            if isinstance(body, Reply):
                self._found.put(body)
                return
            async with self._turns:
                self._found.put(await self._call.answer(ask, body))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # A ConfigError of the endpoint, or a defect of ours: the reader raises it.
            self._found.put(error)
