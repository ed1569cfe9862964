from typing import Any

import pytest

from bench.audit import verdict

GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([GOOD], 0, "no known vulnerability in 1 pinned packages"),
        ([GOOD, BAD], 1, "b 2: GHSA-1 (CVE-1); mended in 3"),
        ([GOOD, UNKNOWN], 2, "1 of 2 pins were not checked (c ...)"),
        ([BAD, UNKNOWN], 2, "b 2: GHSA-1"),
    ],
)
def test_what_was_not_looked_up_is_no_good_news(packages: list[dict[str, Any]], code: int, said: str) -> None:
    lines, found = verdict({"dependencies": packages})
    assert found == code
    assert said in "\n".join(lines)
