"""The embedded server: the application in this process, run by uvicorn, without Ray.

SIGTERM and Ctrl-C end it when the requests that were accepted are answered; SIGHUP reads tokens and bundle again.
"""

import asyncio
import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from model.errors import UserError
from model.serving.app import build_app
from model.serving.service import Service
from model.serving.settings import Listen, ServeSettings

_KEEP_ALIVE_S = 75
_GRACE_S = 1.0
_BACKLOG = 1024


def serve(settings: ServeSettings, listen: Listen, echo: Callable[[str], None]) -> None:
    """Answer requests until a signal comes, which is raised again at the end.

    Raises:
        UserError: the bundle, the tokens, the address or the TLS files cannot be used.
        RunFailedError: the process of the bundle ends at once.
        OSError: the bundle cannot be read.
    """
    listen.check(settings.token_file is not None)
    log_to_stderr()
    early_hangup = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: early_hangup.set())  # which would end the process while it loads
    service = Service(settings)
    with bound_socket(listen) as bound:
        service.load()
        server = _Server(_config(service, listen), service, early_hangup)
        url = listen.url(bound.getsockname()[1])
        echo(f"{settings.bundle} is served at {url}; end with Ctrl-C")
        server.run(sockets=[bound])


class _Server(uvicorn.Server):
    """uvicorn, which tells the service of signals."""

    def __init__(self, config: uvicorn.Config, service: Service, early_hangup: threading.Event) -> None:
        super().__init__(config)
        self._service, self._early_hangup = service, early_hangup
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        if self._early_hangup.is_set():  # the bundle that was loaded may be older
            self._on_hangup()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests, and stop a moment later: a client that sends one now gets an answer, no broken connection."""
        again, self._service.draining = self._service.draining, True
        if again or self._loop is None:
            super().handle_exit(sig, frame)
            if self.force_exit:  # the requests that are dropped now would be logged as errors, with tracebacks
                logging.getLogger("uvicorn.error").disabled = True
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, _GRACE_S, self._stop, sig, frame)

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the requests that were accepted; a second signal has done so already where it came before this."""
        if not self.should_exit:
            super().handle_exit(sig, frame)

    def _on_hangup(self) -> None:
        task = asyncio.create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        with suppress(UserError):  # which is logged
            await self._service.reload()


def _config(service: Service, listen: Listen) -> uvicorn.Config:
    config = uvicorn.Config(
        build_app(service),
        log_config=None,
        access_log=False,  # it would hold query strings
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(service.settings.deadline) + 1,
        backlog=_BACKLOG,
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise UserError(
            f"--tls-cert, --tls-key: cannot be used ({error}); give a certificate and its key in PEM"
        ) from None
    return config


def bound_socket(listen: Listen) -> socket.socket:
    """Return a socket that has its address but does not listen yet. Raises UserError where the address is not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except UnicodeError:  # a part of it is empty or too long
        raise UserError(f"--host {listen.host}: is no name or address of a machine; choose another --host") from None
    except OSError as error:
        remedy = "choose another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "choose another --host"
        reason = error.strerror or str(error)
        raise UserError(f"--host {listen.host} --port {listen.port}: cannot be used ({reason}); {remedy}") from None
    return bound


def log_to_stderr() -> None:
    """Write the log of the server, and warnings of uvicorn, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("tandem.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
