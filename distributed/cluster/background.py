"""Ray Train and Ray Tune in a background thread, polled by the main thread, which stays free for Ctrl-C."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from distributed.cluster.wait import ResourceWait

_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 15.0
_SECONDS_TO_TERMINATE = 2.0  # a kill often follows SIGTERM soon: `ray job stop` sends it after 3 s
T = TypeVar("T")


def run_in_background(
    fit: Callable[[], T],
    poll: Callable[[], None],
    wait: ResourceWait,
    *,
    stop: Callable[[], None] | None = None,
    cleanup: Callable[[], None] | None = None,
) -> T:
    """Run a function in a thread and return its result.

    Args:
        fit: the function.
        poll: called in this thread every 0.2 s, and once after the end; an error that it raises stops the run.
        wait: polled as well.
        stop: called when Ctrl-C, SIGTERM or an error of `poll` stops the run, which then has 15 s to end (after SIGTERM 2 s).
        cleanup: called when the run has ended; not after Ctrl-C or SIGTERM, since the process then ends too.

    Raises:
        NotGrantedError: the cluster did not grant the resources in time. Errors of `fit` and `poll` are passed on.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(fit())
        except Exception as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="ray", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            poll()
            wait.poll()
        poll()  # the run may have ended since
    except BaseException as caught:
        error = _interruption(caught)
        if stop:
            stop()
            thread.join(
                _SECONDS_TO_STOP if isinstance(error, (KeyboardInterrupt, Exception)) else _SECONDS_TO_TERMINATE
            )
        if cleanup and isinstance(error, Exception) and not thread.is_alive():
            cleanup()
        raise error from error.__cause__
    if cleanup:
        cleanup()
    return outcome.result()


def _interruption(error: BaseException) -> BaseException:
    """Return the Ctrl-C or SIGTERM that reached Ray inside its C code, which raises a SystemError because of it."""
    cause = error.__cause__
    return cause if isinstance(error, SystemError) and cause and not isinstance(cause, Exception) else error
