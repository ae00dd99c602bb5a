"""`python -m jobs serve`: answer requests with the keyphrases of their texts."""

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import command, echo
from jobs.serve import options
from model.errors import UserError

if TYPE_CHECKING:
    from model.serving.settings import Listen, ServeSettings


@command
def serve(
    bundle: Annotated[str, typer.Argument(help="Bundle of a finished run: a path or URI.")],
    host: options.HostOption = "127.0.0.1",
    port: options.PortOption = 8000,
    token_file: options.TokenFileOption = None,
    tls_cert: options.TlsCertOption = None,
    tls_key: options.TlsKeyOption = None,
    cors_origin: options.CorsOption = None,
    device: options.DeviceOption = "cpu",
    replicas: options.ReplicasOption = None,
    gpus_per_replica: options.GpusOption = 0.0,
    max_texts: options.MaxTextsOption = None,
    max_characters: options.MaxCharactersOption = None,
    max_body: options.MaxBodyOption = None,
    max_requests: options.MaxRequestsOption = None,
    max_queue: options.MaxQueueOption = None,
    max_wait: options.MaxWaitOption = None,
    batch_tokens: options.BatchTokensOption = None,
    batch_wait: options.BatchWaitOption = None,
    deadline: options.DeadlineOption = None,
    access_log: options.AccessLogOption = False,
) -> None:
    """Serve a bundle over HTTP: POST /v1/extract answers with the keyphrases of texts. A page for people is at /.

    SIGTERM answers what was accepted, then ends. SIGHUP, or POST /v1/reload with a token, takes in a new bundle.
    """
    from model.inference.bundle_location import require_bundle
    from model.serving.settings import Listen, make_settings, require_packages

    require_packages()
    settings = make_settings(
        bundle=bundle,
        device=device,
        token_file=token_file,
        cors_origins=tuple(cors_origin or ()),
        access_log=access_log,
        max_texts=max_texts,
        max_characters=max_characters,
        max_body=max_body,
        max_requests=max_requests,
        max_queue=max_queue,
        max_wait=max_wait,
        batch_tokens=batch_tokens,
        batch_wait=batch_wait,
        deadline=deadline,
    )
    require_bundle(bundle)
    listen = Listen(host, port, tls_cert, tls_key)
    if replicas is None and gpus_per_replica:
        raise UserError("--gpus-per-replica: is for --replicas; without replicas, --device cuda is enough")
    if replicas is None:
        from model.serving.server import serve as serve_here

        serve_here(settings, listen, echo)
    else:
        _serve_replicas(settings, listen, replicas, gpus_per_replica)


def _serve_replicas(settings: "ServeSettings", listen: "Listen", number: str, gpus: float) -> None:
    from model.serving.settings import require_packages

    require_packages("grpc_reflection")  # which Ray has with its own extra alone
    from distributed.serve.deployment import Replicas
    from distributed.serve.run import serve_replicas

    fewest, most = _replica_range(number)
    if settings.device == "cuda" and not gpus:
        gpus = 1.0
    serve_replicas(settings, listen, Replicas(fewest, most, gpus=gpus), echo)


def _replica_range(number: str) -> tuple[int, int]:
    """Return N of `N` twice, or MIN and MAX of `MIN-MAX`. Raises UserError."""
    fewest, _, most = number.partition("-")
    if not fewest.isdecimal() or not (most or fewest).isdecimal() or not 1 <= int(fewest) <= int(most or fewest):
        raise UserError(f"--replicas {number}: is no number of replicas; write for example 2, or 1-4 to scale")
    return int(fewest), int(most or fewest)
