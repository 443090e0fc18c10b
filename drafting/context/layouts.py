"""The layouts of the threads that were used last, so that a turn computes only its own messages."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from langchain_core.messages import AnyMessage

from chat import Document
from drafting.context.layout import Layout

AT_HAND = 32  # a layout refers to texts of the thread's state, up to the model's context
MESSAGES_A_STEP = 10  # about 3 ms for versions of 60 KB; then the event loop serves others


class Layouts:
    """Makes each layout anew where it has none that the history begins with; the result is the same.

    A thread has one for each model that it is sent to: each has a context, and a prefix cache, of its own. `windows`:
    the tokens that each model takes, by its name.
    """

    def __init__(self, windows: Mapping[str, int], fixed: int) -> None:
        self._windows = windows
        self._fixed = fixed
        self._at_hand: OrderedDict[tuple[str, str], Layout] = OrderedDict()

    async def layout(
        self, thread: str, model: str, messages: Sequence[AnyMessage], documents: Sequence[Document]
    ) -> Layout:
        layout = self._at_hand.pop((thread, model), None)
        if layout is None or not layout.precedes(messages):
            layout = Layout(model, self._windows[model], self._fixed)
        while layout.take(messages, documents, MESSAGES_A_STEP):  # noqa: ASYNC110  # it waits for nothing
            await asyncio.sleep(0)
        self._at_hand[thread, model] = layout
        if len(self._at_hand) > AT_HAND:
            self._at_hand.popitem(last=False)
        return layout

    def forget(self, thread: str, model: str) -> None:
        self._at_hand.pop((thread, model), None)
