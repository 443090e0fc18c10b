"""Downloads over a real socket: the content of the file, and its name."""

import asyncio
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
from conftest import Service, rows
from docx import Document
from openai_server import OpenAIServer, finish, text, tool
from sse_client import chat
from test_docx_file import pdf_text
from test_faults import wait_for

from documents import files
from store import Store
from threads.histories import RUNS_A_LOOK, ThreadGone, Threads
from web.downloads import EXPORTS, REDLINES
from web.fields import DIFF_FORMATS, EXPORT_FORMATS

Start = Callable[..., Service]
WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def draft(openai: OpenAIServer, content: str, title: str = "NDA", said: str = "Here it is.") -> None:
    openai.reply(text("I will."), tool("write_document", {"title": title, "content": content}), finish("tool_calls"))
    openai.reply(text(said), finish())


def download(service: Service, thread_id: str = "t", status: int = 200, **parameters: str | int) -> requests.Response:
    answer = requests.get(f"{service.url}/api/threads/{thread_id}/export", params=parameters, timeout=60)
    assert answer.status_code == status, answer.text
    return answer


def file_name(answer: requests.Response) -> str:
    return name_in(answer.headers["content-disposition"])


def name_in(value: str) -> str:
    """As a browser reads it: `filename*` counts (RFC 6266, 4.3)."""
    matched = re.fullmatch(r"attachment; filename=\"[^\"\\]+\"; filename\*=UTF-8''([A-Za-z0-9%._~-]+)", value)
    assert matched is not None, value
    return unquote(matched[1])


def test_a_conversation_as_markdown(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    draft(openai, "# NDA\n\nFirst.")
    chat(running.url, "Draft one\n# really", thread_id="t")
    draft(openai, "# NDA\n\nSecond.")
    chat(running.url, "Change it", thread_id="t")
    answer = download(running)
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert file_name(answer) == "Draft one.md"
    said = answer.text
    assert said.startswith("# Draft one\n")
    assert "> Draft one\n> # really\n" in said, "a person's words are a quotation, whatever they look like"
    assert "NDA, version 1: replaced by a later version below" in said
    assert "First." not in said
    assert "*NDA, version 2*\n\n# NDA\n\nSecond.\n" in said
    order = [said.index(part) for part in ("Draft one\n> #", "version 1", "Change it", "Second.")]
    assert order == sorted(order)
    assert said.count("Here it is.") == 2


def test_one_document_at_one_version_of_one_branch(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    draft(openai, "First.")
    state = chat(running.url, "Draft", thread_id="t").last["checkpoint_id"]
    draft(openai, "Second, one way.")
    one_way = chat(running.url, "Change", thread_id="t").last["checkpoint_id"]
    draft(openai, "Second, the other way.")
    chat(running.url, "Change", thread_id="t", checkpoint_id=state)
    assert download(running, document="d1").text == "Second, the other way."
    assert download(running, document="d1", version=1).text == "First."
    assert download(running, document="d1", checkpoint_id=one_way).text == "Second, one way."
    assert download(running, document="d1", checkpoint_id=state).text == "First."
    assert file_name(download(running, document="d1")) == "NDA v2.md"
    item = download(running, document="d1", format="json").json()
    assert (item["doc_id"], item["version"], item["content"]) == ("d1", 2, "Second, the other way.")
    assert "one way" not in download(running).text
    assert "Second, one way." in download(running, checkpoint_id=one_way).text
    everything = download(running, format="json").json()
    assert [item["content"] for item in everything["messages"] if item["type"] == "doc"] == [
        "First.",
        "Second, one way.",
        "Second, the other way.",
    ]
    whole = requests.get(f"{running.url}/api/threads/t", timeout=10).json()
    assert whole.pop("next_before") is None
    assert everything == {"format": files.JSON_FORMAT, **whole}


def test_a_docx_of_a_conversation_and_of_a_document(service: Start, openai: OpenAIServer, tmp_path: Path) -> None:
    running = service(openai=openai)
    draft(openai, "# Mutual NDA\n\n## 1. Term\n\n1.1 It ends **soon**.", title="Ünïque & Söhne")
    chat(running.url, "Draft", thread_id="t")
    cases: list[tuple[dict[str, str], list[str]]] = [
        (
            {},
            ["Draft", "User, ", "I will.", "Mutual NDA", "1. Term", "1.1 It ends soon.", "Here it is.", "Page 1 of 1"],
        ),
        ({"document": "d1"}, ["Mutual NDA", "1. Term", "1.1 It ends soon.", "Page 1 of 1"]),
    ]
    for parameters, parts in cases:
        answer = download(running, "t", 200, format="docx", **parameters)
        assert answer.headers["content-type"] == WORD
        text = " ".join(pdf_text(answer.content, tmp_path).split())
        assert [part for part in parts if part not in text] == []
    assert file_name(answer) == "Ünïque & Söhne v1.docx"


def test_what_a_person_wrote_is_no_document(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    chat(running.url, "# Title\n\n1. one\n**x**", thread_id="t")
    document = Document(io.BytesIO(download(running, format="docx").content))
    said = [(paragraph._p.style, paragraph.text) for paragraph in document.paragraphs]
    assert said[2:5] == [("Normal", "# Title"), ("Normal", "1. one"), ("Normal", "**x**")]
    speaker = document.paragraphs[1]
    assert speaker.paragraph_format.keep_with_next, "it is not left alone at the end of a page"


def test_a_wrong_parameter_and_an_unknown_document_are_refused(service: Start, openai: OpenAIServer) -> None:
    running = service(openai=openai)
    chat(running.url, "Hi", thread_id="t")
    for parameters, status, told in (
        ({"format": "pdf"}, 422, "/format"),
        ({"version": "1"}, 422, "/version"),
        ({"document": "d1", "version": "0"}, 422, "/version"),
        ({"colour": "red"}, 422, "/colour"),
        ({"checkpoint_id": "x"}, 422, "/checkpoint_id"),
        ({"checkpoint_id": "00000000-0000-0000-0000-000000000000"}, 422, "/checkpoint_id"),
        ({"document": "d1"}, 404, "document"),
        ({"document": "d1\0"}, 404, "document"),
        ({"document": "d" * 1000}, 404, "document"),
    ):
        problem = download(running, status=status, **parameters)
        assert told in problem.text, problem.text
    assert download(running, "another", status=404).json()["detail"] == "There is no such thread."
    head = requests.head(f"{running.url}/api/threads/t/export", timeout=10)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-disposition"] == download(running).headers["content-disposition"]


def lengthen(database_url: str, runs: int, words: int) -> None:
    """The thread `t`, which has one run, gets so many, each with a message of so many words and its number."""
    rows(
        database_url,
        f"""WITH made AS (
            INSERT INTO runs (run_id, owner, thread_id, seq, parent_run_id, status, model, started_at)
            SELECT md5('r' || n)::uuid::text, 'anonymous', 't', n,
                CASE n WHEN 2 THEN (SELECT run_id FROM runs) ELSE md5('r' || n - 1)::uuid::text END, 'running', 'm', now()
            FROM generate_series(2, {runs}) AS n RETURNING run_id, seq
        ), said AS (
            INSERT INTO messages (owner, thread_id, seq, item, run_id, role, type, content, complete, created_at)
            SELECT 'anonymous', 't', seq, -1, run_id, 'user', 'message', repeat('word ', {words}) || seq, true, now()
            FROM made
        ) UPDATE threads SET head_run_id = md5('r{runs}')::uuid::text, last_seq = {runs}""",
    )


def test_a_long_thread_is_sent_as_it_is_read(service: Start, openai: OpenAIServer, database_url: str) -> None:
    running = service(openai=openai)
    chat(running.url, "Hi", thread_id="t")
    short = requests.get(f"{running.url}/api/threads/t/export", timeout=60)
    assert short.headers["content-length"] == str(len(short.content))
    runs = 3 * RUNS_A_LOOK
    lengthen(database_url, runs, 1000)
    for kind in ("md", "json"):
        with requests.get(
            f"{running.url}/api/threads/t/export", params={"format": kind}, stream=True, timeout=60
        ) as answer:
            assert answer.headers["transfer-encoding"] == "chunked"
            chunks = list(answer.raw.read_chunked())
        assert len(chunks) > 5
        assert max(map(len, chunks)) < 2**20
        whole = b"".join(chunks).decode()
        assert [number for number in range(2, runs + 1) if f"word {number}" not in whole] == []
        if kind == "json":
            assert len(json.loads(whole)["messages"]) == runs + 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
def test_a_very_long_thread_costs_little_memory(service: Start, openai: OpenAIServer, database_url: str) -> None:
    running = service(openai=openai)
    chat(running.url, "Hi", thread_id="t")
    lengthen(database_url, 2000, 4000)
    download(running, document="none", status=404)  # so that the module is imported
    before = peak_mb(running, anew=True)
    for kind in ("md", "json"):
        wait_for(lambda kind=kind: exported_mb(running, kind) > 38)  # type: ignore[misc]  # 2,000 messages of 20 KB
    assert peak_mb(running) - before < 12


def exported_mb(service: Service, kind: str) -> float:
    """Nothing comes with a 503, which a read gets that a loaded machine did not make in time."""
    url = f"{service.url}/api/threads/t/export"
    with requests.get(url, params={"format": kind}, stream=True, timeout=60) as answer:
        assert answer.status_code in (200, 503)
        return sum(map(len, answer.iter_content(2**16))) / 2**20


def peak_mb(service: Service, *, anew: bool = False) -> float:
    """The most memory that the service's process had, or from now on."""
    process = Path(f"/proc/{service.process.pid}")
    if anew:
        (process / "clear_refs").write_text("5")
    [line] = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@pytest.mark.anyio
async def test_what_is_deleted_while_it_is_sent_is_not_sent_as_a_whole(
    service: Start, openai: OpenAIServer, database_url: str, store: Store
) -> None:
    running = service(openai=openai)
    await asyncio.to_thread(chat, running.url, "Hi", thread_id="t")
    await asyncio.to_thread(lengthen, database_url, RUNS_A_LOOK + 1, 1)
    threads = Threads(store, "anonymous")
    items = threads.everything(await threads.outline("t"))
    assert (await anext(items))["content"] == "Hi"
    await asyncio.to_thread(rows, database_url, "DELETE FROM messages")
    with pytest.raises(ThreadGone):
        [item async for item in items]


VERSION = files.Version(
    doc_id="d1", title="NDA", version=1, content="", complete=True, created_at=datetime(2026, 11, 24, tzinfo=UTC)
)


@pytest.mark.parametrize("limit", ["CHARS", "PARTS"])
def test_each_format_that_is_made_as_a_whole_has_the_same_limits(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    half: files.Item = {
        "type": "message", "role": "assistant", "content": "a\n\nb\n\nc", "complete": True, "created_at": VERSION["created_at"]
    }  # fmt: skip
    whole = files.Version(**{**VERSION, "content": "a\n\nb\n\nc\n\nd\n\ne"})
    monkeypatch.setattr(files, limit, 10)
    files.conversation_as_docx("t", {}, [half])
    made: tuple[Callable[[], bytes], ...] = (
        lambda: files.document_as_docx({**whole, "content": whole["content"] * 2}),
        lambda: files.redline_as_docx(whole, whole),
        lambda: files.redline_as_html(whole, whole),
        lambda: files.redline_as_json(whole, whole),
    )
    for make in made:
        with pytest.raises(files.TooLarge, match="more than 10"):
            make()
    conversation = files.Conversation("t", {})
    conversation.add(half)
    with pytest.raises(files.TooLarge, match="more than 10"):
        conversation.add(half) if limit == "CHARS" else files.conversation_as_docx("t", {}, [half, half])


def test_each_item_of_a_conversation_has_parts_and_an_earlier_version_is_only_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    item = files.Item(
        role="assistant", type="doc", content="x", complete=True, created_at=at, doc_id="d1", title="T", version=1
    )
    conversation = files.Conversation("t", {"d1": 2})
    for _ in range(3):
        conversation.add({**item, "content": "x" * files.CHARS})
    assert [kept["content"] for kept in conversation.items] == [""] * 3
    monkeypatch.setattr(files, "PARTS", 20)
    many = files.Conversation("t", {"d1": 2})
    for _ in range(10):
        many.add(item)
    with pytest.raises(files.TooLarge, match="more than 20"):
        many.add(item)
    files.conversation_as_docx("t", {"d1": 2}, many.items)
    with pytest.raises(files.TooLarge, match="more than 20"):
        files.conversation_as_docx("t", {"d1": 2}, [*many.items, item])


def test_there_is_a_file_for_each_format_that_can_be_asked_for() -> None:
    assert tuple(EXPORTS) == EXPORT_FORMATS
    assert set(REDLINES) == set(DIFF_FORMATS)
