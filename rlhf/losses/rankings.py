"""The reward model's loss on rankings: K answers to one prompt, in an order that may have ties.

All answers of a prompt are one element of a batch. Taken as K (K - 1) / 2 separate pairs, spread over batches, each
answer would be learnt K - 1 times an epoch, and the model would overfit within one.
"""

from functools import lru_cache
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from rlhf.losses.aggregation import pair_mean
from rlhf.losses.bradley_terry import RewardLoss, at_least_float32, pair_negative_log_likelihood
from rlhf.shapes import require_rank, require_same_shape

RANKING_LOSSES = ("pairs", "plackett_luce")
MOST_TIED = 10
"""Most answers on one place for `plackett_luce_loss`, whose cost doubles with each."""


def ranking_pair_loss(
    scores: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    strengths: Tensor | None,
    centering: float,
    total_rankings: float | None = None,
) -> RewardLoss:
    """Bradley-Terry loss of all pairs of each ranking, every ranking weighing the same.

        L = -E_rankings 1 / (K choose 2) sum over pairs of log sigma(better - worse - margin)

    and the centring term of each pair. A tie is a pair with label 0.5. With K = 2 this is `bradley_terry_loss`.

    Source: Ouyang et al. 2022, eq. 1, https://arxiv.org/abs/2203.02155

    Args:
        scores: of the answers, reward units; gradient flows. [N, K]
        ranks: place of each answer, 1 is best, equal places tie; anything where the mask is False. [N, K] int64
        mask: True at answers, False at padding. [N, K] bool
        strengths: of the answers, reward units; what the better is ahead of the worse is the pair's margin. [N, K]
        centering: weight of the squared sum of a pair's scores, at least 0.
        total_rankings: rankings (and pairs) of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss and diagnostics; accuracy and margin are means over the pairs of a ranking, then over rankings.

    Raises:
        ValueError: shapes differ, a ranking has fewer than two answers, or centering is negative.
    """
    given = _checked(scores, ranks, mask, centering)
    first, second = _every_pair(scores.shape[1])
    order = torch.sign(ranks[:, second] - ranks[:, first]).to(given.dtype)
    margin = None
    if strengths is not None:
        require_same_shape(scores=scores, strengths=strengths)
        known = torch.where(mask, strengths.to(given.dtype), 0.0)
        margin = ((known[:, first] - known[:, second]) * order).clamp(min=0)
    loss = pair_negative_log_likelihood(
        given[:, first], given[:, second], 0.5 + 0.5 * order, margin=margin, centering=centering
    )
    return _summary(_pair_average(loss, mask), given, order, mask, total_rankings)


def plackett_luce_loss(
    scores: Tensor, ranks: Tensor, mask: Tensor, *, centering: float, total_rankings: float | None = None
) -> RewardLoss:
    """Negative log-likelihood of whole orders: the best is chosen among all, the next among the rest, and so on.

        L = -E_rankings sum_k [s_k - log sum_{j at k or after} exp(s_j)], plus centring averaged over pairs

    Of answers on one place the mean over all their orders is taken. With K = 2 this is `bradley_terry_loss`, ties
    included. Its sum over places is not divided by K: a longer ranking says more.

    Source: Luce 1959, Individual Choice Behavior; Plackett 1975, The Analysis of Permutations, Applied Statistics 24;
    for preferences: Rafailov et al. 2023, appendix A.3, https://arxiv.org/abs/2305.18290

    Args:
        scores: of the answers, reward units; gradient flows. [N, K]
        ranks: place of each answer, 1 is best, equal places tie; anything where the mask is False. [N, K] int64
        mask: True at answers, False at padding. [N, K] bool
        centering: weight of the squared sum of a pair's scores, at least 0.
        total_rankings: rankings (and pairs) of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss and diagnostics as in `ranking_pair_loss`.

    Raises:
        ValueError: shapes differ, a ranking has fewer than two answers or more than `MOST_TIED` on one place, or
            centering is negative.
    """
    given = _checked(scores, ranks, mask, centering)
    first, second = _every_pair(scores.shape[1])
    losses: list[Tensor] = []
    for row, order_given, inside in zip(given, ranks, mask, strict=True):
        places = inside.nonzero().flatten()
        weights, members = _choices(tuple(order_given[places].tolist()))
        own = row[places]
        among = torch.tensor(members, device=row.device)
        choice = own.expand(len(members), -1).masked_fill(~among, -torch.inf).logsumexp(dim=1)
        losses.append((torch.tensor(weights, dtype=row.dtype, device=row.device) * choice).sum() - own.sum())
    loss = torch.stack(losses)
    if centering > 0:
        loss = loss + centering * _pair_average((given[:, first] + given[:, second]) ** 2, mask)
    order = torch.sign(ranks[:, second] - ranks[:, first]).to(given.dtype)
    return _summary(loss, given, order, mask, total_rankings)


@lru_cache(maxsize=1024)
def _choices(ranks: tuple[int, ...]) -> tuple[list[float], list[list[bool]]]:
    """The sets of answers that a choice is made among, and how much each counts.

    Of m tied answers every subset of r is, in 1 of (m choose r) orders, what is left of them.
    """
    weights, members = [], []
    for place in sorted(set(ranks)):
        tied = [index for index, rank in enumerate(ranks) if rank == place]
        if len(tied) > MOST_TIED:
            raise ValueError(f"{len(tied)} answers are on one place, wanted {MOST_TIED} at most for plackett_luce")
        after = {index for index, rank in enumerate(ranks) if rank > place}
        for size in range(1, len(tied) + 1):
            for left in combinations(tied, size):
                weights.append(1 / comb(len(tied), size))
                members.append([index in left or index in after for index in range(len(ranks))])
    return weights, members


def _checked(scores: Tensor, ranks: Tensor, mask: Tensor, centering: float) -> Tensor:
    """The scores in at least float32 with zeros outside the mask."""
    require_rank(2, scores=scores, ranks=ranks, mask=mask)
    require_same_shape(scores=scores, ranks=ranks, mask=mask)
    if not bool((mask.sum(dim=1) >= 2).all()):
        raise ValueError("a ranking has fewer than two answers, so there is nothing to compare")
    if not centering >= 0:
        raise ValueError(f"centering is {centering} but must be at least 0")
    return torch.where(mask, at_least_float32(scores), 0.0)


def _every_pair(count: int) -> tuple[Tensor, Tensor]:
    """Indices of the first and of the second answer of all pairs."""
    both = torch.triu_indices(count, count, offset=1)
    return both[0], both[1]


def _pair_average(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pairs of each ranking, from [N, P] to [N]."""
    first, second = _every_pair(mask.shape[1])
    inside = mask[:, first] & mask[:, second]
    return torch.where(inside, values, 0.0).sum(dim=1) / inside.sum(dim=1)


def _summary(loss: Tensor, scores: Tensor, order: Tensor, mask: Tensor, total: float | None) -> RewardLoss:
    """Loss over rankings, with the share of decided pairs in the right order and the lead of the better answers."""
    with torch.no_grad():
        first, second = _every_pair(mask.shape[1])
        difference = scores[:, first] - scores[:, second]
        decided = mask[:, first] & mask[:, second] & (order != 0)
        right = torch.where(decided, 0.5 + 0.5 * torch.sign(difference) * order, 0.0).sum(dim=1)
        some = decided.any(dim=1)
        shares = (right / decided.sum(dim=1).clamp(min=1))[some]
        lead = _pair_average(difference * torch.where(order == 0, 1.0, order), mask)
    return RewardLoss(
        loss=pair_mean(loss, total_pairs=total),
        accuracy=shares.mean() if bool(some.any()) else torch.full((), 0.5, device=scores.device),
        margin=pair_mean(lead, total_pairs=total),
    )
