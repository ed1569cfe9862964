"""Models of random weights, batches of random tokens, and one optimizer step or update on them by this project's code.

What bench/memory.py and bench/gpu.py share. A step takes rows of full length: the most that a setting may meet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from rlhf.adapters import AdapterOff, Lora, add_adapter
from rlhf.batches import Batch, collate
from rlhf.device import autocast
from rlhf.engine import Engine, prepare
from rlhf.engine_settings import EngineSettings
from rlhf.generation import generate
from rlhf.improvement import Learners, Objectives, improve
from rlhf.logprobs import response_logprobs, scatter_response
from rlhf.losses.language_model import completion_loss
from rlhf.losses.policy_gradient import clipped_policy_loss
from rlhf.losses.value import clipped_value_loss
from rlhf.reference import compare_with_reference
from rlhf.reward_model import RewardModel
from rlhf.rollout import Rollout, state_values
from rlhf.row_blocks import in_row_blocks
from rlhf.schedules import linear
from rlhf.sizing.model_shape import ModelShape
from rlhf.sizing.setting import STAGES, Setting

PAD = 0


def random_config(shape: ModelShape, *, context: int) -> LlamaConfig:
    """A Llama of this shape; its family's feed-forward layer gates, so the shape's has to."""
    return LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers, bos_token_id=None,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_width, eos_token_id=1,
        intermediate_size=shape.intermediate, max_position_embeddings=context, tie_word_embeddings=shape.tied,
        pad_token_id=PAD, attn_implementation="sdpa", dtype=torch.float32,
    )  # fmt: skip


def policy_of_shape(shape: ModelShape, device: torch.device, *, context: int) -> LlamaForCausalLM:
    """A policy with random weights."""
    return LlamaForCausalLM(random_config(shape, context=context)).to(device).eval()


def scorer_of_shape(shape: ModelShape, device: torch.device, *, context: int) -> RewardModel:
    """A reward or value model with random weights."""
    config = random_config(shape, context=context)
    config.num_labels = 1
    trunk = LlamaForTokenClassification(config)
    return RewardModel(trunk, pooling="last", scale=1.0, mean=0.0, std=1.0).to(device).eval()


def random_prompts(setting: Setting, rows: int, source: torch.Generator) -> list[list[int]]:
    """Prompts of full length."""
    shape = (rows, setting.prompt_tokens)
    return torch.randint(2, setting.shape.vocabulary, shape, generator=source).tolist()


def random_batch(setting: Setting, rows: int, source: torch.Generator) -> Batch:
    """Prompts and responses of full length."""
    shape = (rows, setting.response_tokens)
    responses = torch.randint(2, setting.shape.vocabulary, shape, generator=source).tolist()
    return collate(random_prompts(setting, rows, source), responses, pad_id=PAD)


@dataclass
class Work:
    """One setting, ready to take steps."""

    setting: Setting
    device: torch.device
    source: torch.Generator
    policy: Any
    engine: Engine
    value_model: Any = None
    value_engine: Engine | None = None
    reference: Any = None
    reward_model: Any = None
    marks: Callable[[str], None] = lambda _: None
    """Told the name of each part of an update as it ends."""

    def step(self) -> None:
        """One optimizer step; of PPO, one update."""
        {"sft": self._sft, "dpo": self._dpo, "reward": self._reward, "ppo": self._ppo}[STAGES[self.setting.method]]()

    def _sft(self) -> None:
        total = self.setting.share * self.setting.response_tokens
        for last in self._passes():
            batch = random_batch(self.setting, int(self.setting.rows), self.source).to(self.device)
            loss = completion_loss(self._logprobs(batch), batch.response_mask, total_tokens=total)
            self.engine.backward(loss, final=last)
        self.engine.step()

    def _dpo(self) -> None:
        for last in self._passes():
            batch = random_batch(self.setting, int(self.setting.rows), self.source).to(self.device)
            chosen, rejected = self._logprobs(batch).sum(dim=1).chunk(2)
            loss = -functional.logsigmoid(0.1 * (chosen - rejected)).sum() / self.setting.share
            self.engine.backward(loss, final=last)
        self.engine.step()

    def _reward(self) -> None:
        for last in self._passes():
            batch = random_batch(self.setting, int(self.setting.rows), self.source).to(self.device)
            chosen, rejected = self.engine(batch.input_ids, batch.attention_mask, batch.response_mask).chunk(2)
            self.engine.backward(-functional.logsigmoid(chosen - rejected).sum() / self.setting.share, final=last)
        self.engine.step()

    def _passes(self) -> list[bool]:
        """Whether each pass of a step is its last."""
        return [number + 1 == self.setting.passes for number in range(self.setting.passes)]

    def _logprobs(self, batch: Batch) -> Tensor:
        with autocast(self.device, self.setting.precision):
            return response_logprobs(self.engine.module, batch, temperature=1.0, forbidden=self._forbidden()).logprobs

    def _forbidden(self) -> Tensor:
        forbidden = torch.zeros(self.setting.shape.vocabulary, dtype=torch.bool, device=self.device)
        forbidden[PAD] = True
        return forbidden

    def rollout(self) -> tuple[Batch, Tensor]:
        """Sample responses of full length to random prompts."""
        setting = self.setting
        prompts = random_prompts(setting, setting.rollouts, self.source)
        with self.engine.gathered() as whole, autocast(self.device, setting.precision):
            drawn = generate(
                whole, prompts, max_new_tokens=setting.response_tokens, temperature=1.0, stop_ids=[],
                forbidden=self._forbidden(), pad_id=PAD, generator=self.source,
            )  # fmt: skip
        batch = collate(prompts, drawn.responses, pad_id=PAD)
        captured = torch.tensor([value for row in drawn.logprobs for value in row])
        self.marks("rollout")
        return batch.to(self.device), scatter_response(captured, batch.response_mask).to(self.device)

    def score(self, batch: Batch) -> Rollout:
        """What the other roles say; advantages are random numbers, since only shapes matter here."""
        setting = self.setting
        rows = int(setting.rows)
        compare = partial(
            compare_with_reference, self.engine.module, self.reference, forbidden=self._forbidden(), temperature=1.0,
            rows=rows,
        )  # fmt: skip
        with torch.no_grad(), autocast(self.device, setting.precision):
            old = compare(batch)
            in_row_blocks(lambda part: self.reward_model(part.input_ids, part.attention_mask), batch, rows)
            values = in_row_blocks(lambda part: state_values(self.value_engine, part), batch, rows)
        advantages = torch.randn(values.shape, generator=self.source).to(self.device)
        self.marks("score")
        return Rollout(
            batch=batch, logprobs=old.logprobs, values=values, advantages=advantages, returns=values + advantages
        )

    def _ppo(self) -> None:
        batch, _ = self.rollout()
        rollout, setting = self.score(batch), self.setting
        objectives = Objectives(
            policy=partial(clipped_policy_loss, clip_range_low=0.2, clip_range_high=0.2, dual_clip=None),
            value=partial(clipped_value_loss, clip_range=None), entropy_coef=0.0, temperature=1.0,
            forbidden=self._forbidden(), precision=setting.precision,
        )  # fmt: skip
        learners = Learners(policy=self.engine, value_model=self.value_engine, train_policy=True)
        improve(
            learners, rollout, objectives, epochs=setting.epochs, minibatch=setting.batch,
            micro_batch=setting.micro_batch, target_kl=None, order=self.source,
        )  # fmt: skip
        self.marks("train")


def build(setting: Setting, device: torch.device, *, seed: int = 1) -> Work:
    """Models and engines of a setting on one device.

    Args:
        setting: of a method of `STAGES`, on one GPU, with a separate value model where it is ppo.
        device: where all of it lies.
        seed: of weights and tokens.
    """
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    context, stage = setting.tokens, STAGES[setting.method]
    make = scorer_of_shape if stage == "reward" else policy_of_shape
    policy: Any = make(setting.shape, device, context=context)
    reference: Any = None
    if setting.lora_rank:
        add_adapter(policy, Lora(setting.lora_rank, 16.0), seed=seed)
    if stage == "ppo":
        reference = AdapterOff(policy) if setting.lora_rank else _frozen(policy_of_shape, setting, device)
    work = Work(
        setting=setting, device=device, source=source, policy=policy, engine=_engine(policy, setting),
        reference=reference,
    )  # fmt: skip
    if stage == "ppo":
        work.reward_model = _frozen(scorer_of_shape, setting, device)
        work.value_model = scorer_of_shape(setting.shape, device, context=context)
        work.value_engine = _engine(work.value_model, setting)
    return work


def _frozen(make: Callable[..., Any], setting: Setting, device: torch.device) -> Any:
    return make(setting.shape, device, context=setting.tokens).requires_grad_(False)


def _engine(model: Any, setting: Setting) -> Engine:
    settings = EngineSettings(activation_checkpointing=setting.activation_checkpointing)
    return prepare(
        model, learning_rate=1e-5, schedule=linear(1000, warmup_fraction=0.0, final_fraction=1.0), max_grad_norm=1.0,
        precision=setting.precision, settings=settings,
    )  # fmt: skip
