"""The service with a bug: BREAKS says whether its start or its shutdown raises."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

import asgi_app
from asgi_app import app, open_service
from settings import Settings
from web.service import Service


@asynccontextmanager
async def broken(settings: Settings, server: uvicorn.Server | None) -> AsyncIterator[Service]:
    async with open_service(settings, server) as service:
        if os.environ["BREAKS"] == "start":
            raise KeyError
        yield service
        raise KeyError


vars(asgi_app)["open_service"] = broken
__all__ = ["app"]
