"""One run of `validate` on rows that a test writes, and what it left."""

import json
from pathlib import Path
from typing import Any

from rlhf.recipes.validate import Config, main

CONFIG = Config(
    files=("data.jsonl",),
    formats={},
    max_bad_fraction=0.05,
    test_fraction=0.2,
    dev_fraction=0.2,
    judge_fraction=0.3,
    split_seed=1,
    max_prompt_chars=2000,
    max_response_chars=1000,
    demonstrations_from="auto",
    prompts_from="auto",
    max_demonstrations=None,
    max_pairs=None,
    max_prompts=None,
    max_held_out=None,
)
FOLDERS = ("demonstrations", "pairs", "judge_pairs", "prompts", "probes", "rankings", "judge_rankings", "judgements")
Record = dict[str, Any]


class Outcome:
    """What a run wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = json.loads((root / "validate.json").read_text())
        self.quarantine = read(root / "quarantine" / "rows.jsonl")

    def records(self, folder: str, split: str) -> list[Record]:
        return read(self.root / folder / f"{split}.jsonl")

    def every(self, folder: str) -> list[Record]:
        return [record for split in ("train", "dev", "test") for record in self.records(folder, split)]

    def bytes(self) -> dict[str, bytes]:
        files = [path for folder in (*FOLDERS, "quarantine") for path in sorted((self.root / folder).iterdir())]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in [*files, self.root / "validate.json"]}


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")


def validate(config: Config, raw: Path, out: Path) -> Outcome:
    main(
        config,
        seed=3,
        stage="validate",
        raw=raw,
        **{folder: out / folder for folder in FOLDERS},
        quarantine=out / "quarantine" / "rows.jsonl",
        metrics=out / "validate.json",
    )
    return Outcome(out)


def pairs(count: int) -> list[Record]:
    return [{"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]
