"""The sub-path below which clients find the service, as at https://www.example.com/draft/.

The page has relative URLs and needs none of this. A `Location` and the server of the OpenAPI document are absolute
paths, so they begin with the sub-path. That is the `root_path` of the server (`uvicorn --root-path /draft`), or else
the `X-Forwarded-Prefix` of a proxy that uvicorn trusts (`--forwarded-allow-ips`, by default this machine).

A client can send the header, too, and a proxy may pass it on. So a prefix is taken only in a form that can't lead to
another host, and it stands in no answer that a cache keeps.
"""

import re
from asyncio import Transport
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

FORM = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]{1,64}){1,8}")
"""Segments of plain characters: no empty one, which would make `//host`, none of dots, and nothing percent-encoded."""


class Proxies(Protocol):
    """Addresses. None: the other end of a socket of this machine."""

    def __contains__(self, address: str | None, /) -> bool: ...


def trusted_proxies(server: uvicorn.Server | None) -> Proxies:
    """The addresses of which uvicorn believes X-Forwarded-For and -Proto. None of another server is known."""
    if server is None or not server.config.proxy_headers:
        return ()
    return ProxyHeadersMiddleware(server.config.loaded_app, server.config.forwarded_allow_ips).trusted_hosts


def prefix_of(scope: Mapping[str, Any], forwarded: str | None, transport: Transport | None, trusted: Proxies) -> str:
    """The sub-path of a request, without a slash at its end; "" if there is none. `forwarded`: its X-Forwarded-Prefix.

    The transport has the address of the proxy, which uvicorn has replaced in the scope by that of the client.
    """
    if scope.get("root_path"):
        return quote(scope["root_path"].rstrip("/"))
    prefix = (forwarded or "").removesuffix("/")
    if transport is None or not FORM.fullmatch(prefix):
        return ""
    peer = transport.get_extra_info("peername")
    address = str(peer[0]) if isinstance(peer, tuple) else None  # None: a proxy at a socket of this machine
    return prefix if address in trusted else ""


def path_below(scope: Mapping[str, Any]) -> str:
    """The path without the root_path, which ASGI puts before it."""
    root, path = scope.get("root_path", ""), scope["path"]
    below: str = path.removeprefix(root)
    return below or "/" if below[:1] in ("", "/") else path
