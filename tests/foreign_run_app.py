"""The service with another wait for the end of another process's run: FOREIGN_RUN_WAIT_S seconds."""

import os

from asgi_app import app
from runs import registry

__all__ = ["app"]

registry.FOREIGN_RUN_WAIT_S = float(os.environ["FOREIGN_RUN_WAIT_S"])
