"""Choosing a token in every row of logits, by one uniform number each, with its log-probability.

Inverse transform sampling: the token at which the running sum of probabilities passes the uniform number. Probabilities
are fp32; they are summed in float64, because 150,000 of them in fp32 would lose the last ones. The sum has two levels,
first over blocks of tokens and then within the one block that the number falls into, which finds the same token as a
running sum over the whole vocabulary and makes it over a hundredth of it.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 64
"""Tokens of a block."""
BELOW_ONE = 1.0 - 2.0**-40
BELOW = 1.0 - 2.0**-50


def choose(
    logits: Tensor, *, temperature: float, forbidden: Tensor | None, uniforms: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token for each row.

    Args:
        logits: scores of the head, any float type; overwritten. [B, V]
        temperature: divides them; above 0.
        forbidden: ids that are never chosen, or None. [F] int64
        uniforms: a number in [0, 1) for each row; None for the likeliest token. [B] float64

    Returns:
        The ids, and log softmax(logits / temperature) of them over the tokens that are not forbidden, nats. [B], [B]
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1:
        scores = scores / temperature
    if forbidden is not None:
        scores.index_fill_(1, forbidden, -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    chosen = scores.argmax(dim=-1) if uniforms is None else invert(probabilities, uniforms)
    return chosen, probabilities.gather(1, chosen.unsqueeze(1)).squeeze(1).log()


def invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row at which the cumulative distribution passes its uniform number.

    Args:
        probabilities: at least 0; they need not sum to 1. [B, V]
        uniforms: numbers in [0, 1). [B] float64

    Returns:
        Ids, none of probability 0; any id in a row of NaN. [B] int64
    """
    vocabulary = probabilities.shape[1]
    if spare := -vocabulary % BLOCK:
        probabilities = pad(probabilities, (0, spare))
    blocks = probabilities.view(len(probabilities), -1, BLOCK)
    ends = blocks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    starts = pad(ends[:, :-1], (1, 0))
    target = (uniforms * BELOW_ONE * ends[:, -1]).unsqueeze(1)
    # right=True passes over what has probability 0, whose cumulative value equals that of its predecessor; so the block
    # and the token that are found have some. The clamps are for NaN alone, which would give an index beyond the end
    # before anybody could say why.
    block = _find(ends, target)
    within = blocks.gather(1, block.unsqueeze(2).expand(-1, 1, BLOCK)).squeeze(1).to(torch.float64).cumsum(dim=1)
    # The block's two sums differ in the last bit, so what is left of the number may just reach the end of the block.
    rest = torch.minimum(target - starts.gather(1, block), within[:, -1:] * BELOW)
    return (block * BLOCK + _find(within, rest)).squeeze(1).clamp(max=vocabulary - 1)


def _find(cumulative: Tensor, target: Tensor) -> Tensor:
    return torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[1] - 1)
