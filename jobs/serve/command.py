"""`python -m jobs serve`: answer requests with the keyphrases of their texts."""

from typing import Annotated

import typer

from jobs.console import command, echo
from jobs.serve import options


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
    max_texts: options.MaxTextsOption = None,
    max_characters: options.MaxCharactersOption = None,
    max_body: options.MaxBodyOption = None,
    max_requests: options.MaxRequestsOption = None,
    max_queue: options.MaxQueueOption = None,
    batch_tokens: options.BatchTokensOption = None,
    batch_wait: options.BatchWaitOption = None,
    deadline: options.DeadlineOption = None,
    access_log: options.AccessLogOption = False,
) -> None:
    """Serve a bundle over HTTP: POST /v1/extract answers with the keyphrases of texts. A page for people is at /.

    SIGTERM answers what was accepted, then ends. SIGHUP, or POST /v1/reload with a token, takes in a new bundle.
    """
    from model.serving.settings import Listen, make_settings, require_packages

    require_packages()
    from model.serving.server import serve as run_embedded

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
        batch_tokens=batch_tokens,
        batch_wait=batch_wait,
        deadline=deadline,
    )
    listen = Listen(host, port, tls_cert, tls_key)
    run_embedded(settings, listen, echo)
