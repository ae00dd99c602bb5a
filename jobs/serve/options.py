"""The flags of `serve`."""

from typing import Annotated

import typer

HostOption = Annotated[
    str, typer.Option(help="Address to listen at; another than this machine's own needs --token-file.")
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 chooses a free one.")]
TokenFileOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="File with a bearer token a line; SIGHUP reads it again.")
]
TlsCertOption = Annotated[str | None, typer.Option(metavar="FILE", help="Certificate chain in PEM, for HTTPS.")]
TlsKeyOption = Annotated[str | None, typer.Option(metavar="FILE", help="Private key of --tls-cert in PEM.")]
CorsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ORIGIN", help="Let pages of this origin use the server; may be repeated."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
ReplicasOption = Annotated[
    str | None,
    typer.Option(metavar="N|MIN-MAX", help="Processes on Ray Serve; MIN-MAX scales between them. Default: no Ray."),
]
GpusOption = Annotated[float, typer.Option(min=0, help="With --replicas: GPUs of each; 0.25 lets four share one.")]
AccessLogOption = Annotated[bool, typer.Option("--access-log", help="Log a line a request, without texts.")]
MaxTextsOption = Annotated[int | None, typer.Option(help="Most texts of a request (1000).")]
MaxCharactersOption = Annotated[int | None, typer.Option(help="Most characters of a text (20000).")]
MaxBodyOption = Annotated[int | None, typer.Option(metavar="BYTES", help="Largest body of a request (4194304).")]
MaxRequestsOption = Annotated[int | None, typer.Option(help="Requests worked on at a time (96).")]
MaxQueueOption = Annotated[int | None, typer.Option(metavar="TEXTS", help="Texts that may wait for a batch (4000).")]
MaxWaitOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Take no request while those that wait will take longer (2).")
]
BatchTokensOption = Annotated[int | None, typer.Option(help="About the most tokens of a batch (16384).")]
BatchWaitOption = Annotated[
    float | None, typer.Option(metavar="MS", help="How long the model waits for more texts at most (10).")
]
DeadlineOption = Annotated[float | None, typer.Option(metavar="SECONDS", help="Longest time to a result (10).")]
