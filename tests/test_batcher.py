"""Dynamic batching: what is extracted together, in what order, and what one request may do to another."""

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from model.serving.batcher import Batcher, BatchStats, QueueFullError, estimate_tokens


class Echo:
    """A model that finds each text's own words, one batch when it is let, and fails at `bad`."""

    def __init__(self, name: str = "echo") -> None:
        self.name, self.batches = name, []
        self.may_go = threading.Event()

    def extract(self, texts: list[str], leave_a_core: bool) -> list[Any]:
        assert self.may_go.wait(10)
        self.batches.append(list(texts))
        if "bad" in texts:
            raise ValueError("bad")
        return [[(self.name, text)] for text in texts]


def run(
    act: Callable[[Batcher], Awaitable[Any]],
    tokens: int = 100,
    wait: float = 0.0,
    queue: int = 1000,
    longest: float = 1000.0,
) -> tuple[Any, list[BatchStats]]:
    """What a function returns that uses a batcher, and the batches that there were."""
    batches: list[BatchStats] = []
    batcher = Batcher(tokens, wait, queue, longest, batches.append)

    async def main() -> Any:
        try:
            return await act(batcher)
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(main()), batches


async def blocked(batcher: Batcher, echo: Any) -> "asyncio.Task[Any]":
    """A request that keeps the thread until `echo.may_go`."""
    task = asyncio.create_task(batcher.extract(echo, ["first"]))
    await asyncio.sleep(0)
    while batcher.waiting:
        await asyncio.sleep(0.001)
    return task


def test_requests_that_wait_share_a_batch_and_get_their_own_results():
    echo: Any = Echo()

    async def act(batcher: Batcher) -> Any:
        first = await blocked(batcher, echo)
        others = [asyncio.create_task(batcher.extract(echo, [f"{i}a", f"{i}b"])) for i in range(5)]
        await asyncio.sleep(0)
        assert batcher.waiting == 10
        echo.may_go.set()
        return await asyncio.gather(first, *others)

    (_, *results), batches = run(act)
    assert results == [[[("echo", f"{i}a")], [("echo", f"{i}b")]] for i in range(5)]
    assert [(batch.texts, batch.requests) for batch in batches] == [(1, 1), (10, 5)]


def test_a_large_request_goes_through_several_batches_and_a_huge_text_alone():
    echo: Any = Echo()
    echo.may_go.set()
    huge = "x" * 4000
    texts = ["a" * 40] * 25 + [huge] + ["b" * 40] * 3

    async def act(batcher: Batcher) -> Any:
        return await batcher.extract(echo, texts)

    result, batches = run(act, tokens=110)
    assert [found for [(_, found)] in result] == texts
    assert max(batch.tokens for batch in batches if batch.texts > 1) <= 110
    assert [huge] in echo.batches and len(echo.batches) == 5


def test_an_idle_thread_waits_for_more_but_not_when_a_batch_is_full():
    echo: Any = Echo()
    echo.may_go.set()

    async def act(batcher: Batcher) -> Any:
        early = asyncio.create_task(batcher.extract(echo, ["early"]))
        await asyncio.sleep(0.01)
        return await asyncio.gather(early, batcher.extract(echo, ["x" * 400]))

    _, batches = run(act, tokens=100, wait=30.0)  # seconds that no test waits
    assert sum(batch.texts for batch in batches) == 2


def test_a_request_that_fails_fails_alone():
    echo: Any = Echo()

    async def act(batcher: Batcher) -> Any:
        first = await blocked(batcher, echo)
        others = [asyncio.create_task(batcher.extract(echo, [text])) for text in ("good", "bad", "fine")]
        await asyncio.sleep(0)
        echo.may_go.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    (_, good, bad, fine), _ = run(act)
    assert good == [[("echo", "good")]] and fine == [[("echo", "fine")]] and isinstance(bad, ValueError)


def test_a_canceled_request_makes_room_at_once():
    echo: Any = Echo()

    async def act(batcher: Batcher) -> Any:
        first = await blocked(batcher, echo)
        requests = [asyncio.create_task(batcher.extract(echo, [name] * 4)) for name in ("ahead", "gone")]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.extract(echo, ["late"] * 4)
        requests[1].cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 4
        late = asyncio.create_task(batcher.extract(echo, ["late"] * 4))  # while the batch before it still runs
        await asyncio.sleep(0)
        assert batcher.waiting == 8
        echo.may_go.set()
        return await asyncio.gather(first, requests[0], late)

    run(act, queue=8)
    assert "gone" not in [text for batch in echo.batches for text in batch] and echo.batches[1].count("late") == 4


def test_a_canceled_request_is_not_extracted_and_leaves_the_queue():
    echo: Any = Echo()

    async def act(batcher: Batcher) -> Any:
        first = await blocked(batcher, echo)
        gone = asyncio.create_task(batcher.extract(echo, ["gone"] * 7))
        kept = asyncio.create_task(batcher.extract(echo, ["kept"]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        echo.may_go.set()
        await asyncio.gather(first, kept)
        return batcher.waiting

    waiting, _ = run(act)
    assert waiting == 0 and echo.batches == [["first"], ["kept"]]


def test_a_full_queue_says_so_and_has_room_again_later():
    echo: Any = Echo()

    async def act(batcher: Batcher) -> Any:
        first = await blocked(batcher, echo)
        waiting = asyncio.create_task(batcher.extract(echo, ["a"] * 3))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as full:
            await batcher.extract(echo, ["b"] * 2)
        assert full.value.retry_s >= 0
        echo.may_go.set()
        await asyncio.gather(first, waiting)
        return await batcher.extract(echo, ["b"] * 2)

    result, _ = run(act, queue=4)
    assert len(result) == 2


def test_nothing_is_taken_while_the_oldest_has_waited_for_too_long():
    echo: Any = Echo()

    async def act(batcher: Batcher) -> Any:
        first = await blocked(batcher, echo)
        oldest = asyncio.create_task(batcher.extract(echo, ["a"]))
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFullError):
            await batcher.extract(echo, ["b"])
        echo.may_go.set()
        await asyncio.gather(first, oldest)
        return await batcher.extract(echo, ["b"])

    result, _ = run(act, longest=0.01)
    assert len(result) == 1


def test_nothing_is_taken_while_the_queue_will_take_too_long():
    """A flood cannot fill the queue until the first of it has waited for long."""
    slow: Any = Echo()
    extract, slow.extract = slow.extract, lambda *batch: (time.sleep(0.05), extract(*batch))[1]
    slow.may_go.set()
    text = "x" * 2047  # 512 tokens

    async def act(batcher: Batcher) -> Any:
        await batcher.extract(slow, [text])  # 50 ms a batch, so far
        slow.may_go.clear()
        first = await blocked(batcher, slow)
        tasks = [asyncio.create_task(batcher.extract(slow, [text])) for _ in range(30)]
        await asyncio.sleep(0)
        slow.may_go.set()
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    results, _ = run(act, tokens=512, longest=0.5)
    refused = [isinstance(result, QueueFullError) for result in results]
    assert 2 <= refused.index(True) <= 12 and all(refused[refused.index(True) :])


def test_a_request_is_answered_by_the_model_that_it_came_to():
    old: Any = Echo("old")
    new: Any = Echo("new")
    new.may_go.set()

    async def act(batcher: Batcher) -> Any:
        first = await blocked(batcher, old)
        tasks = [asyncio.create_task(batcher.extract(each, ["t"])) for each in (old, new, new, old)]
        await asyncio.sleep(0)
        old.may_go.set()
        await first
        return await asyncio.gather(*tasks)

    results, batches = run(act)
    assert [name for [[(name, _)]] in results] == ["old", "new", "new", "old"] and len(batches) == 4


def test_a_model_goes_when_its_last_request_is_answered():
    async def act(batcher: Batcher) -> None:
        echo: Any = Echo()
        echo.may_go.set()
        await batcher.extract(echo, ["a"])
        kept, until = weakref.ref(echo), time.monotonic() + 10
        del echo
        while kept() is not None:
            assert time.monotonic() < until
            await asyncio.sleep(0.001)

    run(act)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_batch_may_outlive_the_event_loop():
    echo: Any = Echo()
    batcher = Batcher(100, 0.0, 1000)

    async def leave() -> None:
        (await blocked(batcher, echo)).cancel()

    asyncio.run(leave())
    echo.may_go.set()
    batcher.close()
    assert echo.batches == [["first"]]


def test_tokens_are_estimated_in_any_script():
    assert estimate_tokens("") == 1
    assert estimate_tokens("what a match by Roger Federer tonight") == 10
    assert 5 <= estimate_tokens("大きな試合だった") <= 8
