"""Cross-entropy of completions: the loss of supervised fine-tuning, and of PPO-ptx and DPO's added term."""

from torch import Tensor

from rlhf.losses.aggregation import token_mean


def completion_loss(logprobs: Tensor, response_mask: Tensor, *, total_tokens: float | None = None) -> Tensor:
    """Mean negative log-likelihood of the response tokens; the prompt is given, not learnt.

        L = -mean over response tokens of log p(token)

    Args:
        logprobs: nats; gradient flows. [B, T]
        response_mask: True at response tokens, the end token included. [B, T] bool
        total_tokens: response tokens of the whole batch, when this is one of its micro-batches.

    Returns:
        A scalar, nats per token; its exponential is the perplexity.

    Raises:
        ValueError: shapes differ, or there is no response token.
    """
    return -token_mean(logprobs, response_mask, total_tokens=total_tokens)
