"""The page at /debug, and its Content-Security-Policy."""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("index.html")


@dataclass(frozen=True, slots=True)
class Page:
    html: bytes
    policy: str


def read_page() -> Page:
    html = FILE.read_text("utf-8")
    return Page(html.encode(), policy_of(html))


def policy_of(html: str) -> str:
    """Allows the page's own script and style, by their hashes, and nothing else."""
    return (
        f"default-src 'none'; script-src {_hashes(html, 'script')}; style-src {_hashes(html, 'style')}; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
