from pathlib import Path

import numpy as np

from rlhf.data.entries import ENTRY
from rlhf.data.parts import Part


def filled(path: Path, *prompts: int) -> Part:
    part = Part(path)
    for prompt in prompts:
        entries = np.zeros(1, ENTRY)
        entries["prompt"] = prompt
        part.add(entries, [f"{prompt}\n".encode()])
    return part


def test_dropped_records_are_left_out_everywhere(tmp_path: Path) -> None:
    part = filled(tmp_path / "part", 1, 2, 3, 4)
    assert part.drop(lambda entries: entries["prompt"] % 2 == 0)["prompt"].tolist() == [2, 4]
    assert part.drop(lambda entries: entries["prompt"] < 2)["prompt"].tolist() == [1]
    part.add(np.zeros(1, ENTRY), [b"late\n"])
    assert part.kept()["prompt"].tolist() == [3, 0]
    part.write(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"3\nlate\n"
    assert part.count() == 2
    part.close()


def test_blocks_hold_entries_with_their_lines(tmp_path: Path) -> None:
    part = filled(tmp_path / "part", 1, 2, 3, 4, 5)
    part.drop(lambda entries: entries["prompt"] == 2)
    assert [(old.entries["prompt"].tolist(), old.lines) for old in part.blocks(3)] == [
        ([1, 3, 4], [b"1\n", b"3\n", b"4\n"]),
        ([5], [b"5\n"]),
    ]
    odd = [old.lines for old in part.blocks(2, lambda entries: entries["prompt"] % 4 == 1)]
    assert odd == [[b"1\n"], [b"5\n"]]
    part.close()
