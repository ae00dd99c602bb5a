"""The life of a Ray Serve application that a command started: it ends with the command."""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed.cluster.address import cluster_address, require_gpu_of_ray
from distributed.cluster.connection import connect
from distributed.cluster.preflight import check_shared
from distributed.cluster.resources import ClusterResources
from distributed.serve.deployment import APPLICATION, Replicas, make_application, reload_replicas
from model.errors import RunFailedError, UserError, first_line
from model.inference.bundle import load_bundle
from model.serving.server import bound_socket
from model.serving.settings import Listen, ServeSettings
from model.serving.tokens import Tokens

_RELOAD_S = 120  # for POST /v1/reload: each replica starts a process


def serve_replicas(settings: ServeSettings, listen: Listen, replicas: Replicas, echo: Callable[[str], None]) -> None:
    """Serve with replicas until a signal raises an exception here; SIGHUP makes all of them read tokens and bundle again.

    Raises:
        UserError: the bundle, the tokens, the address or the resources cannot be used.
        RunFailedError: Ray Serve does not start.
    """
    with hangups() as hangup:
        _serve(settings, listen, replicas, echo, hangup)


@contextmanager
def hangups() -> Iterator[threading.Event]:
    """Set an event at SIGHUP, which would end the process otherwise, also while it still starts."""
    hangup = threading.Event()
    before = signal.signal(signal.SIGHUP, lambda *_: hangup.set())
    try:
        yield hangup
    finally:
        signal.signal(signal.SIGHUP, before)


def _serve(
    settings: ServeSettings, listen: Listen, replicas: Replicas, echo: Callable[[str], None], hangup: threading.Event
) -> None:
    listen.check(settings.token_file is not None)
    require_gpu_of_ray(settings.device)
    load_bundle(settings.bundle)
    if settings.token_file is not None:
        Tokens(settings.token_file)
    if listen.port == 0:
        raise UserError("--port 0: Ray Serve needs a port of your choice")
    bound_socket(listen).close()  # an address that is not to be had is told at once
    cluster = connect()
    if cluster_address():
        check_shared(settings.bundle, cluster, "the bundle")
    _require_room(replicas, cluster)
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _start(listen, settings)
    try:
        try:
            serve.run(make_application(settings, replicas), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise RunFailedError(
                f"Ray Serve does not start the application: {error}; see its logs on the nodes"
            ) from None
        wait_for_signals(settings.bundle, listen, replicas, echo, hangup)
    finally:
        serve.delete(APPLICATION)
        if cluster_address():  # a Ray of this machine alone ends with this process
            serve.shutdown()


def _start(listen: Listen, settings: ServeSettings) -> None:
    """Start the proxies, which listen; nothing of a request is logged. Raises UserError where the cluster has some already."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    if serve.status().proxies:
        raise UserError(
            "Ray Serve runs on this cluster already, with an address of its own; add the bundle to it with "
            "`serve deploy docs/deploy/serve.yaml`, or stop it with `serve shutdown`"
        )
    options = HTTPOptions(
        host=listen.host,
        port=listen.port,
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.key,
        request_timeout_s=settings.deadline + _RELOAD_S,  # the application itself answers with 504 at the deadline
    )
    try:
        serve.start(http_options=options, logging_config={"enable_access_log": False})
    except (RayError, TimeoutError) as error:
        reason = first_line(error)
        raise RunFailedError(f"the proxies of Ray Serve do not start: {reason}; try again, or another --port") from None


def _require_room(replicas: Replicas, cluster: ClusterResources) -> None:
    """Raise UserError where the cluster can never hold the fewest replicas: Ray Serve would wait for ever."""
    slots = cluster.maximum.worker_slots(max(1, int(replicas.cpus)), replicas.gpus)
    if slots < replicas.fewest:
        request = f"{replicas.fewest} x ({replicas.cpus:g} CPU{f', {replicas.gpus:g} GPU' if replicas.gpus else ''})"
        raise UserError(
            f"--replicas {replicas.fewest}: {request} does not fit, the cluster has {cluster.describe_count('CPU')} and "
            f"{cluster.describe_count('GPU')}; lower --replicas, or join a larger cluster with RAY_ADDRESS"
        )


def wait_for_signals(
    bundle: str, listen: Listen, replicas: Replicas, echo: Callable[[str], None], hangup: threading.Event
) -> None:
    """Reload whenever the event of SIGHUP is set; SIGTERM and Ctrl-C raise an exception."""
    number = f"{replicas.fewest}" if replicas.fewest == replicas.most else f"{replicas.fewest} to {replicas.most}"
    echo(f"{bundle} is served at {listen.url(listen.port)} by {number} replica(s) of Ray Serve; end with Ctrl-C")
    while True:
        if hangup.wait(0.2):
            hangup.clear()
            try:
                asyncio.run(reload_replicas())
                echo("the bundle was taken in again")
            except UserError as error:
                echo(f"the bundle or the tokens were not taken in, the old ones stay: {error}")
            except RunFailedError as error:
                echo(str(error))
