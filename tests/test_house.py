"""The rules of this repository: the table of imports, the root, the changelog, the programs of CI, the mutants."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import LONGEST, ROOT, product_files
from mutants import MUTANTS

from settings import VERSION

SOURCES = product_files("*.py")
DOMAINS = {"web", "runs", "drafting", "documents", "storage", "threads", "access", "telemetry", "chat"}
ENTRIES = {"asgi_app", "agent", "store", "settings"}

# Which part may import which of the others: DESIGN in one table. Nothing may be imported by a part that stands above it.
MAY_IMPORT: dict[str, set[str]] = {
    "chat": set(),
    "settings": set(),
    "documents": set(),
    "telemetry": {"chat"},
    "storage": {"chat"},
    "drafting": {"chat", "documents", "telemetry"},
    "runs": {"chat", "telemetry"},
    "agent": {"chat", "documents", "drafting"},
    "store": {"chat", "storage"},
    "threads": {"chat", "settings", "store"},
    "access": {"chat", "settings", "store"},
    "web": {*DOMAINS, "chat", "settings", "agent", "store"} - {"web", "drafting", "storage"},
    "asgi_app": {*DOMAINS, *ENTRIES} - {"asgi_app"},
}

# Single files may import these modules, too: a command reads the environment, and starts the service's own database.
FILES_MAY_IMPORT = {
    ROOT / "access/__main__.py": {"storage.embedded"},
    ROOT / "storage/__main__.py": {"settings"},
}


def part_of(path: Path) -> str:
    """The folder of a file, or the module in the root."""
    place = path.relative_to(ROOT)
    return place.parts[0] if len(place.parts) > 1 else place.stem


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in SOURCES}


def imports(path: Path) -> set[str]:
    """The modules that a file names, ours and others'; of `from a import b` both, as b may be a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_the_table_is_about_the_parts_that_there_are() -> None:
    assert set(MAY_IMPORT) == {part_of(path) for path in SOURCES} == DOMAINS | ENTRIES
    assert [path for path in FILES_MAY_IMPORT if not exempt(path)] == []


def exempt(path: Path) -> set[str]:
    """The modules that this file alone may import, with their names."""
    modules = FILES_MAY_IMPORT.get(path, set())
    return {name for name in imports(path) if any(f"{name}.".startswith(f"{module}.") for module in modules)}


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_a_part_imports_only_what_the_table_allows(part: str) -> None:
    files = [path for path in SOURCES if part_of(path) == part]
    named = {name.partition(".")[0] for path in files for name in imports(path) - exempt(path)}
    assert named & MAY_IMPORT.keys() - {part} <= MAY_IMPORT[part]


def test_the_order_of_the_parts_has_no_circle() -> None:
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


def test_the_order_of_the_files_has_no_circle() -> None:
    order = {name: (imports(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}
    assert sum(map(len, order.values())) > 100
    assert list(TopologicalSorter(order).static_order())


def test_only_storage_knows_the_driver() -> None:
    assert {part_of(path) for path in SOURCES if "asyncpg" in imports(path)} == {"storage"}


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_no_framework_has_moved_in(path: Path) -> None:
    named = {name.partition(".")[0] for name in imports(path)}
    assert named.isdisjoint({"fastapi", "starlette", "gradio", "streamlit"})


def test_the_root_has_at_most_thirty_entries() -> None:
    """A newcomer reads them all. Files that git ignores do not count."""
    ignored = {".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())}
    entries = {path.name for path in ROOT.iterdir()} - ignored
    assert entries >= {"README.md", "LICENSE", "CHANGELOG.md", "asgi_app.py"}
    assert len(entries) <= 30, sorted(entries)


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(VERSION)} \(\d{{4}}-\d\d-\d\d\)", headings[1])


def test_each_section_of_the_changelog_says_how_the_change_matters() -> None:
    kinds = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert kinds
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_ci_has_every_program_that_a_test_needs() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 40
    tests = "".join(path.read_text() for path in files)
    programs = set(re.findall(r'required\("(\w+)"\)', tests))
    assert programs >= {"nginx", "chromium"}
    assert programs == set(re.findall(r"^command -v (\w+) ", (ROOT / ".ci/run").read_text(), re.MULTILINE))


def test_each_file_that_is_tested_first_is_there() -> None:
    assert [name for name in LONGEST if not (ROOT / f"tests/test_{name}.py").is_file()] == []


def test_each_mutant_changes_a_text_that_stands_once() -> None:
    assert len(MUTANTS) > 25
    times = {mutant.guard: (ROOT / mutant.file).read_text().count(mutant.text) for mutant in MUTANTS}
    assert [guard for guard, count in times.items() if count != 1] == []
