"""Looks the locked packages up among the known vulnerabilities: `audit.py UV LOCK...`. The Makefile calls it.

Exit codes: 0 no known vulnerability, 1 at least one, 2 the audit could not be made, or not of every package.
"""

import json
import subprocess
import sys
from typing import Any

PIP_AUDIT = "pip-audit==2.10.1"  # in an environment of its own, which uv makes: the lock files do not name it
TIMEOUT_S = 600
FOUND, NOT_MADE = 1, 2


def audit(uv: str, lock: str) -> int:
    command = [uv, "tool", "run", "--quiet", "--from", PIP_AUDIT, "pip-audit", "--requirement", lock]
    command += ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"{lock}: not audited, as pip-audit had no answer after {TIMEOUT_S} seconds")
        return NOT_MADE
    except (ValueError, KeyError, OSError):
        print(f"{lock}: not audited, as pip-audit or its service can't be reached ({last_line(done.stderr)})")
        return NOT_MADE
    return judge(lock, packages)


def judge(lock: str, packages: list[dict[str, Any]]) -> int:
    unknown = [package for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        for fault in package["vulns"]:
            cure = f"fixed in {', '.join(fault['fix_versions'])}" if fault["fix_versions"] else "not fixed yet"
            print(f"{lock}: {package['name']} {package['version']} has {fault['id']}, {cure}")
    if unknown or not packages:
        print(f"{lock}: {len(unknown)} of {len(packages)} packages not audited, as the service does not know them")
    elif not vulnerable:
        print(f"{lock}: no known vulnerability in {len(packages)} packages")
    return FOUND if vulnerable else NOT_MADE if unknown or not packages else 0


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no reason given"


def main() -> None:
    uv, *locks = sys.argv[1:]
    codes = {audit(uv, lock) for lock in locks}
    sys.exit(FOUND if FOUND in codes else max(codes))


if __name__ == "__main__":
    main()
