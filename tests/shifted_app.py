"""The service on a machine whose clock is wrong by the seconds in the file SHIFT, which may change while it runs."""

import datetime as dt
import os
import sys
import time
from pathlib import Path
from typing import Self

SHIFT = Path(os.environ["SHIFT"])
right_time, right_time_ns = time.time, time.time_ns


def shift_s() -> float:
    return float(SHIFT.read_text())


class ShiftedDatetime(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(time.time(), tz)


time.time = lambda: right_time() + shift_s()
time.time_ns = lambda: right_time_ns() + int(1e9 * shift_s())

from access.limits import Limits  # noqa: E402
from asgi_app import app  # noqa: E402

if Limits.__init__.__kwdefaults__ is not None:  # it was imported before, with the right clock as its default
    Limits.__init__.__kwdefaults__["clock"] = time.time

__all__ = ["app"]

for module in list(sys.modules.values()):
    names = [name for name, value in vars(module).items() if value is dt.datetime]
    if module is not dt and getattr(module, "__file__", None) and module.__name__ != __name__:
        for name in names:
            setattr(module, name, ShiftedDatetime)
