"""Ray in a thread: its result and its errors arrive here, and it is told to stop where this thread ends."""

import threading
from typing import Any

import pytest

from distributed.cluster import background
from distributed.cluster.background import run_in_background
from model.errors import NotGrantedError, RunFailedError


class Wait:
    def poll(self) -> None:
        """Everything is granted."""


class Refused:
    def poll(self) -> None:
        raise NotGrantedError("never")


def run(fit: Any, poll: Any = lambda: None, wait: Any = None, **actions: Any) -> Any:
    return run_in_background(fit, poll, wait or Wait(), **actions)


def test_the_result_comes_after_a_last_poll_and_the_cleanup():
    steps: list[str] = []

    def fit() -> int:
        assert threading.current_thread() is not threading.main_thread()
        steps.append("fit")
        return 5

    assert run(fit, lambda: steps.append("poll"), cleanup=lambda: steps.append("cleanup")) == 5
    assert steps[0] == "fit" and steps[-2:] == ["poll", "cleanup"]


def test_an_error_of_the_run_is_raised_here():
    def fit() -> None:
        raise RunFailedError("gone")

    closed: list[bool] = []
    with pytest.raises(RunFailedError, match="gone"):
        run(fit, cleanup=lambda: closed.append(True))
    assert closed == [True]


@pytest.mark.parametrize("error", [RunFailedError("enough"), KeyboardInterrupt()])
def test_a_run_is_stopped_where_this_thread_ends(error: BaseException):
    stopping, ended, closed = threading.Event(), [], []

    def fit() -> None:
        stopping.wait(30)
        ended.append(True)

    def poll() -> None:
        raise error

    with pytest.raises(type(error)):
        run(fit, poll, stop=stopping.set, cleanup=lambda: closed.append(True))
    assert ended == [True]
    assert bool(closed) == isinstance(error, Exception)  # after Ctrl-C the process ends, and all with it


def test_what_does_not_stop_is_left_with_what_it_uses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background, "_SECONDS_TO_STOP", 0.1)
    release, closed = threading.Event(), []
    with pytest.raises(NotGrantedError, match="never"):
        run(lambda: release.wait(30), wait=Refused(), stop=lambda: None, cleanup=lambda: closed.append(True))
    assert not closed
    release.set()


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_inside_rays_c_code_is_ctrl_c(signal: type[BaseException]):
    def poll() -> None:
        try:
            raise signal
        except BaseException as interruption:
            raise SystemError("returned a result with an exception set") from interruption

    stopped: list[bool] = []
    with pytest.raises(signal):
        run(lambda: None, poll, stop=lambda: stopped.append(True))
    assert stopped == [True]
    with pytest.raises(SystemError, match="another"):
        run(lambda: None, lambda: (_ for _ in ()).throw(SystemError("another")))
