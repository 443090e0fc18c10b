"""The debug page in a real browser, against the real service."""

import io
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Service, free_port, required
from docx import Document
from openai_server import OpenAIServer, finish, text, tool, wait
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_access import new_key
from test_service import snippet

from documents.hidden import shown

HOSTILE = "</script><img src=x onerror=document.title='broken'>\n\n<b>not bold</b> & \u2028 😀"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
DEADLINE_MS = 60_000  # of a machine that is loaded; nothing waits for it


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = required("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong: no console error, no uncaught one, no violation of the policy.

    A refusal is no error of the page, nor is a 503 for a read that a loaded machine did not make in time.
    """
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.set_default_timeout(DEADLINE_MS)
    expect.set_options(timeout=DEADLINE_MS)
    yield page
    page.close()
    assert [text for text in wrong if not re.search("status of (4|503)", text)] == []


def send(page: Page, message: str, how: str = "POST") -> None:
    page.fill("#message", message)
    page.click(f"text=Send ({how})")
    expect(page.locator("#stop")).to_be_hidden()


@pytest.mark.parametrize("how", ["GET", "POST"])
def test_a_draft_streams_into_the_conversation_and_the_document(
    page: Page, service: Callable[..., Service], how: str
) -> None:
    page.goto(f"{service().url}/debug")
    send(page, "Draft an NDA", how)
    expect(page.locator("#sheet h1")).to_have_text("Non-Disclosure Agreement")
    expect(page.locator(".bubble.user")).to_have_text("Draft an NDA")
    expect(page.locator(".bubble.assistant").last).to_contain_text("lawyer")
    expect(page.locator("#log .start")).to_have_count(1)
    expect(page.locator("#log .end")).to_contain_text('"saved":true')
    expect(page.locator("#meters")).to_have_text(re.compile(r"first event \d+ ms\s*first token \d+ ms"))
    assert page.locator("#log .doc").count() > 50


def test_pieces_appear_before_the_end(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    page.fill("#message", "Draft an NDA")
    page.click("#send-post")
    expect(page.locator("#sheet h1")).to_be_visible()
    assert page.locator("#stop").is_visible(), "the run goes on while its document is seen"
    before = page.locator("#sheet").inner_text()
    expect(page.locator("#stop")).to_be_hidden()
    after = page.locator("#sheet").inner_text()
    assert len(after) > len(before)


def test_a_thread_is_opened_again_and_goes_on_with_its_versions(page: Page, service: Callable[..., Service]) -> None:
    running = service()
    page.goto(f"{running.url}/debug")
    send(page, "Draft an NDA")
    send(page, "Make it mutual", "GET")
    page.goto(f"{running.url}/debug")
    page.click("#threads a >> text=Draft an NDA")
    expect(page.locator(".chip")).to_have_text([re.compile("version 1"), re.compile("version 2")])
    send(page, "Add 2-year term")
    expect(page.locator(".chip")).to_have_count(3)
    page.click(".switch >> text=Changes")
    expect(page.locator("#sheet ins")).to_have_text(["for a term of two (2) years, unless ", "earlier "])
    page.select_option("select[aria-label='Compared with']", "1")
    expect(page.locator("#sheet ins").first).to_have_text("Mutual ")
    page.select_option("select[aria-label='Version']", "1")
    page.click(".switch >> text=Text")
    expect(page.locator("#sheet h1")).to_have_text("Non-Disclosure Agreement")
    page.reload()
    expect(page.locator(".chip")).to_have_count(3)


def test_hostile_text_shows_as_text(page: Page, service: Callable[..., Service], openai: OpenAIServer) -> None:
    openai.reply(
        text(HOSTILE), tool("write_document", {"title": HOSTILE[:40], "content": HOSTILE}), finish("tool_calls")
    )
    page.goto(f"{service(openai=openai).url}/debug")
    send(page, HOSTILE)
    for view in ("Text", "Raw", "Changes", "Text"):
        page.click(f".switch >> text={view}")
        if view != "Changes":
            assert "<b>not bold</b>" in page.locator("#sheet").inner_text()
    page.reload()
    expect(page.locator(".bubble.assistant").first).to_contain_text("<img src=x onerror")
    assert page.locator("img").count() == 0
    assert page.title() == "Draftstream"


TROJAN = "# Fee\u2066\n\nThe fee \u202eis 100\u200b.\n\n\u2028|a\u061c|b|\n|-|-|\n|c|\ufeff|\n\n- 1.1 می\u200cخواهم 👨\u200d👩\u200d👧\n\n\u180e"
TROJANS = ["2066", "202E", "200B", "2028", "061C", "FEFF", "180E"]


def test_what_hides_in_a_text_is_shown_everywhere(
    page: Page, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    for version in (TROJAN, "# Fee\n\nThe fee is 100."):
        document = {"title": "NDA \u202e", "content": version}
        openai.reply(text("Here \u2067it is."), tool("write_document", document), finish("tool_calls"))
        openai.reply(text("Done."), finish())
    page.goto(f"{service(openai=openai).url}/debug")
    send(page, "Draft\u202e one")
    for view in ("Text", "Raw"):
        page.click(f".switch >> text={view}")
        assert re.findall(r"⟦U\+(\w+)⟧", page.locator("#sheet").inner_text()) == TROJANS
        assert "می\u200cخواهم 👨\u200d👩\u200d👧" in page.locator("#sheet").inner_text()
    expect(page.locator(".bubble.user")).to_have_text("Draft⟦U+202E⟧ one")
    expect(page.locator(".bubble.assistant").first).to_have_text("Here ⟦U+2067⟧it is.")
    expect(page.locator(".chip b")).to_have_text("NDA ⟦U+202E⟧")
    expect(page.locator("#thread-title")).to_have_text("Draft⟦U+202E⟧ one")
    send(page, "Change it")
    page.click(".switch >> text=Changes")
    assert set(re.findall(r"⟦U\+(\w+)⟧", "".join(page.locator("#sheet del").all_inner_texts()))) >= {
        "2066",
        "202E",
        "180E",
    }
    shown = page.evaluate("document.body.innerText")
    assert re.findall("[\u061c\u180e\u200b\u2028\u202a-\u202e\u2066-\u2069\ufeff]", shown) == []
    page.locator(".turn").first.hover()
    page.locator(".turn >> text=Edit").first.click()
    assert page.locator(".edit textarea").input_value() == "Draft\u202e one", "the message itself"


def test_the_page_shows_the_same_characters_as_the_files(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    alone = page.evaluate(
        """() => Array.from({ length: 0x110000 }, (_, code) => code).filter((code) => {
            const text = String.fromCodePoint(code);
            return visible(text) !== text;
        })"""
    )
    assert alone == [code for code in range(0x110000) if shown(chr(code)) != chr(code)]
    contexts = [
        f"{before}{hidden}{after}"
        for hidden in "\u200c\u200d\u200b\ufe0f\ufe00\u180b\u180e\u115f\u1160\U00013430\U000e0101\U000e0067"
        for before in CONTEXTS
        for after in CONTEXTS
    ]
    assert page.evaluate("(texts) => texts.map(visible)", contexts) == [shown(text) for text in contexts]


CONTEXTS = (
    "",
    "a",
    "1",
    " ",
    "ب",
    "١",
    "ه",
    "क",
    "्",
    "ក",
    "ไ",
    "👩",
    "❤",
    "\u20e3",
    "\ufe0f",
    "\u200d",
    "辻",
    "ᠠ",
    "≨",
    "ᄀ",
    "ᅡ",
    "𓀀",
    "🏴",
)


def test_a_refusal_is_shown_with_its_reason(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service(MAX_MESSAGE_CHARS='10').url}/debug")
    send(page, "far too long a message")
    expect(page.locator(".problem")).to_contain_text("more than 10 characters")
    send(page, "   ")
    expect(page.locator(".problem").last).to_contain_text("must not be empty")


@pytest.mark.parametrize("how", ["GET", "POST"])
def test_a_refused_message_goes_back_to_where_it_was_written(
    page: Page, service: Callable[..., Service], how: str
) -> None:
    page.goto(f"{service(MAX_MESSAGE_CHARS='10').url}/debug")
    send(page, "far too long a message", how)
    expect(page.locator(".problem")).to_contain_text("more than 10 characters")
    expect(page.locator(".bubble")).to_have_count(0)
    expect(page.locator("#message")).to_have_value("far too long a message")
    threads = page.evaluate("async () => (await (await fetch('/api/threads')).json()).threads.length")
    assert threads == 0, "to ask why it was refused starts nothing"


def test_a_run_can_be_stopped(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    page.fill("#message", "Draft an NDA")
    page.click("#send-post")
    expect(page.locator("#sheet h1")).to_be_visible()
    page.click("#stop")
    expect(page.locator(".problem")).to_contain_text("cancelled")
    expect(page.locator(".chip.cut")).to_contain_text("interrupted")
    expect(page.locator("#send-post")).to_be_enabled()
    page.reload()
    expect(page.locator(".chip.cut")).to_contain_text("interrupted")


def test_two_threads_that_are_written_at_once_keep_apart(
    page: Page, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    gate = threading.Event()
    openai.reply(text("The first"), wait(gate), text(" is done."), finish())
    openai.reply(text("The second is done."), finish())
    page.goto(f"{service(openai=openai).url}/debug")
    page.fill("#message", "one")
    page.press("#message", "Enter")
    expect(page.locator(".bubble.assistant")).to_have_text("The first")
    page.click("#new-thread")
    send(page, "two")
    gate.set()
    expect(page.locator("#threads .writing")).to_have_count(0)
    expect(page.locator(".bubble")).to_have_text(["two", "The second is done."])
    page.click("#threads a >> text=one")
    expect(page.locator(".bubble")).to_have_text(["one", "The first is done."])
    page.go_back()
    expect(page.locator(".bubble")).to_have_text(["two", "The second is done."])


def test_a_thread_that_is_being_written_is_followed_by_a_page_that_opens_it(
    page: Page, browser: Browser, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    gate = threading.Event()
    openai.reply(text("Before, "), wait(gate), text("after."), finish())
    page.goto(f"{service(openai=openai).url}/debug")
    page.fill("#message", "one")
    page.press("#message", "Enter")
    expect(page.locator(".bubble.assistant")).to_have_text("Before,")
    other = browser.new_page()
    other.goto(page.url)
    expect(other.locator(".bubble")).to_have_text(["one", "Before,"])
    expect(other.locator("#stop")).to_be_visible()
    gate.set()
    for each in (page, other):
        expect(each.locator(".bubble")).to_have_text(["one", "Before, after."])
        expect(each.locator("#stop")).to_be_hidden()
    other.close()


def test_what_is_broken_off_can_be_taken_up_again(browser: Browser, service: Callable[..., Service]) -> None:
    running = service(PORT=str(free_port()))
    page = browser.new_page()  # on which a connection may break
    page.goto(f"{running.url}/debug")
    page.fill("#message", "Draft an NDA")
    page.click("#send-post")
    expect(page.locator("#sheet h3").nth(3)).to_be_visible()
    running.kill()
    expect(page.locator(".problem")).to_contain_text("The stream broke off")
    running.restart()
    page.click("text=Continue this run")
    expect(page.locator(".problem")).to_contain_text("The service ended in the middle of this run")
    expect(page.locator(".chip.cut")).to_contain_text("interrupted")
    page.close()


def test_thousands_of_pieces_arrive_whole_and_the_log_shows_the_last_of_them(
    page: Page, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    said = [f"word{number} ".ljust(1000, "-") for number in range(2500)]  # so long that none is joined with the next
    openai.reply(text(*said), finish())
    page.goto(f"{service(openai=openai).url}/debug")
    send(page, "much")
    expect(page.locator("#log .end")).to_be_visible()
    assert page.locator(".bubble.assistant").text_content() == "".join(said)
    assert page.locator("#log div").count() == 2000
    assert re.fullmatch(r"2,50\d lines", page.locator("#log-count").inner_text())


def test_a_document_is_set_as_one(page: Page, service: Callable[..., Service], openai: OpenAIServer) -> None:
    draft = "# Lease\n## 1. Term\n1.1 The **Term** is *one* year.\n- first\n- second\n\nSigned: ________\n\n"
    draft += "Fees:\n| Item | Fee |\n|---|--:|\n| *Rent* | 10 |\n| <b>x</b> | |\n\n---\nEnd"
    openai.reply(tool("write_document", {"title": "Lease", "content": draft}), finish("tool_calls"))
    page.goto(f"{service(openai=openai).url}/debug")
    send(page, "Lease")
    names = page.evaluate("[...document.querySelectorAll('#sheet > *')].map((node) => node.localName)")
    assert names == ["h1", "h3", "p", "p", "p", "p", "p", "table", "hr", "p"]
    expect(page.locator("#sheet tr")).to_have_text(["ItemFee", "Rent10", "<b>x</b>"])
    expect(page.locator("#sheet .right")).to_have_text(["Fee", "10", ""])
    expect(page.locator("#sheet .number")).to_have_text(["1.1", "•", "•"])
    expect(page.locator("#sheet strong")).to_have_text("Term")
    expect(page.locator("#sheet em")).to_have_text(["one", "Rent"])
    page.focus(".switch >> text=Raw")
    page.keyboard.press("Enter")
    assert page.locator("#sheet pre").text_content() == draft
    expect(page.locator(".switch >> text=Raw")).to_be_focused()


def test_a_clause_that_was_put_between_two_others_shows_as_one_change(
    page: Page, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    clauses = ["The tenant pays rent each month.", "The landlord keeps the roof in repair.", "Delaware law governs it."]
    put_in = [*clauses[:1], "No pets of any kind are allowed.", clauses[1].replace("roof", "walls"), clauses[2]]
    for content in ("\n\n".join(clauses), "\n\n".join(put_in)):
        openai.reply(tool("write_document", {"title": "Lease", "content": content}), finish("tool_calls"))
        openai.reply(text("Done."), finish())
    page.goto(f"{service(openai=openai).url}/debug")
    send(page, "Lease")
    send(page, "No pets")
    page.click(".switch >> text=Changes")
    expect(page.locator("#sheet ins")).to_have_text(["No pets of any kind are allowed.", "walls "])
    expect(page.locator("#sheet del")).to_have_text(["roof "])
    expect(page.locator("#sheet .summary")).to_have_text("Paragraphs: 1 changed, 1 added")


def test_a_narrow_window_shows_one_pane_at_a_time(page: Page, service: Callable[..., Service]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{service().url}/debug")
    send(page, "Draft an NDA")
    expect(page.locator("#conversation")).to_be_visible()
    expect(page.locator("#sheet")).to_be_hidden()
    page.click(".chip")
    expect(page.locator("#sheet h1")).to_be_visible()
    page.click("#tabs >> text=Events")
    expect(page.locator("#log .end")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out"


def edit(page: Page, before: str, after: str) -> None:
    """From the keyboard alone."""
    turn = page.locator(".turn", has_text=before).last
    turn.get_by_label("Edit this message").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Edited message")).to_be_focused()
    expect(page.get_by_label("Edited message")).to_have_value(before)
    page.keyboard.press("Control+A")
    page.keyboard.type(after)
    page.keyboard.press("Enter")
    expect(page.locator(".bubble.user").last).to_have_text(after)
    expect(page.locator("#stop")).to_be_hidden()


def switch(page: Page, message: str, way: str, at: str) -> None:
    page.locator(".turn", has_text=message).get_by_label(f"{way} branch").click()
    expect(page.locator(".switcher span", has_text=at)).to_be_visible()


def test_a_message_is_edited_and_each_branch_has_its_own_documents(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    send(page, "Draft an NDA")
    send(page, "Make it mutual")
    send(page, "Add 2-year term")
    expect(page.locator(".switcher")).to_have_count(0)
    edit(page, "Make it mutual", "Add 5-year term")
    users = page.locator(".bubble.user")
    expect(users).to_have_text(["Draft an NDA", "Add 5-year term"])
    expect(page.locator(".switcher")).to_have_text(re.compile("2 / 2"))
    expect(page.locator("#sheet")).to_contain_text("five (5) years")
    expect(page.locator("#sheet")).not_to_contain_text("Mutual")
    versions = page.locator("select[aria-label='Version'] option")
    expect(versions).to_have_count(2)
    switch(page, "Add 5-year term", "Previous", "1 / 2")
    expect(users).to_have_text(["Draft an NDA", "Make it mutual", "Add 2-year term"])
    expect(page.get_by_label("Next branch")).to_be_focused()
    expect(versions).to_have_count(3)
    expect(page.locator("#sheet")).to_contain_text("two (2) years")
    assert "&run=" in page.url
    page.reload()
    expect(users).to_have_text(["Draft an NDA", "Make it mutual", "Add 2-year term"])
    send(page, "Add 7-year term")
    expect(users).to_have_text(["Draft an NDA", "Make it mutual", "Add 2-year term", "Add 7-year term"])
    expect(page.locator("#sheet")).to_contain_text("seven (7) years")
    expect(page.locator("#sheet h1")).to_contain_text("Mutual")
    assert "&run=" not in page.url, "it is the head now"
    page.reload()
    expect(users).to_have_count(4)
    switch(page, "Make it mutual", "Next", "2 / 2")
    expect(users).to_have_text(["Draft an NDA", "Add 5-year term"])
    send(page, "Make it mutual", "GET")
    expect(users).to_have_text(["Draft an NDA", "Add 5-year term", "Make it mutual"])
    expect(page.locator("#sheet h1")).to_contain_text("Mutual")
    expect(page.locator("#sheet")).to_contain_text("five (5) years")
    expect(versions).to_have_count(3)
    page.click(".switch >> text=Changes")
    expect(page.locator("#sheet ins").first).to_contain_text("Mutual")


def test_the_first_message_is_edited_and_the_way_back_leads_through_the_branches(
    page: Page, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    openai.default = (text("As you wish."), finish())
    page.goto(f"{service(openai=openai).url}/debug")
    users = page.locator(".bubble.user")
    send(page, "one")
    send(page, "two")
    edit(page, "one", "another one")
    expect(users).to_have_text(["another one"])
    assert [message["content"] for message in openai.requests[-1].body["messages"][1:]] == ["another one"]
    edit(page, "another one", "a third one")
    expect(page.locator(".switcher")).to_have_text(re.compile("3 / 3"))
    expect(page.get_by_label("Next branch")).to_be_disabled()
    switch(page, "a third one", "Previous", "2 / 3")
    expect(users).to_have_text(["another one"])
    switch(page, "another one", "Previous", "1 / 3")
    expect(users).to_have_text(["one", "two"])
    expect(page.locator(".switcher")).to_have_count(1)
    page.go_back()
    expect(users).to_have_text(["another one"])
    page.go_back()
    expect(users).to_have_text(["a third one"])
    page.go_forward()
    expect(users).to_have_text(["another one"])
    page.click("#threads a")
    expect(users).to_have_text(["a third one"])
    assert "&run=" not in page.url


def test_a_branch_becomes_a_thread_of_its_own(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    send(page, "Draft an NDA")
    send(page, "Make it mutual")
    users = page.locator(".bubble.user")
    page.locator(".turn", has_text="Draft an NDA").get_by_text("Fork").click()
    expect(users).to_have_text(["Draft an NDA"])
    expect(page.locator("#threads a")).to_have_count(2)
    send(page, "Add 2-year term")
    expect(page.locator("#sheet")).to_contain_text("two (2) years")
    expect(page.locator("#sheet")).not_to_contain_text("Mutual")
    page.go_back()
    expect(users).to_have_text(["Draft an NDA", "Make it mutual"])


def test_an_edited_message_that_is_refused_is_there_to_be_sent_again(
    page: Page, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    openai.default = (text("As you wish."), finish())
    page.goto(f"{service(openai=openai, MAX_MESSAGE_CHARS='20').url}/debug")
    users = page.locator(".bubble.user")
    send(page, "one")
    send(page, HOSTILE[:20])
    page.get_by_label("Edit this message").first.click()
    field = page.get_by_label("Edited message")
    field.fill("dropped")
    field.press("Escape")
    expect(page.get_by_label("Edit this message").first).to_be_focused()
    page.get_by_label("Edit this message").last.click()
    expect(field).to_have_value(HOSTILE[:20])
    field.fill("far too long for this service")
    page.click("text=Send as a new branch")
    expect(page.locator(".problem")).to_contain_text("more than 20 characters")
    expect(field).to_have_value("far too long for this service")
    expect(users.first).to_have_text("one")
    expect(page.locator(".bubble.assistant")).to_have_count(2)
    field.fill("short")
    page.click("text=Send as a new branch")
    expect(users).to_have_text(["one", "short"])
    expect(page.locator(".switcher")).to_have_text(re.compile("2 / 2"))


def test_threads_are_searched_by_what_was_said(
    page: Page, service: Callable[..., Service], openai: OpenAIServer
) -> None:
    openai.reply(text("😀 <b>Texas</b> law, then."), finish())
    openai.reply(text("As you wish."), finish())
    page.goto(f"{service(openai=openai).url}/debug")
    send(page, "one")
    page.click("#new-thread")
    send(page, "two")
    expect(page.locator("#threads a")).to_have_count(2)
    page.fill("#search", "texas")
    while page.locator("#threads .passage").count() == 0:  # a message is found a moment later
        page.fill("#search", "")
        expect(page.locator("#threads a")).to_have_count(2)
        page.fill("#search", "texas")
        page.wait_for_timeout(300)
    expect(page.locator("#threads .passage")).to_have_text("😀 <b>Texas</b> law, then.")
    expect(page.locator("#threads mark")).to_have_text("Texas")
    page.fill("#search", "nevada")
    expect(page.locator("#threads")).to_have_text("Nothing found")
    page.fill("#search", "")
    expect(page.locator("#threads a")).to_have_count(2)


def test_a_thread_is_named_and_after_a_question_deleted(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    expect(page.locator("#rename-thread")).to_be_hidden()
    send(page, "Draft an NDA")
    page.click("#rename-thread")
    expect(page.locator("#title")).to_have_value("Draft an NDA")
    page.fill("#title", HOSTILE[:40])
    page.press("#title", "Enter")
    expect(page.locator("#thread-title")).to_have_text(HOSTILE[:40])
    page.reload()
    expect(page.locator("#thread-title")).to_have_text(HOSTILE[:40])
    page.click("#delete-thread")
    page.click("#delete-thread")
    expect(page.locator("#delete-now")).to_be_hidden()
    expect(page.locator(".chip")).to_have_count(1)
    page.click("#delete-thread")
    page.click("#delete-now")
    expect(page.locator("#threads")).to_have_text("None yet")
    expect(page.locator("#thread-title")).to_have_text("New thread")
    expect(page.locator(".chip")).to_have_count(0)


def test_a_key_opens_the_page_of_its_owner(page: Page, service: Callable[..., Service], database_url: str) -> None:
    mine, theirs = new_key(database_url, "mine", ["chat", "read"]), new_key(database_url, "theirs")
    running = service()
    page.goto(f"{running.url}/debug")
    expect(page.locator("#threads")).to_contain_text("enter it above")
    send(page, "Draft an NDA", "GET")
    expect(page.locator(".problem")).to_contain_text("401 Unauthorized")
    expect(page.locator("#message")).to_have_value("Draft an NDA")
    page.fill("#key", mine.key)
    page.press("#key", "Enter")
    expect(page.locator("#threads")).to_contain_text("None yet")
    send(page, "Draft an NDA", "GET")
    expect(page.locator("#sheet h1")).to_have_text("Non-Disclosure Agreement")
    send(page, "Make it mutual", "POST")
    expect(page.locator(".chip")).to_have_count(2)
    expect(page.locator("#log")).not_to_contain_text("access_token")
    page.reload()
    expect(page.locator(".chip")).to_have_count(2)
    page.fill("#key", theirs.key)
    page.press("#key", "Enter")
    expect(page.locator("#threads")).to_contain_text("None yet")
    expect(page.locator(".chip")).to_have_count(0)
    expect(page.locator(".problem")).to_contain_text("404 Not Found")
    assert page.evaluate("localStorage.length") == 0
    assert mine.key not in page.content()


def test_an_event_source_with_a_token_comes_back_to_its_run(
    browser: Browser, service: Callable[..., Service], database_url: str
) -> None:
    key = new_key(database_url, "mine")
    running = service(PORT=str(free_port()))
    page = browser.new_page()  # on which a connection may break
    page.goto(f"{running.url}/debug")
    page.fill("#key", key.key)
    page.press("#key", "Enter")
    page.fill("#message", "Draft an NDA")
    page.click("#send-get")
    expect(page.locator("#sheet h3").nth(3)).to_be_visible()
    running.kill()
    running.restart()
    expect(page.locator(".problem")).to_contain_text("The service ended in the middle of this run")
    expect(page.locator("#log")).to_contain_text("the EventSource comes back")
    assert '" 401' not in running.log.partition("/api/stream-tokens")[2], "its token was good for that"
    page.close()


def test_the_readmes_event_source_reads_a_draft_and_closes(browser: Browser, service: Callable[..., Service]) -> None:
    running = service()
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"{running.url}/debug")
    page.evaluate(f"() => {{ {snippet('eventsource', running)}; window.source = source }}")
    while page.evaluate("window.source.readyState !== EventSource.CLOSED"):
        page.wait_for_timeout(100)
    assert "Have a lawyer review it before anyone signs." in "".join(said)
    runs = page.evaluate("async () => (await (await fetch('/api/threads')).json()).threads.length")
    assert runs == 1, "it does not come back for more"
    page.close()


def test_the_policy_lets_in_nothing_but_the_page_itself(browser: Browser, service: Callable[..., Service]) -> None:
    page = browser.new_page()
    answer: Any = page.goto(f"{service().url}/debug")
    assert "unsafe" not in answer.headers["content-security-policy"]
    blocked = page.evaluate("""() => new Promise((resolve) => {
        const seen = [];
        document.addEventListener("securitypolicyviolation", (event) => {
            seen.push(event.effectiveDirective);
            if (seen.length === 3) resolve(seen.sort());
        });
        const script = document.createElement("script");
        script.textContent = "document.title = 'broken'";
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        const style = document.createElement("style");
        style.textContent = "body { color: red }";
        document.body.append(script, image, style);
    })""")
    assert blocked == ["img-src", "script-src-elem", "style-src-elem"]
    assert page.title() == "Draftstream"
    page.close()


def downloaded(page: Page, menu: str, name: str) -> tuple[str, bytes]:
    """The file's name and content."""
    page.locator(f"summary[aria-label='{menu}']").click()
    with page.expect_download() as started:
        page.get_by_role("group", name=menu).get_by_text(name, exact=False).first.click()
    path = started.value.path()
    return started.value.suggested_filename, path.read_bytes()


def test_a_conversation_a_document_and_a_redline_are_downloaded(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    expect(page.locator("#download-thread summary")).to_have_count(0)
    send(page, "Draft an NDA")
    send(page, "Make it mutual")
    name, content = downloaded(page, "Download the conversation", "Markdown")
    assert name == "Draft an NDA.md"
    assert content.startswith(b"# Draft an NDA\n")
    assert b"> Make it mutual" in content
    name, content = downloaded(page, "Download the document", "Word")
    assert name.endswith(" v2.docx")
    assert "Mutual Non-Disclosure Agreement" in [each.text for each in Document(io.BytesIO(content)).paragraphs]
    name, content = downloaded(page, "Download the document", "Redline from version 1")
    assert name.endswith(".docx")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        body = file.read("word/document.xml")
    assert b"<w:ins " in body
    assert b"<w:del " in body
    edit(page, "Make it mutual", "Add 5-year term")
    switch(page, "Add 5-year term", "Previous", "1 / 2")
    _, content = downloaded(page, "Download the conversation", "Markdown")
    assert b"> Make it mutual" in content, "the branch that is shown"
    assert b"5-year" not in content
    page.locator("summary[aria-label='Download the document']").press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("group", name="Download the document").get_by_text("Word").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("summary[aria-label='Download the document']")).to_be_focused()
    expect(page.get_by_text("Redline from")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Redline from")).to_be_visible()
    page.click("#message")
    expect(page.get_by_text("Redline from")).to_be_hidden()
