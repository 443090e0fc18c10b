"""Sets up a virtual environment from a lock file: `install.py FOLDER LOCK`. The Makefile calls it.

It shows each package, and says in one line why the installation failed and what to do.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Of pip's lines: the name of a package, or the file of one that lies on this machine.
PACKAGE = re.compile(r"(?:Collecting|Requirement already satisfied:) ([\w.-]+)|Processing \S*/([\w.]+)-\d")
UNREACHABLE = re.compile(r"Retrying \(|Could not fetch URL|ConnectionError|ConnectTimeout|ReadTimeout|ProxyError")
REASON = re.compile(
    r"\[Errno -?\d+\] [\w ]+|Read timed out|connect timeout|Tunnel connection failed: [\w ]+|certificate verify failed"
)
VERSION = f"Python {sys.version_info.major}.{sys.version_info.minor}"
NO_PIP = f"""\
{VERSION} has no module `ensurepip`, so it cannot make a virtual environment.
On Debian or Ubuntu: apt install python{sys.version_info.major}.{sys.version_info.minor}-venv"""


class FailedError(Exception):
    """Says what failed and the way out, in one line or two."""


def make_environment(folder: Path) -> None:
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise FailedError(NO_PIP)
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise FailedError(f"{sys.executable} -m venv {folder} failed:\n{made.stdout}{made.stderr}".strip())


def install(folder: Path, lock: Path) -> int:
    """Gives the number of packages."""
    wanted = len(re.findall(r"^[\w.-]+(?:\[.*\])?==", lock.read_text(), re.MULTILINE))
    pip = [str(folder / "bin/python"), "-u", "-m", "pip", "install", "--require-hashes", "--progress-bar", "off"]
    pip += ["--no-deps"]  # a lock is whole, but for packages whose requirements are not wanted
    pip += ["--no-compile"]  # Python compiles what it imports: a fifth of the files
    pip += ["--disable-pip-version-check", "--retries", "2", "-r", str(lock)]
    process = subprocess.Popen(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output: list[str] = []
    seen = 0
    for line in process.stdout:
        output.append(line)
        if line.startswith("Ignoring "):  # its marker is not for this platform
            wanted -= 1
        elif name := PACKAGE.match(line):
            seen += 1
            show(f"  {seen:3} of {wanted}  {name[1] or name[2]}", last=seen == wanted)
        elif line.startswith("Installing collected packages"):
            show("  unpacking", last=True)
    if process.wait() != 0:
        raise FailedError(explanation(output))
    return seen


def show(text: str, *, last: bool) -> None:
    """On a terminal the packages take turns on one line."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)


def explanation(output: list[str]) -> str:
    text = "".join(output)
    if UNREACHABLE.search(text) and "DO NOT MATCH THE HASHES" not in text:
        reason = REASON.search(text)
        return (
            f"pip cannot reach its package index{f' ({reason[0]})' if reason else ''}. Check the network, "
            "or name your proxy or mirror: PIP_PROXY=http://… or PIP_INDEX_URL=https://…/simple"
        )
    errors = "".join(errors_of(output)) or text[-2000:]
    if missing := re.search(r"No matching distribution found for ([\w.-]+)", text):
        return f"{errors}\nThe package index has no {missing[1]} for {VERSION} on this platform: try Python 3.13."
    return f"{errors}\npip could not install the packages."


def errors_of(output: list[str]) -> Iterator[str]:
    """pip's message: from its first line of an error on."""
    started = False
    for line in output:
        started = started or line.startswith("ERROR")
        if started:
            yield line


def main(folder: Path, lock: Path) -> None:
    started = time.monotonic()
    print(f"Setting up {folder} with {VERSION} from {lock} (once)", flush=True)
    if not (folder / "bin/python").exists():
        make_environment(folder)
    count = install(folder, lock)
    print(f"{count} packages are in {folder} after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except FailedError as failed:
        sys.exit(f"\n{failed}")
