"""A stage on a disk of its own that fills up at one write after the other; a test runs it in its own mount namespace.

unshare --mount python -m tests.rlhf.full_disk FOLDER RESULT
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.rlhf.interrupted_stage import Trial

SIZE = 2**25
"""Bytes of the disk."""
INSTANTS = {
    "live rows": ("^open .*/live/sft/[0-9a-f]+.jsonl$", 2),
    "checkpoint": (r"^open .*/checkpoints/.*\.tmp$", 3),
    "caches": (r"^mkdir \.ratchet/tmp/tokens/\.", 1),
    "model": (r"^mkdir out/\.model", 1),
}
"""At which of the writes that fit a pattern nothing is left of the disk."""


def main(folder: Path, result: Path) -> None:
    """Mount the disk on a folder, run the stage until all is written, and tell what happened."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    trial, found = Trial(folder / "stage", "sft"), dict[str, Any]()
    (trial.folder / "out/model").mkdir(parents=True)
    for name in ("model/old.txt", "curves.csv", "metrics.json"):
        (trial.folder / "out" / name).write_text("old")
    for name, (pattern, count) in INSTANTS.items():
        if name == "caches":
            subprocess.run(["rm", "-r", str(trial.folder / ".ratchet/tmp/tokens")], check=True)
        before = [file.name for file in trial.checkpoints()]
        ended = trial.run(blow="fill", at=pattern, count=count)
        (trial.folder / "filler").unlink()
        found[name] = {
            "code": ended.code, "said": ended.said, "before": before,
            "after": [file.name for file in trial.checkpoints()], "written": trial.written(),
        }  # fmt: skip
    last = trial.run()
    found["last"] = {"code": last.code, "said": last.said, "written": trial.written(), "live": trial.live()}
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
