"""An open-loop client: requests go out when they are due, whatever became of those before, and are timed from then on.

A client that waits for answers before it goes on leaves out the delays of the requests it did not send (coordinated
omission). Here every request is a task of its own that sleeps until it is due; its times count from when it was due, so
that a client which is late does not flatter the server, and how late it was is written down.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from loraplan.errors import BadInputError, ServerError
from loraplan.live.prometheus import Metrics
from loraplan.workload import Requests

if TYPE_CHECKING:
    import aiohttp

FIRST_TOKEN, TOKENS = 100, 900
"""Prompts are of these token ids, at random: every vocabulary has them, and no two prompts begin alike."""
TRIED = 32
"""Tokens that may be words."""
KEEP_S = 2.0
"""Connections are used again so long: less than the 5 s after which a server closes them, maybe as a request comes."""
STALL_S = 30.0
"""Nothing from any of the requests on their way for so long: the server hangs."""
MOST_FAILURES = 20
"""Requests that fail, without one that does not, until the server is given up."""
ASK_S = 10.0
"""Longest that a server may take to say something about itself."""


@dataclass
class Answer:
    """One request and what came of it; times in seconds since the run began.

    Attributes:
        number, adapter: place in the stream, and the adapter's index.
        tokens_in, asked: prompt tokens, and the tokens asked for.
        due_s, sent_s: when it was due, and when it was sent.
        tokens_out: tokens that came, as the server counts them if it says so, else chunks.
        first_s, last_s: when the first and the last chunk came; nan if none did.
        gaps_s: between one chunk and the next.
        finished: whether the answer came to its end.
        server: who a proxy says has answered.
        error: what went wrong; empty if nothing did.
    """

    number: int
    adapter: int
    tokens_in: int
    asked: int
    due_s: float
    sent_s: float = math.nan
    tokens_out: int = 0
    first_s: float = math.nan
    last_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    finished: bool = False
    server: str = ""
    error: str = ""


@dataclass(frozen=True)
class Target:
    """Where the requests of an adapter go: base URL of the API, and the model's name there."""

    url: str
    model: str
    key: str | None = None
    words: Words | None = None


@dataclass(frozen=True)
class Words:
    """Words of a token each, for proxies that take no token ids; the server adds ``more`` tokens to every prompt."""

    words: tuple[str, ...]
    more: int

    def prompt(self, tokens: Sequence[int]) -> str:
        """A text of as many tokens as are given."""
        return " ".join(self.words[token % len(self.words)] for token in tokens[: max(1, len(tokens) - self.more)])


class Client:
    """Sends requests and reads what a server says of itself."""

    def __init__(self, session: aiohttp.ClientSession, stall_s: float = STALL_S) -> None:
        """Use ``session``, which stays open."""
        self._session = session
        self._stall_s = stall_s
        self._heard = 0.0
        self._failures = 0

    async def text(self, url: str) -> str:
        """What ``url`` says.

        Raises:
            ServerError: nothing, or something else than 200.
        """
        try:
            async with asyncio.timeout(ASK_S), self._session.get(url) as answer:
                if answer.status != 200:
                    raise ServerError(f"{url}: HTTP status {answer.status}")
                return await answer.text()
        except TimeoutError:
            raise ServerError(f"{url}: no answer within {ASK_S:g} s") from None
        except (OSError, ValueError, _http_error()) as error:
            raise ServerError(f"{url}: {_said(error)}") from None

    async def json(self, url: str) -> Any:
        """What ``url`` says, as JSON.

        Raises:
            ServerError: as ``text``, or it is no JSON.
        """
        text = await self.text(url)
        try:
            return json.loads(text)
        except ValueError:
            raise ServerError(f"{url}: expected JSON (got {text[:60]!r})") from None

    async def post(self, url: str, body: Any) -> Any:
        """What ``url`` answers to ``body``, both JSON.

        Raises:
            ServerError: nothing, something else than 200, or no JSON.
        """
        try:
            async with asyncio.timeout(ASK_S), self._session.post(url, json=body) as answer:
                if answer.status != 200:
                    raise ServerError(f"{url}: HTTP status {answer.status}")
                return json.loads(await answer.text())
        except TimeoutError:
            raise ServerError(f"{url}: no answer within {ASK_S:g} s") from None
        except (OSError, ValueError, _http_error()) as error:
            raise ServerError(f"{url}: {_said(error)}") from None

    async def words(self, url: str, model: str) -> Words:
        """Words that the tokenizer of the server at ``url`` takes for one token each.

        Raises:
            ServerError: it does not say, or has hardly any.
        """

        async def count(text: str) -> int:
            return len((await self.post(f"{url}/tokenize", {"model": model, "prompt": text}))["tokens"])

        found = []
        more = 0
        try:
            for token in range(FIRST_TOKEN, FIRST_TOKEN + TRIED):
                said = await self.post(f"{url}/detokenize", {"model": model, "tokens": [token]})
                word = str(said["prompt"]).strip()
                few, many = await count(" ".join([word] * 2)), await count(" ".join([word] * 8))
                if word and many - few == 6:
                    found.append(word)
                    more = few - 2
        except (KeyError, TypeError) as error:
            raise ServerError(f"{url}: not what a vLLM server says ({type(error).__name__}: {error})") from None
        if len(found) < TRIED // 8:
            raise ServerError(f"{url}: hardly any of its tokens is a word, so a prompt's length cannot be chosen")
        return Words(tuple(found), more)

    async def metrics(self, url: str) -> Metrics:
        """The metrics of the server at ``url``."""
        return Metrics.parse(await self.text(f"{url}/metrics"))

    async def play(
        self,
        requests: Requests,
        target: Callable[[int, int], Target],
        horizon_s: float = math.inf,
        seed: int = 0,
        into: list[Answer] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> list[Answer]:
        """Send ``requests`` when they are due; what came of them until all are answered or the horizon is over.

        Args:
            requests: the stream.
            target: where a request goes, by its number and its adapter.
            horizon_s: then whatever is unfinished is broken off.
            seed: of the prompts.
            into: the list to fill, which also has what there is if this fails.
            on_progress: called every second or so, with the seconds that have passed.

        Raises:
            ServerError: the server is gone, hangs, or answers nothing that makes sense.
        """
        answers = [] if into is None else into
        prompts = np.random.default_rng(seed)
        loop = asyncio.get_running_loop()
        start = loop.time()
        self._heard, self._failures = start, 0
        tasks: set[asyncio.Task[None]] = set()
        broken: asyncio.Future[None] = loop.create_future()
        watch = asyncio.create_task(self._watch(tasks, broken, start, on_progress))
        try:
            columns = (requests.arrival_s, requests.adapter, requests.tokens_in, requests.tokens_out)
            for n, (due, adapter, tokens_in, tokens_out) in enumerate(
                zip(*map(np.ndarray.tolist, columns), strict=True)
            ):
                if due >= horizon_s:
                    break
                to = target(n, adapter)
                tokens = (FIRST_TOKEN + prompts.integers(0, TOKENS, tokens_in)).tolist()
                prompt = tokens if to.words is None else to.words.prompt(tokens)
                await _sleep_until(start + due, broken)
                answer = Answer(n, adapter, tokens_in, tokens_out, due)
                answers.append(answer)
                task = asyncio.create_task(self._ask(answer, to, prompt, start, broken))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            left = None if math.isinf(horizon_s) else max(0.0, start + horizon_s - loop.time())
            await _finish(tasks, broken, left)
        finally:
            for task in (watch, *tasks):
                task.cancel()
            await asyncio.gather(watch, *tasks, return_exceptions=True)
            broken.cancel()
        return answers

    async def _watch(
        self,
        tasks: set[asyncio.Task[None]],
        broken: asyncio.Future[None],
        start: float,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        """Give up a server from which nothing comes any more."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self._stall_s / 4))
            if on_progress is not None:
                on_progress(loop.time() - start)
            if not tasks:
                self._heard = loop.time()
            elif loop.time() - self._heard > self._stall_s:
                _break(broken, f"the server hangs: {len(tasks)} requests, and nothing came for {self._stall_s:g} s")

    async def _ask(
        self, answer: Answer, target: Target, prompt: Sequence[int] | str, start: float, broken: asyncio.Future[None]
    ) -> None:
        loop = asyncio.get_running_loop()
        body = {
            "model": target.model,
            "prompt": prompt,
            "max_tokens": answer.asked,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
        answer.sent_s = loop.time() - start
        try:
            async with self._session.post(f"{target.url}/v1/completions", json=body, headers=headers) as response:
                if response.status != 200:
                    raise _RefusedError(f"HTTP status {response.status}: {(await response.text())[:200]!r}")
                answer.server = response.headers.get("x-litellm-model-id", "")
                async for line in response.content:
                    if line.startswith(b"data:"):
                        self._heard = loop.time()
                        self._take(answer, line[5:].strip(), self._heard - start)
            if not answer.finished:
                raise _RefusedError("the answer broke off")
            self._failures = 0
        except (OSError, ValueError, TimeoutError, _RefusedError, _http_error()) as error:
            answer.error = _said(error)
            answer.finished = False
            self._heard = loop.time()
            self._failures += 1
            if self._failures >= MOST_FAILURES or isinstance(error, ConnectionRefusedError) or _refused(error):
                _break(broken, f"{target.url}: {answer.error}")

    @staticmethod
    def _take(answer: Answer, data: bytes, now: float) -> None:
        """Note a line of the stream, as vLLM's benchmark does: every chunk with a choice is a time."""
        if data == b"[DONE]":
            answer.finished = answer.tokens_out > 0
            return
        chunk = json.loads(data)
        if not isinstance(chunk, dict) or "error" in chunk:
            raise _RefusedError(f"answered {data[:200]!r}")
        if any("text" in choice for choice in chunk.get("choices") or ()):  # proxies add chunks without
            if math.isnan(answer.first_s):
                answer.first_s = now
            else:
                answer.gaps_s.append(now - answer.last_s)
            answer.last_s = now
            answer.tokens_out += 1
        usage = chunk.get("usage")
        if usage:
            answer.tokens_out = int(usage["completion_tokens"])


class _RefusedError(Exception):
    """The server answers something else than what was asked for."""


@asynccontextmanager
async def client(stall_s: float = STALL_S) -> AsyncIterator[Client]:
    """A client without a limit on the connections it opens.

    Raises:
        BadInputError: aiohttp is not installed.
    """
    try:
        import aiohttp
    except ImportError:
        raise BadInputError("this needs aiohttp: pip install 'loraplan[vllm]'") from None
    timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=ASK_S)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 20) as session:
        yield Client(session, stall_s)


def _http_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _refused(error: BaseException) -> bool:
    import aiohttp

    return isinstance(error, aiohttp.ClientConnectorError)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _break(broken: asyncio.Future[None], why: str) -> None:
    if not broken.done():
        broken.set_exception(ServerError(why))


async def _sleep_until(when: float, broken: asyncio.Future[None]) -> None:
    loop = asyncio.get_running_loop()
    if when > loop.time():
        await asyncio.wait({broken}, timeout=when - loop.time())
    if broken.done():
        broken.result()


async def _finish(tasks: set[asyncio.Task[None]], broken: asyncio.Future[None], left_s: float | None) -> None:
    """Wait for all tasks, at most so long; they are broken off by whoever called."""
    loop = asyncio.get_running_loop()
    deadline = math.inf if left_s is None else loop.time() + left_s
    while tasks and loop.time() < deadline:
        timeout = None if math.isinf(deadline) else deadline - loop.time()
        await asyncio.wait({broken, *tasks}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            broken.result()
    if broken.done():
        broken.result()


def now_s() -> float:
    """Seconds on a clock that only goes forward."""
    return time.monotonic()
