"""Run one stage: `exec python -m rlhf.launch STAGE [--recipe NAME] [--set FIELD=SECTION.KEY] --NAME PATH ...`.

The process asks the kernel to die with its parent, fixes what has to be fixed before numerical libraries load, reads
the stage's section of `params.yaml`, becomes the launcher that the section names (plain python, torchrun, deepspeed)
and calls `rlhf.recipes.NAME.main` with the paths of the command line.

How it ended is told by the exit code (0 done, 1 failed, 2 bad input) and, since DVC turns every failure into 255, by
`.ratchet/tmp/failures/STAGE.json`.
"""

import ctypes
import hashlib
import importlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf import quick_import
from rlhf.checkpoint import KEY_VARIABLE, SETTINGS_VARIABLE, prune
from rlhf.checkpoint_key import rounding_settings, stage_key
from rlhf.config import LAUNCH_KEYS, load_section, read_params
from rlhf.errors import BadInput
from rlhf.launch_line import LaunchLine, command, read_line
from rlhf.rank_notes import is_rank, leave_note
from rlhf.rank_supervisor import die_with_supervisor, supervise
from rlhf.stage_failure import FAILURES, explain, report

PARAMS = Path("params.yaml")
LAUNCHED = "RATCHET_LAUNCHED"

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


def launch_settings(
    params: Mapping[str, Any], stage: str, environment: Mapping[str, str] | None = None
) -> tuple[int, LaunchLine]:
    """The number of threads and the launch line of a stage.

    Args:
        params: the whole parameter file.
        stage: name of the section.
        environment: where variables of the line are looked up; None leaves them as they are.

    Raises:
        BadInput: the section or one of its two keys is missing or makes no sense.
    """
    section = params.get(stage)
    if not isinstance(section, Mapping):
        raise BadInput(f"{PARAMS}: no section {stage!r}; every stage of dvc.yaml needs one")
    for key in LAUNCH_KEYS:
        if key not in section:
            raise BadInput(f"{PARAMS}: missing key {stage}.{key}; profiles/default.yaml has a value for it")
    threads = section["threads"]
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise BadInput(f"{PARAMS}: {stage}.threads is {threads!r}, wanted a whole number of at least 1")
    return threads, read_line(section["launch"], f"{PARAMS}: {stage}.launch", environment)


def environment(threads: int) -> dict[str, str]:
    """Variables that must be set before the interpreter or a numerical library starts."""
    fixed = {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        # Idle threads sleep instead of spinning: beside another busy process, spinning made SFT 33 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        # oneDNN keeps a compiled kernel per shape, about 0.7 MB each; its own limit is 1024.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
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


def call(request: Request, params: Mapping[str, Any]) -> None:
    """Load the recipe and its configuration and run it.

    Raises:
        BadInput: there is no such recipe, or its parameters or paths do not fit its signature.
    """
    section = dict(params[request.stage])
    if not is_rank() and not (section.get("engine") or {}).get("compile"):
        quick_import.install()
    module = _recipe(request.recipe)
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
    if is_rank():
        _join(request.stage, config)
    module.main(config, seed=stage_seed(seed, request.stage), stage=request.stage, **request.paths)


def _join(stage: str, config: Any) -> None:
    """Meet the other ranks before anything is computed, and check that there is work for each.

    Raises:
        BadInput: a stage for one process, fewer rows in a batch than ranks, or ranks that were started on other inputs.
    """
    from rlhf import distributed

    ranks, rows, engine = distributed.world_size(), getattr(config, "batch_size", None), getattr(config, "engine", None)
    if engine is None:
        raise BadInput(f"{PARAMS}: {stage}.launch starts {ranks} ranks, but this stage has work for one; wanted python")
    if isinstance(rows, int) and rows < ranks:
        raise BadInput(
            f"{PARAMS}: {stage}.batch_size is {rows}, wanted at least one row for each of the {ranks} ranks; raise it, "
            f"or start fewer ranks in {stage}.launch"
        )
    distributed.start(engine.timeout_s)
    keys = distributed.gather_objects(os.environ.get(KEY_VARIABLE, ""))
    if other := [rank for rank, key in enumerate(keys) if key != keys[0]]:
        raise BadInput(
            f"rank {other[0]} was started on other code, parameters or data than rank 0; give every machine the same"
        )


def _recipe(name: str) -> ModuleType:
    full = f"rlhf.recipes.{name}"
    if not name.isidentifier() or importlib.util.find_spec(full) is None:
        raise BadInput(f"there is no recipe {name!r}: rlhf/recipes/{name}.py does not exist")
    return importlib.import_module(full)


def begin(request: Request, params: Mapping[str, Any], arguments: Sequence[str]) -> int:
    """Become the process that computes, or the parent of the launcher that starts several of them.

    Returns:
        The exit code of the latter; the former does not return.
    """
    (FAILURES / f"{request.stage}.json").unlink(missing_ok=True)
    threads, line = launch_settings(params, request.stage, os.environ)
    key = stage_key(request.stage, arguments, params)
    prune(request.stage, key)
    variables = {**environment(threads), KEY_VARIABLE: key}
    variables[SETTINGS_VARIABLE] = rounding_settings(request.stage, params)
    if line.program == "python" or is_rank():  # a rank already: somebody else's launcher started it
        words = command(read_line("python", "") if is_rank() else line, arguments)
        os.execvpe(words[0], words, variables)
    if sys.platform != "linux":
        raise BadInput(f"{PARAMS}: {request.stage}.launch starts several ranks, which needs Linux; wanted python here")
    verdict = supervise(command(line, arguments), variables, line=str(params[request.stage]["launch"]))
    if verdict.sentence:
        return report(request.stage, verdict.exit_code, verdict.kind, verdict.sentence)
    return verdict.exit_code


def keep_environment(request: Request) -> None:
    """Note what the finished stage was computed on; a stage that succeeded never fails by this."""
    if os.environ.get("RANK", "0") != "0":
        return
    from rlhf.environment_record import write_record

    try:
        write_record(request.stage, request.paths.values(), key=os.environ.get(KEY_VARIABLE, ""))
    except Exception as error:  # whatever it is, the stage has succeeded
        log.warning("what %s was computed on could not be kept: %s", request.stage, error)


def run(arguments: Sequence[str]) -> int:
    """Run a stage from its command line and return its exit code; becomes another process on the first call."""
    stage = arguments[0] if arguments else "?"
    section: Any = {}
    try:
        request = parse(arguments)
        params = read_params(PARAMS)
        section = params.get(request.stage)
        if os.environ.get(LAUNCHED) != "1":
            return begin(request, params, arguments)
        call(request, params)
        keep_environment(request)
    except Exception as error:  # the last door: whatever it is, the stage fails with one sentence
        return explain(stage, error, section)
    return 0


def _run_rank(arguments: Sequence[str]) -> None:
    """Run a stage as one of several ranks and end at once: libraries that end in order have been seen to crash."""
    die_with_supervisor()
    leave_note("started")
    if int(os.environ["RANK"]) != 0:
        logging.getLogger().setLevel(logging.WARNING)  # all ranks would say the same
    code = run(arguments)
    if code == 0:
        from rlhf import distributed

        distributed.barrier()
        leave_note("done")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Entry point of `python -m rlhf.launch`."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("transformers", "torch", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if is_rank() and os.environ.get(LAUNCHED) == "1":
        _run_rank(sys.argv[1:])
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
