"""The page for people at `/`: one file, and a policy that lets it run its own script and talk to its own server alone."""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path


@cache
def read_page() -> tuple[bytes, str]:
    """Return the page and its Content-Security-Policy."""
    content = (Path(__file__).parent / "page.html").read_bytes()
    script, style = (_hash_of(tag, content) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy


def _hash_of(tag: bytes, content: bytes) -> str:
    [inside] = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), content, re.DOTALL)
    return f"sha256-{b64encode(sha256(inside).digest()).decode()}"
