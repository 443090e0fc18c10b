"""The handlers of the page, of the API's description and of the service's own state."""

from settings import VERSION
from web.asgi import JSON, Request, Response
from web.problems import retry_after
from web.service import Service


async def get_root(_: Service, __: Request, response: Response) -> None:
    await response.whole(302, "text/plain", b"/debug\n", [("location", "/debug")])


async def get_page(service: Service, _: Request, response: Response) -> None:
    headers = [
        ("content-security-policy", service.page_policy),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    ]
    await response.whole(200, "text/html; charset=utf-8", service.page, headers)


async def get_openapi(service: Service, _: Request, response: Response) -> None:
    await response.whole(200, JSON, service.openapi, [("cache-control", "no-cache")])


async def get_health(_: Service, __: Request, response: Response) -> None:
    await response.json(200, {"status": "ok", "version": VERSION})


async def get_readiness(service: Service, _: Request, response: Response) -> None:
    """Whether it can take chats; if not, why."""
    reasons = await service.readiness.reasons()
    status = "not ready" if reasons else "ready"
    headers = [retry_after()] if reasons else []
    await response.json(503 if reasons else 200, {"status": status, "reasons": reasons}, headers)


async def get_metrics(service: Service, request: Request, response: Response) -> None:
    content_type, body = service.telemetry.exposition(request.headers.get("accept", ""))
    await response.whole(200, content_type, body)
