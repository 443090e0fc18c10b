"""The log tells of a server that ignores tools, and of none that does not."""

import logging
from pathlib import Path

import pytest

from drafting.offline.agreement import Terms, render
from drafting.tool_use import ToolUse, looks_like_a_document

ROOT = Path(__file__).parent.parent

NDA = render(Terms())
SHORT_DEED = """**DEED OF GIFT**

This Deed is made on [Date] by [Name of Donor] (the Donor) in favour of the Museum, a charity, at its seat in the town.

1. Gift
The Donor gives the painting that is described in the Schedule to the Museum, free from any charge, from the date of this Deed.

2. Care
The Museum shall keep the painting in a room that is dry and safe, and shall show it to the public on thirty days a year.

3. Law
The law of the country in which the Museum has its seat governs this Deed, and its courts decide every dispute that arises.

Signed: ____________________
"""
GERMAN = "# Mietvertrag\n\n" + "\n\n".join(
    f"§ {n} Überschrift\n\n{n}.1 Der Mieter zahlt die Miete im Voraus an den Vermieter.\n\n{n}.2 Er darf nicht kündigen."
    for n in range(1, 7)
)

ANSWERS = [
    "Yes. A mutual agreement binds both parties.",
    # Lists, headings and decimals, as they stand in answers to questions.
    "## How an NDA works\n\n" + "\n\n".join(f"{n}. **Point {n}.** {'It matters a lot. ' * 8}" for n in range(1, 9)),
    "# Checklist\n\n" + "\n".join(f"### {n}. Step\n{'Ask the other side first. ' * 6}" for n in range(1, 9)),
    "## My remarks\n\n" + "\n\n".join(f"{at} This clause is too wide. {'It needs a limit. ' * 8}" for at in
    ("2.1", "4.3", "7.2", "9.1", "3.1")),
    "# Versions\n\n" + "\n".join(f"{n}.0 came out in 20{n:02}. {'It was a good one. ' * 6}" for n in range(1, 9)),
    "1. Who is the landlord?\n2. Who is the tenant?\n3. What is the rent?\n\n" + "I need these facts to begin. " * 30,
    "I use the tools write_document(title, content) and edit_document for that. " * 12,
    "Fill in [Company Name], [Date] and [Address] first.\n\n" + "Then both sides sign. " * 40,
    "Table of fees\n\n" + "\n".join(f"| {n}.1 | {n}00 |" for n in range(1, 90)),
    "2025 was a good year. " * 60,
    NDA[:500],
]  # fmt: skip

CALLS = [
    'Sure.\n<tool_call>\n{"name": "write_document", "arguments": {"title": "NDA", "content": "…"}}\n</tool_call>',
    "```json\n{'name': 'edit_document', 'arguments': {}}\n```",
    '[TOOL_CALLS][{"name":"write_document","arguments":{}}]',
    "<function=write_document>\n<parameter=title>NDA",
    '[write_document(title="NDA", content="…")]',
    '<invoke name="write_document">',
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>write_document",
]


def told(*replies: str, has_called: bool = False, has_documents: bool = False) -> list[str]:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    log = logging.getLogger("draftstream.model")
    log.addHandler(handler)
    try:
        use = ToolUse()
        for reply in replies:
            use.note("small-1", reply, has_called=has_called, has_documents=has_documents)
    finally:
        log.removeHandler(handler)
    return records


@pytest.mark.parametrize(
    "document", [NDA, render(Terms(mutual=True)), SHORT_DEED, GERMAN, f"Here it is.\n\n{NDA}\n\nTell me."]
)
def test_a_document_in_the_reply_of_a_model_that_calls_nothing_is_told_once(document: str) -> None:
    [line] = told("Hello.", document, document)
    assert line.startswith("WARNING the model small-1 wrote a document into its reply")
    assert "--enable-auto-tool-choice" in line
    assert document[:30] not in line


@pytest.mark.parametrize("reply", CALLS)
def test_a_call_that_comes_as_text_is_told(reply: str) -> None:
    [line] = told(reply, has_documents=True)
    assert "does not read tool calls" in line


@pytest.mark.parametrize("reply", ANSWERS)
def test_an_answer_is_not_taken_for_a_document(reply: str) -> None:
    assert told(reply) == []
    assert not looks_like_a_document(reply * 3)


def test_the_pages_of_this_project_are_not_taken_for_documents() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")]
    assert len(pages) > 8
    assert [page.name for page in pages if told(page.read_text())] == []


def test_a_model_that_has_called_a_tool_is_not_told_of() -> None:
    use_it = ToolUse()
    use_it.note("small-1", "", has_called=True, has_documents=False)
    assert told(NDA, has_called=True) == []
    assert told(NDA, has_documents=True) == []
