"""The two objects that handlers work with: the service's parts, and one call."""

from collections.abc import Mapping
from dataclasses import dataclass

from access.callers import Access
from access.credentials import Caller
from access.per_owner import PerOwner
from runs.registry import Runs
from settings import Settings
from store import Store
from telemetry.metrics import Telemetry
from threads.histories import Threads
from threads.retention import Retention
from web.admission import Admission
from web.asgi import Request, Response
from web.file_workers import FileWorkers
from web.page import Page
from web.prefix import Proxies
from web.readiness import Readiness


@dataclass(frozen=True, slots=True)
class Service:
    """The open parts. The ASGI lifespan state carries it to each request."""

    settings: Settings
    store: Store
    runs: Runs
    access: Access
    per_owner: PerOwner
    admission: Admission
    telemetry: Telemetry
    readiness: Readiness
    retention: Retention
    files: FileWorkers
    page: Page
    openapi: bytes
    trusted_proxies: Proxies


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose route is found and whose caller is authenticated. `ids`: from its path, by name."""

    service: Service
    request: Request
    response: Response
    ids: Mapping[str, str]
    caller: Caller

    @property
    def owner(self) -> str:
        return self.caller.owner

    @property
    def thread_id(self) -> str:
        return self.ids["thread_id"]

    @property
    def threads(self) -> Threads:
        return Threads(self.service.store, self.owner)

    def location(self, path: str) -> tuple[str, str]:
        """The header for a path of the service, as the client addresses it."""
        return "location", self.request.prefix + path

    async def json(self) -> object:
        """Raises as Request.json does."""
        return await self.request.json(self.service.settings.max_body_bytes)
