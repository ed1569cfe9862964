"""Do the pinned packages have known vulnerabilities? pip-audit asks PyPI about every line of constraints.txt.

    make audit
    python -m bench.audit [--program PATH] [--service pypi|osv]

Exit code 0: all were looked up and none is known; 1: there are some, listed with the versions that mend them; 2: not
all could be looked up (a mirror of packages has no advisories), so nothing is proved.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINS = "constraints.txt"


def main() -> int:
    """Ask and report; see the module's text for the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="pip-audit", help="default %(default)s, as found on the path")
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="who is asked; default %(default)s")
    asked = parser.parse_args()
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "-s", asked.service]
    ended = subprocess.run(
        [asked.program, "--requirement", PINS, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    try:
        document = json.loads(ended.stdout)
    except ValueError:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        said = f"pip-audit got no answer from {asked.service} ({last[:200]}); run it where that is reachable"
        sys.stderr.write(f"{said}\n")
        return 2
    lines, code = verdict(document)
    (sys.stderr if code == 2 else sys.stdout).write("\n".join(lines) + "\n")
    return code


def verdict(document: Mapping[str, Any]) -> tuple[list[str], int]:
    """What a report of pip-audit means.

    Args:
        document: its JSON.

    Returns:
        Lines for people, and the exit code.
    """
    packages = document["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    lines = [
        f"{one['name']} {one['version']}: {found['id']} ({', '.join(found.get('aliases', [])) or 'no alias'}); "
        f"mended in {', '.join(found.get('fix_versions', [])) or 'no version yet'}"
        for one in packages
        for found in one.get("vulns", [])
    ]
    if skipped:
        some = ", ".join(skipped[:3])
        lines.append(
            f"{len(skipped)} of {len(packages)} pins were not checked ({some} ...): the package index in use has no "
            "advisories about them; run `make audit` where pypi.org itself is reachable"
        )
    if not lines:
        lines.append(f"no known vulnerability in {len(packages)} pinned packages")
        return lines, 0
    return lines, 2 if skipped else 1


if __name__ == "__main__":
    sys.exit(main())
