"""The rules of the house: which room may import which, and that what ships and what is settable is written down."""

import ast
import re
from dataclasses import fields

import pytest
from conftest import ROOT, path_of, product_files
from mutants import MUTANTS

from asgi_app import ROUTES
from settings import Settings

MODULES = {path.stem for path in product_files("*.py")}
MAY_IMPORT = {
    "asgi_app": MODULES - {"asgi_app"},
    "chats": {"asgi", "callers", "chat", "run", "service", "sse"},
    "branches": {"asgi", "callers", "chat", "histories", "runs", "service", "store"},
    "threads": {"asgi", "callers", "chat", "histories", "search", "service"},
    "status": {"asgi", "service", "store"},
    "service": MODULES - {"access", "asgi_app", "branches", "chats", "downloads", "service", "status", "threads"},
    "server": {"runs", "settings"},
    "access": {"callers", "embedded", "settings", "store"},
    "callers": {"gathering", "identity", "settings", "store"},
    "identity": set[str](),
    "agent": {"chat", "documents", "drafting"},
    "drafting": {"arguments", "chat", "documents"},
    "documents": {"arguments", "chat"},
    "arguments": set[str](),
    "store": {"chat", "gathering", "journal", "recovery", "statements", "writer"},
    "manuscript": set[str](),
    "docx_file": {"docx_numbers", "manuscript"},
    "docx_numbers": {"manuscript"},
    "export": {"docx_file", "manuscript", "redline", "redline_page"},
    "downloads": {"asgi", "callers", "chat", "export", "histories", "redline_page", "service", "threads"},
    "histories": {"chat", "search", "statements", "store"},
    "redline": {"alignment", "manuscript"},
    "redline_page": {"manuscript", "redline"},
    "alignment": set[str](),
    "search": set[str](),
    "gathering": set[str](),
    "upkeep": {"chat", "runs", "store", "writer"},
    "journal": set[str](),
    "recovery": {"chat", "journal", "statements", "writer"},
    "statements": {"chat", "writer"},
    "writer": {"chat"},
    "chat": set[str](),
    "sse": {"chat"},
    "runs": {"chat", "run", "telemetry", "tracing"},
    "run": {"chat", "sse"},
    "model": {"chat", "tap", "tracing", "wire"},
    "wire": {"chat"},
    "tap": set[str](),
    "tracing": {"chat"},
    "telemetry": {"chat"},
    "logs": set[str](),
    "offline": {"chat"},
    "checkpointer": {"store", "writer"},
    "limits": set[str](),
    "exchange": {"chat", "limits", "store", "writer"},
    "embedded": set[str](),
    "asgi": set[str](),
    "settings": set[str](),
}


def imports(module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_downward(module: str) -> None:
    assert imports(module) & MODULES <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_framework_has_moved_in(module: str) -> None:
    assert imports(module).isdisjoint({"fastapi", "starlette", "gradio", "streamlit"})


def test_every_setting_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(fields(Settings)) > 25
    assert [field.name for field in fields(Settings) if f"`{field.name.upper()}`" not in readme] == []


def test_every_route_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    paths = [path_of(route) for route, _ in ROUTES]
    assert len(paths) > 12
    assert [path for path in paths if f"{path}`" not in readme and f"{path}?" not in readme] == []


def test_every_metric_is_in_the_readme() -> None:
    table = (ROOT / "README.md").read_text().partition("| metric (`draftstream_…`)")[2].partition("\n\n")[0]
    metrics = set(re.findall(r'"draftstream_(\w+)"', (ROOT / "telemetry.py").read_text()))
    assert len(metrics) > 10
    assert set(re.findall(r"`([a-z_]{8,})[`{]", table)) == metrics


def test_every_room_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [module for module in sorted(MODULES) if f"`{module}.py`" not in readme] == []


def test_every_fault_is_shown_by_tests_that_there_are() -> None:
    shown = re.findall(r'`(test_\w+\.py)(?: -k "?([\w ]+)"?)?`', (ROOT / "docs/faults.md").read_text())
    assert len(shown) > 30
    for file, words in shown:
        names = re.findall(r"def test_\w+|parametrize\(.+", (ROOT / "tests" / file).read_text())
        assert [word for word in words.split(" or ") if not any(word in name for name in names)] == [], file


def test_ci_has_every_program_that_a_test_needs() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 40
    tests = "".join(path.read_text() for path in files)
    programs = set(re.findall(r'required\("(\w+)"\)', tests))
    assert programs >= {"nginx", "chromium"}
    assert programs == set(re.findall(r"^command -v (\w+) ", (ROOT / ".ci/run").read_text(), re.MULTILINE))


def test_each_mutant_changes_a_text_that_stands_once() -> None:
    assert len(MUTANTS) > 25
    times = {mutant.guard: (ROOT / mutant.file).read_text().count(mutant.text) for mutant in MUTANTS}
    assert [guard for guard, count in times.items() if count != 1] == []
