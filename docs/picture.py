"""Makes docs/page.png: a chat with the offline model in a real browser, and the redline of its last change.

    python docs/picture.py [FILE]

It needs the packages of `make test`, and Chromium. The service runs on a port and a database of its own.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1320, 800
START_S = 60.0  # for the start of an embedded PostgreSQL on a loaded machine
MESSAGES = ("Draft an NDA", "Make it mutual", "Add 2-year term")


@contextmanager
def offline_service() -> Iterator[str]:
    """The service without a key and without a database; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="picture-") as folder:
        Path(folder).chmod(0o755)  # started by root, the embedded PostgreSQL runs as a user of its own
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        env |= {"PORT": str(port), "DATA_DIR": f"{folder}/data"}
        process = subprocess.Popen([sys.executable, "asgi_app.py"], cwd=ROOT, env=env)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, url)
            yield url
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit("The service did not become ready; see its lines above.")


def chat(page: Page, message: str) -> None:
    page.fill("#message", message)
    page.click("#send-post")
    expect(page.locator(".chip", has_text=f"version {MESSAGES.index(message) + 1}")).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden()


def take(url: str, file: Path) -> None:
    program = shutil.which("chromium") or sys.exit("Chromium is not installed: apt-get install chromium")
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"{url}/debug")
        for message in MESSAGES:
            chat(page, message)
        page.click(".switch >> text=Changes")
        expect(page.locator("#sheet ins").first).to_be_visible()
        page.locator("#sheet ins").first.scroll_into_view_if_needed()
        page.mouse.move(0, 0)
        page.screenshot(path=file)
        browser.close()


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/page.png"
    with offline_service() as url:
        take(url, file)


if __name__ == "__main__":
    main()
