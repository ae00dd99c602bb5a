"""The benchmark of the server: real load on a real server, and the arithmetic of its table."""

import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import call, refused
from serving import running

from jobs.benchmark.serving import measure
from jobs.benchmark.serving.load import Load, put_load, require_wrk, running_server
from jobs.benchmark.serving.measure import ServingResult, ServingRow, serving_table
from model.errors import RunFailedError

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk on this machine")
TEXTS = ["cheering for Giants", 'a "quoted" \\ text', "שלום 😀 \n\t\x01", "it's ]] -- %d"]


@needs_wrk
def test_wrk_sends_every_text_as_it_is(small_bundle: str, tmp_path: Path):
    with running(small_bundle, tmp_path) as server:
        load = put_load(server.url, TEXTS, 2, 2, 1, tmp_path)
        assert load.failed == 0 and load.texts_per_s > 0 and 0 < load.p50_ms <= load.p99_ms
        load = put_load(f"{server.url}/none", TEXTS, 2, 2, 1, tmp_path)
        assert load.failed > 0 and load.texts_per_s == 0
        paced = put_load(server.url, TEXTS, 1, 8, 2, tmp_path, requests_per_s=20)
        assert paced.failed == 0 and 5 < paced.texts_per_s < 35
        few = put_load(server.url, TEXTS, 9, 1, 1, tmp_path)
        assert few.failed == 0 and few.texts_per_s > 0


@needs_wrk
def test_requests_without_an_answer_are_not_taken_from_those_with_one(tmp_path: Path):
    answered: list[int] = []

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(0.01)
            if len(answered) % 2:  # it breaks the connection off
                self.close_connection = True
            else:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            answered.append(len(answered) % 2 == 0)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        load = put_load(f"http://127.0.0.1:{server.server_port}", ["a"], 1, 1, 1, tmp_path)
        server.shutdown()
    assert load.failed > 5 and load.texts_per_s > 0.5 * sum(answered)


def test_a_server_that_does_not_start_is_told_of(tmp_path: Path):
    with pytest.raises(RunFailedError, match="no such bundle"), running_server(str(tmp_path / "none")):
        raise AssertionError("it started")


def test_medians_over_rounds_with_ratios_of_the_same_round():
    loads = [(Load(100, 5, 9, 0), 200.0), (Load(400, 3, 8, 2), 500.0), (Load(50, 4, 7, 0), 500.0)]
    row = measure._median(("one process", "half", 8, 64), loads)
    assert row == ServingRow("one process", "half", 8, 64, 100, 0.5, 4, 8, 2)
    table = serving_table(ServingResult("b", 321.0, [row]))
    assert "one process" in table and "0.50" in table and "321 texts/s" in table


def test_what_the_benchmark_cannot_use_is_refused(
    small_bundle: str, small_dataset: str, monkeypatch: pytest.MonkeyPatch
):
    for arguments, parts in (
        (("--serve", small_bundle, "--peers"), ("--peers and --serve",)),
        (("--serve", small_bundle, "--texts", "2000"), ("--texts",)),
        (("--serve", "/no/bundle", "--data", small_dataset), ("/no/bundle: no such bundle",)),
        (("--data", "/no/data"), ("/no/data: no such directory",)),
    ):
        done = call("benchmark", *arguments)
        assert done.exit_code == 2 and all(part in done.stderr for part in parts), done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    monkeypatch.setenv("PATH", "")
    refused(require_wrk, "wrk", "apt-get install")
