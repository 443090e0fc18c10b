"""The metrics and the line of a run: of the object alone, and of a real service that it is wired into."""

import json
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import requests
from conftest import Service
from fault_proxy import FaultProxy
from openai_server import OpenAIServer, finish, status, text, tool, wait
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from sse_client import chat, request
from test_access import until

from chat import RunStatus
from settings import Settings, SettingsError
from telemetry.metrics import RunReport, Telemetry

TRACE = "0af7651916cd43dd8448eb211c80319c"
CANARY = "canary-in-what-was-said"


def report(**changes: Any) -> RunReport:
    fields: dict[str, Any] = {
        "run_id": "r",
        "thread_id": "t",
        "owner": "o",
        "status": RunStatus.COMPLETED,
        "reason": "stop",
        "cause": None,
        "model": "m",
        "seconds": 2.34567,
        "first_token_s": 0.5,
        "input_tokens": 11,
        "output_tokens": 7,
        "saved": True,
        "journaled": None,
        "trace_id": None,
    }
    return RunReport(**(fields | changes))


def samples(exposition: str) -> dict[str, float]:
    """Each sample by its name with its labels, as `name{label=value}`."""
    found = {}
    for family in parse(exposition):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def read(telemetry: Telemetry) -> dict[str, float]:
    return samples(telemetry.exposition("")[1].decode())


def test_what_is_reported_is_counted() -> None:
    telemetry, other = Telemetry("1.2.3"), Telemetry("1.2.3")
    telemetry.run_started(0.004)
    telemetry.run_ended(report())
    telemetry.run_ended(report(status=RunStatus.FAILED, reason="model_auth", input_tokens=None, output_tokens=None))
    telemetry.run_ended(report(saved=False))
    telemetry.refused("thread_busy")
    telemetry.committed(0.002)
    found = read(telemetry)
    expected = {
        "draftstream_build_info{version=1.2.3}": 1,
        "draftstream_runs_started_total": 1,
        "draftstream_time_to_first_event_seconds_bucket{le=0.0025}": 0,
        "draftstream_time_to_first_event_seconds_bucket{le=0.005}": 1,
        "draftstream_time_to_first_token_seconds_count": 3,
        "draftstream_runs_total{reason=stop,status=completed}": 2,
        "draftstream_runs_total{reason=model_auth,status=failed}": 1,
        "draftstream_runs_unsaved_total": 1,
        "draftstream_run_duration_seconds_count{status=completed}": 2,
        "draftstream_model_tokens_total{type=input}": 22,
        "draftstream_model_tokens_total{type=output}": 14,
        "draftstream_refusals_total{code=thread_busy}": 1,
        "draftstream_commit_duration_seconds_count": 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert read(other)["draftstream_runs_started_total"] == 0, "two services have nothing in common"


def test_gauges_are_read_when_asked_for() -> None:
    telemetry = Telemetry("1.2.3")
    queue: list[int] = []
    telemetry.watch(
        ready=lambda: not queue,
        runs=lambda: 3,
        streams=lambda: 2,
        queued_units=lambda: len(queue),
        oldest_unit_s=lambda: 1.5 if queue else 0.0,
    )
    assert read(telemetry)["draftstream_write_queue_units"] == 0
    queue.append(1)
    found = read(telemetry)
    assert found["draftstream_ready"] == 0
    assert found["draftstream_write_queue_units"] == 1
    assert found["draftstream_write_queue_age_seconds"] == 1.5
    assert found["draftstream_runs_in_progress"] == 3
    assert found["draftstream_open_streams"] == 2


def test_both_formats_are_well_formed_and_names_by_the_conventions() -> None:
    telemetry = Telemetry("1.2.3")
    telemetry.run_ended(report())
    content_type, body = telemetry.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    families = list(parse_openmetrics(body.decode()))  # type: ignore[no-untyped-call]  # it has no annotations
    assert telemetry.exposition("")[0].startswith("text/plain")
    for family in families:
        assert family.documentation
        if family.name.startswith("draftstream_"):
            assert family.type in ("counter", "gauge", "histogram")
            if family.type == "histogram":
                assert family.name.endswith("_seconds")
            assert {label for sample in family.samples for label in sample.labels} <= {
                "status",
                "reason",
                "type",
                "le",
                "version",
                "path",
            }
    assert "process_resident_memory_bytes" in {family.name for family in families}


def test_a_run_is_one_line_of_ids_and_figures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "draftstream.run")
    Telemetry("1.2.3").run_ended(report(trace_id=TRACE))
    [record] = caplog.records
    assert record.__dict__["fields"] == {
        "run_id": "r",
        "thread_id": "t",
        "owner": "o",
        "status": RunStatus.COMPLETED,
        "reason": "stop",
        "cause": None,
        "model": "m",
        "seconds": 2.346,
        "first_token_s": 0.5,
        "input_tokens": 11,
        "output_tokens": 7,
        "saved": True,
        "journaled": None,
        "trace_id": TRACE,
    }


# ---------------------------------------------------------------------------------------------------------------
# A real service


@pytest.fixture
def watched(service: Callable[..., Service], openai: OpenAIServer, database_url: str) -> Callable[..., Service]:
    """A service whose database has a password."""
    dsn = database_url.replace("postgres@", "postgres:canary-password@")
    return lambda **settings: service(openai=openai, DATABASE_URL=dsn, **settings)


def metrics(service: Service) -> dict[str, float]:
    with urllib.request.urlopen(f"{service.url}/metrics") as answer:
        return samples(answer.read().decode())


def test_a_service_can_be_watched(watched: Callable[..., Service], openai: OpenAIServer) -> None:
    service = watched(LOG_FORMAT="json")
    openai.reply(text("Hello"), finish())
    traceparent = f"00-{TRACE}-b7ad6b7169203331-01"
    stream = chat(service.url, "Hi", headers={"traceparent": traceparent})
    assert openai.requests[0].headers["traceparent"].startswith(f"00-{TRACE}-")
    assert "b7ad6b7169203331" not in openai.requests[0].headers["traceparent"]

    gate = threading.Event()
    openai.reply(text("Half"), wait(gate), finish())
    reader = threading.Thread(target=chat, args=(service.url, "Hi"))
    reader.start()
    while metrics(service)["draftstream_open_streams"] < 1 or metrics(service)["draftstream_runs_in_progress"] < 1:
        pass
    gate.set()
    reader.join()

    found = metrics(service)
    assert found["draftstream_runs_total{reason=stop,status=completed}"] == 2
    assert found["draftstream_model_tokens_total{type=input}"] == 22
    assert found["draftstream_time_to_first_token_seconds_count"] == 2
    assert found["draftstream_time_to_first_event_seconds_count"] == 2
    assert found["draftstream_runs_started_total"] == 2
    assert found["draftstream_commit_duration_seconds_count"] >= 2
    assert found["draftstream_runs_in_progress"] == 0
    assert found["draftstream_model_replies_total{path=tap}"] == 2, "the fast path"
    assert found["draftstream_model_replies_total{path=iterator}"] == 0
    lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    [path] = (line for line in lines if "path: tap" in line["message"])
    assert (path["level"], path["logger"]) == ("INFO", "draftstream.model"), "once, at the first reply"
    first, second = (line for line in lines if line["message"] == "run ended")
    assert first["run_id"] == stream.run_id
    assert (first["trace_id"], second["trace_id"]) == (TRACE, None)
    assert (first["input_tokens"], first["output_tokens"], first["saved"]) == (11, 7, True)


def test_refusals_are_counted_by_their_code(watched: Callable[..., Service]) -> None:
    service = watched()
    assert chat(service.url, "").status == 422
    assert request("GET", f"{service.url}/chat?message=%ff").status == 400
    assert request("GET", f"{service.url}/nowhere").status == 404
    refusals = {name: value for name, value in metrics(service).items() if "refusals" in name}
    codes = ("invalid_request", "bad_query", "not_found")
    assert refusals == {f"draftstream_refusals_total{{code={code}}}": 1 for code in codes}


def test_the_metrics_need_the_metrics_token_if_there_is_one(service: Callable[..., Service]) -> None:
    token = "scrape-0123456789abcdef"
    running = service(METRICS_TOKEN=token, LOG_LEVEL="DEBUG", LOG_CONTENT="1")

    def answer(authorization: str | None, method: str = "GET", path: str = "/metrics") -> requests.Response:
        headers = {} if authorization is None else {"Authorization": authorization}
        return requests.request(method, f"{running.url}{path}", headers=headers, timeout=20)

    assert "draftstream_ready" in answer(f"Bearer {token}").text
    assert answer(f"bearer  {token}").status_code == 200
    refused = [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {token}",
        token,
        f"Bearer {token}x",
        f"Bearer {token[:-1]}",
        "Bearer é",
    ]
    for authorization in refused:
        wrong = answer(authorization and authorization.encode().decode("latin-1"))
        assert (wrong.status_code, wrong.json()["code"]) == (401, "unauthorized"), authorization
        assert wrong.headers["WWW-Authenticate"].startswith("Bearer realm=")
        assert "METRICS_TOKEN" in wrong.json()["detail"]
    assert answer(None, "HEAD").status_code == 401
    assert answer(None, path=f"/metrics?access_token={token}").status_code == 401
    assert answer(f"Bearer {token}", path="/api/threads").status_code == 401, "it is no API key"
    assert answer(None, path="/readyz").status_code == 200
    assert token not in running.log


def test_the_metrics_token_is_long_enough_and_never_shown() -> None:
    for value in ("short", "with spaces in it, and long", "x" * 15):
        with pytest.raises(SettingsError, match="METRICS_TOKEN must be 16 or more") as wrong:
            Settings.from_env({"METRICS_TOKEN": value})
        assert value not in str(wrong.value)
    settings = Settings.from_env({"METRICS_TOKEN": "0123456789abcdef"})
    assert "0123456789abcdef" not in repr(settings)


def test_what_waits_for_the_database_is_seen(
    service: Callable[..., Service], openai: OpenAIServer, proxy: FaultProxy
) -> None:
    running = service(openai=openai, DATABASE_URL=proxy.dsn, SAVE_TIMEOUT_S="0.2")
    proxy.frozen = True
    stream = chat(running.url, "Hi")
    assert stream.last["saved"] is False
    before, after = metrics(running), metrics(running)
    assert after["draftstream_write_queue_units"] >= 2, "the run's start, and its end"
    assert 0.2 <= before["draftstream_write_queue_age_seconds"] < after["draftstream_write_queue_age_seconds"]
    assert after["draftstream_runs_unsaved_total"] == 1
    proxy.cut()
    proxy.frozen = False
    until(lambda: metrics(running)["draftstream_write_queue_units"] == 0)
    assert metrics(running)["draftstream_write_queue_age_seconds"] == 0


def test_a_run_that_fails_is_one_line_too_and_says_why(watched: Callable[..., Service], openai: OpenAIServer) -> None:
    service = watched()
    openai.reply(status(401, "invalid_api_key"))
    stream = chat(service.url, "Hi")
    assert metrics(service)["draftstream_runs_total{reason=model_auth,status=failed}"] == 1
    [line] = [line for line in service.log.splitlines() if stream.run_id in line and "HTTP/1.1" not in line]
    assert line.startswith("WARNING:  run ended ")
    assert ' reason=model_auth cause="AuthenticationError 401" ' in line


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_log_shows_what_was_said_or_a_secret(
    watched: Callable[..., Service], openai: OpenAIServer, style: str
) -> None:
    service = watched(LOG_FORMAT=style, LOG_LEVEL="DEBUG", OPENAI_LOG="debug", PYTHONASYNCIODEBUG="1")
    document = {"title": f"{CANARY} title", "content": f"{CANARY} in a document"}
    openai.reply(text(f"{CANARY} in a reply"), tool("write_document", document), finish("tool_calls"))
    openai.reply(text("Done."), finish())
    assert chat(service.url, f"{CANARY} in a message", thread_id="t").last["type"] == "end"
    for reply in (
        (status(401, "invalid_api_key"),),
        (status(400, CANARY, message=f"{CANARY} from the provider"),),
        (text("half"), tool("write_document", f'{{"title": "{CANARY}", "content": [{CANARY}'), finish("tool_calls")),
        (text(CANARY),),
    ):
        openai.reply(*reply)
        chat(service.url, f"{CANARY} again", thread_id="t")
    request("GET", f"{service.url}/chat?message={CANARY}+in+a+query&thread_id=t")
    request("GET", f"{service.url}/chat?message={CANARY}&thread_id=%00")
    chat(service.url, CANARY, unknown_field=CANARY)
    request("POST", f"{service.url}/api/chat", f'{{"message": "{CANARY}', {"Content-Type": "application/json"})
    assert service.stop() == 0
    assert "run ended" in service.log
    assert "a record of openai._base_client" in service.log, "their own debug output comes through ours"
    found = [line for line in service.log.splitlines() if "canary" in line]
    assert found == []


def test_log_content_does_show_it_but_no_secret(watched: Callable[..., Service], openai: OpenAIServer) -> None:
    service = watched(LOG_CONTENT="1")
    openai.reply(status(400, "bad_request", message=f"{CANARY} {openai.key}"))
    chat(service.url, "Hi")
    assert service.stop() == 0
    assert CANARY in service.log, "so that the test above could fail"
    assert openai.key not in service.log
    assert "canary-password" not in service.log
