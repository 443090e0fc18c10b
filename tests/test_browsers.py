"""What pages in a real browser can do to an open service: those of others nothing, its own everything."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from conftest import Service, required, rows
from openai_server import OpenAIServer, finish, text, tool
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect, sync_playwright
from test_faults import wait_for
from test_page import DEADLINE_MS, FLAGS, downloaded, send

Start = Callable[..., Service]

# `attacker.example` and `rebind.example` are names that their owner pointed at this machine.
# The newest Chromium asks the person before a page from elsewhere reaches this machine. Others do not.
RESOLVE = [
    "--host-resolver-rules=MAP *.example 127.0.0.1, MAP draft.lan 127.0.0.1",
    "--disable-features=LocalNetworkAccessChecks",
]
MESSAGE = "/chat?thread_id=t&message=Replace+the+governing+law"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = required("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS.split(), *RESOLVE])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.set_default_timeout(DEADLINE_MS)
    expect.set_options(timeout=DEADLINE_MS)
    yield context
    context.close()


class Blank(BaseHTTPRequestHandler):
    """Another site: an empty page at every path, in which a test runs a script."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another site</title>")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def other_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def visit(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    return page


def stored(running: Service) -> list[tuple[object, ...]]:
    """What a foreign page could have changed."""
    sql = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM threads), (SELECT count(*) FROM stream_tokens)"
    return [tuple(row) for row in rows(running.env["DATABASE_URL"], sql)]


def refusals(running: Service) -> int:
    lines = requests.get(f"{running.url}/metrics", timeout=20).text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("draftstream_refusals_total{"))


ELEMENTS = """(url) => Promise.all([
    ["img", "src"], ["script", "src"], ["iframe", "src"], ["video", "src"], ["embed", "src"], ["object", "data"],
    ["link rel=stylesheet", "href"], ["link rel=preload as=fetch", "href"], ["link rel=prefetch", "href"],
    ["link rel=modulepreload", "href"], ["img crossorigin", "src"],
].map(([kind, source]) => new Promise((done) => {
    const [name, ...attributes] = kind.split(" ");
    const element = document.createElement(name);
    for (const [key, value = ""] of attributes.map((text) => text.split("="))) element.setAttribute(key, value);
    element.onload = element.onerror = done;
    element[source] = `${url}&by=${encodeURIComponent(kind)}`;
    document.body.append(element);
})))"""

SCRIPTS = """async (url) => {
    const how = [
        { mode: "no-cors" },
        { mode: "no-cors", headers: { Accept: "text/event-stream" } },
        { mode: "no-cors", headers: { Accept: "text/event-stream" }, referrerPolicy: "no-referrer", cache: "no-store" },
        { mode: "cors", headers: { Accept: "text/event-stream" } },
        { mode: "cors", referrerPolicy: "no-referrer" },
        { mode: "no-cors", method: "POST", body: "{}" },
        { mode: "no-cors", method: "HEAD" },
    ];
    await Promise.all(how.map((options) => fetch(url, options).catch(() => null)));
    await new Promise((done) => { const source = new EventSource(url); source.onerror = () => done(source.close()); });
}"""

CHANGES = """async (base) => {
    const type = "text/plain";
    const run = "/api/runs/00000000-0000-4000-8000-000000000000/cancel";
    for (const path of ["/api/chat", "/api/stream-tokens", run, "/api/threads/t/fork"]) {
        const body = new Blob([JSON.stringify({ message: "Replace the governing law", thread_id: "t" })], { type });
        await fetch(base + path, { method: "POST", mode: "no-cors", body }).catch(() => null);
        navigator.sendBeacon(base + path, body);
    }
    for (const method of ["DELETE", "PATCH", "PUT"])
        await fetch(`${base}/api/threads/t`, { method, body: "{}" }).catch(() => null);
    const read = await Promise.all(["/api/threads", "/api/threads/t", "/debug", "/metrics", "/openapi.json"].map((path) =>
        fetch(base + path).then((answer) => answer.text()).catch(() => null)));
    return read.filter((text) => text !== null);
}"""


@pytest.mark.parametrize("ours", ["localhost", "127.0.0.1", "draft.lan"])
@pytest.mark.parametrize("theirs", ["attacker.example", "localhost", "draft.lan"])
def test_a_page_of_another_origin_starts_changes_and_reads_nothing(
    context: BrowserContext, service: Start, other_port: int, ours: str, theirs: str
) -> None:
    """With the same name it is a page on another port. Over plain http to draft.lan no Sec-Fetch header comes."""
    running = service(ALLOWED_HOSTS="draft.lan")
    assert requests.get(f"{running.url}{MESSAGE}", timeout=60).status_code == 200
    before, refused, base = stored(running), refusals(running), f"http://{ours}:{running.port}"
    page = visit(context, f"http://{theirs}:{other_port}/")
    page.evaluate(ELEMENTS, f"{base}{MESSAGE}")
    page.evaluate(SCRIPTS, f"{base}{MESSAGE}")
    assert page.evaluate(CHANGES, base) == []
    assert refusals(running) >= refused + 25, "they came here, and not a policy of the browser stopped them"
    assert stored(running) == before


NAVIGATIONS = (
    "(url) => { location.href = url }",
    """(url) => {
        const link = document.createElement("a");
        document.body.append(Object.assign(link, { href: url, rel: "noreferrer" }));
        link.click();
    }""",
    """(url) => {
        const meta = document.createElement("meta");
        document.head.append(Object.assign(meta, { httpEquiv: "refresh", content: `0;url=${url}` }));
    }""",
    """(url) => {
        const form = document.createElement("form");
        form.innerHTML = "<input name=message value=Hi>";
        document.body.append(Object.assign(form, { action: url }));
        form.submit();
    }""",
    """(url) => {
        const [form, field] = ["form", "input"].map((name) => document.createElement(name));
        Object.assign(field, { name: '{"message":"Hi","thread_id":"', value: '"}' });
        form.append(field);
        document.body.append(form);
        Object.assign(form, { action: new URL("/api/chat", url), method: "POST", enctype: "text/plain" }).submit();
    }""",
)


@pytest.mark.parametrize("ours", ["localhost", "draft.lan"])
def test_a_link_a_form_and_a_new_window_of_another_site_start_nothing(
    context: BrowserContext, service: Start, other_port: int, ours: str
) -> None:
    running = service(ALLOWED_HOSTS="draft.lan")
    before, base = stored(running), f"http://{ours}:{running.port}"
    for way in NAVIGATIONS:
        page = context.new_page()
        page.goto(f"http://attacker.example:{other_port}/")
        with page.expect_navigation(url=lambda url: url.startswith(base)) as landed:
            page.evaluate(way, f"{base}{MESSAGE}")
        assert landed.value is not None
        assert landed.value.status == 403, way
        page.close()
    assert stored(running) == before


@pytest.mark.parametrize("ours", ["localhost", "draft.lan"])
def test_neither_the_address_bar_nor_a_reload_starts_a_run(context: BrowserContext, service: Start, ours: str) -> None:
    """A link in a mail comes as an address that somebody typed."""
    running = service(ALLOWED_HOSTS="draft.lan")
    page = context.new_page()
    ways: list[Callable[[], Response | None]] = [
        lambda: page.goto(f"http://{ours}:{running.port}{MESSAGE}"),
        page.reload,
    ]
    for go in ways:
        answer = go()
        assert answer is not None
        assert (answer.status, answer.json()["code"]) == (403, "event_stream_only")
        assert "/debug" in answer.json()["detail"]
    assert rows(running.env["DATABASE_URL"], "SELECT FROM runs") == []


@pytest.mark.parametrize("kind", ["prefetch", "prerender"])
def test_what_the_own_page_loads_ahead_starts_nothing(context: BrowserContext, service: Start, kind: str) -> None:
    """Rules by which the browser loads links before somebody clicks on them, here in the service's own origin."""
    running = service()
    page = context.new_page()
    page.route(
        "**/ahead", lambda route: route.fulfill(content_type="text/html", body="<!doctype html><title>x</title>")
    )
    page.goto(f"{running.url.replace('127.0.0.1', 'localhost')}/ahead")
    before = refusals(running)
    page.evaluate(
        """([kind, url]) => {
            const rules = document.createElement("script");
            rules.type = "speculationrules";
            rules.textContent = JSON.stringify({ [kind]: [{ source: "list", urls: [url], eagerness: "immediate" }] });
            document.head.append(rules);
            const link = document.createElement("link");
            Object.assign(link, { rel: "prefetch", href: `${url}&link` });
            document.head.append(link);
        }""",
        [kind, MESSAGE],
    )
    while refusals(running) < before + 2:
        page.wait_for_timeout(50)
    assert rows(running.env["DATABASE_URL"], "SELECT FROM runs") == []


def test_a_page_whose_name_was_pointed_at_this_machine_reads_and_changes_nothing(
    context: BrowserContext, service: Start
) -> None:
    running = service(ALLOWED_HOSTS="draft.lan")
    assert requests.get(f"{running.url}{MESSAGE}", timeout=60).status_code == 200
    before, base = stored(running), f"http://rebind.example:{running.port}"
    page = context.new_page()
    # The attacker's server gave the page; then the name was pointed at the service, on the same port.
    page.route(
        "**/given", lambda route: route.fulfill(content_type="text/html", body="<!doctype html><title>x</title>")
    )
    page.goto(f"{base}/given")
    got = page.evaluate("""() => Promise.all([
        ["GET", "/api/threads"], ["GET", "/api/threads/t"], ["GET", "/api/threads/t/export"], ["GET", "/metrics"],
        ["GET", "/healthz"], ["GET", "/debug"], ["GET", "/nowhere"], ["HEAD", "/debug"], ["DELETE", "/api/threads/t"],
        ["GET", "/chat?message=Hi&thread_id=t"], ["POST", "/api/chat"], ["OPTIONS", "/api/threads"],
        ["DELETE", "/api/threads?before=2030-01-01T00:00:00Z"], ["POST", "/api/stream-tokens"],
    ].map(async ([method, path]) => {
        const headers = { "Content-Type": "application/json", "X-Forwarded-Host": "localhost", Accept: "text/event-stream" };
        const body = method === "POST" ? JSON.stringify({ message: "Hi", thread_id: "t" }) : undefined;
        const answer = await fetch(path, { method, headers, body });
        const text = await answer.text();
        return [answer.status, text && JSON.parse(text).code];
    }))""")
    assert {tuple(one) for one in got} == {(403, "bad_host"), (403, "")}, "a HEAD has no body"
    shown = page.goto(f"{base}/debug")
    assert shown is not None
    assert shown.status == 403
    assert stored(running) == before


@pytest.mark.parametrize("ours", ["127.0.0.1", "localhost", "draft.localhost", "draft.lan"])
def test_the_own_page_works_at_every_name_that_is_ours(context: BrowserContext, service: Start, ours: str) -> None:
    running = service(ALLOWED_HOSTS="draft.lan", MAX_MESSAGE_CHARS="40")
    page = context.new_page()
    page.goto(f"http://{ours}:{running.port}/debug")
    send(page, "Draft an NDA", "GET")
    expect(page.locator("#log .end")).to_contain_text('"saved":true')
    send(page, "Make it mutual", "POST")
    expect(page.locator(".chip")).to_have_count(2)
    send(page, "x" * 41, "GET")
    expect(page.locator(".problem")).to_contain_text("more than 40 characters")
    read = page.evaluate("async () => (await (await fetch('/api/threads')).json()).threads.length")
    assert read == 1


@pytest.mark.parametrize("ours", ["localhost", "draft.lan"])
def test_a_page_of_an_allowed_origin_works_and_its_images_start_nothing(
    context: BrowserContext, service: Start, other_port: int, ours: str
) -> None:
    theirs = f"http://localhost:{other_port}"
    running = service(ALLOWED_HOSTS="draft.lan", CORS_ALLOW_ORIGINS=theirs)
    base = f"http://{ours}:{running.port}"
    page = visit(context, f"{theirs}/")
    last = page.evaluate(
        """(url) => new Promise((done) => {
            const source = new EventSource(url);
            source.onmessage = (message) => {
                const event = JSON.parse(message.data);
                if (event.type === "end" || event.type === "error") { source.close(); done(event); }
            };
            source.onerror = () => { source.close(); done(null); };
        })""",
        f"{base}/chat?message=Draft+an+NDA&thread_id=by-event-source",
    )
    assert last["saved"] is True
    posted = page.evaluate(
        """async (url) => {
            const headers = { "Content-Type": "application/json" };
            const body = JSON.stringify({ message: "Draft an NDA", thread_id: "by-fetch" });
            const answer = await fetch(url, { method: "POST", headers, body });
            return [answer.status, await answer.text()];
        }""",
        f"{base}/api/chat",
    )
    assert posted[0] == 200
    assert '"saved":true' in posted[1]
    refused = refusals(running)
    page.evaluate(ELEMENTS, f"{base}{MESSAGE}")
    assert refusals(running) >= refused + 8
    assert stored(running) == [(2, 2, 0)]


def test_a_title_does_not_choose_the_name_of_the_file_that_is_saved(
    context: BrowserContext, service: Start, openai: OpenAIServer
) -> None:
    title = "NDA＂; filename＊=UTF-8＇＇Invoice.html; x=＂"
    openai.reply(tool("write_document", {"title": title, "content": "# NDA"}), finish("tool_calls"))
    openai.reply(text("Done."), finish())
    page = context.new_page()
    page.goto(f"{service(openai=openai).url}/debug")
    send(page, "Draft an NDA")
    name, _ = downloaded(page, "Download the document", "Markdown")
    assert name == "NDA ; filename =UTF-8''Invoice.html; x= v1.md"


def test_an_event_source_above_the_limit_of_requests_stays_alive_and_comes_back(
    service: Start, openai: OpenAIServer, context: BrowserContext
) -> None:
    """A 429 would close it for good, and the page would lose the rest of its run."""
    openai.reply(text("Hello"), finish())
    running = service(openai, REQUESTS_PER_MINUTE="1")
    page = visit(context, f"{running.url}/healthz")
    page.evaluate("window.source = new EventSource('/chat?message=Hi')")  # after the end it reconnects, with its id
    page.evaluate("window.source.onerror = () => (window.errors = (window.errors ?? 0) + 1)")
    refused = 'refusals_total{code="rate_limited"} 1.0'
    wait_for(lambda: refused in requests.get(f"{running.url}/metrics", timeout=10).text)
    page.wait_for_function("window.errors > 1")
    assert page.evaluate("window.source.readyState") == 0, "it is connecting, and not closed"
    status = "async () => (await fetch('/chat?message=Hi', {headers: {accept: 'text/event-stream'}})).status"
    assert page.evaluate(status) == 429
