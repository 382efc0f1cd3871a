"""How busy is a judge kept? A server of fixed latency that decodes nothing, behind the whole pipeline.

`python benchmarks/judge.py CLIPS` ingests a folder of clips (`sama ingest clips`), curates it with signals and judge
on Ray, and prints how much of the server's capacity (width / latency) was used between its first request and its
last answer, then what a second run over the finished data costs, and what the signals alone cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection

SCORES = ("instruction_following", "visual_quality", "content_preservation", "motion_consistency")


def serve(pipe: Connection, latency_s: float, width: int) -> None:
    """A server in a process of its own; at each message it sends back (begin, end) of every answer so far."""
    from aiohttp import web

    spans: list[tuple[float, float]] = []
    text = json.dumps({f"{s}_score": {"explanation": "e", "score": 10} for s in SCORES})

    async def chat(request: web.Request) -> web.Response:
        raw = await request.read()
        count = 3 if b'"n": 3' in raw else 1
        async with places:
            began = time.monotonic()
            await asyncio.sleep(latency_s)
            spans.append((began, time.monotonic()))
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        choices = [{**choice, "index": i} for i in range(count)]
        return web.json_response({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": count}})

    async def main() -> None:
        nonlocal places
        places = asyncio.Semaphore(width)
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", chat)
        app.router.add_get("/v1/models", lambda request: web.json_response({"data": []}))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        while await asyncio.to_thread(pipe.recv):
            pipe.send(spans)

    places: asyncio.Semaphore
    asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips")
    parser.add_argument("--latency", type=float, default=4.0, help="seconds of an answer")
    parser.add_argument("--width", type=int, default=16, help="answers at a time")
    parser.add_argument("--sample", type=int, default=None, help="only so many of the clips")
    options = parser.parse_args()

    from pipelines.cluster_session import connect
    from pipelines.config import RaySettings
    from pipelines.curate.ask_plan import AskPlan
    from pipelines.curate.curate import curate
    from pipelines.curate.rules import Rules
    from pipelines.ingest.ingest import ingest
    from pipelines.judge.settings import JudgeSettings

    pipe, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, options.latency, options.width), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{pipe.recv()}/v1"
    # one request a turn, as from a server that knows no n: 9 requests a pair
    settings = JudgeSettings(backend="http", model="m", endpoints=(url,), in_flight=options.width, n=False)
    plan = AskPlan(settings, Rules())
    connect(RaySettings())
    with tempfile.TemporaryDirectory() as folder:
        ingest("clips", options.clips, f"{folder}/root")
        began = time.monotonic()
        counts = curate(f"{folder}/root", plan=plan, sample=options.sample)
        first = time.monotonic() - began
        pipe.send(True)
        spans = pipe.recv()
        began = time.monotonic()
        curate(f"{folder}/root", plan=plan, sample=options.sample)
        second = time.monotonic() - began
    start, stop = min(a for a, _ in spans), max(b for _, b in spans)
    busy = sum(b - a for a, b in spans)
    # full: from the first request to the moment at which the last request began, before the queue runs dry
    dry = max(a for a, _ in spans)
    full = sum(min(b, dry) - a for a, b in spans if a < dry)
    print(f"{sum(c['asked'] for c in counts.values())} samples judged, {len(spans)} requests in {stop - start:.1f} s")
    print(f"judge busy {busy / options.width / (stop - start):.1%} of its capacity, first request to last answer")
    print(f"judge busy {full / options.width / (dry - start):.1%} until the last request began")
    print(f"first run {first:.1f} s, a second over finished data {second:.2f} s, {second / first:.2%}")
    pipe.send(False)
    server.join(timeout=5)


if __name__ == "__main__":
    main()
