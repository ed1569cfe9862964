"""The few verdicts that a run is asked for at its end: how far each policy went, whether its reward can be believed."""

from collections.abc import Mapping, Sequence
from typing import Any

Numbers = Mapping[str, float]


def marks(
    results: Mapping[str, Numbers],
    candidates: Sequence[str],
    *,
    baseline: str,
    accuracy: float | None,
    kl_band: Sequence[float],
    accuracy_mark: float,
) -> dict[str, dict[str, Any]]:
    """Hold an evaluation against its marks.

    Reward that rises while the judge falls is the sign of over-optimisation: the policy found what the reward model
    likes and nobody else does (Gao et al. 2023, https://arxiv.org/abs/2210.10760). The judge has fallen when its whole
    95% interval of the win rate lies below one half, so that chance alone does not raise the alarm.

    Args:
        results: `comparison.policy_metrics` of every policy on the test prompts, the baseline included, with
            `over_optimised` of the candidates.
        candidates: the trained policies.
        baseline: name of the SFT model.
        accuracy: the reward model's on held-out pairs; None where there were none with a preference.
        kl_band: lowest and highest KL to the baseline that is meant, nats per response.
        accuracy_mark: the accuracy that a reward model should reach.

    Returns:
        By policy "kl", "kl_low", "kl_high" (the band), "kl_inside_band", "reward_rose", "judge_fell" and
        "over_optimised" (by judge or gold); under "reward_model" "accuracy", "mark" and "passed", unless there is no
        accuracy.
    """
    low, high = kl_band
    found: dict[str, dict[str, Any]] = {}
    for name in candidates:
        values = results[name]
        found[name] = {
            "kl": values["kl"],
            "kl_low": low,
            "kl_high": high,
            "kl_inside_band": low <= values["kl"] <= high,
            "reward_rose": values["reward"] > results[baseline]["reward"],
            "judge_fell": values["judge_win_high"] < 0.5,
            "over_optimised": bool(values["over_optimised"]),
        }
    if accuracy is not None:
        found["reward_model"] = {"accuracy": accuracy, "mark": accuracy_mark, "passed": accuracy >= accuracy_mark}
    return found
