"""How a server stands long and heavy load: `make serve-load BUNDLE=bundle DATA=dataset`.

1. The highest load of single texts at 64 connections, and its p99: the normal one. Then a flood of three times as much, and half
   as much: how long accepted requests take, and when the server is itself again.
2. MINUTES at 80 % of the highest load, in requests of 1, 8 and 32 texts: errors, and the memory of the server.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from jobs.benchmark.serving.load import put_load, running_server
from model.data.dataset import Dataset

SIZES, CONNECTIONS, SLICE_S = (1, 8, 32), 64, 30
FLOOD_CONNECTIONS, FLOOD_S, AFTER_S, PROBES_PER_S = 1000, 20, 15, 50


class Answer(NamedTuple):
    """When a request was sent, in seconds since the load began, its status (0: no answer) and how long it took."""

    sent_s: float
    status: int
    seconds: float


async def send_at_a_rate(port: int, bodies: list[bytes], rate: float, seconds: float) -> list[Answer]:
    """Sends requests at random moments whether or not others are answered, as many independent clients do."""
    answers: list[Answer] = []
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    draw, began = random.Random(0), time.monotonic()

    async def client(body: bytes) -> None:
        sent = time.monotonic()
        connection = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        status = await _ask(*connection, body)
        answers.append(Answer(sent - began, status, time.monotonic() - sent))
        if status:
            idle.append(connection)

    next_s = 0.0
    async with asyncio.TaskGroup() as clients:
        while (next_s := next_s + draw.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + next_s - time.monotonic()))
            clients.create_task(client(draw.choice(bodies)))
    for _, writer in idle:
        writer.close()
    return answers


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> int:
    """Returns the status of an answer; 0 where the connection ended without one."""
    head = "POST /v1/extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
    try:
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
    except (OSError, asyncio.IncompleteReadError):
        return 0
    return int(answer.split()[1])


def p99_ms(answers: list[Answer]) -> float:
    """The p99 of the accepted requests."""
    return float(np.percentile([answer.seconds for answer in answers if answer.status == 200] or [np.nan], 99) * 1000)


def endure(url: str, processes: list[psutil.Process], texts: list[str], minutes: float, folder: Path) -> None:
    """Puts 80 % of the highest load on a server, and prints the errors, the memory and its slope."""
    highest = {size: put_load(url, texts, size, CONNECTIONS, 5, folder).texts_per_s / size for size in SIZES}
    print(f"requests/s at most: { {size: round(rate, 1) for size, rate in highest.items()} }", flush=True)
    failed, served, memory, until = 0, 0.0, [], time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        for size in SIZES:
            load = put_load(url, texts, size, CONNECTIONS, SLICE_S, folder, 0.8 * highest[size])
            failed, served = failed + load.failed, served + load.texts_per_s * SLICE_S
            memory.append((time.monotonic(), sum(each.memory_info().rss for each in processes) / 2**20))
        print(
            f"{(until - time.monotonic()) / 60:5.1f} minutes left, {memory[-1][1]:,.0f} MiB, {failed} failed",
            flush=True,
        )
    at, used = np.array(memory[len(memory) // 4 :]).T
    slope = np.polyfit((at - at[0]) / 3600, used, 1)[0]
    print(
        f"endurance: {minutes:g} minutes, {served:,.0f} texts, {failed} failed; memory {memory[0][1]:,.0f} MiB at first, "
        f"{statistics.median(used):,.0f} in the last three quarters, slope {slope:+.1f} MiB an hour",
        flush=True,
    )


def flood(url: str, texts: list[str], folder: Path, rounds: int) -> None:
    """Floods a server with single texts, and prints how it stood that. Some more requests tell how long accepted ones take."""
    port, bodies = int(url.rpartition(":")[2]), [json.dumps({"text": text}).encode() for text in texts[:500]]
    for _ in range(rounds):
        normal = put_load(url, texts, 1, CONNECTIONS, 10, folder)
        with ThreadPoolExecutor(1) as pool:
            # Of 4 times as many about 3 arrive, since each connection waits for its answer.
            flooding = pool.submit(put_load, url, texts, 1, FLOOD_CONNECTIONS, FLOOD_S, folder, 4 * normal.texts_per_s)
            time.sleep(1)  # until all connections are there
            during = asyncio.run(send_at_a_rate(port, bodies, PROBES_PER_S, FLOOD_S - 2))
            offered = flooding.result()
        after = asyncio.run(send_at_a_rate(port, bodies, normal.texts_per_s / 2, AFTER_S))
        arrived = offered.texts_per_s + offered.failed / FLOOD_S
        statuses = dict(Counter(answer.status for answer in during))
        slow = [answer.sent_s for answer in after if answer.status != 200 or answer.seconds > 2 * normal.p99_ms / 1000]
        print(
            f"normal: {normal.texts_per_s:.0f} requests/s, p99 {normal.p99_ms:.0f} ms; "
            f"flood: {arrived:.0f} requests/s ({arrived / normal.texts_per_s:.1f} times), {offered.texts_per_s:.0f} accepted; "
            f"statuses of the sample {statuses}, p99 of the accepted {p99_ms(during):.0f} ms "
            f"({p99_ms(during) / normal.p99_ms:.2f} times); "
            f"after it: p99 {p99_ms(after):.0f} ms, the last slow or refused request at {max(slow, default=0):.2f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="of the server, after --")
    options = parser.parse_args()
    texts = [labeled.text for labeled in Dataset(options.data).texts("test")]
    with (
        tempfile.TemporaryDirectory(prefix="serve-load-") as folder,
        running_server(options.bundle, *options.flags) as url,
    ):
        [server] = [child for child in psutil.Process().children() if "serve" in child.cmdline()]
        put_load(url, texts, 32, 8, 2, Path(folder))
        flood(url, texts, Path(folder), options.rounds)
        if options.minutes:
            endure(url, [server, *server.children()], texts, options.minutes, Path(folder))


if __name__ == "__main__":
    main()
