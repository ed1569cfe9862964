"""A small real DVC project for tests: stages that copy text, with parameters, a metric and a branch."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STAGES = """\
stages:
  first:
    cmd: exec python step.py first
    deps: [raw.txt, step.py]
    params: [first]
    outs: [first.txt]
  left:
    cmd: exec python step.py left
    deps: [first.txt, step.py]
    params: [left]
    outs: [left]
  right:
    cmd: exec python step.py right
    deps: [first.txt, step.py]
    params: [right]
    outs: [right.txt]
  last:
    cmd: exec python step.py last
    deps: [left, right.txt, step.py]
    params: [last]
    outs: [last.txt]
    metrics:
    - data/metrics/last.json:
        cache: false
"""

PARAMS = """\
first: {word: one, fail: no, sleep: 0.0, threads: 1, launch: python}
left: {word: two, fail: no, sleep: 0.0, threads: 1, launch: python}
right: {word: three, fail: no, sleep: 0.0, threads: 1, launch: python}
last: {word: four, fail: no, sleep: 0.0, threads: 1, launch: python, rate: 1e-3}
"""

STEP = """\
import ctypes, json, os, pathlib, signal, sys, time
from ruamel.yaml import YAML

ctypes.CDLL(None).prctl(1, signal.SIGKILL)
name = sys.argv[1]
settings = YAML(typ="safe").load(pathlib.Path("params.yaml").read_text())[name]
print(f"{name}: begins", flush=True)
pathlib.Path(f".ratchet/tmp/pid-{name}").write_text(str(os.getpid()))
count = pathlib.Path(f".ratchet/tmp/count-{name}")
count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
time.sleep(settings["sleep"])
fail = settings["fail"]
if fail and fail != "no":
    if fail == "kill" or (fail == "kill_once" and count.read_text() == "1"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fail == "plain":
        raise ValueError("no reason given")
    if fail in ("bad_input", "failed"):
        note = {"stage": name, "exit_code": 2 if fail == "bad_input" else 1, "kind": fail, "sentence": "raw.txt: wrong"}
        path = pathlib.Path(f".ratchet/tmp/failures/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(note))
        sys.exit(note["exit_code"])
inputs = {"first": ["raw.txt"], "left": ["first.txt"], "right": ["first.txt"], "last": ["left/part.txt", "right.txt"]}
text = settings["word"] + "".join(pathlib.Path(path).read_text() for path in inputs[name])
target = pathlib.Path("left/part.txt" if name == "left" else f"{name}.txt")
target.parent.mkdir(exist_ok=True)
target.write_text(text)
if name == "last":
    pathlib.Path("data/metrics").mkdir(parents=True, exist_ok=True)
    pathlib.Path("data/metrics/last.json").write_text('{"accuracy": 0.5}')
print(f"{name}: done")
"""


def make_project(folder: Path, *, git: bool = True) -> Path:
    """Write the project and initialise DVC (and git) in it; nothing has run yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "step.py").write_text(STEP)
    (folder / "raw.txt").write_text("raw\n")
    (folder / ".ratchet" / "tmp").mkdir(parents=True)
    (folder / ".gitignore").write_text("/.ratchet/\n")
    if git:
        command(folder, "git", "init", "-q", "-b", "main")
    dvc(folder, "init", "-q", *([] if git else ["--no-scm"]))
    dvc(folder, "config", "core.analytics", "false")
    dvc(folder, "config", "core.check_update", "false")
    return folder


def edit(folder: Path, old: str, new: str, *, file: str = "params.yaml") -> None:
    """Replace text that must occur in a file of the project."""
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def dvc(folder: Path, *arguments: str) -> str:
    """Run dvc in the project and return what it said."""
    return command(folder, sys.executable, "-m", "dvc", *arguments)


def command(folder: Path, *arguments: str) -> str:
    """Run a command that must succeed and return its output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    site = str(folder / ".ratchet" / "tmp" / "dvc")
    env = {**os.environ, "PATH": path, "DVC_SITE_CACHE_DIR": site, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def count(folder: Path, stage: str) -> int:
    """Return how often a stage's command was executed."""
    path = folder / ".ratchet" / "tmp" / f"count-{stage}"
    return int(path.read_text()) if path.exists() else 0


def copy_of(template: Path, folder: Path) -> Path:
    """Copy a project; quicker than making it again."""
    shutil.copytree(template, folder, symlinks=True)
    return folder


def spoil(file: Path) -> None:
    """Change the bytes of a file and not their number."""
    mode = file.stat().st_mode
    file.chmod(0o644)
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    file.chmod(mode)


def alive(pid: int) -> bool:
    """Tell whether a process lives; one that has ended and was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Return when the condition holds; fail the test when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
