"""What alignment cost: how well a policy still does what the SFT model did before it, on records that people made.

Two measures, neither of which any judge can sway. How well the policy predicts held-out demonstrations (perplexity and
token accuracy), and how often it still finds the right one of two answers likelier than the wrong one (the regression
set). Each is taken of the SFT model and of every policy after it; the tax is the difference.

Source: Ouyang et al. 2022, section 4.2 ("alignment tax"), https://arxiv.org/abs/2203.02155
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.batches import Batch, collate, sorted_batches
from rlhf.device import autocast
from rlhf.evaluation.answers import Policy
from rlhf.lm_head import response_rows
from rlhf.logprobs import in_chunks, log_softmax, scatter_response
from rlhf.models import context_length
from rlhf.tokenizer import encode_prompt, encode_response, pad_of

Record = Mapping[str, Any]
Exchange = tuple[list[int], list[int]]
"""Token ids of a prompt and of a response."""


class Fit(NamedTuple):
    """How one response looks to a policy."""

    logprob: float
    """log p(response | prompt), its end token included, nats."""
    hits: int
    """Tokens that are the policy's likeliest next token."""
    tokens: int
    """Length."""


@torch.no_grad()
def fits(policy: Policy, exchanges: Sequence[Exchange], *, batch: int, precision: str) -> list[Fit]:
    """How each response looks to a policy, at temperature 1.

    Nothing is forbidden: text that people wrote may hold any token, and -inf would spoil a mean.

    Args:
        policy: the model.
        exchanges: prompts and responses, each with room in the policy's context.
        batch: exchanges read at once.
        precision: as in `rlhf.device.autocast`.

    Returns:
        One for each exchange, in their order.
    """
    found: dict[int, Fit] = {}
    for rows in sorted_batches([len(prompt) + len(response) for prompt, response in exchanges], batch):
        chosen = [exchanges[row] for row in rows]
        part = collate([p for p, _ in chosen], [r for _, r in chosen], pad_id=pad_of(policy.tokenizer))
        part = part.to(policy.model.device)
        with autocast(policy.model.device, precision):
            values = _logprobs_and_hits(policy, part)
        # Summed in double precision: what is compared later may differ in one token of many.
        columns = [scatter_response(column, part.response_mask).double() for column in values.unbind(dim=1)]
        sums = [column.sum(dim=1).tolist() for column in columns]
        for row, logprob, hits in zip(rows, *sums, strict=True):
            found[row] = Fit(logprob, round(hits), len(exchanges[row][1]))
    return [found[row] for row in range(len(exchanges))]


def demonstration_fit(
    policy: Policy, demonstrations: Sequence[Record], *, batch: int, precision: str
) -> dict[str, float]:
    """How well a policy predicts responses that people wrote, end tokens included.

        perplexity = exp(-(sum over tokens of log p) / number of tokens)
        token_accuracy = share of tokens that are the likeliest next token

    Demonstrations beyond the policy's context are left out.

    Args:
        policy: the model; read at temperature 1.
        demonstrations: demonstration records.
        batch: records read at once.
        precision: as in `rlhf.device.autocast`.

    Returns:
        "perplexity", at least 1, and "token_accuracy", in [0, 1]; empty without demonstrations.
    """
    encoded = [_encode(policy, record["prompt"], record["response"]) for record in demonstrations]
    found = fits(policy, [exchange for exchange in encoded if exchange], batch=batch, precision=precision)
    tokens = sum(fit.tokens for fit in found)
    if not tokens:
        return {}
    nats = -sum(fit.logprob for fit in found) / tokens
    return {
        "perplexity": float(torch.tensor(nats, dtype=torch.float64).exp()),
        "token_accuracy": sum(fit.hits for fit in found) / tokens,
    }


def regression(
    policy: Policy, probes: Sequence[Record], pairs: Sequence[Record], *, batch: int, precision: str
) -> dict[str, Any]:
    """How far the policy itself finds the right answers of the regression set likelier than the wrong ones.

    The set is the minimal pairs where there are any, since there the right answer is known and only one fact differs;
    else the held-out pairs with a preference. Likelier is by the whole response: of two answers of unequal length the
    longer one starts behind, before as after training.

    Args:
        policy: the model; read at temperature 1.
        probes: probe records; `meta.probe` names the fact that is wrong in the rejected answer.
        pairs: held-out pair records, ties among them.
        batch: responses read at once.
        precision: as in `rlhf.device.autocast`.

    Returns:
        "records"; "share" of them in which the right answer is likelier, a tie counting half; "margin", the mean of
        log p(right) - log p(wrong), nats, which falls before the share does; of probes "facts", the share by fact in
        alphabetical order. Empty without records.
    """
    records = probes or [pair for pair in pairs if pair["label"] > 0.5]
    both = [[_encode(policy, record["prompt"], record[side]) for record in records] for side in ("chosen", "rejected")]
    kept = [place for place in range(len(records)) if both[0][place] and both[1][place]]
    if not kept:
        return {}
    exchanges = [exchange for side in both for place in kept if (exchange := side[place])]
    found = [fit.logprob for fit in fits(policy, exchanges, batch=batch, precision=precision)]
    margins = [right - wrong for right, wrong in zip(found[: len(kept)], found[len(kept) :], strict=True)]
    points = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    result: dict[str, Any] = {"records": len(kept), "share": _mean(points), "margin": _mean(margins)}
    if probes:
        facts: dict[str, list[float]] = {}
        for place, point in zip(kept, points, strict=True):
            facts.setdefault(str(records[place]["meta"]["probe"]), []).append(point)
        result["facts"] = {name: _mean(facts[name]) for name in sorted(facts)}
    return result


def tax(
    fit: Mapping[str, Mapping[str, float]], regressions: Mapping[str, Mapping[str, Any]], *, baseline: str
) -> dict[str, dict[str, float]]:
    """Each policy's measures with the changes since the baseline.

    Args:
        fit: `demonstration_fit` by policy.
        regressions: `regression` by policy.
        baseline: name of the SFT model.

    Returns:
        By policy "perplexity", "token_accuracy", "regression" (the share) and "regression_margin" where they are
        known, and of all but the baseline the same with "_change": after minus before. The tax is a perplexity that
        rises, and others that fall.
    """
    measures = {name: dict(values) for name, values in fit.items()}
    for name, found in regressions.items():
        if found:
            measures[name] |= {"regression": found["share"], "regression_margin": found["margin"]}
    before = measures[baseline]
    return {
        name: values
        if name == baseline
        else {**values, **{f"{key}_change": value - before[key] for key, value in values.items() if key in before}}
        for name, values in measures.items()
    }


def _logprobs_and_hits(policy: Policy, part: Batch) -> Tensor:
    """Log-probability of each response token, and 1 where no token was likelier. [N, 2]."""
    read = response_rows(policy.model, part)

    def look_up(rows: Tensor, ids: Tensor) -> Tensor:
        table = log_softmax(read.to_logits(rows), temperature=1.0, forbidden=None)
        logprobs = table.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        return torch.stack((logprobs, (table.argmax(dim=-1) == ids).float()), dim=1)

    return in_chunks(look_up, read.rows, part.input_ids[part.response_mask], width=read.vocabulary)


def _encode(policy: Policy, prompt: Sequence[Mapping[str, str]], response: str) -> Exchange | None:
    """The tokens of an exchange; None where they do not fit into the policy's context."""
    exchange = encode_prompt(policy.tokenizer, prompt), encode_response(policy.tokenizer, response)
    return exchange if sum(map(len, exchange)) <= (context_length(policy.model) or 2**31) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
