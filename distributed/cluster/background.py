"""Ray Train and Ray Tune in a thread, beside a thread that watches over them and stays free for Ctrl-C."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from distributed.cluster.wait import ResourceWait

_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 15.0
_SECONDS_TO_TERMINATE = 2.0  # who sends SIGTERM often kills soon after: `ray job stop` after 3 s
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
        fit: what to run; what it raises is raised here.
        poll: called in this thread every fifth of a second, and once after the end; what it raises stops the run.
        wait: polled too: it raises NotGrantedError where the cluster does not grant the resources in time.
        stop: called when the run is to be stopped, by Ctrl-C or by an error of `poll`; the run then has a moment to end.
        cleanup: called when the run has ended; not after Ctrl-C or SIGTERM, where this process ends with all that it has.
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
    except BaseException as error:
        if stop:
            stop()
            thread.join(
                _SECONDS_TO_STOP if isinstance(error, (KeyboardInterrupt, Exception)) else _SECONDS_TO_TERMINATE
            )
        if cleanup and isinstance(error, Exception) and not thread.is_alive():
            cleanup()
        raise
    if cleanup:
        cleanup()
    return outcome.result()
