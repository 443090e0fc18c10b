"""Cross-origin requests: the service's own pages may call it, and those of the origins in CORS_ALLOW_ORIGINS."""

from collections.abc import Collection, Sequence

from web.asgi import Headers, Request

EXPOSED = "Location, Content-Disposition, Retry-After, WWW-Authenticate, RateLimit, RateLimit-Policy"
ALLOWED = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
PREFLIGHT_S = 600


def allows(origins: Collection[str], request: Request) -> bool:
    """Whether the page that sent this may use the service. Clients that are not browsers send no origin.

    A foreign page that has to be allowed says its origin. Without one it is an image, a link or the like, for which no
    origin is allowed, not even by "*".
    """
    if request.foreign_origin is None:
        return True
    origin = request.headers.get("origin")
    return origin is not None and ("*" in origins or origin in origins)


def headers(origins: Collection[str], request: Request) -> Headers:
    """Of every answer."""
    if not origins:
        return []
    vary = ("vary", "Origin")
    if "origin" not in request.headers or not allows(origins, request):
        return [vary]
    allowed = ("access-control-allow-origin", request.headers["origin"])
    return [vary, allowed, ("access-control-expose-headers", EXPOSED)]


def preflight(origins: Collection[str], request: Request, methods: Sequence[str]) -> Headers:
    """Of the answer to an OPTIONS."""
    if "access-control-request-method" not in request.headers or not allows(origins, request):
        return []
    return [
        ("access-control-allow-methods", ", ".join(methods)),
        ("access-control-allow-headers", ALLOWED),
        ("access-control-max-age", str(PREFLIGHT_S)),
    ]
