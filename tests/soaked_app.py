"""The counted service with small caches, so that a soak of a minute or two reaches the plateau of its memory.

By default an ended run stays for a minute, and the states of threads may fill 32 MB: that takes longer than a soak.
"""

from counted_app import app

from runs import lingering
from threads import checkpointer

lingering.LINGER_S = 3.0
checkpointer.BYTES_AT_HAND = 256 * 1024

__all__ = ["app"]
