"""Bearer tokens: read from a file, kept as digests, compared in constant time."""

import hmac
import re
from hashlib import sha256
from pathlib import Path

from model.errors import UserError

MIN_LENGTH = 16
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # b64token of RFC 6750


class Tokens:
    """The tokens of a file. The tokens themselves are not kept, so that no dump or log can contain them."""

    def __init__(self, path: str) -> None:
        """Read the file. Raises UserError where it is missing, empty or holds what cannot be a token."""
        self._digests = [sha256(token.encode()).digest() for token in read_tokens(path)]

    def __len__(self) -> int:
        return len(self._digests)

    def accept(self, authorization: bytes) -> bool:
        """Return whether an `Authorization` header has one of the tokens.

        Digests of equal length are compared, each to its end and all of them, so that the time says nothing about a token.
        """
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest, accepted = sha256(token.strip()).digest(), False
        for known in self._digests:
            accepted |= hmac.compare_digest(known, digest)
        return accepted


def read_tokens(path: str) -> list[str]:
    """Return the tokens of a file: one a line, without blank lines and lines that begin with #.

    Raises:
        UserError: the file is missing or empty, or a line cannot be a token; the message does not contain it.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--token-file {path}: cannot be read ({reason}); write one token a line into it") from None
    tokens = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        check_token(line, f"--token-file {path}:{number}")
        tokens.append(line)
    if not tokens:
        raise UserError(f"--token-file {path}: has no token; make one with `openssl rand -hex 32`")
    return tokens


def check_token(token: str, place: str) -> None:
    """Raise UserError where a text cannot be a token; the message names its place and does not contain it."""
    if len(token) < MIN_LENGTH or not _TOKEN.fullmatch(token):
        raise UserError(
            f"{place}: a token is one line of at least {MIN_LENGTH} letters, digits or -._~+/; make one with "
            f"`openssl rand -hex 32`"
        )
