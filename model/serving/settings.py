"""What a server is told: its bundle, its limits and who may use it. It imports nothing of the extra `serve`."""

import importlib.util
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from model.errors import UserError

OPEN_PATHS = ("/", "/healthz", "/readyz")  # need no token
TOKEN_VARIABLE = "TANDEM_TOKEN"  # the environment variable that clients take their token from
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")  # as browsers send it

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeSettings(BaseModel):
    """The settings of a server, which are also the arguments of the Ray Serve application.

    Attributes:
        bundle: path or URI of the bundle.
        device: `cpu`, `cuda` or `cuda:N`.
        token_file: path of a file with one bearer token a line; None lets everybody in.
        cors_origins: origins whose pages may use the server from a browser.
        any_host: whether the `Host` header may name anything; else, without tokens, only this machine.
        max_body: bytes of a request.
        max_texts: of a request.
        max_characters: of a text.
        max_requests: requests that are worked on at a time; more are answered with 429.
        max_queue: texts that wait for a batch; a request that finds no room is answered with 429.
        max_wait: while those that wait will take more seconds, others are answered with 429.
        batch_tokens: about the most tokens of a batch.
        batch_wait: how long the model waits for more texts at most, in milliseconds.
        deadline: the most seconds from a request's first byte to its result; then it is answered with 504.
        access_log: whether to log a line for each request, without texts and query strings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    device: str = "cpu"
    token_file: str | None = None
    cors_origins: tuple[str, ...] = ()
    any_host: bool = False
    max_body: PositiveInt = 4 * 2**20
    max_texts: PositiveInt = 1000
    max_characters: PositiveInt = 20_000
    max_requests: PositiveInt = 96
    max_queue: PositiveInt = 4000
    max_wait: Seconds = 2.0
    batch_tokens: PositiveInt = 16_384
    batch_wait: Annotated[float, Field(ge=0, le=1000)] = 10.0
    deadline: Seconds = 10.0
    access_log: bool = False

    @model_validator(mode="after")
    def _check_queue(self) -> "ServeSettings":
        if self.max_queue < self.max_texts:
            raise ValueError(
                f"max_queue is {self.max_queue} and has no room for a request of max_texts {self.max_texts}"
            )
        return self

    @model_validator(mode="after")
    def _check_origins(self) -> "ServeSettings":
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"--cors-origin {origin}: no page has this origin; write its scheme, host and port in lower case and "
                    f"nothing behind them, for example https://app.example"
                )
        return self

    def limits(self) -> dict[str, int | float]:
        """Return what a client has to know to stay within the limits."""
        names = ("max_body", "max_texts", "max_characters", "deadline")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Listen:
    """Where a server listens.

    Attributes:
        host: an address or a name of this machine.
        port: 0 chooses a free one.
        certificate, key: files of TLS, in PEM; None for plain HTTP.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: str | None = None
    key: str | None = None

    def url(self, port: int) -> str:
        """Return the address for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{port}"

    def check(self, with_tokens: bool) -> None:
        """Raise UserError where everybody on the network would be let in, or TLS lacks a file."""
        if not is_loopback(self.host) and not with_tokens:
            raise UserError(
                f"--host {self.host}: everybody who reaches it could use the server; name a file of tokens with "
                "--token-file, or leave --host out"
            )
        if (self.certificate is None) != (self.key is None):
            raise UserError("--tls-cert and --tls-key go together; give both, or neither")
        for flag, path in (("--tls-cert", self.certificate), ("--tls-key", self.key)):
            if path is not None and not Path(path).is_file():
                raise UserError(f"{flag} {path}: no such file")


def make_settings(**given: object) -> ServeSettings:
    """Return settings; what is None keeps its default. Raises UserError where a value is not allowed."""
    try:
        return ServeSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: " if first["loc"] else ""
        raise UserError(f"{flag}{first['msg'].removeprefix('Value error, ')}; see `serve --help`") from None


def require_packages(*more: str) -> None:
    """Raise UserError where a package of the extra `serve` is not installed; `more` are needed besides."""
    missing = [name for name in (*_PACKAGES, *more) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"serving needs {', '.join(missing)}; install with `pip install 'tandem-keyphrases[serve]'`, or in a clone with "
            f"`pip install '.[serve]'`"
        )


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False
