"""Load on a server: wrk, which sends the next request on each connection when the last one is answered, at once or later."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import IO
from urllib.request import urlopen

from model.errors import RunFailedError, UserError

_START_S = 300
_BODIES = 200  # different requests, sent in turn
# wrk's own summary has no percentile of choice; a line of numbers in microseconds is printed instead.
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local bodies, longest_pause_ms, number = {%s}, %d, 0
if longest_pause_ms > 0 then
  function delay() return math.random(0, longest_pause_ms) end
end
function request()
  number = number %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[number])
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("measured %%d %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What a server answered under load.

    Attributes:
        texts_per_s: texts that were answered.
        p50_ms, p99_ms: percentiles of the time to an answer.
        failed: requests that were refused, or not answered.
    """

    texts_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def require_wrk() -> None:
    """Raise UserError where the load generator is not installed."""
    if shutil.which("wrk") is None:
        raise UserError("--serve: needs the load generator wrk; install it with `apt-get install wrk`")


def put_load(
    url: str, texts: Sequence[str], size: int, connections: int, seconds: int, folder: Path, requests_per_s: float = 0
) -> Load:
    """Send requests of `size` texts on some connections for some seconds, and return what was answered.

    Args:
        requests_per_s: about how many all connections send together, with random pauses between the requests of each, so that
            some come together as those of independent clients do; 0 is as many as are answered.

    Raises:
        RunFailedError: wrk failed.
    """
    chunks = [texts[begin : begin + size] for begin in range(0, min(len(texts), _BODIES * size), size)]
    full = [chunk for chunk in chunks if len(chunk) == size] or [[*texts, *[""] * (size - len(texts))]]
    # A string of JSON in ASCII, quoted as JSON again, is a string of Lua too: it has no escapes but \" and \\.
    bodies = ",".join(json.dumps(json.dumps({"texts": list(chunk)})) for chunk in full)
    script = folder / "load.lua"
    longest_pause_ms = round(2000 * connections / requests_per_s) if requests_per_s else 0
    script.write_text(_SCRIPT % (bodies, longest_pause_ms))
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
        f"{url}/v1/extract",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^measured (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", done.stdout, re.M)
    if found is None:
        raise RunFailedError(f"wrk failed: {(done.stderr or done.stdout).strip()[:300]}")
    answers, micros, p50, p99, refused, unanswered = map(int, found.groups())
    return Load(size * (answers - refused) / (micros / 1e6), p50 / 1000, p99 / 1000, refused + unanswered)


@contextmanager
def running_server(bundle: str, *flags: str) -> Iterator[str]:
    """Start a server as a process at a free port of this machine, and yield its URL.

    Raises:
        RunFailedError: it does not start.
    """
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jobs", "serve", bundle, "--port", str(port), *flags]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            urlopen(f"{url}/readyz", timeout=10).close()
            return
        except OSError:  # nothing listens yet, or it is not ready
            if process.poll() is not None or time.monotonic() > until:
                log.seek(0)
                reason = (log.read().decode("utf-8", "replace").strip().splitlines() or ["no answer"])[-1]
                raise RunFailedError(f"the server does not start: {reason}") from None
            time.sleep(0.1)
