"""Broken data files through `ratchet ingest` and the stage `validate`."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tasks.tracked_copy
from bench.fuzz import damage, samples
from bench.fuzz.projects import Workspace, inside
from bench.fuzz.watch import Fault, said, sentence_of

FORMS = ("jsonl", "jsonl", "jsonl", "json", "jsonl.gz", "json.gz")
ENDINGS = (".parquet", ".csv", ".txt", "", ".JSONL", ".jsonl.zst", ".arrow")
ROWS = 12
GOOD = 120
"""Good rows that stand beside those of a case."""
REAL_DVC = 0.01
"""Share of the accepted files that DVC itself adds; the pointers of others are written here, which saves a second."""
VALIDATED = 0.4
"""Share of the files that go through the stage `validate`, too, which takes twice the time of `ingest`."""
PATHS = ("demonstrations", "pairs", "judge-pairs", "prompts", "probes", "rankings", "judge-rankings", "judgements")
SHARED = {"judge-pairs", "judge-rankings"}
"""Folders whose dev and test are those of another folder."""
KEYS = {
    "demonstrations": {"id", "prompt", "response", "source", "meta"},
    "pairs": {
        "id", "prompt", "chosen", "rejected", "label", "annotator", "score_chosen", "score_rejected", "source", "meta",
    },
    "rankings": {"id", "prompt", "responses", "ranks", "scores", "annotator", "source", "meta"},
    "judgements": {"id", "prompt", "response", "good", "annotator", "source", "meta"},
    "prompts": {"id", "prompt", "source", "meta"},
}  # fmt: skip
KEYS |= {"probes": KEYS["pairs"], "judge-pairs": KEYS["pairs"], "judge-rankings": KEYS["rankings"]}
SETTINGS = """\
seed: 1
validate: {files: [pairs.jsonl, replies.jsonl, asked.jsonl, %s], formats: {}, max_bad_fraction: 1.0,
  test_fraction: 0.2, dev_fraction: 0.2,
  judge_fraction: 0.3, split_seed: 0, max_prompt_chars: 20000, max_response_chars: 20000,
  demonstrations_from: demonstrations, prompts_from: prompts, max_demonstrations: null, max_pairs: null,
  max_prompts: null, max_held_out: null, threads: 1, launch: python}
"""


def prepare(space: Workspace) -> None:
    """A project with good data to which each case adds a file."""
    rng = random.Random(0)
    rows = [samples.row(kind, rng) for kind in ("preference",) * 60 + ("demonstration",) * 30 + ("prompt",) * 30]
    for number, row in enumerate(rows):
        row.pop("meta", None)
        row["id"] = number
    shutil.rmtree(space.project / "profiles")  # reading them all to suggest one is most of the time of `ingest`
    raw = space.project / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, some in (("pairs", rows[:60]), ("replies", rows[60:90]), ("asked", rows[90:])):
        (raw / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def kinds() -> list[str]:
    """Names of the formats."""
    from rlhf.data.readers import READERS

    return list(READERS)


def broken(kind: str, rng: random.Random) -> tuple[bytes, str]:
    """The bytes of a broken file of a format, and its ending."""
    rows: list[Any] = [samples.row(kind, rng) for _ in range(ROWS)]
    for _ in range(rng.choice((0, 1, 1, 2, 6, 30))):
        place = rng.randrange(len(rows))
        rows[place], _what = damage.tree(rows[place], rng)
    if rng.random() < 0.1:
        rows.insert(rng.randrange(ROWS), samples.row(rng.choice(kinds()), rng))
    if rng.random() < 0.05:
        rows = [damage.tree(json.loads(json.dumps(row)), rng)[0] for row in rows]
    form = rng.choice(FORMS)
    plain = rng.random() < 0.5
    if form.startswith("jsonl"):
        lines = [damage.as_json(row, ensure_ascii=plain) for row in rows]
        written = "\n".join(lines) + rng.choice(("\n", "", "\n\n"))
    else:
        written = damage.as_json(rows, ensure_ascii=plain, indent=rng.choice((None, 1)))
    data = written.encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        data, _what = damage.some_bytes(data, rng)
    ending = f".{form}" if rng.random() < 0.9 else rng.choice(ENDINGS)
    return (gzip.compress(data, 1, mtime=0) if form.endswith("gz") else data), ending


def run(space: Workspace, kind: str, rng: random.Random) -> str | None:
    """One case; see `watch.judged`."""
    data, ending = broken(kind, rng)
    source = space.folder / f"case{ending}"
    source.write_bytes(data)
    try:
        with quick_pointer(real=rng.random() < REAL_DVC):
            refusal, place = _ingest(space, source, data, forced=kind if rng.random() < 0.1 else None)
        place = place or space.project / "data" / "raw" / "case.jsonl"
        if not place.exists():
            place.write_bytes(data)
        if rng.random() > VALIDATED:
            return refusal
        stage_refusal = _validate(space, place, kind)
    finally:
        source.unlink()
        space.restore()
    if refusal and not stage_refusal and "would refuse every row" not in refusal:  # others of the stage's rows are good
        raise Fault(f"ingest refuses what validate takes: {refusal}")
    return refusal or stage_refusal


def _ingest(space: Workspace, source: Path, data: bytes, *, forced: str | None) -> tuple[str | None, Path | None]:
    from flows.cli import main

    words = ["--root", str(space.project), "ingest", str(source), "--as", "case", "--json"]
    ended = said(lambda: main([*words, "--format", forced] if forced else words))
    refusal = sentence_of(ended)
    there = [path for path in (space.project / "data" / "raw").iterdir() if "case" in path.name]
    if refusal:
        if there:
            raise Fault(f"refused, and left {[path.name for path in there]}")
        return (None if forced else refusal), None
    report = json.loads(ended.out)["data"]
    place = space.project / "data" / "raw" / report["name"]
    if place.read_bytes() != data:
        raise Fault("the copy has other bytes")
    if sum(report["rows"].values()) < 1 or {path.name for path in there} != {place.name, f"{place.name}.dvc"}:
        raise Fault(f"added {report['rows']} and left {[path.name for path in there]}")
    return None, place


def _validate(space: Workspace, place: Path, kind: str) -> str | None:
    from rlhf.launch import run as launch

    (space.project / "params.yaml").write_text(SETTINGS % json.dumps(place.name))
    out = space.project / "data" / "out"
    words = ["validate", "--set", "workers=validate.threads", "--raw", "data/raw", "--metrics", "data/out/metrics.json"]
    words += [word for name in PATHS for word in (f"--{name}", f"data/out/{name}")]
    with inside(space.project):
        ended = said(lambda: launch([*words, "--quarantine", "data/out/quarantine.jsonl"]))
    if ended.code:
        note = json.loads((space.project / ".ratchet/tmp/failures/validate.json").read_text())
        if "Traceback" in ended.err or ended.code != 2 or note["exit_code"] != 2:
            raise Fault(f"validate ended with {ended.code}: {ended.err[-600:]}")
        return str(note["sentence"])
    _check_sets(out, place, two_records=kind == "alpaca_preference")
    return None


def _check_sets(out: Path, place: Path, *, two_records: bool) -> None:
    from rlhf.data.records import encode

    kept = 0
    for name in PATHS:
        for split in (out / name).glob("*.jsonl"):
            for line in _lines(split):
                record = json.loads(line)
                if set(record) != KEYS[name] or encode(record) != line or record["prompt"][-1]["role"] != "user":
                    raise Fault(f"{name}/{split.name} holds a record that is not canonical: {line[:300]}")
                kept += name not in SHARED or split.stem == "train"
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    lines = [json.loads(line) for line in _lines(out / "quarantine.jsonl")]
    contradicted = [line for line in lines if line["reason"].startswith("contradicted")]
    left = ("duplicates", "contradictory", "probes_not_held_out", "prompts_not_unlike", "judgements_on_judge_prompts")
    counted = kept + rows["refused"] + sum(rows[name] for name in left)
    if len(contradicted) != rows["contradictory"] or (
        counted < rows["read"] if two_records else counted != rows["read"]
    ):
        raise Fault(f"{rows['read']} rows were read, {kept} kept, and the rest is not accounted for: {rows}")
    content = place.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
        number = sum(1 for line in io.BytesIO(content) if not line.isspace())
        if rows["read"] != number + GOOD:
            raise Fault(f"{number} rows in the file, {rows['read'] - GOOD} read")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@contextlib.contextmanager
def quick_pointer(*, real: bool) -> Iterator[None]:
    """Have `ingest` write the pointer without DVC, for the length of the block; not where it is to be `real`."""

    def write(_root: Path, target: Path) -> None:
        target.with_name(f"{target.name}.dvc").write_text("outs: []\n")

    kept = tasks.tracked_copy._track
    if not real:
        tasks.tracked_copy._track = write
    try:
        yield
    finally:
        tasks.tracked_copy._track = kept


os.environ.setdefault("RATCHET_LAUNCHED", "1")  # a stage then runs in this process instead of becoming another one
