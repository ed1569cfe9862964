"""Run one stage: `exec python -m rlhf.launch STAGE [--recipe NAME] [--set FIELD=SECTION.KEY] --NAME PATH ...`.

The process asks the kernel to die with its parent, fixes what has to be fixed before numerical libraries load, reads
the stage's section of `params.yaml`, becomes the launcher that the section names (plain python, torchrun, deepspeed)
and calls `rlhf.recipes.NAME.main` with the paths of the command line.

How it ended is told by the exit code (0 done, 1 failed, 2 bad input) and, since DVC turns every failure into 255, by
`.ratchet/tmp/failures/STAGE.json`.
"""

import ctypes
import errno
import hashlib
import importlib
import inspect
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf import checkpoint
from rlhf.config import LAUNCH_KEYS, load_section, read_params
from rlhf.errors import BadInput, StageFailed

PARAMS = Path("params.yaml")
FAILURES = Path(".ratchet/tmp/failures")
LAUNCHED = "RATCHET_LAUNCHED"
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

log = logging.getLogger("ratchet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the command line asks for."""

    stage: str
    recipe: str
    paths: dict[str, Path]
    borrowed: dict[str, str]
    """Config fields whose value comes from another section, as field -> "section.key"."""


def parse(arguments: Sequence[str]) -> Request:
    """Read the command line.

    Raises:
        BadInput: no stage, an option without a value, or the same option twice.
    """
    if not arguments or arguments[0].startswith("-"):
        raise BadInput("usage: python -m rlhf.launch STAGE [--recipe NAME] [--set FIELD=SECTION.KEY] --NAME PATH ...")
    stage, rest = arguments[0], list(arguments[1:])
    recipe, paths, borrowed = stage, {}, {}
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") or not rest:
            raise BadInput(f"rlhf.launch {stage}: got {option!r}, wanted pairs of --NAME PATH")
        name, value = option[2:].replace("-", "_"), rest.pop(0)
        if name == "recipe":
            recipe = value
        elif name == "set":
            field, _, source = value.partition("=")
            borrowed[field] = source
        elif name in paths:
            raise BadInput(f"rlhf.launch {stage}: {option} stands twice")
        else:
            paths[name] = Path(value)
    return Request(stage=stage, recipe=recipe, paths=paths, borrowed=borrowed)


def stage_seed(seed: int, stage: str) -> int:
    """Seed of one stage: stages of one run draw from unrelated streams. 0 <= result < 2**31."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{stage}".encode()).digest()[:4], "big") >> 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux); survives the exec that follows."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def launch_settings(params: Mapping[str, Any], stage: str) -> tuple[int, list[str]]:
    """The number of threads and the launcher's command line of a stage.

    Raises:
        BadInput: the section or one of its two keys is missing or of the wrong type.
    """
    section = params.get(stage)
    if not isinstance(section, Mapping):
        raise BadInput(f"{PARAMS}: no section {stage!r}; every stage of dvc.yaml needs one")
    for key in LAUNCH_KEYS:
        if key not in section:
            raise BadInput(f"{PARAMS}: missing key {stage}.{key}; profiles/default.yaml has a value for it")
    threads, line = section["threads"], section["launch"]
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise BadInput(f"{PARAMS}: {stage}.threads is {threads!r}, wanted a whole number of at least 1")
    if not isinstance(line, str) or shlex.split(line)[:1] not in (["python"], ["torchrun"], ["deepspeed"]):
        raise BadInput(
            f"{PARAMS}: {stage}.launch is {line!r}, wanted a line that begins with python, torchrun or deepspeed"
        )
    return threads, shlex.split(line)


def environment(threads: int) -> dict[str, str]:
    """Variables that must be set before the interpreter or a numerical library starts."""
    fixed = {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        # Idle threads sleep instead of spinning: beside another busy process, spinning made SFT 33 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Saving a model makes transformers import accelerate, and that MLflow, which notes its use in the home folder.
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        "TORCH_EXTENSIONS_DIR": str(Path(".ratchet/tmp/torch_extensions").resolve()),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        LAUNCHED: "1",
    }
    return {**os.environ, **fixed}


def command(launcher: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command line that runs this module again under `launcher`."""
    module = ["-m", "rlhf.launch", *arguments]
    if launcher[0] == "python":
        return [sys.executable, *launcher[1:], *module]
    if launcher[0] == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *launcher[1:], *module]
    return [*launcher, "--module", *module[1:]]


def call(request: Request, params: Mapping[str, Any]) -> None:
    """Load the recipe and its configuration and run it.

    Raises:
        BadInput: there is no such recipe, or its parameters or paths do not fit its signature.
    """
    module = _recipe(request.recipe)
    section = dict(params[request.stage])
    for field, source in request.borrowed.items():
        value: Any = params
        for part in source.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise BadInput(f"{PARAMS}: missing key {source}, which {request.stage}.{field} is taken from")
            value = value[part]
        section[field] = value
    config = load_section({request.stage: section}, request.stage, module.Config)
    seed = params.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise BadInput(f"{PARAMS}: seed is {seed!r}, wanted a whole number")
    wanted = {
        name for name, parameter in inspect.signature(module.main).parameters.items() if parameter.annotation is Path
    }
    if wanted != set(request.paths):
        missing, extra = sorted(wanted - set(request.paths)), sorted(set(request.paths) - wanted)
        raise BadInput(f"dvc.yaml: the command of {request.stage} lacks the paths {missing} or has others: {extra}")
    module.main(config, seed=stage_seed(seed, request.stage), stage=request.stage, **request.paths)


def _recipe(name: str) -> ModuleType:
    full = f"rlhf.recipes.{name}"
    if not name.isidentifier() or importlib.util.find_spec(full) is None:
        raise BadInput(f"there is no recipe {name!r}: rlhf/recipes/{name}.py does not exist")
    return importlib.import_module(full)


def _report(stage: str, exit_code: int, kind: str, sentence: str) -> int:
    """Write the failure file and the sentence; returns the exit code."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{stage}: {sentence}\n")
        try:
            FAILURES.mkdir(parents=True, exist_ok=True)
            document = {"stage": stage, "exit_code": exit_code, "kind": kind, "sentence": sentence}
            (FAILURES / f"{stage}.json").write_text(json.dumps(document), encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"{stage}: the reason could not be kept in {FAILURES}: {error.strerror}\n")
    return exit_code


def run(arguments: Sequence[str]) -> int:
    """Run a stage from its command line and return its exit code; becomes another process on the first call."""
    stage = arguments[0] if arguments else "?"
    try:
        request = parse(arguments)
        params = read_params(PARAMS)
        threads, launcher = launch_settings(params, request.stage)
        if os.environ.get(LAUNCHED) != "1":
            (FAILURES / f"{stage}.json").unlink(missing_ok=True)
            variables = environment(threads)
            key = checkpoint.stage_key(request.stage, arguments, params)
            checkpoint.prune(request.stage, key)
            line = command(launcher, arguments)
            os.execvpe(line[0], line, {**variables, checkpoint.KEY_VARIABLE: key})
        call(request, params)
    except BadInput as error:
        return _report(stage, BadInput.exit_code, "bad_input", str(error))
    except StageFailed as error:
        return _report(stage, StageFailed.exit_code, "failed", str(error))
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            return _unexpected(stage, error)
        where = error.filename or "a file"
        return _report(
            stage, 1, "failed", f"cannot write {where}: {error.strerror}; free space or rights, then run again"
        )
    except Exception as error:  # the last door: whatever it is, its trace is shown and the stage fails
        return _unexpected(stage, error)
    return 0


def _unexpected(stage: str, error: Exception) -> int:
    traceback.print_exception(error)
    return _report(stage, 1, "failed", f"{type(error).__name__}: {error}")


def main() -> None:
    """Entry point of `python -m rlhf.launch`."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("transformers", "torch", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
