"""A stand-in for vLLM's API server, to see what loraplan does when a server misbehaves; it schedules nothing.

``python fake_vllm.py serve MODEL --port N [--mode MODE] --lora-modules NAME=PATH ...``, or ``FakeServer`` in a thread.
All requests that run get a token per step; a step takes ``STEP_S`` + ``REQUEST_S`` for each of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

STEP_S, REQUEST_S, PROMPT_TOKEN_S = 0.006, 0.0005, 0.00002
BLOCKS, BLOCK = 400, 16


@dataclass
class Fake:
    """What it serves, and from which completion on it misbehaves: ``dies``, ``refuses``, ``garbage`` or ``hangs``."""

    model: str = "tiny"
    adapters: tuple[str, ...] = ("a", "b", "c", "d")
    mode: str = ""
    after: int = 0
    max_model_len: int = 512
    says: str = ""
    asked: list[str] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    running: int = 0
    die: Any = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/health/liveliness", self.health)
        app.router.add_get("/version", self.version)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/detokenize", self.detokenize)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0+cpu"})

    async def models(self, _: web.Request) -> web.Response:
        base = {"id": self.model, "max_model_len": self.max_model_len, "parent": None}
        return web.json_response({"data": [base, *({"id": name, "parent": self.model} for name in self.adapters)]})

    async def metrics(self, _: web.Request) -> web.Response:
        info = f'vllm:cache_config_info{{block_size="{BLOCK}",num_gpu_blocks="{BLOCKS}"}} 1.0'
        return web.Response(text=f"# HELP\n{info}\nvllm:num_requests_running {float(self.running)}\n")

    async def tokenize(self, request: web.Request) -> web.Response:
        words = (await request.json())["prompt"].split()
        return web.json_response({"tokens": [1, *(2 for word in words for _ in range(2 if word.endswith("0") else 1))]})

    async def detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": " ".join(f"w{token}" for token in (await request.json())["tokens"])})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body["model"])
        self.prompts.append(body["prompt"])
        mode = self.mode if len(self.asked) > self.after else ""
        if body["model"] not in self.adapters:
            return web.json_response({"message": f"The model {body['model']} does not exist."}, status=404)
        if mode == "refuses":
            return web.Response(status=503, text="no capacity")
        response = web.StreamResponse(headers={"x-litellm-model-id": f"{self.says}/{body['model']}"})
        await response.prepare(request)
        if mode == "garbage":
            await response.write(b"data: {never closed\n\n")
            return response
        if mode == "hangs":
            await asyncio.sleep(3600)
        self.running += 1
        try:
            await asyncio.sleep(PROMPT_TOKEN_S * len(body["prompt"]))
            for n in range(body["max_tokens"]):
                await asyncio.sleep(STEP_S + REQUEST_S * self.running)
                if mode == "dies" and n == 2:
                    self.die()
                await self.say(response, {"choices": [{"text": " w", "index": 0}]})
        finally:
            self.running -= 1
        await self.say(response, {"choices": [{"finish_reason": "length"}]})  # as LiteLLM does
        await self.say(response, {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        with suppress(ConnectionResetError):
            await response.write(b"data: [DONE]\n\n")
        return response

    @staticmethod
    async def say(response: web.StreamResponse, data: dict[str, Any]) -> None:
        with suppress(ConnectionResetError):  # whoever asked is gone
            await response.write(b"data: " + json.dumps(data).encode() + b"\n\n")


class FakeServer:
    """A fake in a thread of this process, for the length of a block."""

    def __init__(self, **given: Any) -> None:
        self.fake = Fake(**given)
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = web.AppRunner(self.fake.app(), shutdown_timeout=0.1)

        async def start() -> None:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

        self.fake.die = lambda: self._loop.create_task(runner.cleanup())
        self._loop.run_until_complete(start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


def main(arguments: list[str]) -> None:
    """As ``vllm serve``."""
    assert arguments[0] == "serve"
    options = {name: value for name, value in itertools.pairwise(arguments) if name.startswith("--")}
    modules = arguments[arguments.index("--lora-modules") + 1 :]
    mode = options.get("--mode", "")
    if mode == "no start":
        sys.stdout.write("ValueError: No available memory for the cache blocks.\n")
        sys.exit(1)
    fake = Fake(arguments[1], tuple(module.partition("=")[0] for module in modules), mode)
    fake.after = int(options.get("--after", "0"))
    fake.die = lambda: os._exit(7)
    if "--pids" in options:
        with Path(options["--pids"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    web.run_app(
        fake.app(), host="127.0.0.1", port=int(options["--port"]), print=None, handle_signals=mode != "stubborn"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
