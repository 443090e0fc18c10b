"""The answers to refusals: one table gives each code its status, headers and members.

The OpenAPI document and the table of codes in the docs are held to it by tests.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from chat.refusals import Overloaded, Refusal
from runs.sse import MEDIA_TYPE, pause
from web.asgi import Response

log = logging.getLogger("draftstream")

PROBLEM = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """The answer to the refusals of one code (RFC 9457).

    `headers` and `members`: the names that every such answer has beside the common ones. `shown_as`: the code that the
    client sees, where two types of problem share it.
    """

    status: int
    headers: Sequence[str] = ()
    members: Sequence[str] = ()
    shown_as: str | None = None


PROBLEM_TYPES: Mapping[str, ProblemType] = {
    "bad_query": ProblemType(400),
    "connection_closed": ProblemType(400),
    "invalid_json": ProblemType(400),
    "malformed_host": ProblemType(400),
    "no_websockets": ProblemType(400),
    "two_credentials": ProblemType(400, ["www-authenticate"], shown_as="invalid_request"),  # as RFC 6750 calls it
    "unauthorized": ProblemType(401, ["www-authenticate"]),
    "bad_host": ProblemType(403),
    "bad_origin": ProblemType(403),
    "event_stream_only": ProblemType(403),
    "insufficient_scope": ProblemType(403, ["www-authenticate"], ["scope"]),
    "prefetch": ProblemType(403),
    "not_found": ProblemType(404),
    "method_not_allowed": ProblemType(405, ["allow"]),
    "slow_body": ProblemType(408, ["connection"]),  # closed, as the rest of the body may never come
    "thread_busy": ProblemType(409, ["retry-after"], ["run_id"]),
    "thread_exists": ProblemType(409),
    "body_too_large": ProblemType(413, ["connection"], ["limit"]),  # closed, as the rest of the body may never end
    "message_too_long": ProblemType(413, [], ["limit"]),
    "export_too_complex": ProblemType(413),
    "export_too_large": ProblemType(413),
    "not_json": ProblemType(415),
    "invalid_request": ProblemType(422, [], ["errors"]),
    "search_too_broad": ProblemType(422),
    "rate_limited": ProblemType(429, ["retry-after"], ["limit"]),
    "headers_too_large": ProblemType(431, [], ["limit"]),
    "internal": ProblemType(500),
    "overloaded": ProblemType(503, ["retry-after"]),
    "provider_unavailable": ProblemType(503, ["retry-after"]),
    "shutting_down": ProblemType(503, ["retry-after", "connection"]),
    "store_unavailable": ProblemType(503, ["retry-after"]),
    "storage_full": ProblemType(507, [], ["limit", "stored"]),
}


def refusal_of(error: Exception) -> Refusal:
    """The refusal itself. Any other error is logged, and hidden from the client: it is a fault of the service."""
    if isinstance(error, Refusal) and error.code in PROBLEM_TYPES:
        return error
    if isinstance(error, MemoryError):
        log.error("a request failed: no memory was left", exc_info=error)
        return Overloaded()
    log.error("a request failed by a fault of the service", exc_info=error)
    return Refusal("internal", "Something went wrong on our side; it has been logged.")


def shown_code(refusal: Refusal) -> str:
    return PROBLEM_TYPES[refusal.code].shown_as or refusal.code


async def send_problem(response: Response, refusal: Refusal) -> None:
    kind = PROBLEM_TYPES[refusal.code]
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(kind.status).phrase,
        "status": kind.status,
        "detail": refusal.detail,
        "code": shown_code(refusal),
    }
    await response.whole(kind.status, PROBLEM, orjson.dumps(problem | refusal.members), _headers(refusal).items())


async def send_pause(response: Response, refusal: Refusal) -> None:
    """A stream that makes an EventSource come back, in place of a refusal that would end it for good."""
    headers = _headers(refusal)
    body = pause(int(headers.pop("retry-after")))
    await response.whole(200, MEDIA_TYPE, body, headers.items())


def is_over_soon(refusal: Refusal) -> bool:
    """Whether the same request may succeed later, with nothing done about it."""
    return PROBLEM_TYPES[refusal.code].status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def _headers(refusal: Refusal) -> dict[str, str]:
    headers, kind = dict(refusal.headers), PROBLEM_TYPES[refusal.code]
    if "retry-after" in kind.headers:
        headers.setdefault(*retry_after())
    if "connection" in kind.headers:
        headers["connection"] = "close"
    return headers


def retry_after() -> tuple[str, str]:
    """Spread over a few seconds, so that clients refused together do not retry together."""
    return "retry-after", str(random.randint(1, 5))  # noqa: S311  # no secret
