import json
from pathlib import Path

import pytest

from rlhf.data import row_checks
from rlhf.data.contracts import Limits
from rlhf.data.entries import Placement
from rlhf.data.row_checks import checked_rows, unread_blocks


def test_a_block_is_read_checked_and_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "Q", "chosen": "A", "rejected": "B"}, {"prompt": "Q", "chosen": "A", "rejected": "A"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{", "", json.dumps(rows[0])]), encoding="utf-8")
    monkeypatch.setattr(row_checks, "BLOCK", 3)
    first, second = unread_blocks(path)
    assert ([number for number, _ in first], [number for number, _ in second]) == ([1, 2, 3], [5])
    found = checked_rows(
        first, name="f", format="preference", file=0, limits=Limits(prompt_chars=9, response_chars=9),
        placement=Placement(lambda _: "train", lambda _: False),
    )  # fmt: skip
    assert (found.rows, found.good, len(found.block.lines)) == (3, 2, 1)
    # What cannot be read comes before what breaks the contract.
    assert [(refused.line, refused.reason) for refused in found.refused] == [
        (3, "broken JSON"), (2, "chosen equals rejected"),
    ]  # fmt: skip
