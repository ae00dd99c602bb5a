"""Shared by all commands: errors and exit codes, the result line, and progress.

stdout carries results, stderr everything else. Exit codes: 0 done, 1 failed run, 2 the user's mistake, 130 Ctrl-C,
143 SIGTERM.
"""

import errno
import io
import json
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from typing import NoReturn, ParamSpec, TextIO

import typer

from model.errors import NotGrantedError, RunFailedError, StorageError, UserError

_PYTHON = os.path.relpath(sys.executable)
SECONDS_PER_LINE = 20  # between lines of progress where there is no terminal
FAILED, MISTAKE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
# Errors that the user has to resolve, not the program.
_USERS_ERRNO = {
    errno.ENOSPC,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EDQUOT,
}


P = ParamSpec("P")


class Terminated(BaseException):
    """SIGTERM arrived."""


def invocation(*arguments: str) -> str:
    """Return the line that runs a command from here, to be pasted into a shell."""
    return shlex.join(["python" if _PYTHON.startswith("..") else _PYTHON, "-m", "jobs", *arguments])


def open_closed_streams() -> None:
    """Open what is closed of stdin, stdout and stderr, as by `2>&-`, as empty.

    Python has None in its place, and files that are opened later would get its number, to which libraries still write.
    """
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w"))


def write_utf8() -> None:
    """Make stdout and stderr UTF-8 whatever the locale: results are the same on every machine.

    Half of a surrogate pair, as JSON may contain, is written as an escape, which is JSON again.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def keep_warnings() -> None:
    """Show warnings that PYTHONWARNINGS or -W would make errors: those of Ray and other libraries would end a command."""
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")


def echo(text: str) -> None:
    """Print a line for the user, to stderr; where its reader, such as head, has ended, the command goes on without."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what is written to a stream go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(result: Mapping[str, object]) -> None:
    """Print a result as one line, the last of stdout."""
    print(json.dumps(result, ensure_ascii=False), flush=True)


def print_result(text: str, result: Mapping[str, object], json: bool) -> None:
    """Print a result to stdout: as text, or with --json as `print_json` does, which leaves the text to stderr."""
    if json:
        echo(text)
        print_json(result)
    else:
        print(text, flush=True)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that an error ends it with one clear message and the right exit code."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        if sys.flags.optimize > 1:
            _stop("error: PYTHONOPTIMIZE=2 removes docstrings, which Ray reads; unset it, or set it to 1", MISTAKE)
        signal.signal(signal.SIGTERM, _terminate)
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except UserError as error:
            _stop(f"error: {error}", MISTAKE)
        except RunFailedError as error:
            _stop(f"error: {error}", FAILED)
        except BrokenPipeError:  # the reader of stdout, such as head, has ended
            _discard(sys.stdout)
            raise typer.Exit(0) from None
        except StorageError as error:
            echo(f"error: {error}")
            leave(FAILED)
        except OSError as error:
            if error.errno in _USERS_ERRNO:
                _stop(f"error: {error}; make room or choose another place", MISTAKE)
            _stop(f"error: {error}", FAILED)  # a disk or a server that fails
        except (KeyboardInterrupt, Terminated) as stop:
            echo("interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated")
            leave(exit_code(stop))

    return guarded


def _terminate(*_: object) -> None:
    raise Terminated


def exit_code(stop: BaseException) -> int:
    """Return the exit code of Ctrl-C or SIGTERM."""
    return INTERRUPTED if isinstance(stop, KeyboardInterrupt) else TERMINATED


def leave(code: int) -> NoReturn:
    """End this process at once, while a thread of it still uses Ray, or waits for storage that does not answer.

    Ray ends a process with code 1 that calls it after a shutdown. Ray's own processes end with this one. Clients of storage
    would hold the end of the process for minutes.
    """
    with suppress(OSError):  # where its reader has ended
        sys.stdout.flush()
    os._exit(code)


@contextmanager
def using_ray(on_stop: Callable[[], None], remedy: str = "") -> Iterator[None]:
    """Shut Ray down at the end.

    Args:
        on_stop: called on Ctrl-C or SIGTERM, to say how to go on; then this process ends.
        remedy: added to the message where the cluster does not grant the resources.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        on_stop()
        leave(exit_code(stop))
    except NotGrantedError as error:  # Ray still waits
        echo(f"error: {error}{remedy}")
        leave(FAILED)
    finally:
        import ray

        ray.shutdown()


def _stop(message: str, code: int) -> None:
    echo(message)
    raise typer.Exit(code) from None


def format_duration(seconds: float) -> str:
    """Format seconds as `1:05` or `2:03:00`."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(metrics: Mapping[str, float]) -> str:
    """Return the metrics of both heads as lines."""
    lines = ["            F1      95 % interval     precision  recall  exact match"]
    for head in ("keyphrase", "keyword"):
        get = {
            name: metrics[f"{head}_{name}"]
            for name in ("f1", "f1_low", "f1_high", "precision", "recall", "exact_match")
        }
        lines.append(
            f"{head:<10}  {get['f1']:.4f}  {get['f1_low']:.4f} to {get['f1_high']:.4f}  {get['precision']:.4f}     "
            f"{get['recall']:.4f}  {get['exact_match']:.4f}"
        )
    return "\n".join(lines)


@contextmanager
def progress_counter(what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that reports the number of items done: live on a terminal, else as a line every 20 s."""
    began = shown = time.monotonic()
    live = sys.stderr.isatty()

    def report(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > (0.5 if live else SECONDS_PER_LINE):
            shown = now
            line = f"{done:,} {what}  {done / (now - began):,.0f}/s"
            if live:  # what is left of a longer line is erased
                print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
            else:
                echo(line)

    try:
        yield report
    finally:  # an error begins on a line of its own
        if live and shown > began:
            print(file=sys.stderr)
