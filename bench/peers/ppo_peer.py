"""TRL 1.12's PPOTrainer with windows in it: what it sampled and computed, and how long the parts took."""

from collections.abc import Sequence
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from bench.peers.models import PAD
from bench.peers.ours import RATE, multiplied
from bench.peers.ppo_roles import CLIP_RANGE, EPOCHS, KL_COEF, LAMBDA, LONGEST, MINIBATCH, ROLLOUTS, row_order
from bench.peers.reward_models import make_classifier
from bench.peers.stepping import trainer_arguments
from rlhf.models import load_policy


class Watch:
    """Looks at an update while it runs, and gives it the order of minibatches that ours has.

    Functions that the trainer finds in its own module are wrapped; what they compute stays as it is.
    """

    def __init__(self, *, stop: int | None) -> None:
        """Nothing seen yet.

        Args:
            stop: the token that ends a response; None where none does.
        """
        self.end, self.began, self.order_seed = stop, 0.0, 0
        self.kept: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.prompts: list[list[int]] = []
        self.responses: list[list[int]] = []
        self.start()

    def start(self) -> None:
        """Begin an update."""
        self.marks: list[float] = []
        self.logprobs: list[Tensor] = []
        self.rewards: list[Tensor] = []
        self.order: torch.Generator | None = None
        self.began = process_time()

    def stop(self) -> dict[str, float]:
        """CPU seconds of the update's parts."""
        sampled, learning = self.marks
        now = process_time()
        return {"sample": sampled - self.began, "score": learning - sampled, "learn": now - learning}

    def __enter__(self) -> None:
        """Put the windows in."""
        self.kept = {name: getattr(ppo_trainer, name) for name in ("batch_generation", "selective_log_softmax",
                                                                   "get_reward", "np")}  # fmt: skip
        ppo_trainer.batch_generation = self._generate
        ppo_trainer.selective_log_softmax = self._log_softmax
        ppo_trainer.get_reward = self._reward
        ppo_trainer.np = SimpleNamespace(random=SimpleNamespace(permutation=self._permutation))

    def __exit__(self, *_: object) -> None:
        """Take them out."""
        for name, value in self.kept.items():
            setattr(ppo_trainer, name, value)

    def _generate(self, model: Any, queries: Tensor, *args: Any) -> Any:
        found = self.kept["batch_generation"](model, queries, *args)
        width = queries.shape[1]
        self.prompts = [row[row != PAD].tolist() for row in queries]
        self.responses = [self._cut(row[width:].tolist()) for row in found[0]]
        self.marks.append(process_time())
        return found

    def _cut(self, response: list[int]) -> list[int]:
        whole = response if self.end not in response else response[: response.index(self.end) + 1]
        if PAD in whole:
            raise ValueError("the peer sampled PAD, which it then takes for padding; another --seed will not")
        return whole

    def _log_softmax(self, logits: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = self.kept["selective_log_softmax"](logits, ids)
        if len(self.logprobs) < 2:
            self.logprobs.append(found.detach())
        return found

    def _reward(self, *args: Any) -> Any:
        found = self.kept["get_reward"](*args)
        self.rewards.append(found[0] if not self.rewards else found[1])
        return found

    def _permutation(self, count: int) -> numpy.ndarray:
        if self.order is None:
            self.marks.append(process_time())
            self.order = torch.Generator().manual_seed(self.order_seed)
        rows = row_order(self.prompts, self.responses)
        return numpy.array([rows[place] for place in torch.randperm(count, generator=self.order).tolist()])

    @property
    def tokens(self) -> int:
        """Response tokens of the update."""
        return sum(map(len, self.responses))

    def measured(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities under policy and reference, and values, of response tokens row by row; scores."""
        columns = [*self.logprobs, self.rewards[0].squeeze(-1)[:, -LONGEST - 1 : -1]]
        lengths = [len(response) for response in self.responses]
        flat = [torch.cat([row[:size] for row, size in zip(one, lengths, strict=True)]) for one in columns]
        return flat[0], flat[1], flat[2], self.rewards[1]


def make_trainer(
    folder: Path, reward: Path, prompts: Sequence[list[int]], watch: Watch, *, matmul: str, ends: bool, updates: int
) -> PPOTrainer:
    """The trainer with the settings of `ppo_roles.Lane`.

    Args:
        folder: of the policy.
        reward: of the reward model's trunk.
        prompts: token ids.
        watch: gets the metrics.
        matmul: library of the fp32 products.
        ends: whether responses may end before the longest.
        updates: how many.
    """
    settings = trainer_arguments("ppo", 1) | {
        "per_device_train_batch_size": ROLLOUTS, "gradient_accumulation_steps": 1, "learning_rate": RATE / 10,
        "num_mini_batches": ROLLOUTS // MINIBATCH, "num_ppo_epochs": EPOCHS, "total_episodes": ROLLOUTS * updates,
        "response_length": LONGEST, "temperature": 1.0, "kl_coef": KL_COEF, "cliprange": CLIP_RANGE,
        "cliprange_value": CLIP_RANGE, "vf_coef": 1.0, "gamma": 1.0, "lam": LAMBDA, "num_sample_generations": 0,
        "stop_token": "eos" if ends else None, "local_rollout_forward_batch_size": ROLLOUTS,
    }  # fmt: skip
    models = {
        "model": load_policy(folder, device="cpu"), "ref_model": load_policy(folder, device="cpu"),
        "reward_model": make_classifier(reward), "value_model": make_classifier(reward),
    }  # fmt: skip

    class Heard(PPOTrainer):
        """A trainer whose metrics can be read."""

        def log(self, metrics: dict[str, float], *args: Any) -> None:
            watch.metrics = dict(metrics)

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    data = Dataset.from_list([{"input_ids": prompt} for prompt in prompts])
    return Heard(
        args=PPOConfig(**settings), processing_class=tokenizer, train_dataset=data,
        **{name: multiplied(model, matmul) for name, model in models.items()},
    )  # fmt: skip
