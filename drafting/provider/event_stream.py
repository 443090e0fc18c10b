"""The events in a body of Server-Sent Events, read as the HTML specification says (section 9.2.6). Pure.

Two things go beyond it. A line that the specification ignores is given out too, as some providers send an error that
way. And an event whose empty line is missing at the end of the body counts, as many providers leave that line out.
"""

from collections.abc import Sequence

BOM = b"\xef\xbb\xbf"
DATA = b"data: "
AFTER_DATA = slice(len(DATA), None)

Event = tuple[bytes | None, bytes]
"""The event's name, b"" if it has none, and its data. Or None and a line that is no field of an event."""


class EventReader:
    """Feed it with the bytes of a body, however they are cut."""

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a line whose end has not arrived
        self._data: list[bytes] = []  # the data lines of the event that has begun
        self._name = b""
        self._begun = False
        self._after_cr = False  # an LF that comes next belongs to it

    @property
    def idle(self) -> bool:
        """The bytes so far end with a whole event."""
        return self._begun and not (self._rest or self._data or self._name or self._after_cr)

    @property
    def data_lines(self) -> Sequence[bytes]:
        """Those of the event that has begun."""
        return self._data

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete, in order."""
        if self._after_cr or b"\r" in data or not self._begun:
            data = self._plain(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[Event] = []
        for line in lines:
            if line.startswith(DATA):
                self._data.append(line[AFTER_DATA])
            elif line:
                self._field(line, events)
            elif self._data:
                events.append(self.end_event())
            else:
                self._name = b""
        return events

    def close(self) -> list[Event]:
        """The body is at its end: the rest of it."""
        events = self.feed(b"\n" if self._rest else b"")
        if self._data:
            events.append(self.end_event())
        return events

    def end_event(self) -> tuple[bytes, bytes]:
        """The event that has begun, as it stands."""
        event = (self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
        self._data.clear()
        self._name = b""
        return event

    def _field(self, line: bytes, events: list[Event]) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif name not in (b"", b"id", b"retry"):  # "" is a comment
            events.append((None, line))

    def _plain(self, data: bytes) -> bytes:
        """The same with LF for each end of a line, and without the byte order mark."""
        if not self._begun:
            data, self._rest = self._rest + data, b""
            if len(data) < len(BOM) and BOM.startswith(data):
                self._rest = data
                return b""
            self._begun = True
            data = data.removeprefix(BOM)
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
