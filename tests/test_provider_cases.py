"""Replies of real providers, rebuilt from public reports and thought out beside them, played on a running service."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from case_provider import Case, CaseProvider
from conftest import Service
from provider_neighbours import NEIGHBOURS
from provider_reports import REPORTS
from provider_threads import THREADS
from sse_client import Stream, chat

PUBLISHED = json.loads((Path(__file__).parent / "provider_cases/published.json").read_text())
EVERY = [*map(Case.from_json, PUBLISHED), *NEIGHBOURS, *THREADS, *(case for _, case in REPORTS)]
# Providers that refuse `stream_options` need a setting.
WITHOUT_OPTIONS = [case for case in EVERY if case.strict == "nostreamopts"]
CASES = [case for case in EVERY if case not in WITHOUT_OPTIONS]
AT_ONCE = 12
Start = Callable[..., Service]


def seen(stream: Stream, service: Service, expected: Mapping[str, Any]) -> dict[str, Any]:
    """What became of a message, as far as the case has expectations of it."""
    last = stream.last
    found: dict[str, Any] = {
        "end": last.get("reason"),
        "error": last.get("code"),
        "retryable": last.get("retryable"),
        "text": stream.text,
        "docs": {item["title"]: item["content"] for item in stream.items.values() if item["type"] == "doc"},
        "versions": [item["title"] for item in stream.items.values() if item["type"] == "doc"],
        "says": expected["says"] if "says" in expected and expected["says"] in last.get("content", "") else None,
        "usage": last.get("usage"),
    }
    if last["type"] == "end":
        assert last["saved"] is True
    if "complete" in expected:
        found["complete"] = is_complete(service, stream.events[0]["thread_id"])
    return {name: found[name] for name in expected}


def is_complete(service: Service, thread_id: str) -> bool:
    """Whether the history has the thread's last message as a complete one. A failed run is stored behind its event."""
    deadline = time.monotonic() + 10
    while True:
        history = requests.get(f"{service.url}/api/threads/{thread_id}", timeout=10).json()
        last = history["messages"][-1] if history.get("messages") else {"role": None}
        if last["role"] == "assistant":
            return bool(last["complete"])
        assert time.monotonic() < deadline, history
        time.sleep(0.05)


def play(case: Case, service: Service) -> list[str]:
    """The differences between the expected and the seen."""
    wrong = []
    for number, (message, expected) in enumerate(zip(case.messages, case.expect, strict=True)):
        stream = chat(service.url, f"[{case.name}] {message}", thread_id=f"case-{case.name}")
        found = seen(stream, service, expected)
        if found != expected:
            wrong.append(f"{case.name}, message {number}: {expected} was due, {found} came; {stream.last}")
    return wrong


def differences(cases: Sequence[Case], service: Start, **settings: str) -> list[str]:
    with CaseProvider(cases) as provider, ThreadPoolExecutor(AT_ONCE) as players:
        running = service(
            OPENAI_BASE_URL=provider.base_url,
            OPENAI_API_KEY="sk-test",
            OPENAI_MODEL="m",
            MODEL_IDLE_TIMEOUT_S="4",
            MODEL_FIRST_TOKEN_TIMEOUT_S="8",
            **settings,
        )
        return [line for lines in players.map(lambda case: play(case, running), cases) for line in lines]


def test_each_case_ends_as_it_should(service: Start) -> None:
    wrong = differences(CASES, service)
    assert not wrong, "\n".join(wrong)
    assert len(PUBLISHED) == 38
    assert len(NEIGHBOURS) >= 40
    assert len(REPORTS) >= 80


def test_a_finished_reply_waits_for_no_connection(service: Start) -> None:
    """A few cases alone, as each of them costs a time-out if it fails."""
    silent = [case for case in CASES if case.name in ("silence-behind-the-end", "heartbeats-behind-the-end")]
    assert len(silent) == 2
    assert not differences(silent, service)


def test_a_provider_that_refuses_stream_options_gets_none(service: Start) -> None:
    assert WITHOUT_OPTIONS
    assert not differences(WITHOUT_OPTIONS, service, MODEL_STREAM_OPTIONS="0")
