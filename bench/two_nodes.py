"""Two machines in two network namespaces of this one: a stage trains on both, loses one, and goes on.

    python -m bench.two_nodes [--zero 2 3] [--out .ratchet/tmp/bench/two_nodes]

Needs the right to make network namespaces (`ip netns`, as root). Each machine has an address, a cable and a folder of
its own, one rank, and the same `launch` line; only $NODE differs. Fails when weights differ between the machines or, by
more than rounding, from those of one process, or when a machine that is lost is not noticed in time.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import ROOT, markdown, say
from bench.rank_trial import PATHS, Ended, Trial, distance

NAMES, ADDRESSES, CARDS = ("ratchet-a", "ratchet-b"), ("10.77.0.1", "10.77.0.2"), ("veth-a", "veth-b")
LAUNCH = "torchrun --nnodes=2 --nproc-per-node=1 --node-rank=$NODE --master-addr=10.77.0.1 --master-port=$PORT"
TOLERANCE = 1e-5
TIMEOUT_S = 8.0
LONGEST_S = 60.0
"""Within this time both machines must have ended after the cable was cut."""


@contextmanager
def two_machines() -> Iterator[None]:
    """Two namespaces joined by a cable, for the length of the block."""
    remove()
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", CARDS[0], "netns", NAMES[0], "type", "veth", "peer", "name", CARDS[1], "netns", NAMES[1])
        for name, address, card in zip(NAMES, ADDRESSES, CARDS, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
            ip("-n", name, "link", "set", card, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        remove()


def remove() -> None:
    """Take the namespaces away, and with them the cable."""
    known = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    for name in NAMES:
        if name in known:
            ip("netns", "delete", name)


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)


def start(trials: list[Trial], port: int) -> list["subprocess.Popen[bytes]"]:
    """Start the stage on both machines."""
    return [
        trial.start(["ip", "netns", "exec", name], NODE=str(node), PORT=str(port), GLOO_SOCKET_IFNAME=card)
        for node, (trial, name, card) in enumerate(zip(trials, NAMES, CARDS, strict=True))
    ]


def both(out: Path, name: str, zero: int, *, timeout_s: float = 60.0) -> list[Trial]:
    """A folder for each machine."""
    settings = {"engine": {"zero_stage": zero, "timeout_s": timeout_s}}
    return [Trial(out / f"{name}-{node}", launch=LAUNCH, settings=settings) for node in "ab"]


def end(trials: list[Trial], processes: list["subprocess.Popen[bytes]"], since: float) -> list[Ended]:
    """Wait for both; seconds are those until each was seen to have ended."""
    ended: dict[int, Ended] = {}
    while len(ended) < len(trials):
        for node, process in enumerate(processes):
            if node not in ended and process.poll() is not None:
                ended[node] = trials[node].wait(process, since)
        time.sleep(0.05)
    return [ended[node] for node in range(len(trials))]


def trial_of_weights(out: Path, zero: int, alone: Path, port: int) -> list[str]:
    """A whole run: the model that it writes, against one process."""
    trials = both(out, f"whole-{zero}", zero)
    ended = end(trials, start(trials, port), time.monotonic())
    if any(one.code for one in ended):
        raise SystemExit(f"ZeRO-{zero}: {[one.last_line for one in ended]}")
    far = distance(alone, trials[0].folder)
    if far > TOLERANCE:
        raise SystemExit(f"ZeRO-{zero}: weights differ by {far:.1e} from those of one process")
    return [f"ZeRO-{zero}, a whole run", f"{max(one.seconds for one in ended):.0f}", f"{far:.1e}", "-"]


def trial_of_equality(out: Path, zero: int, port: int) -> list[str]:
    """The weights as each machine has them at the end."""
    trials, since = both(out, f"equal-{zero}", zero), time.monotonic()
    processes = []
    for node, (trial, name, card) in enumerate(zip(trials, NAMES, CARDS, strict=True)):
        variables = {
            "GLOO_SOCKET_IFNAME": card,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        env = os.environ | variables | {"PYTHONPATH": str(ROOT)}
        line = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        line += [f"--node-rank={node}", f"--master-addr={ADDRESSES[0]}", f"--master-port={port}"]
        line += ["-m", "bench.two_nodes", "--as-rank"]
        processes.append(subprocess.Popen(line, cwd=trial.folder, env=env, stderr=subprocess.DEVNULL))
    codes = [process.wait() for process in processes]
    hashes = [(trial.folder / "hash").read_text(encoding="utf-8") for trial in trials] if not any(codes) else []
    if len(set(hashes)) != 1:
        raise SystemExit(f"ZeRO-{zero}: exit codes {codes}, hashes of the weights {hashes}, wanted equal ones")
    return [f"ZeRO-{zero}, weights on both machines", f"{time.monotonic() - since:.0f}", "0 (equal hashes)", "-"]


def as_rank() -> None:
    """Train on this rank and write the hash of the whole weights as this rank has them."""
    from rlhf import distributed
    from rlhf.config import load_section, read_params
    from rlhf.recipes import sft

    engines = []
    prepare = sft.prepare

    def keep(*arguments: object, **settings: object) -> object:
        engines.append(prepare(*arguments, **settings))  # type: ignore[arg-type]  # handed on unread
        return engines[0]

    sft.prepare = keep  # type: ignore[assignment]  # the recipe's own engine is wanted, to read its weights
    config = load_section(read_params(Path("params.yaml")), "sft", sft.Config)
    paths = {name: Path(place) for name, place in PATHS.items()}
    sft.main(config, seed=1, stage="sft", demonstrations=Path("demonstrations"), **paths)
    digest = hashlib.sha256()
    with engines[0].gathered() as whole:
        for name, value in sorted(whole.state_dict().items()):
            digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    Path("hash").write_text(digest.hexdigest(), encoding="utf-8")
    distributed.barrier()
    os._exit(0)  # as `rlhf.launch` ends a rank


def trial_of_a_killed_rank(out: Path, zero: int, port: int) -> list[str]:
    """The rank of the second machine is killed; both start again and must reach the same bits."""
    trials = both(out, f"killed-{zero}", zero)
    processes = start(trials, port)
    since = trials[1].hit(processes[1], rank=1, step=12, signal=signal.SIGKILL)
    ended = end(trials, processes, since)
    for one in ended:
        say(f"  exit {one.code} after {one.seconds:.1f} s: {one.last_line}")
    again = end(trials, start(trials, port), time.monotonic())
    far = distance(out / f"whole-{zero}-a", trials[0].folder) if not any(one.code for one in again) else float("nan")
    if far or any(one.code != 1 for one in ended):
        raise SystemExit(f"ZeRO-{zero}: after a restart weights differ by {far}; {[one.last_line for one in again]}")
    return [f"ZeRO-{zero}, a rank killed, then resumed", "-", "0", f"{max(one.seconds for one in ended):.1f}"]


def trial_of_a_lost_machine(out: Path, zero: int, port: int) -> list[str]:
    """The cable is cut: nothing says goodbye, and only the time limit can tell."""
    trials = both(out, f"lost-{zero}", zero, timeout_s=TIMEOUT_S)
    processes = start(trials, port)
    while trials[0].saved(0) < 12:
        time.sleep(0.01)
    ip("-n", NAMES[1], "link", "set", CARDS[1], "down")
    ended = end(trials, processes, time.monotonic())
    ip("-n", NAMES[1], "link", "set", CARDS[1], "up")
    for one in ended:
        say(f"  exit {one.code} after {one.seconds:.1f} s: {one.last_line}")
    if any(one.code != 1 or one.seconds > LONGEST_S for one in ended):
        raise SystemExit(f"ZeRO-{zero}: a machine was cut off, and this came of it: {ended}")
    return [
        f"ZeRO-{zero}, cable cut (timeout_s {TIMEOUT_S:g})", "-", "-", f"{max(one.seconds for one in ended):.1f}",
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--out", type=Path, default=Path(".ratchet/tmp/bench/two_nodes"))
    parser.add_argument("--port", type=int, default=29511)
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank:
        as_rank()
    shutil.rmtree(arguments.out, ignore_errors=True)
    alone = Trial(arguments.out / "alone", launch="python")
    if (ended := alone.run()).code:
        raise SystemExit(ended.last_line)
    rows = []
    with two_machines():
        for zero in arguments.zero:
            for trial in (
                lambda z: trial_of_weights(arguments.out, z, alone.folder, arguments.port),
                lambda z: trial_of_equality(arguments.out, z, arguments.port),
                lambda z: trial_of_a_killed_rank(arguments.out, z, arguments.port),
                lambda z: trial_of_a_lost_machine(arguments.out, z, arguments.port),
            ):
                rows.append(trial(zero))
                say(" | ".join(rows[-1]))
    (arguments.out / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    head = ("what", "seconds", "largest difference of a weight", "seconds from the blow to the end on both")
    say(markdown(head, rows))


if __name__ == "__main__":
    main()
