"""The handlers of the page, of the OpenAPI document and of the service's own state."""

import hmac

from access.credentials import challenge
from chat.refusals import Refusal
from settings import VERSION
from web.asgi import JSON
from web.problems import retry_after
from web.service import Call

SERVER_AT_ROOT = b'"servers": [{"url": "/"}]'  # in the OpenAPI document


async def get_root(call: Call) -> None:
    location = call.location("/debug")
    await call.response.whole(302, "text/plain", f"{location[1]}\n".encode(), [location])


async def get_page(call: Call) -> None:
    headers = [
        ("content-security-policy", call.service.page.policy),
        ("referrer-policy", "same-origin"),  # see boundary: how its EventSource is known over plain http
        ("cache-control", "no-cache"),
    ]
    await call.response.whole(200, "text/html; charset=utf-8", call.service.page.html, headers)


async def get_openapi(call: Call) -> None:
    document, prefix = call.service.openapi, call.request.prefix
    if prefix:  # its own URL as the server's, ".", is read in several ways by tools
        document = document.replace(SERVER_AT_ROOT, SERVER_AT_ROOT.replace(b"/", prefix.encode()), 1)
    await call.response.whole(200, JSON, document, [("cache-control", "no-cache")])


async def get_health(call: Call) -> None:
    await call.response.json(200, {"status": "ok", "version": VERSION})


async def get_readiness(call: Call) -> None:
    """503 with the reasons, unless the service can take chats."""
    reasons = await call.service.readiness.reasons()
    status = "not ready" if reasons else "ready"
    headers = [retry_after()] if reasons else []
    await call.response.json(503 if reasons else 200, {"status": status, "reasons": reasons}, headers)


async def get_metrics(call: Call) -> None:
    """Raises Refusal (unauthorized)."""
    token, authorization = call.service.settings.metrics_token, call.request.headers.get("authorization")
    if token is not None and not _has_token(authorization or "", token):
        detail = "This needs the service's METRICS_TOKEN: Authorization: Bearer …"
        raise Refusal("unauthorized", detail, [challenge(error="invalid_token") if authorization else challenge()])
    content_type, body = call.service.telemetry.exposition(call.request.headers.get("accept", ""))
    await call.response.whole(200, content_type, body)


def _has_token(authorization: str, token: str) -> bool:
    scheme, _, sent = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(sent.strip().encode(), token.encode())
