"""`ratchet size`: will it fit, how long does it take, and what is the cheapest setting that fits."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from flows.errors import CommandError
from flows.output import show
from flows.size_report import lines, overview

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlhf.sizing.model_shape import ModelShape
    from rlhf.sizing.search import Found
    from rlhf.sizing.setting import Setting
    from rlhf.sizing.timing import Gpu, Timing

BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|TB|TiB|G)?", re.IGNORECASE)
UNITS = {"GB": 1e9, "G": 1e9, "TB": 1e12, "GIB": 2**30, "TIB": 2**40}
FLAGS = ("gpus", "gpus_per_node", "zero_stage", "offload", "lora_rank", "precision", "prompt_tokens", "response_tokens",
         "batch", "micro_batch", "rollouts", "epochs", "value_model", "value_lora_rank", "reference")  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "size",
        help="will it fit: memory per GPU by part, time, and the cheapest setting that fits",
        description="Memory of one GPU by part, whether it fits, the cheapest setting that does, and rough times. "
        "Without options it reads params.yaml: `ratchet size` for all stages that train, `ratchet size ppo` for one. "
        "With a model it needs no project: `ratchet size ppo 33B --gpus 4 --memory 80GB`. Arithmetic, with what was "
        "measured and what was not in docs/sizes.md.",
    )
    what = (
        "a method (sft, reward, judge, dpo, ipo, kto, ppo, grpo, rloo, reinforce) and a model: a size as 33B, a "
        "folder, a config.json, or a hub id in the cache"
    )
    parser.add_argument("what", nargs="*", help=what)
    parser.add_argument("--gpus", type=int, metavar="N", help="in all; default those of the launch line, else 1")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", help="in one computer")
    parser.add_argument("--gpu", metavar="NAME", help="A100, H100, H200, A100-40, L40S, A10, RTX4090; default A100")
    parser.add_argument("--memory", metavar="SIZE", help="of one GPU, such as 80GB; default that of --gpu")
    parser.add_argument("--host-memory", metavar="SIZE", help="of one computer; settings that need more do not fit")
    parser.add_argument("--zero", dest="zero_stage", type=int, choices=range(4), help="ZeRO stage")
    parser.add_argument("--offload", choices=("none", "optimizer", "parameters"), help="to the computer's memory")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="of activations")
    parser.add_argument("--lora", dest="lora_rank", type=int, metavar="RANK", help="of an adapter; 0: all weights")
    parser.add_argument("--value-lora", dest="value_lora_rank", type=int, metavar="RANK", help="of a value model's")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="of the forward passes")
    parser.add_argument("--prompt", dest="prompt_tokens", type=int, metavar="TOKENS", help="longest prompt")
    parser.add_argument("--response", dest="response_tokens", type=int, metavar="TOKENS", help="longest response")
    parser.add_argument("--batch", type=int, metavar="N", help="demonstrations, pairs or rollouts of a step, in all")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="of them, in a forward pass of one GPU")
    parser.add_argument("--rollouts", type=int, metavar="N", help="of an update, in all")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over an update's rollouts")
    parser.add_argument("--value-model", choices=("separate", "shared", "none"), help="of policy gradients")
    parser.add_argument("--reference", choices=("frozen", "adapter_off", "none"), help="of policy gradients")
    parser.add_argument("--examples", type=int, metavar="N", help="also the time of one pass over so many")
    parser.add_argument("--utilisation", type=float, metavar="SHARE", help="of the peak operations; default 0.4")


def run(args: argparse.Namespace) -> int:
    """Reckon and show; 0 when everything fits, 1 when something does not."""
    from rlhf.sizing.from_params import TRAINED

    methods, model = _words(args.what)
    params, shape = _project(methods, model)
    gpu, host = _machine(args)
    answers = []
    for method in methods or list(TRAINED):
        setting = _setting(args, method, shape, params, gpu)
        answers.append(_answer(args, method, setting, gpu, host))
    documents = [document for document, _ in answers]
    if len(answers) == 1:
        show(args, documents[0], answers[0][1])
    else:
        show(args, {"stages": documents}, overview(documents))
    return 0 if all(document["fits"] for document in documents) else 1


def _words(words: list[str]) -> tuple[list[str], str | None]:
    """Methods and the model among the words."""
    from rlhf.sizing.setting import STAGES

    methods = [word.lower() for word in words if word.lower() in STAGES]
    others = [word for word in words if word.lower() not in STAGES]
    if len(others) > 1:
        known = ", ".join(STAGES)
        raise CommandError(f"ratchet size: {others[0]} and {others[1]} are no methods ({known}); wanted one model")
    if others and not methods:
        raise CommandError(f"ratchet size {others[0]}: wanted a method too ({', '.join(STAGES)})")
    return methods, others[0] if others else None


def _project(methods: list[str], model: str | None) -> tuple[Mapping[str, Any] | None, ModelShape]:
    """Parameters of the project, None where a model was named, and the model's shape."""
    from rlhf.sizing.from_params import read_project, shape_by_name, shape_in

    if model is not None:
        return None, shape_by_name(model)
    from tasks.params_check import require_valid
    from tasks.settings import project_root

    root = project_root()
    require_valid(root)
    params = read_project(root)
    return params, shape_in(params, root)


def _machine(args: argparse.Namespace) -> tuple[Gpu, float | None]:
    """The GPU with what flags change, and the computer's memory."""
    from rlhf.sizing.timing import gpu_of

    gpu = gpu_of(args.gpu or "A100")
    if args.memory is not None:
        gpu = dataclasses.replace(gpu, memory=_bytes("--memory", args.memory))
    if args.utilisation is not None:
        if not 0 < args.utilisation <= 1:
            got = args.utilisation
            raise CommandError(f"ratchet size: --utilisation is {got}, wanted a share above 0 and at most 1")
        gpu = dataclasses.replace(gpu, utilisation=args.utilisation)
    return gpu, None if args.host_memory is None else _bytes("--host-memory", args.host_memory)


def _bytes(option: str, text: str) -> float:
    found = BYTES.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise CommandError(f"ratchet size: {option} is {text!r}, wanted a size such as 80GB")
    return float(found[1]) * UNITS[(found[2] or "GB").upper()]


def _setting(
    args: argparse.Namespace, method: str, shape: ModelShape, params: Mapping[str, Any] | None, gpu: Gpu
) -> Setting:
    """What was asked for: params.yaml, or the method's usual numbers, with what flags change."""
    from rlhf.sizing.from_params import asked_for
    from rlhf.sizing.setting import setting_of

    flags = {name: value for name in FLAGS if (value := getattr(args, name)) is not None}
    if args.checkpointing is not None:
        flags["activation_checkpointing"] = args.checkpointing
    if flags.get("offload") == "parameters":
        flags.setdefault("zero_stage", 3)
    known = {} if params is None else asked_for(params, method)
    if params is not None and method in ("grpo", "rloo", "reinforce"):
        known["value_model"] = "none"
    if "gpus" in flags and "gpus_per_node" not in flags:
        known["gpus_per_node"] = min(8, flags["gpus"])
    try:
        return setting_of(method, shape, memory=gpu.memory, **{**known, **flags})
    except ValueError as error:
        raise CommandError(f"ratchet size: {error}") from error


def _answer(
    args: argparse.Namespace, method: str, setting: Setting, gpu: Gpu, host: float | None
) -> tuple[dict[str, Any], list[str]]:
    """One method's document and lines."""
    from rlhf.sizing.memory import estimate
    from rlhf.sizing.search import cheapest, what_is_lacking
    from rlhf.sizing.timing import timing

    reckoned, times = estimate(setting), timing(setting, gpu)
    fits = reckoned.fits and (host is None or reckoned.host_total <= host)
    here = cheapest(setting, gpu, host=host, more=False)
    best = here or cheapest(setting, gpu, host=host)
    lacking = what_is_lacking(setting, gpu, host=host) if here is None else None
    document: dict[str, Any] = {
        "method": method, "model": setting.shape.name, "parameters": setting.shape.parameters,
        "shape_source": setting.shape.source, "setting": _fields(setting), "gpu": gpu.name, "memory": gpu.memory,
        "moments": {moment.name: {**moment.parts, "total": moment.total} for moment in reckoned.moments},
        "peak": reckoned.peak.total, "peak_at": reckoned.peak.name, "host": reckoned.host,
        "host_total": reckoned.host_total,
        "fits": fits, "cheapest": best and _found(best), "cheapest_needs_more_gpus": here is None and best is not None,
        "fits_if": lacking and {"engine": list(lacking[0]), **_found(lacking[1])}, "time": _times(args, times),
        "assumed": {"utilisation": gpu.utilisation, "decoding": gpu.decoding},
    }  # fmt: skip
    return document, lines(document)


def _fields(setting: Setting) -> dict[str, Any]:
    found = {field.name: getattr(setting, field.name) for field in dataclasses.fields(setting)}
    del found["shape"], found["method"], found["memory"]
    return {**found, "holds": dataclasses.asdict(setting.holds)}


def _found(found: Found) -> dict[str, Any]:
    peak, times = found.estimate.peak, found.timing
    return {
        "setting": _fields(found.setting), "peak": peak.total, "peak_at": peak.name,
        "parts": peak.parts, "host_total": found.estimate.host_total, "seconds": times.total,
    }  # fmt: skip


def _times(args: argparse.Namespace, times: Timing) -> dict[str, Any]:
    found: dict[str, Any] = {"parts": times.parts, "update": times.total, "elements": times.elements}
    found["per_1000"] = 1000 * times.per_element
    if args.examples:
        found["pass"] = args.examples * times.per_element
    return found
