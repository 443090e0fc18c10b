"""The container without Docker: the Dockerfile is checked against its rules, and its steps are run."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Service, folder_for_all, free_port, product_files
from test_embedded import ORDINARY_USER as DATABASE_USER
from test_embedded import another_service, python_of_ordinary_users, said

LINES = (ROOT / "Dockerfile").read_text().splitlines()
ORDINARY_USER = 10001


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def copied() -> dict[Path, Path]:
    """Each file that the image gets, by its place there; a folder comes whole, without its `__pycache__`."""
    files: dict[Path, Path] = {}
    for line in instructions("COPY"):
        *patterns, target = line.split()
        for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
            if path.is_dir():
                inside = [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
                files |= {Path(target) / file.relative_to(path): file for file in inside}
            else:
                files[Path(target) / path.name] = path
    return files


def test_the_dockerfile_is_plain() -> None:
    [base] = instructions("FROM")
    assert re.fullmatch(r"python:3\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base), "a slim base, pinned"
    assert instructions("ADD") == []
    assert instructions("USER") == [f"{ORDINARY_USER}:{ORDINARY_USER}"], (
        "a group of its own, too: without one it is root's"
    )
    for command in (*instructions("CMD"), instructions("HEALTHCHECK")[0].partition("CMD ")[2]):
        assert isinstance(json.loads(command), list), "exec form"
    order = [line.split()[0] for line in LINES if line and not line.startswith("#")]
    assert order.index("USER") > max(index for index, name in enumerate(order) if name in ("RUN", "COPY"))


def test_the_dockerfile_copies_the_files_of_the_service_and_no_others() -> None:
    service = set(product_files("*.py", "*.sql", "*.html", "*.json", "*.toml")) - {ROOT / "pyproject.toml"}
    assert set(copied().values()) == service | {ROOT / "requirements.txt"}
    assert all(ROOT / place == file for place, file in copied().items())
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    sources = {word for line in instructions("COPY") for word in line.split()[:-1]}
    assert {f"!{source}" for source in sources} == {line for line in ignored if line.startswith("!")}


@pytest.fixture(scope="session")
def image() -> Iterator[Path]:
    """The image that the Dockerfile builds: an environment with requirements.txt alone, and the tree, read-only."""
    with folder_for_all("image-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        program, *words = instructions("RUN")[0].split()
        assert words[-2:] == ["-r", "requirements.txt"]
        subprocess.run([folder / "venv/bin" / program, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        tree = folder / "app"
        tree.mkdir()
        for place, file in copied().items():
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tree / place)
        subprocess.run([folder / "venv/bin/python", "-m", "compileall", "-q", "."], cwd=tree, check=True)
        for path in (*tree.rglob("*"), tree):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder


@pytest.fixture
def database(
    request: pytest.FixtureRequest, open_folder: Path, reachable_python: None
) -> Iterator[str]:  # it comes first
    """Under root one of DATABASE_USER: the tests' own server lets in root and nobody else."""
    if os.geteuid() != 0 or "TEST_DATABASE_URL" in os.environ:
        yield request.getfixturevalue("database_url")
        return
    os.chown(open_folder, DATABASE_USER, DATABASE_USER)
    with another_service(open_folder, python_of_ordinary_users(), DATABASE_USER) as server:
        yield said(server)


def test_its_steps_run_as_an_ordinary_user_on_a_read_only_tree(image: Path, database: str, tmp_path: Path) -> None:
    env = {"PATH": f"{image / 'venv/bin'}:/usr/bin:/bin", "DATABASE_URL": database, "LOG_FORMAT": "json"}
    env |= dict(pair.split("=") for line in instructions("ENV") for pair in line.split())
    env |= {"HOST": "127.0.0.1", "PORT": str(free_port())}
    service = Container(env, tmp_path / "log", as_run(image, instructions("CMD")[0]), cwd=image / "app")
    try:
        service.wait_until_ready()
        with urllib.request.urlopen(f"{service.url}/chat?message=Draft+an+NDA") as answer:
            frames = answer.read().decode()
        assert '"type":"end","reason":"stop","saved":true' in frames
        check = as_run(image, instructions("HEALTHCHECK")[0].partition("CMD ")[2])
        assert subprocess.run(check, env=env, check=False).returncode == 0
    finally:
        code = service.stop()
    assert code == 0, service.log
    assert all(line.startswith("{") for line in service.log.splitlines()), service.log
    assert subprocess.run(check, env=env, check=False, stderr=subprocess.DEVNULL).returncode != 0


def as_run(image: Path, instruction: str) -> list[str]:
    """The words of an exec form, in that environment."""
    program, *words = json.loads(instruction)
    return [str(image / "venv/bin" / program), *words]


@pytest.fixture
def reachable_python() -> Iterator[None]:
    """Lets an ordinary user run an interpreter that lives in root's home."""
    closed = [folder for folder in Path(sys.base_prefix).parents if not folder.stat().st_mode & stat.S_IXOTH]
    modes = [folder.stat().st_mode for folder in closed]
    for folder, mode in zip(closed, modes, strict=True):
        folder.chmod(mode | stat.S_IXOTH)
    yield
    for folder, mode in zip(closed, modes, strict=True):
        folder.chmod(mode)


class Container(Service):
    """The service as an ordinary user, in the container's tree."""

    def __init__(self, env: dict[str, str], log: Path, command: list[str], cwd: Path) -> None:
        self._cwd = cwd
        self._steps = command
        super().__init__(env, log, command)

    def start(self) -> None:
        user = DATABASE_USER if os.geteuid() == 0 else None
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._steps,
                cwd=self._cwd,
                env=self.env,
                stdout=output,
                stderr=output,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
