"""A caller, and the refusals of credentials."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from chat.refusals import Refusal
from settings import SCOPES, Scope
from store import Row

Fetch = Callable[..., Awaitable[Sequence[Row]]]
"""Runs one statement, within a second. Raises StoreUnavailable."""

NOBODYS = ""  # the `begun_by` of no run


class Unauthorized(Refusal):
    """`sent`: there was a credential, but it is not valid. The answer does not say why."""

    def __init__(self, detail: str | None = None, *, sent: bool = True) -> None:
        super().__init__(
            "unauthorized",
            detail
            or "This needs a valid API key or token: Authorization: Bearer … The operator of the service issues keys.",
            [challenge(error="invalid_token") if sent else challenge()],
        )


class NoKeyNeeded(Unauthorized):
    """The service is open, and the request has a credential that it does not know.

    An SDK sends a key even where none is set, and an EventSource a token.
    """

    def __init__(self) -> None:
        super().__init__(
            "This service is open: it needs neither a key nor a token, and does not know the one that was sent. Send "
            "the request without an Authorization header and without an access_token."
        )


class TwoCredentials(Refusal):
    """The request has two credentials, which may be two callers'."""

    def __init__(self) -> None:
        detail = "The request has both an Authorization header and an access_token; send one of them."
        super().__init__("two_credentials", detail, [challenge(error="invalid_request")])


class Forbidden(Refusal):
    """The caller lacks `scope`."""

    def __init__(self, scope: Scope) -> None:
        header = challenge(error="insufficient_scope", scope=scope)
        super().__init__(
            "insufficient_scope",
            f"This needs the scope {scope}; ask the operator for a key that has it.",
            [header],
            scope=scope,
        )


def challenge(**parameters: str) -> tuple[str, str]:
    """The WWW-Authenticate header (RFC 6750, section 3)."""
    named = {"realm": "draftstream", **parameters}
    return "www-authenticate", "Bearer " + ", ".join(f'{name}="{value}"' for name, value in named.items())


@dataclass(frozen=True, slots=True)
class StreamToken:
    """The stream token of a request.

    `resumes`: the run that it has begun to read before, which it may go on with. `stream`: the number of this stream
    among those of the token; 0 where it is to open its first.
    """

    hash: bytes = field(repr=False)
    resumes: str | None = None
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a request's threads, and the scopes of its credential."""

    owner: str
    scopes: frozenset[str]
    expires_at: float | None = None  # of the key or the JWT, by this machine's clock
    key_id: str | None = None
    # The runs that the caller begins have this as `begun_by`: the id of an API key, or "jwt:" and the client of a JWT.
    credential: str | None = None
    stream_token: StreamToken | None = None

    def has(self, scope: Scope) -> bool:
        """`admin` includes all scopes, on its owner's data."""
        return scope in self.scopes or "admin" in self.scopes

    def need(self, scope: Scope) -> None:
        """Raises Forbidden."""
        if not self.has(scope):
            raise Forbidden(scope)

    @property
    def reads_runs_of(self) -> str | None:
        """The `begun_by` of the runs that this caller may read; None: it may read all runs of its owner.

        A caller without `read` reads the answers to its own messages, and nothing that was said before.
        """
        return None if self.has("read") else self.credential or NOBODYS


ANONYMOUS = Caller("anonymous", frozenset(SCOPES))
