"""The document at /openapi.json is true: it is held against the routes, the source, real answers, and by schemathesis."""

import ast
import copy
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import requests
import schemathesis
from conftest import ROOT, Service, product_files
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator, ValidationError
from openai_server import OpenAIServer, finish, text, tool, wait
from openai_server import status as http_error
from sse_client import Stream, chat, request
from test_access import NOWHERE, new_key, until

from chat import EndReason, RunStatus
from chat.refusals import InvalidRequest
from documents.markdown import Kind, Mark
from settings import VERSION, Scope
from web.fields import CHAT_FIELDS, FORK_FIELDS, MessageTooLong, chat_request
from web.problems import PROBLEM_TYPES
from web.routes import ROUTER, ROUTES
from web.routing import Route

Start = Callable[..., Service]
Json = dict[str, Any]

DOCUMENT: Json = json.loads((ROOT / "web/openapi.json").read_text())
DOCS = "".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
TESTS = Path(__file__).parent
METHODS = {"get", "post", "put", "patch", "delete"}


def operations(document: Json) -> dict[tuple[str, str], Json]:
    """By method and path."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    }


def closed(document: Json) -> Json:
    """The document without room for a member that it does not name. Clients should leave room; here nothing may be missed."""
    strict = copy.deepcopy(document)
    answers = [answer for operation in operations(strict).values() for answer in operation["responses"].values()]
    answers += strict["components"]["responses"].values()
    schemas = [content["schema"] for answer in answers for content in answer.get("content", {}).values()]
    # A problem is closed by the answer that says which one it is.
    schemas += [schema for name, schema in strict["components"]["schemas"].items() if name != "Problem"]
    for schema in schemas:
        if "properties" in schema:
            schema["unevaluatedProperties"] = False
    return strict


CLOSED = closed(DOCUMENT)


def resolve(node: Json) -> Json:
    if "$ref" not in node:
        return node
    found = CLOSED
    for name in node["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def validate(instance: object, schema: Json) -> None:
    """Raises ValidationError."""
    whole = {**schema, "components": CLOSED["components"]}
    Draft202012Validator(whole, validate_formats=True).validate(instance)


def validate_frame(frame: Json) -> None:
    validate(frame, {"$ref": "#/components/schemas/Frame"})
    validate(json.loads(frame["data"]), {"$ref": "#/components/schemas/Event"})


def validate_stream(stream: Stream) -> None:
    assert stream.status == 200, stream.problem
    for event_id, event in zip(stream.ids, stream.events, strict=True):
        validate_frame({"id": event_id, "data": json.dumps(event)})


# ---------------------------------------------------------------------------------------------------------------
# Against the source


def test_it_is_a_valid_document() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for name in DOCUMENT["components"]["schemas"]:
        Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": CLOSED["components"]})


def test_an_invalid_document_is_seen() -> None:
    broken = copy.deepcopy(DOCUMENT)
    broken["paths"]["/chat"]["get"]["answers"] = {}
    with pytest.raises(ValidationError):
        schemathesis.openapi.from_dict(broken).validate()


def test_it_has_every_route_and_no_other_and_says_who_may_call() -> None:
    def security(route: Route) -> list[Json]:
        if route.who == "anyone":
            return []
        scopes = [route.who] if route.who in get_args(Scope) else []
        return [{"bearer": scopes}, *([{"streamToken": scopes}] if route.stream else [])]

    routes = {(method, path): security(route) for path, methods in ROUTES.items() for method, route in methods.items()}
    assert {place: operation["security"] for place, operation in operations(DOCUMENT).items()} == routes


def test_it_has_the_version_of_the_service() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "settings.VERSION"}
    assert DOCUMENT["info"]["version"] == VERSION


def calls(*names: str) -> Iterator[list[object]]:
    """The arguments of each call of these in the source, as far as they are literal."""
    for module in product_files("*.py"):
        yield from literals(ast.parse(module.read_text()), *names)


def literals(source: ast.AST, *names: str) -> Iterator[list[object]]:
    for node in ast.walk(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]


UNHEARD = "connection_closed"  # there is no connection left to say it on
PROBLEMS = {code: kind for code, kind in PROBLEM_TYPES.items() if code != UNHEARD}


def documented_problems() -> Iterator[tuple[Json, int, set[str]]]:
    """The answers that are problems: each with its schema, its status and the codes that it may have."""
    for answer in DOCUMENT["components"]["responses"].values():
        for media_type, content in answer["content"].items():
            if media_type == "application/problem+json":
                members = content["schema"]["properties"]
                codes = members["code"].get("enum") or [members["code"]["const"]]
                yield answer, members["status"]["const"], set(codes)


def test_it_has_every_problem_of_the_table_and_no_other() -> None:
    documented = {(status, code) for _, status, codes in documented_problems() for code in codes}
    assert documented == {(kind.status, kind.shown_as or code) for code, kind in PROBLEMS.items()}


def test_a_problem_has_the_headers_and_members_of_the_table() -> None:
    for answer, status, codes in documented_problems():
        kinds = [kind for code, kind in PROBLEMS.items() if kind.status == status and (kind.shown_as or code) in codes]
        headers = {header for kind in kinds for header in kind.headers} - {"connection"}  # not of HTTP/2
        documented = {name.lower(): resolve(header) for name, header in answer.get("headers", {}).items()}
        assert headers <= documented.keys(), codes
        always = {name for name, header in documented.items() if header.get("required")}
        assert always <= set.intersection(*(set(kind.headers) for kind in kinds)), codes
        [content] = answer["content"].values()
        required = set(content["schema"].get("required", []))
        assert required == set.intersection(*(set(kind.members) for kind in kinds)), codes


def test_the_docs_have_every_problem_too() -> None:
    rows = re.findall(r"^\| ([45]\d\d(?:, [45]\d\d)*) \| (.+) \|$", DOCS, re.MULTILINE)
    told = {
        (int(status), code)
        for cell, text_of_row in rows
        for status in cell.split(", ")
        for code in re.findall(r"`(\w+)`", text_of_row)
    }
    assert {(kind.status, kind.shown_as or code) for code, kind in PROBLEMS.items()} - told == {(500, "internal")}
    assert {status for status, _ in told} == {kind.status for kind in PROBLEMS.values()} - {500}


def test_it_has_every_code_of_an_error_event_and_the_docs_too() -> None:
    codes = set(DOCUMENT["components"]["schemas"]["ErrorCode"]["enum"])
    listed = DOCS.partition("\n## Codes of an error event\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", listed, re.MULTILINE)) == codes
    assert {code for code, *_ in calls("ModelError", "RunFailure") if code} <= codes


def test_it_has_every_word_of_the_vocabulary() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert set(schemas["ChatRequest"]["properties"]) == set(CHAT_FIELDS)
    assert set(schemas["ForkRequest"]["properties"]) == set(FORK_FIELDS)
    assert schemas["RedlineMark"]["enum"] == list(get_args(Mark))
    assert schemas["RedlineBlock"]["properties"]["kind"]["enum"] == list(get_args(Kind))
    assert schemas["EndReason"]["enum"] == list(get_args(EndReason))
    assert schemas["Run"]["properties"]["status"]["enum"] == list(RunStatus)


def in_query(operation: Json) -> set[str]:
    return {name["name"] for name in map(resolve, operation.get("parameters", [])) if name["in"] == "query"}


def test_it_has_every_parameter_of_a_route_and_no_other() -> None:
    taken = {(method, path): {*route.query} for path, methods in ROUTES.items() for method, route in methods.items()}
    assert {place: in_query(operation) for place, operation in operations(DOCUMENT).items()} == taken


CHECKPOINT = "1f1e79fa-4dd3-66ff-8003-796a8d117922"
MESSAGE = st.text(min_size=1) | st.text("a \t\n\0\x0b\x1c\x85\xa0\u2028\ufeff", max_size=4)
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "thread_id": st.none() | st.text("aZ0._:@-/ \n", max_size=3),
    "checkpoint_id": st.sampled_from([None, CHECKPOINT, CHECKPOINT.upper(), CHECKPOINT[1:], ""]),
    "stream": st.sampled_from(["pieces", "items", "", None, [], 1]),
    "on_disconnect": st.sampled_from(["continue", "cancel", "", None, {}, False]),
    "title": st.text(max_size=3),
    "model": st.none() | st.text("a/:é\n ", max_size=3) | st.sampled_from(["m" * 200, "m" * 201]),
}
ODD = st.none() | st.booleans() | st.integers() | st.lists(st.text(max_size=3), max_size=2)


@given(
    st.fixed_dictionaries({"message": MESSAGE}, optional=FIELDS)
    | st.dictionaries(st.sampled_from(["message", *FIELDS]), ODD)
    | ODD
)
@example({"message": "a", "checkpoint_id": CHECKPOINT})
@example({"message": "a", "checkpoint_id": CHECKPOINT, "thread_id": "t"})
@example({"message": "😀" * 32_000})
@example({"message": "a" * 32_001})
def test_the_schema_of_a_request_takes_what_the_service_takes(fields: object) -> None:
    try:
        chat_request(fields, max_message_chars=32_000)
    except (InvalidRequest, MessageTooLong):
        taken = False
    else:
        taken = True
    schema = {"$ref": "#/components/schemas/ChatRequest", "components": DOCUMENT["components"]}
    assert Draft202012Validator(schema).is_valid(fields) is taken


# ---------------------------------------------------------------------------------------------------------------
# Its examples


def examples(node: object, where: str = "") -> Iterator[tuple[str, object, Json]]:
    """Each example in the document: where it stands, itself, and the schema beside it."""
    if isinstance(node, dict):
        if "schema" in node:
            schema = node["schema"]
            found = [node["example"]] if "example" in node else []
            found += [each["value"] for each in node.get("examples", {}).values()]
        else:
            schema, found = node, node.get("examples", [])
        if isinstance(found, list):
            yield from ((f"{where} {number}", each, schema) for number, each in enumerate(found))
        for name, child in node.items():
            if name not in ("example", "examples"):
                yield from examples(child, f"{where}/{name}")
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from examples(child, f"{where}/{number}")


@pytest.mark.parametrize(("shown", "schema"), [pytest.param(*rest, id=where) for where, *rest in examples(CLOSED)])
def test_an_example_is_of_its_schema(shown: Any, schema: Json) -> None:
    validate(shown, schema)
    if schema.get("$ref", "").endswith("/Frame"):
        validate_frame(shown)


def test_every_parameter_has_an_example_or_a_list_of_its_values() -> None:
    shared = [parameter for methods in DOCUMENT["paths"].values() for parameter in methods.get("parameters", [])]
    own = [parameter for operation in operations(DOCUMENT).values() for parameter in operation.get("parameters", [])]
    parameters = [resolve(parameter) for parameter in [*shared, *own]]
    assert [
        parameter["name"]
        for parameter in parameters
        if "example" not in parameter and not resolve(parameter["schema"]).keys() & {"examples", "enum"}
    ] == []


def test_every_kind_of_event_has_an_example() -> None:
    kinds = DOCUMENT["components"]["schemas"]["Event"]["discriminator"]["mapping"].values()
    assert [kind for kind in kinds if not resolve({"$ref": kind}).get("examples")] == []


def test_every_problem_and_every_json_answer_has_an_example() -> None:
    answers = [answer for operation in operations(DOCUMENT).values() for answer in operation["responses"].values()]
    contents = [
        content
        for answer in [*answers, *DOCUMENT["components"]["responses"].values()]
        for media_type, content in answer.get("content", {}).items()
        if media_type.endswith("json") and content["schema"] != {"type": "object"}  # this document
    ]
    assert [content for content in contents if "example" not in content] == []


# ---------------------------------------------------------------------------------------------------------------
# Real answers


def described(method: str, path: str, status: int) -> Json:
    """The document's description of such an answer."""
    path = path.partition("?")[0]
    found = ROUTER.find(path)
    operation = operations(CLOSED).get((method, found.path if found is not None else path))
    if operation is not None:
        return resolve(operation["responses"][str(status)])
    name = {404: "NotFound", 405: "MethodNotAllowed"}[status]
    return resolve({"$ref": f"#/components/responses/{name}"})


def held(running: Service, method: str, path: str, **more: Any) -> requests.Response:
    """Send it, and hold the answer to the document: its status, headers, media type and body."""
    answer = requests.request(method, running.url + path, timeout=20, allow_redirects=False, **more)
    expected = described(method, path, answer.status_code)
    for name, header in expected.get("headers", {}).items():
        told, schema = answer.headers.get(name), resolve(header)["schema"]
        if told is not None:
            validate(int(told) if schema.get("type") == "integer" else told, schema)
        else:
            assert not resolve(header).get("required"), (name, answer.headers)
    if "content" in expected:
        media_type = answer.headers["content-type"].partition(";")[0]
        content = answer.json() if media_type.endswith("json") else answer.text
        validate(content, expected["content"][media_type]["schema"])
    else:
        assert answer.content == b""
    return answer


def test_real_events_are_of_their_schemas(service: Start, openai: OpenAIServer) -> None:
    running = service(openai)
    openai.reply(
        text("Here "),
        text("it is."),
        tool("write_document", {"title": "NDA", "content": "1. Term"}, cut=3),
        finish("tool_calls"),
    )
    pieces = chat(running.url, "Draft an NDA", thread_id="t")
    items = chat(running.url, "Make it mutual", thread_id="t", stream="items")
    openai.reply(
        tool("write_document", {"title": "NDA", "content": "1. Term\n\n| a | b |\n|---|---|\n| c | |"}),
        finish("tool_calls"),
    )
    chat(running.url, "Add a table", thread_id="t")
    openai.reply(http_error(429, "rate_limit_exceeded", retry_after=60))
    openai.reply(http_error(401))
    failed = chat(running.url, "again")
    for stream in (pieces, items, failed):
        validate_stream(stream)
        validate_stream(request("GET", f"{running.url}/api/runs/{stream.run_id}/events"))
    kinds = {event["type"] for stream in (pieces, items, failed) for event in stream.events}
    assert kinds == set(DOCUMENT["components"]["schemas"]["Event"]["discriminator"]["mapping"])
    held(running, "GET", "/api/threads")
    held(running, "GET", "/api/threads/t")
    held(running, "GET", "/api/threads/t/checkpoints")
    for query in ("", "?format=json", "?document=d1", "?format=json&document=d1&version=1"):
        held(running, "GET", f"/api/threads/t/export{query}")
    for form in ("json", "html", "docx"):
        assert held(running, "GET", f"/api/threads/t/documents/d1/diff?format={form}").status_code == 200
    for status in (201, 409):
        assert held(running, "POST", "/api/threads/t/fork", json={"thread_id": "f"}).status_code == status
    held(running, "GET", f"/api/threads/{failed.events[0]['thread_id']}")
    until(lambda: bool(held(running, "GET", "/api/threads?q=here").json()["threads"]))  # the search has heard of it
    held(running, "PATCH", "/api/threads/t", json={"title": "NDA"})
    assert held(running, "DELETE", "/api/threads/t").status_code == 204


def test_a_run_in_progress_is_of_its_schema(service: Start, openai: OpenAIServer) -> None:
    running, gate = service(openai), threading.Event()
    openai.reply(text("Here "), wait(gate), finish())
    with requests.post(
        f"{running.url}/api/chat", json={"message": "Hi", "thread_id": "t"}, stream=True, timeout=20
    ) as answer:
        run = answer.headers["location"].removesuffix("/events")
        lines = answer.iter_lines()
        assert next(lines) == b"retry: 2000"
        assert held(running, "GET", "/api/threads/t").json()["runs"][0]["status"] == "running"
        assert held(running, "POST", "/api/chat", json={"message": "Hi", "thread_id": "t"}).status_code == 409
        assert held(running, "POST", "/api/threads/t/fork", json={}).status_code == 409
        assert held(running, "DELETE", "/api/threads/t").status_code == 409
        assert held(running, "POST", f"{run}/cancel").status_code == 202
        assert b'"cancelled"' in b"".join(lines)
    gate.set()


JSON_TYPE = {"Content-Type": "application/json"}
REQUESTS: list[tuple[int, str, str, Json]] = [
    (400, "GET", "/chat?message=%ff", {}),
    (400, "GET", "/chat?message=a&message=b", {}),
    (403, "GET", "/chat?message=a", {"headers": {"Sec-Purpose": "prefetch"}}),
    (403, "GET", "/chat?message=a", {"headers": {"Origin": "https://elsewhere.example"}}),
    (204, "GET", "/chat?message=a", {"headers": {"Last-Event-ID": f"{NOWHERE}:3"}}),
    (422, "GET", "/chat?message=", {}),
    (400, "POST", "/api/chat", {"data": "{", "headers": JSON_TYPE}),
    (413, "POST", "/api/chat", {"json": {"message": "a" * 32_001}}),
    (413, "POST", "/api/chat", {"json": {"message": "a" * 2**20}}),
    (415, "POST", "/api/chat", {"data": "{}"}),
    (422, "POST", "/api/chat", {"json": {"message": 1, "colour": "red"}}),
    (404, "GET", f"/api/runs/{NOWHERE}/events", {}),
    (422, "GET", f"/api/runs/{NOWHERE}/events?colour=red", {}),
    (404, "POST", f"/api/runs/{NOWHERE}/cancel", {}),
    (422, "GET", "/api/threads?limit=0", {}),
    (400, "GET", "/api/threads?limit=%ff", {}),
    (404, "GET", "/api/threads/unknown", {}),
    (404, "GET", "/api/threads/unknown/checkpoints", {}),
    (404, "GET", "/api/threads/unknown/export", {}),
    (422, "GET", "/api/threads/unknown/export?format=pdf", {}),
    (404, "POST", "/api/threads/unknown/fork", {"json": {}}),
    (422, "POST", "/api/threads/unknown/fork", {"json": {"title": "a"}}),
    (404, "GET", "/api/threads/unknown/documents/d1/diff", {}),
    (400, "GET", "/api/threads/unknown/documents/d1/diff?from=%ff", {}),
    (422, "GET", "/api/threads/unknown/documents/d1/diff?format=pdf", {}),
    (404, "DELETE", "/api/threads/unknown", {}),
    (404, "PATCH", "/api/threads/unknown", {"json": {"title": "a"}}),
    (422, "PATCH", "/api/threads/unknown", {"json": {"title": "\x01"}}),
    (200, "DELETE", "/api/threads?before=2026-11-24T09:30:00Z", {}),
    (422, "DELETE", "/api/threads?before=then", {}),
    (401, "GET", "/api/threads/unknown", {"headers": {"Authorization": "Bearer no"}}),
    (201, "POST", "/api/stream-tokens", {}),
    (404, "GET", "/nowhere", {}),
    (405, "DELETE", "/chat", {}),
    (431, "GET", "/healthz", {"headers": {f"X-{number}": "a" * 8_000 for number in range(9)}}),
    (302, "GET", "/", {}),
    *((200, "GET", path, {}) for path in ("/debug", "/openapi.json", "/healthz", "/readyz", "/metrics")),
    (200, "GET", "/metrics", {"headers": {"Accept": "application/openmetrics-text"}}),
]


def test_answers_are_as_documented(service: Start) -> None:
    running = service()
    for status, method, path, more in REQUESTS:
        assert held(running, method, path, **more).status_code == status, (method, path)


def test_refusals_for_want_of_a_scope_or_of_room_are_as_documented(
    service: Start, openai: OpenAIServer, database_url: str
) -> None:
    running, gate = service(openai, MAX_RUNS="1", REQUESTS_PER_MINUTE="4"), threading.Event()
    keys = {scope: new_key(database_url, "a", [scope]).headers for scope in get_args(Scope)}
    assert held(running, "GET", "/api/threads", headers=keys["chat"]).status_code == 403
    assert held(running, "POST", "/api/chat", json={}, headers=keys["read"]).status_code == 403
    openai.reply(text("Here "), wait(gate), finish())
    with requests.post(
        f"{running.url}/api/chat", json={"message": "Hi"}, stream=True, timeout=20, headers=keys["chat"]
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines) == b"retry: 2000"
        assert held(running, "GET", "/readyz").status_code == 503
        other = new_key(database_url, "b").headers
        assert held(running, "POST", "/api/chat", json={"message": "Hi"}, headers=other).status_code == 503
        gate.set()
        assert b'"end"' in b"".join(lines)
    assert chat(running.url, "Hi", headers=keys["chat"]).status == 200
    assert held(running, "POST", "/api/chat", json={"message": "Hi"}, headers=keys["chat"]).status_code == 429


# ---------------------------------------------------------------------------------------------------------------
# schemathesis


def test_schemathesis_finds_no_500_and_no_undocumented_answer(
    service: Start, openai: OpenAIServer, database_url: str, tmp_path: Path
) -> None:
    running = service(openai)  # whose model answers at once
    key = new_key(database_url, "fuzz")
    url = f"{running.url}/openapi.json"
    assert requests.get(url, timeout=20).content == (ROOT / "web/openapi.json").read_bytes()
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--no-color",
        "--config-file",
        str(TESTS / "schemathesis.toml"),
    ]
    finished = subprocess.run(
        [*command, "run", url, "--header", f"Authorization: Bearer {key.key}"],
        cwd=tmp_path,  # where it keeps its findings
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    but_itself = len(operations(DOCUMENT)) - 1
    assert f"{but_itself} selected / {but_itself} total" in finished.stdout, finished.stdout
