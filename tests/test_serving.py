"""The HTTP interface, without a process of its own: its contract, its errors, its limits, who gets in."""

import asyncio
import json
import math
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from helpers import ROOT, refused
from pydantic import ValidationError
from serving import BEARER, TEXT, TOKEN, ask, found_of, token_file

from model.data.characters import from_characters, to_characters
from model.data.dataset import Dataset
from model.errors import RunFailedError, StorageError, UserError
from model.inference.extractor import Extractor
from model.serving import server
from model.serving.app import build_app, read_page
from model.serving.contract import ExtractRequest, ProblemError, parse_request
from model.serving.extraction import ExtractionError, LoadedModel, _start_without_signals, _to_picklable, batch_threads
from model.serving.extraction import _extract as extract_batch
from model.serving.extraction import _work as work
from model.serving.gate import ROUTES
from model.serving.service import Service
from model.serving.settings import OPEN_PATHS, Listen, ServeSettings, make_settings
from model.serving.tokens import Tokens

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def texts(small_dataset: str) -> list[str]:
    return [labeled.text for labeled in Dataset(small_dataset).texts("test")] + ["", "   ", "שלום עולם", TEXT]


@pytest.fixture(scope="module")
def expected(small_bundle: str, texts: list[str]) -> list[list[Any]]:
    return list(Extractor.load(small_bundle).pipe(texts))


def post(settings: ServeSettings, *bodies: Any, headers: dict[str, str] | None = None) -> list[httpx.Response]:
    """The answers to some bodies, which are sent at once."""

    async def act(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        contents = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
        calls = [client.post("/v1/extract", content=content, headers=JSON | (headers or {})) for content in contents]
        return list(await asyncio.gather(*calls))

    return ask(settings, act)


def problem(answer: httpx.Response, status: int, *parts: str) -> dict[str, Any]:
    """The problem that an answer is, with all the parts in its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status and body["title"] and all(part in body["detail"] for part in parts), body
    return body


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_answers_are_those_of_the_extractor_in_any_company(
    small_bundle: str, texts: list[str], expected: list[list[Any]], batch_tokens: int
):
    if batch_tokens == 1:  # each text alone
        texts, expected = texts[-60:], expected[-60:]
    sizes, parts, begin = [1, 7, 2, 1, 40, 3], [], 0
    while begin < len(texts):
        parts.append(texts[begin : begin + sizes[len(parts) % len(sizes)]])
        begin += len(parts[-1])
    settings = make_settings(bundle=small_bundle, batch_tokens=batch_tokens, deadline=300)
    answers = post(settings, *({"texts": part} for part in parts))
    found = [each for answer in answers for each in found_of(answer)]
    assert found == [[each[:3] for each in keyphrases] for keyphrases in expected]
    scores = [each["score"] for answer in answers for one in answer.json()["results"] for each in one["keyphrases"]]
    assert scores == pytest.approx([each.score for keyphrases in expected for each in keyphrases], abs=1e-6)


def test_a_single_text_a_lowest_score_and_other_units_of_offsets(small_bundle: str, expected: list[list[Any]]):
    bodies = [{"text": TEXT}, {"texts": []}, {"text": TEXT, "min_score": 1}]
    bodies += [{"text": TEXT, "offsets": unit} for unit in ("characters", "utf16", "bytes")]
    one, none, sure, *units = map(found_of, post(make_settings(bundle=small_bundle), *bodies))
    assert one == [[each[:3] for each in expected[-1]]] and none == [] and sure == [[]]
    for encoding, size, [found] in zip(("utf-32-le", "utf-16-le", "utf-8"), (4, 2, 1), units, strict=True):
        encoded = TEXT.encode(encoding)
        assert found and all(encoded[size * a : size * b].decode(encoding) == text for text, a, b in found)


def test_offsets_go_there_and_back():
    text = "a😀é漢 b"
    spans = [(0, 1), (1, 2), (2, 4), (0, 6)]
    for unit in ("characters", "utf16", "bytes"):
        assert list(to_characters(from_characters(spans, text, unit), text, unit)) == spans  # type: ignore[arg-type]
    assert from_characters([(1, 2)], text, "utf16") == [(1, 3)] and from_characters([(1, 2)], text, "bytes") == [(1, 5)]


def test_bad_bodies_are_problems_that_say_where_and_never_what(small_bundle: str):
    settings = make_settings(bundle=small_bundle, max_texts=3, max_characters=50, max_body=300)
    cases: list[tuple[Any, int, tuple[str, ...], int | None]] = [
        (b'{"texts": ["secret', 400, ("JSON", "line 1"), None),
        (b"\xff\xfe", 400, ("JSON",), None),
        (b"", 400, ("JSON",), None),
        (b'{"text": "secret \\ud800"}', 400, ("JSON",), None),
        (b"[" * 250, 400, ("JSON",), None),
        (["secret"], 422, ("object",), None),
        ({}, 422, ("texts", "text"), None),
        ({"text": "secret", "texts": ["secret"]}, 422, ("either",), None),
        ({"texts": ["a", 3, "secret"]}, 422, ("texts[1]", "string"), 1),
        ({"texts": "secret"}, 422, ("texts",), None),
        ({"text": "secret", "texts": None}, 422, ("texts", "array"), None),
        ({"texts": ["a", "secret" * 10]}, 422, ("text 1", "60 characters", "50"), 1),
        ({"texts": ["a"] * 4}, 422, ("4 texts", "3"), None),
        ({"text": "a", "min_score": 2}, 422, ("min_score",), None),
        ({"text": "a", "min_score": "0.5"}, 422, ("min_score",), None),
        ({"text": "a", "min_score": float("nan")}, 422, ("min_score",), None),
        ({"text": "a", "offsets": "secret"}, 422, ("offsets", "utf16"), None),
        ({"text": "a", "secret": 1}, 422, ("unknown field", "min_score"), None),
        ({"text": "secret" * 50}, 413, ("300 bytes",), None),
    ]
    for answer, (body, status, parts, index) in zip(post(settings, *(case[0] for case in cases)), cases, strict=True):
        assert problem(answer, status, *parts).get("index") == index, body
        assert "secret" not in answer.text


def test_of_many_mistakes_in_a_body_few_are_collected():
    """A dict for each of half a million would keep the event loop for seconds."""
    settings = make_settings(bundle="b")
    with pytest.raises(ValidationError) as wrong:
        ExtractRequest.model_validate_json(b'{"texts": [0, 0, 0]}')
    assert wrong.value.error_count() == 1
    with pytest.raises(ProblemError, match=r"texts\[0\]") as problem:
        parse_request(b'{"texts": [0, 0, 0]}', settings)
    assert problem.value.index == 0
    with pytest.raises(ProblemError, match="unknown field"):  # before the texts: errors() is not called
        parse_request(json.dumps({"texts": [0]} | {str(i): 0 for i in range(4)}).encode(), settings)


def test_headers_that_do_not_fit_are_refused(small_bundle: str):
    settings = make_settings(bundle=small_bundle)
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": ""}, {"Content-Encoding": "gzip"}):
        problem(post(settings, {"text": "a"}, headers=headers)[0], 415)

    async def act(client: httpx.AsyncClient, service: Service) -> None:
        async def chunks():
            for _ in range(40):
                yield b" " * 200_000

        problem(await client.post("/v1/extract", content=chunks(), headers=JSON), 413)
        problem(await client.get("/none"), 404)
        problem(await client.get("/v1/extract"), 405)
        problem(await client.post("/v1/reload"), 403, "--token-file", "SIGHUP")
        assert (await client.get("/openapi.json")).json()["paths"].keys() == set(ROUTES) - {"/", "/openapi.json"}

    ask(settings, act)


def test_only_holders_of_a_token_get_in(small_bundle: str, tmp_path: Path):
    path = token_file(tmp_path, TOKEN, "another-token-0123456789")

    async def act(client: httpx.AsyncClient, service: Service) -> None:
        for route in ROUTES:
            method = "POST" if route in ("/v1/extract", "/v1/reload") else "GET"
            for query, header in (("", None), ("", "Bearer wrong-token-0123456789"), (f"?token={TOKEN}", None)):
                headers = {} if header is None else {"Authorization": header}
                answer = await client.request(method, route + query, headers=headers)
                if route in OPEN_PATHS:
                    assert answer.status_code == 200
                else:
                    assert problem(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
        for scheme in (f"Bearer {TOKEN}", "bearer another-token-0123456789"):
            answer = await client.post("/v1/extract", json={"text": TEXT}, headers={"Authorization": scheme})
            assert answer.status_code == 200
        for scheme in (f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", ""):
            assert (await client.get("/v1/model", headers={"Authorization": scheme})).status_code == 401
        schema = (await client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"})).json()
        assert (
            schema["paths"]["/v1/extract"]["post"]["security"] and "security" not in schema["paths"]["/healthz"]["get"]
        )
        assert TOKEN not in repr(vars(service.tokens))

    ask(make_settings(bundle=small_bundle, token_file=path), act)


def test_a_replica_that_dies_while_it_reloads_is_told_as_a_problem(small_bundle: str, tmp_path: Path):
    service = Service(make_settings(bundle=small_bundle, token_file=token_file(tmp_path, TOKEN)))

    async def die() -> None:
        raise RunFailedError("a replica died (killed); Ray starts another one")

    async def reload() -> httpx.Response:
        transport = httpx.ASGITransport(app=build_app(service, die), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/reload", headers=BEARER)

    problem(asyncio.run(reload()), 503, "a replica died", "starts another one")


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_one_ctrl_c_never_drops_what_was_accepted(
    small_bundle: str, monkeypatch: pytest.MonkeyPatch, signals: tuple[signal.Signals, ...]
):
    monkeypatch.setattr(server, "_GRACE_S", 0.05)

    async def act() -> tuple[bool, bool]:
        running = server._Server(uvicorn.Config("none:app"), Service(make_settings(bundle=small_bundle)), Event())
        running._loop = asyncio.get_running_loop()
        for each in signals:
            running.handle_exit(each, None)
        await asyncio.sleep(0.2)
        return running.should_exit, running.force_exit

    assert asyncio.run(act()) == (True, False)


def test_files_of_tokens_that_cannot_be_used_are_refused_without_their_content(tmp_path: Path):
    path = tmp_path / "tokens"
    refused(lambda: Tokens(str(path)), "tokens", "cannot be read")
    for content, part in (("", "has no token"), ("# x\n\n", "has no token"), ("short\n", "16"), ("a b" * 9, ":1")):
        path.write_text(content)
        refused(lambda: Tokens(str(path)), "openssl", part)
    path.write_bytes(b"\xff\xfe")
    refused(lambda: Tokens(str(path)), "UTF-8")


def test_a_file_of_tokens_may_begin_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "tokens").write_text(f"{TOKEN}\n", "utf-8-sig")
    assert Tokens(str(tmp_path / "tokens")).accept(f"Bearer {TOKEN}".encode())


def test_tokens_stay_where_the_bundle_does_not_load(small_bundle: str, tmp_path: Path):
    settings = make_settings(bundle=f"{small_bundle}-none", token_file=token_file(tmp_path, TOKEN))
    service = Service(settings)
    token_file(tmp_path, "another-token-0123456789")
    with pytest.raises(UserError, match="no such bundle"):
        asyncio.run(service.reload())
    assert service.tokens and service.tokens.accept(BEARER["Authorization"].encode())


def test_without_tokens_pages_of_other_sites_get_nothing(small_bundle: str):
    settings = make_settings(bundle=small_bundle)

    async def act(client: httpx.AsyncClient, service: Service) -> None:
        for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
            assert (await client.get("/healthz", headers={"Host": host})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", ""):
            problem(await client.get("/healthz", headers={"Host": host}), 400, "--token-file")
        answer = await client.get("/healthz", headers={"Origin": "https://evil.example"})
        assert not any(name.startswith("access-control") for name in answer.headers)

    ask(settings, act)


def test_pages_of_named_origins_may_ask_and_no_others(small_bundle: str):
    settings = make_settings(bundle=small_bundle, cors_origins=("https://mine.example",))
    wants = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}

    async def act(client: httpx.AsyncClient, service: Service) -> None:
        for origin, allowed in (("https://mine.example", True), ("https://evil.example", False)):
            answer = await client.options("/v1/extract", headers={"Origin": origin} | wants)
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
        answer = await client.get("/healthz", headers={"Origin": "https://mine.example"})
        assert answer.headers["access-control-expose-headers"] == "Retry-After"  # a page reads no other than these

    ask(settings, act)


def test_a_full_queue_too_many_requests_and_a_passed_deadline(small_bundle: str, texts: list[str]):
    many = {"texts": texts[:100]}
    answers = post(make_settings(bundle=small_bundle, max_queue=100, max_texts=100, batch_wait=50), *[many] * 3)
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429]
    late = next(answer for answer in answers if answer.status_code == 429)
    assert problem(late, 429, "queue") and int(late.headers["retry-after"]) >= 1
    answers = post(make_settings(bundle=small_bundle, max_requests=2, batch_wait=50), *[many] * 4)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
    [answer] = post(make_settings(bundle=small_bundle, deadline=0.02, batch_wait=500), {"text": TEXT})
    problem(answer, 504, "0.02 s")


def test_refused_requests_take_no_room_while_they_wait_for_their_answer(small_bundle: str):
    async def act(client: httpx.AsyncClient, service: Service) -> list[int]:
        first = asyncio.create_task(client.post("/v1/extract", json={"text": TEXT}))
        await asyncio.sleep(0.02)
        refused = [asyncio.create_task(client.post("/v1/extract", json={"text": TEXT})) for _ in range(3)]
        answers = [await first, await client.post("/v1/extract", json={"text": TEXT}), *await asyncio.gather(*refused)]
        return [answer.status_code for answer in answers]

    assert ask(make_settings(bundle=small_bundle, max_requests=1, batch_wait=50), act) == [200, 200, 429, 429, 429]


def test_what_is_counted(small_bundle: str, texts: list[str]):
    async def act(client: httpx.AsyncClient, service: Service) -> str:
        await client.post("/v1/extract", json={"texts": texts[:5]})
        await client.post("/v1/extract?planted", json={"texts": 5})
        await client.get("/planted")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        return answer.text

    counted = ask(make_settings(bundle=small_bundle), act)
    for line in (
        'tandem_requests_total{route="/v1/extract",status="200"} 1.0',
        'tandem_requests_total{route="/v1/extract",status="422"} 1.0',
        'tandem_requests_total{route="other",status="404"} 1.0',
        'tandem_request_seconds_count{route="/v1/extract"} 2.0',
        "tandem_texts_total 5.0",
        "tandem_batch_texts_count 1.0",
        "tandem_queue_texts 0.0",
    ):
        assert line in counted.splitlines(), counted
    assert "planted" not in counted
    for process in ("", "tandem_extraction_"):  # the process of the bundle
        assert re.search(rf"^{process}process_resident_memory_bytes [1-9]", counted, re.M), process


def test_the_model_is_described(small_bundle: str):
    async def act(client: httpx.AsyncClient, service: Service) -> dict[str, Any]:
        return (await client.get("/v1/model")).json()

    about = ask(make_settings(bundle=small_bundle, max_texts=7), act)
    config = json.loads((Path(small_bundle) / "config.json").read_text())
    assert about["weights_sha256"] == config["sha256"]["weights.safetensors"] and about["limits"]["max_texts"] == 7
    assert about["card"] == (Path(small_bundle) / "README.md").read_text()
    assert about["metrics"] == json.loads((Path(small_bundle) / "metrics.json").read_text())


def test_an_error_nobody_foresaw_is_told_without_its_words(
    small_bundle: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: LoadedModel, texts: list[str], leave_a_core: bool) -> Any:
        raise ValueError(f"cannot read {texts[0]}") if texts[0] == TEXT else KeyError

    monkeypatch.setattr(LoadedModel, "extract", fail)

    async def act(client: httpx.AsyncClient, _: Service) -> httpx.Response:
        return await client.post("/v1/extract", json={"text": TEXT})

    answer = ask(make_settings(bundle=small_bundle), act)
    problem(answer, 500, "log")
    assert "ValueError" in caplog.text and "batcher.py" in caplog.text
    assert "Zorvalia" not in caplog.text + answer.text


def test_a_batch_that_fails_is_logged_without_its_words(capsys: pytest.CaptureFixture[str]):
    class Failing:
        def pipe(self, texts: list[str], size: int) -> Any:
            raise ValueError(texts[0])

    failing: Any = Failing()
    assert isinstance(extract_batch(failing, [TEXT]), ExtractionError)
    logged = capsys.readouterr().err
    assert "ValueError" in logged and "test_serving.py" in logged and "Zorvalia" not in logged


def test_without_its_process_a_server_says_that_it_has_to_be_started_again(small_bundle: str):
    service = Service(make_settings(bundle=small_bundle))
    service.load()
    assert service.model

    async def act(client: httpx.AsyncClient, _: Service) -> None:
        assert [(await client.head(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        assert (await client.get("/healthz")).status_code == 200
        os.kill(service.model.pid, signal.SIGKILL)
        problem(await client.post("/v1/extract", json={"text": TEXT}), 500)
        problem(await client.get("/healthz"), 503, "start the server again")
        problem(await client.get("/readyz"), 503)
        assert (await client.head("/healthz")).status_code == 503
        with pytest.raises(ExtractionError, match="ended"):
            service.model.extract([TEXT])

    ask(service.settings, act, service)


def test_few_texts_are_extracted_by_one_thread():
    few, many = ["a" * 100] * 39, ["a" * 100] * 40
    assert batch_threads(few, 8, leave_a_core=False, encoder=False) == 1
    assert batch_threads(few, 8, leave_a_core=False, encoder=True) == 8
    assert batch_threads(many, 8, leave_a_core=False, encoder=False) == 8
    assert batch_threads(many, 8, leave_a_core=True, encoder=False) == 7
    assert batch_threads(many, 1, leave_a_core=True, encoder=False) == 1


def test_the_process_of_a_bundle_ends_with_it(small_bundle: str):
    model = LoadedModel(small_bundle, "cpu")
    process = psutil.Process(model.pid)
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(each)
    assert len(model.extract([TEXT] * 2)) == 2
    del model
    process.wait(60)
    refused(lambda: LoadedModel(f"{small_bundle}-none", "cpu"), "no such bundle")
    with pytest.raises(StorageError, match="cannot be reached"):
        LoadedModel("http://127.0.0.1:1/bundle", "cpu")


def test_the_process_of_a_bundle_ends_quietly_where_ctrl_c_ends_the_server_while_it_loads(small_bundle: str):
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(theirs, small_bundle, "cpu"))
    _start_without_signals(process)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, each)
    theirs.close()
    ours.close()
    process.join(120)
    assert process.exitcode == 0  # a traceback makes it 1


def test_errors_of_a_storage_survive_the_way_between_processes():
    class RefusalError(OSError):
        def __init__(self, message: str, *, response: object) -> None:
            super().__init__(message)

    received = [
        pickle.loads(pickle.dumps(_to_picklable(error)))
        for error in (
            RefusalError("refused", response=object()),
            StorageError("no answer"),
            IsADirectoryError(21, "Is a directory", "f"),
        )
    ]
    assert list(map(type, received)) == [OSError, StorageError, IsADirectoryError]
    assert list(map(str, received)) == ["refused", "no answer", "[Errno 21] Is a directory: 'f'"]


def test_a_program_ends_although_something_still_holds_its_model(small_bundle: str, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(f"""
from model.serving.extraction import LoadedModel
if __name__ == "__main__":
    held = []
    held.append([held, LoadedModel({small_bundle!r}, "cpu")])
""")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(program)], cwd=ROOT, env=environment, check=True, timeout=120)


def test_while_it_drains_it_takes_nothing_new(small_bundle: str):
    async def act(client: httpx.AsyncClient, service: Service) -> None:
        assert (await client.get("/readyz")).status_code == 200
        begun = asyncio.create_task(client.post("/v1/extract", json={"text": TEXT}))
        while not service._batcher.waiting:
            await asyncio.sleep(0)
        service.draining = True
        problem(await client.get("/readyz"), 503)
        refusal = await client.post("/v1/extract", json={"text": TEXT})
        assert problem(refusal, 503) and refusal.headers["connection"] == "close" and refusal.headers["retry-after"]
        assert (await client.get("/healthz")).status_code == 200
        assert (await begun).status_code == 200

    ask(make_settings(bundle=small_bundle, batch_wait=100), act)


def test_addresses_and_limits_that_cannot_be_are_refused(tmp_path: Path):
    refused(lambda: Listen("0.0.0.0").check(False), "--host 0.0.0.0", "--token-file")
    Listen("0.0.0.0").check(True)
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        Listen(host).check(False)
    refused(lambda: Listen(certificate="c.pem").check(True), "--tls-key", "both")
    refused(lambda: Listen(certificate="c.pem", key="k.pem").check(True), "--tls-cert c.pem", "no such file")
    refused(lambda: make_settings(bundle="b", max_texts=0), "--max-texts 0", "greater than 0")
    for name in ("deadline", "max_wait", "batch_wait"):
        for seconds in (math.inf, math.nan):
            refused(lambda: make_settings(bundle="b", **{name: seconds}), f"--{name.replace('_', '-')}")  # noqa: B023
    make_settings(
        bundle="b", cors_origins=("https://app.example", "http://localhost:3000", "http://[::1]:80", "*", "null")
    )
    for origin in ("https://app.example/", "app.example", "https://App.example", "https://app.example/page", ""):
        told = (f"--cors-origin {origin}", "https://app.example")
        refused(lambda: make_settings(bundle="b", cors_origins=(origin,)), *told)  # noqa: B023
    refused(lambda: make_settings(bundle="b", max_queue=10), "max_queue is 10", "max_texts 1000")


def test_the_page_loads_nothing_and_its_policy_knows_its_script():
    content, policy = read_page()
    text = content.decode()
    assert "default-src 'none'" in policy and policy.count("'sha256-") == 2 and "unsafe" not in policy
    assert "http://" not in text and "https://" not in text and "innerHTML" not in text and " on" + "click=" not in text


def test_the_fields_of_a_request_are_documented():
    text = (ROOT / "docs" / "serving.md").read_text("utf-8")
    for name in (*ExtractRequest.model_fields, *ROUTES):
        assert f"`{name}`" in text or f"{name}`" in text, name
