"""Each refusal has its answer: a status, headers and members, as one table says."""

import ast
import json
import logging
from collections.abc import Iterator, MutableMapping
from http import HTTPStatus
from typing import Any

import pytest
from conftest import product_files

from access.credentials import Forbidden, TwoCredentials, Unauthorized
from chat import Conflict
from chat.refusals import InvalidRequest, LimitExceeded, Refusal, ThreadBusy
from store import StoreUnavailable
from web.asgi import Response
from web.problems import PROBLEM_TYPES, refusal_of, send_problem

pytestmark = pytest.mark.anyio


async def answer(refusal: Refusal) -> tuple[int, dict[str, str], dict[str, Any]]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await send_problem(Response(send), refusal)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(headers) == len(start["headers"])
    return start["status"], headers, json.loads(body["body"])


def derived(tree: ast.AST, known: set[str]) -> Iterator[ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(
            isinstance(base, ast.Name) and base.id in known for base in node.bases
        ):
            yield node


def raised() -> Iterator[tuple[str, set[str | None]]]:
    """Codes and members in the source: of each `Refusal(…)`, and where a class derived from it calls its `__init__`."""
    trees = [ast.parse(path.read_text()) for path in product_files("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Refusal"]
    for tree in trees:
        for subclass in derived(tree, {"Refusal"}):
            inside = [node for node in ast.walk(subclass) if isinstance(node, ast.Call)]
            named += [call for call in inside if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__"]
    for call in named:
        if call.args:
            [code, *_] = call.args
            assert isinstance(code, ast.Constant), "a code must be a literal"
            yield str(code.value), {keyword.arg for keyword in call.keywords}


def test_the_table_has_every_code_that_is_raised_and_no_other() -> None:
    assert {code for code, _ in raised()} == set(PROBLEM_TYPES)


def test_a_refusal_is_raised_with_the_members_of_its_code() -> None:
    of_a_run = {"retryable"}  # of a refusal that can end a run, too
    assert [code for code, members in raised() if members - of_a_run != {*PROBLEM_TYPES[code].members}] == []


@pytest.mark.parametrize("code", PROBLEM_TYPES)
async def test_a_refusal_is_answered_as_the_table_says(code: str) -> None:
    kind = PROBLEM_TYPES[code]
    members = dict.fromkeys(kind.members, "x")
    status, headers, problem = await answer(
        Refusal(code, "why", [("allow", "GET"), ("www-authenticate", "y")], **members)
    )
    assert status == kind.status
    assert set(kind.headers) <= headers.keys()
    common = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": "why"}
    assert problem == common | {"code": kind.shown_as or code} | members
    assert headers.get("connection", "close") == "close"
    assert 1 <= int(headers.get("retry-after", "1")) <= 5


@pytest.mark.parametrize("code", ["slow_body", "body_too_large", "shutting_down"])
async def test_the_connection_is_closed_where_a_body_may_never_end_or_the_service_ends(code: str) -> None:
    _, headers, _ = await answer(Refusal(code, "why"))
    assert headers["connection"] == "close"


REFUSALS = [
    Unauthorized(),
    Unauthorized(sent=False),
    TwoCredentials(),
    Forbidden("read"),
    LimitExceeded("runs", "too many", 7),
    InvalidRequest([{"pointer": "/a", "detail": "is wrong"}]),
    ThreadBusy("r"),
    StoreUnavailable("a reason that is not for the client"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.code)
async def test_a_refusal_brings_the_headers_and_members_of_its_code(refusal: Refusal) -> None:
    kind = PROBLEM_TYPES[refusal.code]
    _, headers, problem = await answer(refusal)
    assert set(kind.headers) <= headers.keys()
    assert set(kind.members) == problem.keys() - {"type", "title", "status", "detail", "code"}
    assert "not for the client" not in str(problem)
    assert dict(refusal.headers).items() <= headers.items()


@pytest.mark.parametrize("error", [KeyError("secret"), Conflict(), Refusal("no_such_code", "secret")])
async def test_any_other_error_is_logged_and_says_nothing(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status, _, problem = await answer(refusal_of(error))
    assert (status, problem["code"]) == (500, "internal")
    assert "secret" not in str(problem)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error
