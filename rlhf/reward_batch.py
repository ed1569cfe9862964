"""One batch of the reward model: pairs, rankings, and chosen answers shown with facts of another prompt."""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import distributed
from rlhf.batches import collate
from rlhf.engine import Engine
from rlhf.losses.bradley_terry import RewardLoss, bradley_terry_loss
from rlhf.losses.rankings import plackett_luce_loss, ranking_pair_loss
from rlhf.losses.replaced_tokens import ReplacedTokenLoss, replaced_token_loss
from rlhf.models import forbidden_ids
from rlhf.preferences import Pair, Ranking
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


Element: TypeAlias = Example | Ranking
"""What a batch is made of; a ranking weighs as much as a pair."""


def with_swaps(
    train: Sequence[Pair | Ranking],
    rows: Sequence[int],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    share: float,
    seed: int,
) -> list[Element]:
    """This rank's elements of a batch, some pairs with a swapped answer; the other prompt is that of the next pair.

    Which pairs and which tokens depends on the seed and the pair, not on ranks or micro-batches.

    Args:
        train: all pairs and rankings.
        rows: the global batch, as indices into `train`.
        policy: frozen; it proposes the swaps.
        tokenizer: the policy's.
        share: probability that a pair gets a swapped answer.
        seed: of this step.
    """
    seeds = {row: seed * 2**31 + row for row in rows}
    pairs = {row: element for row in rows if isinstance(element := train[row], Pair)}
    order = list(pairs)
    taken = {row for row in order if random.Random(seeds[row]).random() < share}
    following = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    mine = distributed.share(rows)
    wanted = [row for row in mine if row in taken]
    swapped = swap_tokens(
        policy,
        [pairs[row].prompt for row in wanted],
        [pairs[following[row]].prompt for row in wanted],
        [pairs[row].chosen for row in wanted],
        seeds=[seeds[row] for row in wanted],
        forbidden=forbidden_ids(tokenizer, policy),
        pad_id=pad_of(tokenizer),
    )
    found = dict(zip(wanted, swapped, strict=True))
    return [Example(element, found.get(row)) if isinstance(element := train[row], Pair) else element for row in mine]


def judged_tokens(elements: Sequence[Element]) -> int:
    """Tokens that the replaced-token loss reads in some elements."""
    return sum(element.judged for element in elements if isinstance(element, Example))


def losses(
    engine: Engine,
    part: Sequence[Element],
    *,
    centering: float,
    pad_id: int,
    pairs: int,
    tokens: float,
    margin_coef: float = 0.0,
    ranking_loss: str = "pairs",
) -> tuple[RewardLoss, ReplacedTokenLoss]:
    """This micro-batch's share of both losses; all its answers go through the model in one batch.

    Args:
        engine: holds the reward model.
        part: the micro-batch.
        centering: weight of the squared sum of a pair's scores.
        pad_id: id written into padding.
        pairs: pairs and rankings of the global batch.
        tokens: judged tokens of the global batch.
        margin_coef: reward units of margin for each unit that an annotator's scores lie apart; 0 for no margins.
        ranking_loss: "pairs" or "plackett_luce"; the latter knows no margins.
    """
    examples = [element for element in part if isinstance(element, Example)]
    rankings = [element for element in part if isinstance(element, Ranking)]
    count, extra = len(examples), [(row, example.swapped) for row, example in enumerate(examples) if example.swapped]
    prompts = [example.pair.prompt for example in examples]
    ranked = [(ranking.prompt, response) for ranking in rankings for response in ranking.responses]
    responses = [*(example.pair.chosen for example in examples), *(example.pair.rejected for example in examples)]
    batch = collate(
        [*prompts, *prompts, *(prompt for prompt, _ in ranked), *(prompts[row] for row, _ in extra)],
        [*responses, *(response for _, response in ranked), *(swapped.response for _, swapped in extra)],
        pad_id=pad_id,
    ).to(engine.device)
    token_scores = engine(batch.input_ids, batch.attention_mask)
    whole = 2 * count + len(ranked)
    scores = engine.module.pool(token_scores[:whole], batch.response_mask[:whole])
    device = scores.device
    preference = bradley_terry_loss(
        scores[:count],
        scores[count : 2 * count],
        torch.tensor([example.pair.label for example in examples], device=device),
        margin=margin_coef * torch.tensor([e.pair.gap for e in examples], device=device) if margin_coef else None,
        centering=centering,
        total_pairs=pairs,
    )
    if rankings:
        settings = {"centering": centering, "total_rankings": float(pairs)}
        other = _of_rankings(scores[2 * count :], rankings, ranking_loss, margin_coef=margin_coef, **settings)
        preference = _together(preference, count, other, len(rankings))
    # The same places twice: as they stand in the chosen answer, all original, and in the swapped one.
    places = [*(row for row, _ in extra), *range(whole, len(token_scores))]
    original, judged = (torch.zeros(len(places), token_scores.shape[1], dtype=torch.bool) for _ in range(2))
    for index, (row, swapped) in enumerate(extra):
        span = slice(len(prompts[row]), len(prompts[row]) + len(swapped.response))
        judged[index, span] = judged[len(extra) + index, span] = torch.tensor(swapped.judged)
        original[index, span], original[len(extra) + index, span] = True, torch.tensor(swapped.original)
    swap = replaced_token_loss(token_scores[places], original.to(device), judged.to(device), total_tokens=tokens)
    return preference, swap


def _of_rankings(
    scores: Tensor, rankings: Sequence[Ranking], kind: str, *, margin_coef: float, **settings: float
) -> RewardLoss:
    """The loss of rankings from the scores of all their answers end to end."""
    sizes = [len(ranking.responses) for ranking in rankings]
    mask = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).to(scores.device)

    def laid_out(values: Tensor) -> Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    ranks = laid_out(torch.tensor([rank for ranking in rankings for rank in ranking.ranks], device=scores.device))
    if kind == "plackett_luce":
        return plackett_luce_loss(laid_out(scores), ranks, mask, **settings)
    given = torch.tensor([score for ranking in rankings for score in ranking.scores], device=scores.device)
    strengths = margin_coef * laid_out(given) if margin_coef else None
    return ranking_pair_loss(laid_out(scores), ranks, mask, strengths=strengths, **settings)


def _together(pairs: RewardLoss, count: int, rankings: RewardLoss, more: int) -> RewardLoss:
    """Losses and margins are shares of one mean already; accuracies are means of their own."""
    accuracy = (pairs.accuracy * count + rankings.accuracy * more) / (count + more)
    return RewardLoss(pairs.loss + rankings.loss, accuracy, pairs.margin + rankings.margin)
