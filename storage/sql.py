"""A statement as a value, and a write: a statement with the row of its arguments.

Each statement has a row of its own, a NamedTuple with one field for each `$n`. Calling the statement makes a write of
it, so that mypy checks the arguments: `DELETE_PIECES(run_id)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, ParamSpec

import asyncpg

P = ParamSpec("P")

Row = asyncpg.Record
"""A row that was read; its values by the names of its columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Statement(Generic[P]):
    """SQL that writes, and that is idempotent: sent twice, it has been done once.

    `name` stands in the journal and in dead letters, which outlive this version of the code: never give it to another
    statement. `batchable`: writes of different threads commute, so the writer may send them together with others of
    this statement, past the statements of other threads.
    """

    name: str
    row_type: Callable[P, NamedTuple]
    sql: str
    batchable: bool = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> "Write":
        return Write(self, self.row_type(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<Statement {self.name}>"


class Write(NamedTuple):
    statement: Statement[...]
    row: NamedTuple

    @property
    def named(self) -> tuple[str, dict[str, object]]:
        """The statement's name and the row by fields: a form that does not depend on SQL or on the order of columns."""
        return self.statement.name, self.row._asdict()
