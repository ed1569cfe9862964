"""Random command lines, made of each command's own options, with values that make no sense."""

import argparse
import os
import random
from typing import Any

from bench.fuzz import settings_files
from bench.fuzz.model_damage import PICKLE
from bench.fuzz.projects import Workspace, inside
from bench.fuzz.watch import Fault, said, sentence_of

LEFT_OUT = {"--open"}
"""Options that would open a browser."""
ODD = ("fifo", "folder", "binary", "link", "loop", "prompts.txt", "model")
"""Things beside the project that are no plain files, or not what is wanted."""
TEXTS = (
    "", " ", "-", "--", "---", "-rf", "--force", "--json", "-1", "0", "1", "2", "1e9", "-1e400", "nan", "inf",
    "99999999999999999999",
    "0x10", "1.5", "tiny", "sft", "ppo", "policy@champion", "policy@", "policy/3", "policy/0", "@", "@challenger",
    "models:/x/1", "v3", "3",
    ".", "..", "../..", "../../precious", "/", "/dev/null", "/dev/full", "/proc/self/mem", "/etc/passwd",
    "/nonexistent/a/b", "~", "~nobody/x",
    "C:\\x", "file:///etc/passwd", "http://me:secret@127.0.0.1:9/x", "s3://bucket/key", "a" * 5000, "é文🙂", "\ud800",
    "\udcff", "a\nb", "a\x1b[31mb",
    "\u202eabc", "a;b", "$(touch pwned)", "`touch pwned`", "*", "?", "[", "%s", "{0}", "%(prog)s", "80GB", "0GB",
    "-5GB", "NaNGB", "33B", "0B",
    "1e30B", "B", "support_desk", "x.dvc", ".hidden", "a/b", "con", "__pycache__", "params.yaml", "dvc.yaml", "data",
    "data/raw", "data/raw/mine.jsonl",
    "profiles/tiny.yaml", *(f"../../../../../odd/{name}" for name in ODD), "True", "none", "A100", "default",
    "algorithms/grpo",
)  # fmt: skip
"""Values of options and free words; some are files and folders that `prepare` makes."""
COMMON = ("--json", "--debug", "--root", "--help", "--version", "--rooot", "--jsn")


def kinds() -> list[str]:
    """Every command, and words that are none."""
    from flows.cli import COMMANDS

    return [*COMMANDS, "no command"]


def prepare(space: Workspace) -> None:
    """The project of the settings family, with odd files in it."""
    settings_files.prepare(space)
    here = space.folder / "odd"
    here.mkdir()
    os.mkfifo(here / "fifo")
    (here / "folder").mkdir()
    (here / "binary").write_bytes(PICKLE * 10)
    (here / "link").symlink_to(space.precious / "notes.txt")
    (here / "loop").symlink_to("loop")
    (here / "prompts.txt").write_text('hello\n{"prompt": 3}\n')
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    (here / "model" / "model.safetensors").write_bytes(b"")
    os.environ["RATCHET_JUDGE_URL"] = "http://127.0.0.1:9/v1"
    os.environ["RATCHET_JUDGE_MODEL"] = "m"
    os.environ["RATCHET_JUDGE_KEY"] = "planted-key-0123456789"


def words_for(command: str, rng: random.Random) -> list[str]:
    """A command line, without `--root`."""
    if command == "no command":
        return rng.choices((*TEXTS, *COMMON), k=rng.randint(0, 4))
    words: list[str] = []
    actions = [action for action in _actions(command) if not LEFT_OUT & set(action.option_strings)]
    for action in rng.sample(actions, rng.randint(0, min(4, len(actions)))):
        if action.option_strings:
            words.append(rng.choice(action.option_strings))
        if action.nargs != 0 and rng.random() < 0.95:
            words += [_value(action, rng) for _ in range(rng.choice((1, 1, 1, 2)) if action.nargs in ("*", "+") else 1)]
    for action in actions:  # what has to be there mostly is, so that the command itself is reached
        needed = action.required and action.dest not in ("help",)
        if needed and rng.random() < 0.9 and not set(action.option_strings) & set(words):
            words += [*action.option_strings[:1], _value(action, rng)]
    if rng.random() < 0.15:
        words.insert(rng.randrange(len(words) + 1), rng.choice((*TEXTS, *COMMON)))
    if command == "ui":  # a valid line would serve pages until it is interrupted
        words = [word for word in words if word != "--"]
        words += ["--mlflow-port", rng.choice(("0", "-1", "65536", "x", "", "1e3"))]
    at = 0 if rng.random() < 0.9 else rng.randrange(len(words) + 1)
    return [*words[:at], command, *words[at:]]


def _actions(command: str) -> list[argparse.Action]:
    from flows.cli import _parser

    top: Any = _parser(command)
    commands = next(action for action in top._actions if action.dest == "command")
    return list(commands.choices[command]._actions)


def _value(action: argparse.Action, rng: random.Random) -> str:
    if action.choices and rng.random() < 0.7:
        return str(rng.choice(list(action.choices)))
    if action.type in (int, float) and rng.random() < 0.7:
        return rng.choice(
            ("0", "-1", "1", "2", "7", "1000000", "99999999999999999999", "-0.0", "nan", "inf", "1e-9", "3")
        )
    return rng.choice(TEXTS)


def run(space: Workspace, kind: str, rng: random.Random) -> str | None:
    """One case; see `watch.judged`."""
    from flows.cli import main

    words = words_for(kind, rng)
    root = rng.random() < 0.5
    try:
        with inside(space.project):
            ended = said(lambda: main([*(["--root", str(space.project)] if root else []), *words]))
        if "planted-key" in ended.out + ended.err:
            raise Fault(f"the key of the judge is shown: {words!r}")
        if "--debug" in words and "Traceback" in ended.err:
            return None  # it was asked for; the same line without --debug is another case
        try:
            return sentence_of(ended)
        except Fault as fault:
            raise Fault(f"{words!r}: {fault}"[:1500]) from fault
    finally:
        left = [name for name in ("pwned",) if (space.project / name).exists() or (space.folder / name).exists()]
        space.restore()
        if left:
            raise Fault(f"{words!r} was executed by a shell")
