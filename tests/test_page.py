"""The debug page in a real browser, against the real service."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Service, required
from openai_server import OpenAIServer, finish, text, tool
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_service import snippet

HOSTILE = "</script><img src=x onerror=document.title='broken'>\n\n<b>not bold</b> & \u2028 😀"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = required("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong: no console error, no uncaught one, no violation of the policy."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.set_default_timeout(20_000)
    yield page
    page.close()
    assert [text for text in wrong if "status of 4" not in text] == []


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
    page.click("#threads button >> text=Draft an NDA")
    expect(page.locator(".chip")).to_have_count(2)
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


def test_a_refusal_is_shown_with_its_reason(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service(MAX_MESSAGE_CHARS='10').url}/debug")
    send(page, "far too long a message")
    expect(page.locator(".problem")).to_contain_text("more than 10 characters")
    send(page, "   ")
    expect(page.locator(".problem").last).to_contain_text("must not be empty")


def test_a_run_can_be_stopped(page: Page, service: Callable[..., Service]) -> None:
    page.goto(f"{service().url}/debug")
    page.fill("#message", "Draft an NDA")
    page.click("#send-post")
    expect(page.locator("#sheet h1")).to_be_visible()
    page.click("#stop")
    expect(page.locator(".problem")).to_contain_text("cancelled")
    expect(page.locator("#send-post")).to_be_enabled()
    page.reload()
    expect(page.locator(".chip.cut")).to_contain_text("interrupted")


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
