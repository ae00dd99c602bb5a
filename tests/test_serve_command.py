"""`serve` and `extract --server` as a user runs them: a real process, real sockets, real signals."""

import json
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx
import psutil
import pytest
from browser import Tab, drive, needs_a_browser
from helpers import call, refused
from serving import BEARER, TEXT, TOKEN, Load, Process, found_of, running, starting, token_file

from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.inference.bundle import load_bundle, save_bundle
from model.inference.extractor import Extractor
from model.serving.client import Client
from model.serving.settings import TOKEN_VARIABLE

PLANTED = "plantedneedle"


@pytest.fixture(scope="module")
def open_server(small_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that everybody on this machine may use."""
    with running(small_bundle, tmp_path_factory.mktemp("open"), "--access-log") as server:
        yield server


@pytest.fixture(scope="module")
def known(small_bundle: str, small_dataset: str) -> dict[str, Any]:
    """Texts with what the extractor finds in them."""
    texts = [labeled.text for labeled in Dataset(small_dataset).texts("test")]
    return dict(zip(texts, Extractor.load(small_bundle).pipe(texts), strict=True))


def changed_bundle(bundle: str, location: Path) -> None:
    """Writes a bundle with other weights: its tagger finds nothing."""
    loaded = load_bundle(bundle)
    weights = {name: weight * 0 for name, weight in loaded.tagger.state_dict().items()}
    tokenizer = (Path(bundle) / "tokenizer.json").read_bytes()
    save_bundle(str(location), loaded.config, tokenizer, weights, loaded.metrics)


def test_a_bundle_that_is_not_there_is_told_before_the_imports_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in ("model.serving.server", "distributed.serve.run", "distributed.serve.deployment"):
        monkeypatch.setitem(sys.modules, module, None)
    for replicas in ((), ("--replicas", "2")):
        done = call("serve", str(tmp_path / "none"), *replicas)
        assert done.exit_code == 2 and "none: no such bundle" in done.stderr


def test_by_default_it_listens_on_this_machine_alone(open_server: Process):
    process = psutil.Process(open_server.process.pid)
    processes = [process, *process.children(recursive=True)]
    listening = [each for one in processes for each in one.net_connections() if each.status == psutil.CONN_LISTEN]
    assert [each.laddr.ip for each in listening] == ["127.0.0.1"]


def test_extract_through_a_server_prints_what_extract_prints(
    open_server: Process, small_bundle: str, small_dataset: str
):
    path = str(Path(small_dataset).parent / "test.jsonl")
    here = call("extract", small_bundle, path, "--json")
    there = call("extract", "--server", open_server.url, path, "--json")
    assert here.exit_code == there.exit_code == 0, there.stderr
    pairs = zip(map(json.loads, here.stdout.splitlines()), map(json.loads, there.stdout.splitlines()), strict=True)
    for ours, theirs in pairs:
        for mine, other in zip(ours["keyphrases"], theirs["keyphrases"], strict=True):
            assert mine.pop("score") == pytest.approx(other.pop("score"), abs=1e-6)
        assert ours == theirs
    assert call("extract", "--server", open_server.url, stdin=f"{TEXT}\n\n").stdout.splitlines()[1:] == ["2"]


def test_extract_says_what_is_wrong_with_a_server(open_server: Process, small_bundle: str, tmp_path: Path):
    for arguments, code, parts in (
        (("--server", "ftp://x"), 2, ("--server", "http://127.0.0.1:8000")),
        (("--server", "http://127.0.0.1:1"), 1, ("http://127.0.0.1:1", "does not answer")),
        (("--server", f"{open_server.url}/none"), 2, ("404",)),
        (("--server", open_server.url, "--out", str(tmp_path / "o")), 2, ("--out", "leave them out")),
        ((), 2, ("--server", "bundle")),
        ((small_bundle, "--token-file", "t"), 2, ("--token-file",)),
    ):
        done = call("extract", *arguments, stdin="a\n")
        assert done.exit_code == code and "Traceback" not in done.stderr, done.stderr
        assert all(part in done.stderr for part in parts), done.stderr
    longer = f"{TEXT}\n{'a ' * 15_000}\n"
    done = call("extract", "--server", open_server.url, stdin=longer)
    assert done.exit_code == 2 and "text 2" in done.stderr and "20000" in done.stderr


def test_a_server_that_cannot_start_says_why(small_bundle: str, open_server: Process, tmp_path: Path):
    port = open_server.url.rpartition(":")[2]
    for arguments, parts in (
        ((small_bundle, "--port", port), (f"--port {port}", "in use", "another --port")),
        ((small_bundle, "--host", "0.0.0.0"), ("--host 0.0.0.0", "--token-file")),
        ((small_bundle, "--host", "192.0.2.1", "--token-file", token_file(tmp_path, TOKEN)), ("another --host",)),
        ((small_bundle, "--host", "10..0.1", "--token-file", token_file(tmp_path, TOKEN)), ("another --host",)),
        ((small_bundle, "--max-queue", "5"), ("max_queue is 5",)),
        ((str(tmp_path / "none"), "--port", "0"), ("no such bundle",)),
        ((small_bundle, "--port", "0", "--device", "abacus"), ("device abacus",)),
    ):
        done = call("serve", *arguments)
        assert done.exit_code == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
        assert all(part in done.stderr for part in parts), done.stderr


def test_a_client_that_sends_to_the_end_reads_why_its_large_body_was_refused(open_server: Process):
    for path, status in (("/v1/extract", 413), ("/v1/none", 404)):
        request = Request(f"{open_server.url}{path}", b"x" * 20_000_000, {"Content-Type": "application/json"})
        with pytest.raises(HTTPError) as refusal:
            urlopen(request, timeout=60)
        assert refusal.value.code == status and json.load(refusal.value)["status"] == status


def test_a_bundle_that_cannot_be_read_ends_serve_as_it_ends_extract(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    here, served = call("extract", str(tmp_path), stdin="a\n"), call("serve", str(tmp_path), "--port", "0")
    assert here.exit_code == served.exit_code == 1 and "config.json' is a directory" in served.stderr
    assert here.stderr == served.stderr


def test_without_its_packages_it_says_what_to_install(small_bundle: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = call("serve", small_bundle)
    assert done.exit_code == 2 and "pip install '.[serve]'" in done.stderr and "fastapi" in done.stderr


def test_tokens_reloads_and_the_end_under_load(small_bundle: str, known: dict[str, Any], tmp_path: Path):
    """One server's whole life. No accepted request is lost, and no text or token is in its log."""
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    path = token_file(tmp_path, TOKEN)
    with running(str(bundle), tmp_path, "--token-file", path, "--access-log") as server:
        assert httpx.get(f"{server.url}/v1/model").status_code == 401
        assert httpx.get(f"{server.url}/v1/model?token={TOKEN}").status_code == 401
        found = list(Client(server.url, TOKEN).pipe(known))
        assert [[each[:3] for each in one] for one in found] == [[each[:3] for each in one] for one in known.values()]
        with Load(server.url, BEARER) as load:
            load.wait_for(5)
            (bundle / "weights.safetensors").rename(bundle / "gone")
            refusal = httpx.post(f"{server.url}/v1/reload", headers=BEARER, timeout=60)
            assert refusal.status_code == 409 and "weights.safetensors is missing" in refusal.json()["detail"]
            load.wait_for(5)
            before = found_of(load.answers[-1])
            assert before[0]
            shutil.rmtree(bundle)
            changed_bundle(small_bundle, bundle)
            answer = httpx.post(f"{server.url}/v1/reload", headers=BEARER, timeout=60)
            assert answer.status_code == 200
            reloaded = len(load.answers)
            load.wait_for(8)
            old = [each for each in load.answers[reloaded : reloaded + 8] if found_of(each) == before]
            assert len(old) <= 4  # of each thread the one that it waited for
            shutil.rmtree(bundle)
            shutil.copytree(small_bundle, bundle)
            token_file(tmp_path, TOKEN, f"{PLANTED}-token-0123456789")
            server.process.send_signal(signal.SIGHUP)
            while found_of(load.answers[-1]) != before:
                load.wait_for(4)
            second = {"Authorization": f"Bearer {PLANTED}-token-0123456789"}
            assert httpx.post(f"{server.url}/v1/extract?{PLANTED}", json={"text": PLANTED}, headers=second).is_success
            httpx.get(f"{server.url}/{PLANTED}", headers=second)
            httpx.post(f"{server.url}/v1/extract", content=f'{{"text": "{PLANTED}', headers=second)
            (tmp_path / "tokens").write_text("bad\n")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("the old ones stay: --token-file")
            load.wait_for(4)
            server.process.terminate()
            assert server.process.wait(60) == 143
        assert load.answers and {answer.status_code for answer in load.answers} <= {200, 503}
        kinds = {tuple(map(tuple, found_of(answer)[0])) for answer in load.answers if answer.status_code == 200}
        assert len(kinds) == 2 and len(load.refused) <= 4
        answered = sum(answer.status_code == 200 for answer in load.answers)
        assert server.log.count("POST /v1/extract 200") >= answered
        for secret in (PLANTED, TOKEN, "Zorvalia"):
            assert secret not in server.log
        assert "Traceback" not in server.log and "terminated" in server.log


def test_a_hangup_while_the_bundle_loads_is_heeded_afterwards(small_bundle: str, tmp_path: Path):
    with starting(small_bundle, tmp_path) as server:
        while not psutil.Process(server.process.pid).children():  # it has begun to load
            time.sleep(0.01)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("is served at")
        server.wait_for("taken in again")


def test_ctrl_c_again_and_again_drops_requests_without_a_traceback(small_bundle: str, tmp_path: Path):
    body = {"texts": ["storm ada " * 1_900] * 200}
    with running(small_bundle, tmp_path, "--deadline", "60") as server:

        def ask() -> None:
            with suppress(httpx.TransportError):
                httpx.post(f"{server.url}/v1/extract", json=body, timeout=60)

        asking = threading.Thread(target=ask)
        asking.start()
        while "tandem_queue_texts 0.0" in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.02)
        for _ in range(3):
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.4)
        assert server.process.wait(30) == 130 and "Traceback" not in server.log, server.log
        asking.join()


def test_it_speaks_tls_and_needs_no_ray(small_bundle: str, tmp_path: Path):
    certificate, key = str(tmp_path / "c.pem"), str(tmp_path / "k.pem")
    subprocess.run(
        [
            *"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext".split(),
            *("subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    done = call("serve", small_bundle, "--port", "0", "--tls-cert", key, "--tls-key", certificate)
    assert done.exit_code == 2 and "--tls-cert" in done.stderr
    (tmp_path / "ray.py").write_text("raise ImportError('no Ray here')")
    tls = "--tls-cert", certificate, "--tls-key", key
    with running(small_bundle, tmp_path, *tls, PYTHONPATH=str(tmp_path)) as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=certificate)
        answer = httpx.post(f"{server.url}/v1/extract", json={"text": TEXT}, verify=trusting)
        assert found_of(answer)[0]
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130


def test_the_client_refuses_urls_that_are_none():
    for url in (
        "",
        "localhost:8000",
        "http://",
        "http://user:password@host",
        "http://host:port",
        "http://host?token=a",
        "http://[::1",
        "http://a..b",
        "http://a b",
        "http://host/ü",
    ):
        refused(lambda url=url: Client(url), "--server", "http://127.0.0.1:8000")  # type: ignore[misc]


def test_the_client_refuses_tokens_that_are_none_without_showing_them(monkeypatch: pytest.MonkeyPatch):
    for token in (f"{TOKEN}\n", f"{TOKEN}€", "short"):
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        done = call("extract", "--server", "http://127.0.0.1:1", stdin="a\n")
        assert done.exit_code == 2 and TOKEN_VARIABLE in done.stderr and token.strip() not in done.stderr


@pytest.mark.parametrize(
    "answer", [b"{}", b"[]", b"no", b'{"limits": 1}', b'{"limits": {"max_texts": "a"}, "detail": 1}']
)
def test_the_client_refuses_servers_of_others(answer: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Client, "_send", lambda *_: (200, {}, answer))
    with pytest.raises(RunFailedError, match="the answer is not that of Tandem"):
        Client("http://host")


def test_an_error_does_not_wait_until_a_busy_server_takes_the_next_request(monkeypatch: pytest.MonkeyPatch):
    def send(client: Client, method: str, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
        if method == "GET":
            return 200, {}, b'{"limits": {"max_texts": 1, "max_body": 100000}}'
        if body == {"texts": ["late"]}:
            return 429, {"Retry-After": "10"}, b'{"detail": "the queue is full"}'
        return 422, {}, b'{"detail": "too long", "index": 0}'

    monkeypatch.setattr(Client, "_send", send)
    began = time.monotonic()
    refused(lambda: list(Client("http://host").pipe(["long", "late"])), "text 1: too long")
    for thread in threading.enumerate():
        if thread.name.startswith("client"):
            thread.join()
    assert time.monotonic() - began < 5


def test_the_client_sends_fewer_texts_at_a_time_where_the_deadline_passes(monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []

    def send(client: Client, method: str, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
        if method == "GET":
            return 200, {}, b'{"limits": {"max_texts": 1000, "max_body": 4194304}}'
        texts = body["texts"]
        sent.append(len(texts))
        if len(texts) > 16 or texts == ["endless"]:
            return 504, {}, b'{"detail": "no result within 10 s"}'
        found = [{"keyphrases": [{"text": text, "start": 0, "end": len(text), "score": 1.0}]} for text in texts]
        return 200, {}, json.dumps({"results": found}).encode()

    monkeypatch.setattr(Client, "_send", send)
    texts = [str(number) for number in range(640)]
    assert [found[0].text for found in Client("http://host").pipe(texts)] == texts
    assert sum(size > 16 for size in sent) <= 6
    with pytest.raises(RunFailedError, match="no result within 10 s"):
        list(Client("http://host").pipe(["endless"]))


@needs_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_marks_keyphrases(open_server: Process, tmp_path: Path, scheme: str):
    seen: dict[str, Any] = {}

    async def act(tab: Tab) -> None:
        media = {"name": "prefers-color-scheme", "value": scheme}
        await tab.call("Emulation.setEmulatedMedia", features=[media])
        texts = json.dumps(f"{TEXT}\n<b>no markup</b> in Leeds\n")
        await tab.evaluate(f"const box = document.getElementById('texts'); box.value = {texts}; 0")
        await tab.evaluate("document.getElementById('extract').click()")
        await tab.wait_for("document.querySelectorAll('#results li').length === 2")
        seen["marks"] = await tab.evaluate(
            "[...document.querySelectorAll('#results li:first-child mark')].map(each => each.firstChild.data)"
        )
        seen["scores"] = await tab.evaluate("document.querySelectorAll('mark small').length")
        seen["bold"] = await tab.evaluate("document.querySelectorAll('#results b').length")
        await tab.evaluate(
            "const slider = document.getElementById('threshold'); slider.value = 1; slider.dispatchEvent(new Event('input'))"
        )
        seen["above"] = await tab.evaluate("document.querySelectorAll('mark').length")
        await tab.evaluate("document.getElementById('copy').click()")
        await tab.wait_for("document.getElementById('copy').textContent === 'Copied'")
        seen["curl"] = await tab.evaluate("document.getElementById('curl').textContent")
        seen["paper"] = await tab.evaluate("getComputedStyle(document.body).backgroundColor")

    tab = drive(open_server.url + "/", tmp_path, act)
    assert "Zorvalia" in seen["marks"] and seen["scores"] >= len(seen["marks"]) and not seen["bold"]
    assert seen["above"] == 0 and seen["paper"] == ("rgb(17, 24, 39)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert not tab.console, tab.console
    assert all(url.startswith((open_server.url, "data:")) for url in tab.requests) and len(tab.requests) >= 2
    line = seen["curl"].replace('"min_score":1', '"min_score":0')
    done = subprocess.run(["bash", "-c", f"{line} -s"], capture_output=True, text=True, timeout=60)
    assert len(json.loads(done.stdout)["results"]) == 2, done


@needs_a_browser
def test_a_page_would_tell_of_errors_and_foreign_requests(open_server: Process, tmp_path: Path):
    async def act(tab: Tab) -> None:
        await tab.evaluate("fetch('http://example.invalid/').catch(() => 0)")
        await tab.evaluate("setTimeout(() => { throw Error('told') }); new Promise(done => setTimeout(done, 50))")

    tab = drive(open_server.url + "/", tmp_path, act)
    assert any("told" in line for line in tab.console) and any("violates" in line for line in tab.console)
