"""A program that trains by every recipe on as many ranks as it was started on: `... -m tests.rlhf.recipes.across_ranks
INPUTS OUT STAGE ...`, where STAGE is a ZeRO stage, or several words as below.

What it writes on one rank and on two is compared by `test_deepspeed_engine_recipes`. Answers are sampled with random
numbers that belong to the prompt and not to the rank, or two runs would learn from other answers.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf import distributed, rollout
from rlhf.engine import shutdown
from rlhf.engine_settings import EngineSettings
from rlhf.generation import Generation, generate
from tests.rlhf.recipes import test_sft, tiny_dpo, tiny_ppo, tiny_reward

RECIPES = ("sft", "reward", "dpo", "ppo", "mixed")
SETTINGS: dict[str, dict[str, Any]] = {
    **{str(stage): {"zero_stage": stage} for stage in range(4)},
    "checkpointing": {"zero_stage": 3, "activation_checkpointing": True},
    "offload": {"zero_stage": 3, "offload": "parameters"},
    "lora": {"zero_stage": 3},
}


def by_prompt(policy: Any, prompts: Sequence[Sequence[int]], *, generator: Any, **settings: Any) -> Generation:
    """`generate`, prompt by prompt, each with random numbers of its own."""
    found = [
        generate(
            policy, [ids], generator=torch.Generator().manual_seed(sum(n * i for n, i in enumerate(ids))), **settings
        )
        for ids in prompts
    ]
    return Generation(*([one for part in column for one in part] for column in zip(*map(_columns, found), strict=True)))


def _columns(one: Generation) -> tuple[list[Any], ...]:
    return one.responses, one.logprobs, one.ended


def write_inputs(folder: Path) -> None:
    """What the recipes read."""
    test_sft.write_demonstrations(folder / "sft")
    tiny_reward.write_inputs(folder / "reward")
    tiny_dpo.write_inputs(folder / "dpo")
    tiny_ppo.write_inputs(folder / "ppo")


def paths_below(folder: Path, *names: str) -> dict[str, Path]:
    """Inputs by name."""
    return {name: folder / name for name in names}


def run(inputs: Path, out: Path, word: str) -> None:
    """All recipes, with batches that the ranks share unequally."""
    engine, lora = EngineSettings(**SETTINGS[word]), {"lora_rank": 2 if word == "lora" else 0}
    place = {name: out / f"{distributed.world_size()}-{word}" / name for name in RECIPES}
    start = inputs / "reward"
    given = (
        {"demonstrations": inputs / "sft", "base": start} if lora["lora_rank"] else {"demonstrations": inputs / "sft"}
    )
    small = dataclasses.replace(
        test_sft.CONFIG, epochs=1.0, batch_size=5, micro_batch=1, engine=engine, **lora,
        base_model="sft" if lora["lora_rank"] else "scratch",
    )  # fmt: skip
    test_sft.run(small, place["sft"], **given)
    config = dataclasses.replace(tiny_reward.CONFIG, epochs=1.0, batch_size=5, micro_batch=2, engine=engine, **lora)
    tiny_reward.run(config, place["reward"], {
        **paths_below(start, "pairs", "probes", "prompts", "sft"), "rankings": start / "no_rankings"
    })  # fmt: skip
    names = ("pairs", "judgements", "prompts", "sft")
    tiny_dpo.run(
        paths_below(inputs / "dpo", *names), place["dpo"], engine=engine, batch_size=5, micro_batch=2, epochs=1.0,
        **lora,
    )  # fmt: skip
    names = ("prompts", "sft", "reward", "demonstrations", "base")
    tiny_ppo.run(
        paths_below(inputs / "ppo", *names), place["ppo"], engine=engine, updates=2, minibatch=None, micro_batch=3,
        value_lora_rank=lora["lora_rank"], **lora,
    )  # fmt: skip
    # A value head on the policy's trunk: it learns alone at first, and later beside demonstrations, which pass it by.
    tiny_ppo.run(
        paths_below(inputs / "ppo", *names), place["mixed"], engine=engine, updates=3, minibatch=None, micro_batch=3,
        value_model="shared", value_warmup_updates=1, warmup_updates=0, ptx_coef=0.5, ptx_batch=4, **lora,
    )  # fmt: skip


def main() -> None:
    """Run what the command line names."""
    inputs, out, words = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    rollout.generate = by_prompt
    if distributed.world_size() > 1:
        from rlhf import deepspeed_engine

        deepspeed_engine.WHOLE_BELOW = 64  # or these models would not be split at all
    for word in words:
        run(inputs, out, word)
    shutdown()


if __name__ == "__main__":
    main()
