"""The `launch` line of a stage: which launcher starts it, on how many ranks, and the command that does so.

    python                                                          one process
    torchrun --nproc-per-node=8                                     eight ranks on this machine
    torchrun --nnodes=2 --node-rank=$NODE --master-addr=$HEAD ...   this machine's part of several nodes
    deepspeed --num_gpus=8                                          as the first torchrun line, by DeepSpeed's launcher

`$NAME` is replaced from the environment, so that one line serves every node.
"""

import importlib.util
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.errors import BadInput

PROGRAMS = ("python", "torchrun", "deepspeed")
RANK_OPTIONS = {"torchrun": ("nproc-per-node",), "deepspeed": ("num-gpus", "num-accelerators")}
NODE_OPTIONS = {"torchrun": "nnodes", "deepspeed": "num-nodes"}
TAKEN = {
    "python": {"-m", "-c", "-"},
    "torchrun": {"-m", "--module", "--no-python", "--run-path"},
    "deepspeed": {"--module", "--no-python", "--autotuning"},
}
"""Options that would run something else than the stage."""
FLAGS = {
    "torchrun": {"standalone"},
    "deepspeed": {"no-local-rank", "no-ssh", "no-ssh-check", "force-multi", "save-pid", "bind-cores-to-rank", "quiet"},
}
"""Options without a value."""
ADDRESSES = {"standalone", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "master-addr", "master-port", "node-rank"}
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchLine:
    """A `launch` line that was understood."""

    program: str
    words: tuple[str, ...]
    """What stands behind the program, with variables replaced."""
    options: Mapping[str, str]
    """Options by name, without dashes before them and with dashes inside; "" for one without a value."""

    @property
    def ranks_here(self) -> int | None:
        """Ranks that it starts on this machine; None where only the launcher can tell, as for `auto`."""
        if self.program == "python":
            return 1
        named = [self.options[name] for name in RANK_OPTIONS[self.program] if name in self.options]
        if not named:
            # torchrun starts one by default, deepspeed one for each GPU.
            return 1 if self.program == "torchrun" else None
        return int(named[-1]) if named[-1].isdecimal() else None

    @property
    def several_nodes(self) -> bool:
        """Whether other machines take part."""
        return self.options.get(NODE_OPTIONS.get(self.program, ""), "1") not in ("1", "1:1") or bool(
            {"hostfile", "H", "force-multi"} & set(self.options)
        )


def read_line(line: object, where: str, environment: Mapping[str, str] | None = None) -> LaunchLine:
    """Understand a `launch` line.

    Args:
        line: the value in params.yaml.
        where: its place, for messages.
        environment: where `$NAME` is looked up; None leaves variables as they are (another machine will know them).

    Raises:
        BadInput: it is no text, no launcher of ours, runs something else, or names a variable that is not set.
    """
    wanted = "wanted python, or a line such as `torchrun --nproc-per-node=8` or `deepspeed --num_gpus=8`"
    if not isinstance(line, str):
        raise BadInput(f"{where} is {line!r}, {wanted}")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise BadInput(f"{where} is {line!r}, whose quotes do not close; {wanted}") from error
    if words[:1] not in ([name] for name in PROGRAMS):
        raise BadInput(f"{where} is {line!r}, wanted a line that begins with python, torchrun or deepspeed")
    if environment is not None:
        words = [_replaced(word, where, environment) for word in words]
    program, rest = words[0], words[1:]
    read = LaunchLine(program=program, words=tuple(rest), options=_options(program, rest, line, where))
    _check(read, line, where)
    return read


def _replaced(word: str, where: str, environment: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        name = found.group(1) or found.group(2)
        if name not in environment:
            raise BadInput(f"{where} holds ${name}, which is not set here; set it on every node first")
        return environment[name]

    return VARIABLE.sub(value, word)


def _options(program: str, words: Sequence[str], line: str, where: str) -> dict[str, str]:
    """Options by name; refuses what the launcher would take for a program to run."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        dashed = "--" + name.lstrip("-").replace("_", "-") if name.startswith("--") else name
        if not word.startswith("-") or dashed in TAKEN[program]:
            raise BadInput(
                f"{where} is {line!r}, where {word!r} would run something else than the stage; wanted options of "
                f"{program} only, each --NAME=VALUE"
            )
        name = dashed.lstrip("-")
        takes = not equals and (
            name in ("X", "W") if program == "python" else name not in FLAGS[program] and not dashed.startswith("---")
        )
        found[name] = rest.pop(0) if takes and rest and not rest[0].startswith("-") else value
    return found


def _check(line: LaunchLine, text: str, where: str) -> None:
    """Refuse numbers of ranks that cannot be, and restarts that the flow does better.

    Raises:
        BadInput: naming the option.
    """
    for name in RANK_OPTIONS.get(line.program, ()):
        value = line.options.get(name, "1")
        words = ("auto", "gpu", "cpu") if line.program == "torchrun" else ()
        if not (VARIABLE.search(value) or value in words or (value.isdecimal() and int(value) > 0)):
            raise BadInput(f"{where} is {text!r}: {name} is {value!r}, wanted a whole number of at least 1")
    if line.options.get("max-restarts", "0") != "0":
        raise BadInput(
            f"{where} is {text!r}: max-restarts is not wanted, since `ratchet run` starts a stage that lost a rank "
            "again from its checkpoint; remove it"
        )


def command(line: LaunchLine, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command that runs `python -m rlhf.launch ARGUMENTS` under the launcher.

    Args:
        line: the launch line.
        arguments: arguments of `rlhf.launch`.
        environment: read for CUDA_VISIBLE_DEVICES.

    Raises:
        BadInput: the launcher is not installed.
    """
    module, words = ["rlhf.launch", *arguments], list(line.words)
    if line.program == "python":
        return [sys.executable, *words, "-m", *module]
    package = "torch" if line.program == "torchrun" else "deepspeed"
    if importlib.util.find_spec(package) is None:
        raise BadInput(
            f"the launch line wants {line.program}, but the package {package} is not installed; install it "
            f"(`pip install -c constraints.txt {package}`), or write `launch: python`"
        )
    if line.program == "torchrun":
        if not line.several_nodes and not ADDRESSES & set(line.options):
            words.insert(0, "--standalone")  # a port of its own: two stages may run at once
        return [sys.executable, "-m", "torch.distributed.run", *words, "-m", *module]
    if not line.several_nodes:
        if "master-port" not in line.options:
            words += [f"--master_port={free_port()}"]
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if visible and line.ranks_here == len(visible):
            # With a number, DeepSpeed would forget which devices are ours and take the first of the machine.
            words = [word for word in _joined(words) if not re.match(r"--num[-_](gpus|accelerators)\b", word)]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *words, "--no_local_rank", "--module", *module]


def _joined(words: Sequence[str]) -> list[str]:
    """`--name value` as `--name=value`, so that an option is one word."""
    found: list[str] = []
    for word in words:
        if found and not word.startswith("-") and "=" not in found[-1]:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
