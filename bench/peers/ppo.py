"""A PPO update against the PPOTrainer of TRL 1.12, the last release that has one.

    python -m bench.peers.ppo --size M --steps 2
    python -m bench.peers.ppo --size M --profile

An update is 64 responses and 16 optimizer steps (4 epochs of 4 minibatches) of policy and value model in both, from the
same responses, those that the peer sampled, and from the peer's weights. Ours samples its own too, for the time, and
puts them aside. Rows that end in `-ends` let responses end by themselves; there the peer gives the score to the token
after the end and trains on the value there too, so losses differ and only log-probabilities, values and scores are
compared. Exit code 1 when numbers differ by more than rounding. `make bench-envs` builds the peer's environment.
"""

import sys

from bench.peers.pairing import STATE, Row, arguments, enter_environment, finish

if __name__ == "__main__":
    enter_environment("trl-1.12")  # which alone has what is imported next

import copy
from functools import partial
from time import process_time
from typing import Any

import torch
from transformers import TrainerCallback

from bench.peers.breakdown import Work, explain
from bench.peers.models import END_CHANCE, EOS, SIZES, make_sequences, write_policy
from bench.peers.ours import choosing, embedding_of
from bench.peers.pairing import CONTROL
from bench.peers.ppo_peer import Watch, make_trainer
from bench.peers.ppo_roles import EPOCHS, LONGEST, ROLLOUTS, Lane, Measured
from bench.peers.reward_models import make_reward_model
from bench.peers.stepping import own_products, weight_gap

ROWS = ("native", "onednn", "both-onednn", "native-ends", "onednn-ends")
RUNS = (
    ("native", False, {"native": "native", "onednn": "onednn"}),
    ("onednn", False, {"both-onednn": "onednn"}),
    ("native", True, {"native-ends": "native", "onednn-ends": "onednn"}),
)
"""Multiplication of the peer, whether responses end, and rows with our multiplication."""
LIMITS = (2e-5, 3e-5)
"""As for the other comparisons; losses are means over the 16 steps."""


class AfterEachUpdate(TrainerCallback):
    """Takes our update on what the peer has just learnt from."""

    def __init__(self, trainer: Any, watch: Watch, lanes: list[tuple[Row, Lane]], *, ends: bool) -> None:
        self.trainer, self.watch, self.lanes, self.ends, self.number = trainer, watch, lanes, ends, 0
        self.precision = torch.backends.mkldnn.matmul.fp32_precision
        self.before = self._weights()

    def _weights(self) -> tuple[dict[str, Any], dict[str, Any]]:
        wrapped = self.trainer.model
        return copy.deepcopy(wrapped.policy.state_dict()), copy.deepcopy(wrapped.value_model.state_dict())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.watch.began = process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock, take our updates, compare, start it again."""
        seconds = self.watch.stop()
        mine = torch.backends.mkldnn.matmul.fp32_precision
        torch.backends.mkldnn.matmul.fp32_precision = self.precision
        for row, lane in self.lanes:
            lane.policy.module.load_state_dict(self.before[0])
            lane.value.module.trunk.load_state_dict(self.before[1])
            if not row.our_seconds:
                row.control_gap = self._control(lane)
            order = torch.Generator().manual_seed(self.watch.order_seed)
            found = lane.update(self.watch.prompts, self.watch.responses, order, self.number)
            self._compare(row, found, seconds)
            apart = (weight_gap(lane.policy.module, self.trainer.model.policy),
                     weight_gap(lane.value.module, self.trainer.model.value_model))  # fmt: skip
            row.notes["largest difference of weights after an update"] = max(apart)
        self.number += 1
        self.watch.order_seed += 1
        self.before = self._weights()
        torch.backends.mkldnn.matmul.fp32_precision = mine
        self.watch.start()

    def _compare(self, row: Row, found: Measured, seconds: dict[str, float]) -> None:
        row.peer_seconds.append(sum(seconds.values()))
        row.our_seconds.append(sum(found.seconds.values()))
        for name in seconds:
            row.parts.setdefault(name, []).append((seconds[name], found.seconds[name]))
        row.parts.setdefault("tokens sampled", []).append((self.watch.tokens, found.sampled_tokens))
        theirs = self.watch.measured()
        ours = (found.logprobs, found.ref_logprobs, found.values, found.scores)
        row.logprob_gap = max(row.logprob_gap, *(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)))
        row.notes["optimizer steps"] = found.learnt["steps"]
        if not self.ends:
            metrics = self.watch.metrics
            for mine, other in (("policy_loss", "loss/policy_avg"), ("value_loss", "loss/value_avg")):
                row.loss_gap = max(row.loss_gap, abs(found.learnt[mine] - metrics[other]))

    @torch.no_grad()
    def _control(self, lane: Lane) -> float:
        """The gap of log-probabilities when one weight is wrong: the embedding's of a token that was sampled."""
        weight = embedding_of(lane.policy.module, self.watch.responses[0][0])
        kept = weight[1].clone()
        weight[1] += CONTROL["float32"]
        with choosing(lane.matmul):
            logprobs = lane.logprobs(self.watch.prompts, self.watch.responses)
        weight[1] = kept
        return float((logprobs - self.watch.measured()[0]).abs().max())


def run(options: Any, matmul: str, ends: bool, rows: dict[str, str]) -> list[Row]:
    """One training of the peer with our updates in between."""
    size = SIZES[options.size]
    kind = "ends" if ends else "whole"
    folder = write_policy(
        size, STATE / "peers" / f"ppo-{options.size}-{kind}", seed=options.seed, end_chance=END_CHANCE if ends else 0.0
    )  # fmt: skip
    plain = write_policy(size, STATE / "peers" / f"ppo-{options.size}-reward", seed=options.seed + 1)
    prompts = [one.prompt for one in make_sequences(size, ROLLOUTS * options.steps, pairs=False, seed=options.seed)]
    watch = Watch(stop=EOS if ends else None)
    trainer = make_trainer(folder, plain, prompts, watch, matmul=matmul, ends=ends, updates=options.steps)
    lanes = [
        (
            Row(name=name, peer=f"float32, {matmul}", ours=f"float32, {ours}", precision="float32", limits=LIMITS,
                warm=0, loss_compared=not ends),
            Lane(folder, partial(make_reward_model, plain), ours, ends=ends),
        ) for name, ours in rows.items()
    ]  # fmt: skip
    trainer.add_callback(AfterEachUpdate(trainer, watch, lanes, ends=ends))
    with own_products(matmul), watch:
        trainer.train()
    return [row for row, _ in lanes]


def explain_update(options: Any) -> int:
    """Where the time of our update goes, of responses without an end; the exit code."""
    size = SIZES[options.size]
    folder = write_policy(size, STATE / "peers" / f"ppo-{options.size}-whole", seed=options.seed, end_chance=0.0)
    plain = write_policy(size, STATE / "peers" / f"ppo-{options.size}-reward", seed=options.seed + 1)
    data = make_sequences(size._replace(response=(LONGEST, LONGEST)), ROLLOUTS, pairs=False, seed=options.seed)
    prompts, responses = [one.prompt for one in data], [one.response for one in data]
    lane = Lane(folder, partial(make_reward_model, plain), options.matmul, ends=False)
    lengths, tokens = [len(one.prompt) + len(one.response) for one in data], sum(map(len, responses))
    # Sampling, policy, reference, reward and value model; then policy and value model in every epoch.
    passes = [False] * 5 + [True] * (2 * EPOCHS)
    work = Work(
        [(length, length, trained) for trained in passes for length in lengths],
        [(tokens, False)] * 3 + [(tokens, True)] * EPOCHS,
    )
    step = partial(lane.update, prompts, responses, torch.Generator().manual_seed(0), 0)
    return explain("ppo", options.size, work, step, steps=1)


def main() -> int:
    """Run the comparison; the exit code."""
    options = arguments(__doc__ or "", ROWS, steps=2)
    torch.set_num_threads(1)
    if options.profile:
        return explain_update(options)
    rows: list[Row] = []
    for matmul, ends, names in RUNS:
        wanted = {name: ours for name, ours in names.items() if name in options.rows}
        if wanted:
            rows += run(options, matmul, ends, wanted)
    return finish("ppo", options.size, rows, {"rollouts": ROLLOUTS})


if __name__ == "__main__":
    sys.exit(main())
