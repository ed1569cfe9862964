"""One batch of the reward model: preference pairs, and chosen answers shown with facts of another prompt."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import distributed
from rlhf.batches import collate
from rlhf.engine import Engine
from rlhf.losses.bradley_terry import RewardLoss, bradley_terry_loss
from rlhf.losses.replaced_tokens import ReplacedTokenLoss, replaced_token_loss
from rlhf.models import forbidden_ids
from rlhf.preferences import Pair
from rlhf.token_swaps import Swapped, swap_tokens
from rlhf.tokenizer import pad_of


class Example(NamedTuple):
    """A pair, and its chosen answer with facts of another prompt where it has one."""

    pair: Pair
    swapped: Swapped | None

    @property
    def judged(self) -> int:
        """Tokens that the replaced-token loss reads: each in the chosen and in the swapped answer."""
        return 2 * sum(self.swapped.judged) if self.swapped else 0


def with_swaps(
    train: Sequence[Pair],
    rows: Sequence[int],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    share: float,
    seed: int,
) -> list[Example]:
    """This rank's pairs of a batch, some with a swapped answer; the other prompt is that of the next pair.

    Which pairs and which tokens depends on the seed and the pair, not on ranks or micro-batches.

    Args:
        train: all pairs.
        rows: the global batch, as indices into `train`.
        policy: frozen; it proposes the swaps.
        tokenizer: the policy's.
        share: probability that a pair gets a swapped answer.
        seed: of this step.
    """
    seeds = {row: seed * 2**31 + row for row in rows}
    taken = {row for row in rows if random.Random(seeds[row]).random() < share}
    following = dict(zip(rows, [*rows[1:], *rows[:1]], strict=True))
    mine = distributed.share(rows)
    wanted = [row for row in mine if row in taken]
    swapped = swap_tokens(
        policy,
        [train[row].prompt for row in wanted],
        [train[following[row]].prompt for row in wanted],
        [train[row].chosen for row in wanted],
        seeds=[seeds[row] for row in wanted],
        forbidden=forbidden_ids(tokenizer, policy),
        pad_id=pad_of(tokenizer),
    )
    found = dict(zip(wanted, swapped, strict=True))
    return [Example(train[row], found.get(row)) for row in mine]


def losses(
    engine: Engine, part: Sequence[Example], *, centering: float, pad_id: int, pairs: int, tokens: float
) -> tuple[RewardLoss, ReplacedTokenLoss]:
    """This micro-batch's share of both losses; all its answers go through the model in one batch.

    Args:
        engine: holds the reward model.
        part: the micro-batch.
        centering: weight of the squared sum of a pair's scores.
        pad_id: id written into padding.
        pairs: pairs of the global batch.
        tokens: judged tokens of the global batch.
    """
    count, extra = len(part), [(row, example.swapped) for row, example in enumerate(part) if example.swapped]
    prompts = [example.pair.prompt for example in part]
    responses = [*(example.pair.chosen for example in part), *(example.pair.rejected for example in part)]
    batch = collate(
        [*prompts, *prompts, *(prompts[row] for row, _ in extra)],
        [*responses, *(swapped.response for _, swapped in extra)],
        pad_id=pad_id,
    ).to(engine.device)
    token_scores = engine(batch.input_ids, batch.attention_mask)
    scores = engine.module.pool(token_scores[: 2 * count], batch.response_mask[: 2 * count])
    preference = bradley_terry_loss(
        scores[:count],
        scores[count:],
        torch.tensor([example.pair.label for example in part], device=scores.device),
        margin=None,
        centering=centering,
        total_pairs=pairs,
    )
    # The same places twice: as they stand in the chosen answer, all original, and in the swapped one.
    places = [*(row for row, _ in extra), *range(2 * count, len(token_scores))]
    original, judged = (torch.zeros(len(places), token_scores.shape[1], dtype=torch.bool) for _ in range(2))
    for index, (row, swapped) in enumerate(extra):
        span = slice(len(prompts[row]), len(prompts[row]) + len(swapped.response))
        judged[index, span] = judged[len(extra) + index, span] = torch.tensor(swapped.judged)
        original[index, span], original[len(extra) + index, span] = True, torch.tensor(swapped.original)
    swap = replaced_token_loss(
        token_scores[places], original.to(engine.device), judged.to(engine.device), total_tokens=tokens
    )
    return preference, swap
