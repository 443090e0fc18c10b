"""The service, with workers that do what the title of a document says (slow_worker.py)."""

from asgi_app import app
from web import file_workers

__all__ = ["app"]

file_workers.START = file_workers.START.replace("documents.worker", "slow_worker")
assert "slow_worker" in file_workers.START
