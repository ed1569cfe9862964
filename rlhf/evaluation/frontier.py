"""Reward bought per nat of KL: best-of-n sampling from the reference, to which trained policies are compared.

Best-of-n needs no training and spends its KL well, so a policy that lies below its curve has paid too much
divergence for what it gained.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.evaluation.answers import Policy, Sampling, sample
from rlhf.evaluation.judging import Scorer, gold_score


def best_of_kl(n: int) -> float:
    """Upper bound on KL(best-of-n || reference).

        KL <= log n - (n - 1) / n

    It is tight when no two samples are equal; short answers repeat, so the true divergence is lower.

    Source: Beirami et al. 2024, https://arxiv.org/abs/2401.01879 (formula used since Stiennon et al. 2020)

    Args:
        n: number of samples among which the best is taken, at least 1.

    Returns:
        The bound, nats per response.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}, wanted at least 1")
    return math.log(n) - (n - 1) / n


def best_of_weights(n: int, total: int) -> list[float]:
    """Probability that each of `total` samples, from worst to best, is the best of a random subset of n.

        w_i = C(i - 1, n - 1) / C(total, n),    i = 1 .. total

    The average over all subsets uses every sample at every n and so has far less variance than one subset.

    Source: Nakano et al. 2021, the unbiased best-of-n estimator, https://arxiv.org/abs/2112.09332

    Args:
        n: size of the subsets.
        total: number of samples drawn.

    Returns:
        `total` weights that sum to 1, the worst sample first.

    Raises:
        ValueError: n is not between 1 and total.
    """
    if not 1 <= n <= total:
        raise ValueError(f"n is {n}, wanted between 1 and the {total} samples")
    subsets = math.comb(total, n)
    return [math.comb(rank, n - 1) / subsets for rank in range(total)]


def best_of_values(rewards: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the sample with the highest reward among n, for one prompt.

    Samples of equal reward (identical answers, mostly) share their weights equally, so the order does not matter.

    Args:
        rewards: what the selection goes by, one number a sample.
        values: what is wanted of the selected sample, in the same order.
        n: number of samples to select from.

    Returns:
        Mean of `values` under the selection, in their unit.

    Raises:
        ValueError: the lengths differ, or n is not between 1 and the number of samples.
    """
    if len(rewards) != len(values):
        raise ValueError(f"got {len(rewards)} rewards and {len(values)} values, wanted one of each per sample")
    weights = best_of_weights(n, len(rewards))
    groups: dict[float, list[tuple[float, float]]] = {}
    for weight, index in zip(weights, sorted(range(len(rewards)), key=rewards.__getitem__), strict=True):
        groups.setdefault(rewards[index], []).append((weight, values[index]))
    return sum(sum(w for w, _ in group) * sum(v for _, v in group) / len(group) for group in groups.values())


def best_of_frontier(
    samples: Sequence[Mapping[str, Sequence[float]]], *, sizes: Sequence[int]
) -> list[dict[str, float]]:
    """Best-of-n curve: the mean over prompts of each quantity of the selected sample.

    Args:
        samples: per prompt, equally long lists under "reward" (selects) and any other name ("judge", "gold", ...);
            every prompt has the same names.
        sizes: the values of n, each at most the number of samples of a prompt.

    Returns:
        One row per n with "n", "kl" (nats per response, the bound) and the mean of every quantity.

    Raises:
        ValueError: there are no prompts, or an n is larger than the number of samples.
    """
    if not samples:
        raise ValueError("got no prompts, wanted at least one")
    rows = []
    for n in sizes:
        row: dict[str, float] = {"n": n, "kl": best_of_kl(n)}
        for name in samples[0]:
            row[name] = sum(best_of_values(item["reward"], item[name], n) for item in samples) / len(samples)
        rows.append(row)
    return rows


def sampled_frontier(
    policy: Policy,
    scorers: Mapping[str, Scorer],
    prompts: Sequence[Mapping[str, Any]],
    sampling: Sampling,
    sizes: Sequence[int],
) -> list[dict[str, float]]:
    """Best-of-n curve of a policy's answers, chosen by the reward model.

    Args:
        policy: what answers.
        scorers: the reward model under "reward", which chooses, and others by name.
        prompts: prompt records.
        sampling: how answers are drawn.
        sizes: the values of n, ascending; as many samples as the last are drawn for each prompt.

    Returns:
        As `best_of_frontier`; with a "gold" column where every prompt carries its facts. Empty without sizes.
    """
    if not sizes:
        return []
    # A sample belongs to its id, so every round has ids of its own; one call for all rounds fills whole batches.
    rounds = [{**record, "id": f"{record['id']}#{n}"} for n in range(sizes[-1]) for record in prompts]
    drawn = sample(policy, rounds, sampling, name="best_of")
    ids = [answer.prompt_ids for answer in drawn], [answer.ids for answer in drawn]
    columns: dict[str, list[Any]] = {name: scorer.score_ids(*ids) for name, scorer in scorers.items()}
    columns["gold"] = [gold_score(answer.prompt["meta"], answer.text, ended=answer.ended) for answer in drawn]
    if None in columns["gold"]:
        del columns["gold"]
    # The samples lie round by round, so every len(prompts)-th belongs to one prompt.
    samples = [
        {name: values[place :: len(prompts)] for name, values in columns.items()} for place in range(len(prompts))
    ]
    return best_of_frontier(samples, sizes=sizes)
