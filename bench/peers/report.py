"""Tables of all comparisons that were run, from what they left as JSON.

`python -m bench.peers.report` prints them; with `--write` they go between their marks in docs/performance.md.
"""

import json
import re
import statistics
import sys
from typing import Any

from bench.peers.pairing import ROOT, STATE, say

DOCUMENT = ROOT / "docs" / "performance.md"

STAGES = ("sft", "reward", "dpo", "ppo")
SIZES = ("M", "S")


def ratios(size: str) -> list[str]:
    """Lines of the table of one size."""
    lines = [
        "| step | row | peer, CPU s | ours, CPU s | ratio (quartiles) | losses differ | log-probs, scores differ |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage in STAGES:
        for row in _read(f"{stage}-{size}").get("rows", []):
            low, high = row["quartiles"]
            loss = f"{row['loss_gap']:.0e}" if row["loss_compared"] else "-"
            lines.append(
                f"| {stage} | {row['name']} | {row['peer']:.2f} | {row['ours']:.2f} | **{row['ratio']:.2f}** "
                f"({low:.2f} to {high:.2f}) | {loss} | {row['logprob_gap']:.0e} |"
            )
    return lines


def parts(size: str) -> list[str]:
    """Lines on the parts of a PPO update."""
    lines = ["| row | part | peer | ours | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for row in _read(f"ppo-{size}").get("rows", []):
        for name, pairs in row["parts"].items():
            theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
            lines.append(f"| {row['name']} | {name} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} |")
    return lines


def profiles(size: str) -> list[str]:
    """Lines on where our time goes."""
    found = {stage: _read(f"{stage}-{size}-profile") for stage in STAGES}
    found = {stage: one for stage, one in found.items() if one}
    lines = [f"| | {' | '.join(found)} |", "| --- |" + " ---: |" * len(found)]
    for title, key, digits in (
        ("CPU s a step", "seconds", 2),
        ("GFLOP needed", "gigaflop", 1),
        ("limit, CPU s", "limit", 2),
    ):
        lines.append(f"| {title} | {' | '.join(f'{one[key]:.{digits}f}' for one in found.values())} |")
    lines.append(f"| of the limit | {' | '.join(_share(one['limit'], one) for one in found.values())} |")
    names = dict.fromkeys(name for one in found.values() for name in one["parts"])
    lines += [f"| {name} | {' | '.join(_share(one['parts'][name], one) for one in found.values())} |" for name in names]
    return lines


def _share(seconds: float, profile: dict[str, Any]) -> str:
    return f"{100 * seconds / profile['seconds']:.0f}%"


def _read(name: str) -> dict[str, Any]:
    """What a comparison left; empty where it has not run."""
    file = STATE / "peers" / f"{name}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def conditions() -> list[str]:
    """When, on what and with which versions the comparisons were run."""
    records = [_read(f"{stage}-{size}") for size in SIZES for stage in STAGES]
    found = dict.fromkeys(
        f"{one['date']}: {one['cpu']}, one thread, torch {one['versions']['torch']}, transformers "
        f"{one['versions']['transformers']}."
        for one in records
        if one
    )
    return sorted(found)


def speeds() -> list[str]:
    """Rates of matrix products that the profiles measured, medians."""
    rates = [one["rates"] for stage in STAGES if (one := _read(f"{stage}-M-profile"))]
    names = rates[0] if rates else {}
    lines = ["| fp32 products, 10^9 operations per CPU second | |", "| --- | ---: |"]
    return lines + [f"| {name} | {statistics.median(one[name] for one in rates):.0f} |" for name in names]


def tables() -> dict[str, list[str]]:
    """All of them, by mark."""
    return {
        "conditions": conditions(), "M": ratios("M"), "S": ratios("S"), "parts": parts("M"), "speeds": speeds(),
        "profiles": profiles("M"),
    }  # fmt: skip


def write() -> None:
    """Put every table between its marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for mark, lines in tables().items():
        pattern = re.compile(f"(<!-- begin {mark} -->\n).*?(<!-- end {mark} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{DOCUMENT}: no marks `<!-- begin {mark} -->` and `<!-- end {mark} -->`")
        block = "\n".join(lines)
        text = pattern.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    for name, lines in tables().items():
        say(f"{name}\n\n" + "\n".join(lines) + "\n")
