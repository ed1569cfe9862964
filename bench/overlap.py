"""What `ppo.overlap` saves: seconds from asking to the last score, with a slow reward function, both ways in turn.

    OMP_NUM_THREADS=1 python -m bench.overlap --milliseconds 30 --rounds 7

Reads the models of a finished project (data/models/sft and data/models/reward) and its prompts. A round is a rollout of
64 answers, compared with the reference and scored by the reward model and by a function that waits, as one that asks a
server does. Exit code 1 where a number differs.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from statistics import median

import torch

from rlhf import matmul
from rlhf.asking import Asker
from rlhf.config import load_section, read_params
from rlhf.engine import prepare
from rlhf.group_sampling import Answers
from rlhf.ppo_config import Config
from rlhf.reference import compare_with_reference
from rlhf.rewards.answer import Answer
from rlhf.rewards.signals import Signals, build_signals
from rlhf.roles import load_roles
from rlhf.showcase import read_questions

ROOT = Path(__file__).resolve().parents[1]


def make_asker(milliseconds: float) -> Asker:
    """The embedded task's, with the function that waits."""
    config = load_section(read_params(ROOT / "profiles/default.yaml"), "ppo", Config)
    matmul.choose(config.engine.matmul)
    device, reward = torch.device("cpu"), ROOT / "data/models/reward"
    roles = load_roles(ROOT / "data/models/sft", reward, device=device, value="none")
    whole = build_signals(
        {"reward_model": 1.0}, rule_settings={}, reward_model=roles.reward_model, reward=reward, base=None,
        combination="mean", uncertainty_coef=1.0, rows=config.micro_batch or 16, precision="float32", device=device,
    )  # fmt: skip

    def wait(answer: Answer) -> float:
        time.sleep(milliseconds / 1000)
        return float(len(answer.text))

    signals = Signals({"reward_model": 1.0, "wait": 0.01}, model=whole.model, functions={"wait": wait})
    questions, _ = read_questions(ROOT / "data/validated/prompts/train.jsonl", roles.tokenizer, max_tokens=184)
    return Asker(roles=roles, signals=signals, questions=questions, config=config, seed=1)


def rollout(asker: Asker, *, overlap: bool) -> tuple[float, float, Answers]:
    """Seconds to the end of sampling and to the last score, and the answers."""
    asker = dataclasses.replace(asker, config=dataclasses.replace(asker.config, overlap=overlap))
    roles, config = asker.roles, asker.config
    policy = prepare(
        roles.policy, learning_rate=1e-3, schedule=lambda _: 1.0, max_grad_norm=1.0, precision="float32"
    )  # fmt: skip
    begun = time.perf_counter()
    unscored = asker.ask(policy, 0, asker.prompts_of(0, [])[:64])
    sampled = time.perf_counter()
    compare_with_reference(
        roles.policy, roles.reference, unscored.sampled.batch, roles.forbidden, temperature=1.0,
        rows=config.micro_batch or 16,
    )  # fmt: skip
    answers = unscored.score()
    return sampled - begun, time.perf_counter() - begun, answers


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", type=float, default=30, help="that the function takes for an answer")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asker = make_asker(arguments.milliseconds)
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    equal = True
    for number in range(arguments.rounds + 1):
        scores = []
        for overlap in (False, True):
            sampling, whole, answers = rollout(asker, overlap=overlap)
            scores.append(answers.scores)
            if number > 0:  # the first is for warming up
                times[overlap].append((sampling, whole))
        equal &= torch.equal(*scores)
    for overlap, rounds in times.items():
        sampling, whole = (median(column) for column in zip(*rounds, strict=True))
        sys.stdout.write(f"overlap {overlap}: sampled after {sampling:.2f} s, scored after {whole:.2f} s\n")
    ratio = median(a[1] / b[1] for a, b in zip(times[False], times[True], strict=True))
    sys.stdout.write(f"ratio {ratio:.2f}, scores {'equal to the last bit' if equal else 'DIFFER'}\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
