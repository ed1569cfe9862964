"""The description of a registered version: what it is, from what, how good, how to have it again."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.environments import TAG

METHODS = {
    "sft": "Language model fine-tuned on demonstrations; where the preference methods start from.",
    "ppo": "Language model trained by proximal policy optimisation against the reward model.",
    "dpo": "Language model trained by direct preference optimisation on the preference pairs.",
    "reward": "Reward model (Bradley-Terry): scores a response; PPO is trained against it.",
    "judge": "Judge: a reward model on pairs that training never sees; it only evaluates.",
}
SHOWN_METRICS = 12
RATES = (
    ("judge_win_vs_sft", "judge_win", "win rate over sft by the judge"),
    ("gold_win_vs_sft", "gold_win", "win rate over sft by the rubric"),
)
PLAIN = (
    ("kl", "KL to sft, nats per response"),
    ("length_tokens", "length, tokens"),
    ("end_rate", "answers that end by themselves"),
    ("repetition", "repetition"),
    ("perplexity", "perplexity on held-out demonstrations"),
)
TAX = (
    ("perplexity", "perplexity on held-out demonstrations"),
    ("token_accuracy", "token accuracy on held-out demonstrations"),
    ("regression", "right answer likelier in the regression set, share"),
    ("regression_margin", "log-probability of right minus wrong there, nats"),
)


def model_card(
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
    *,
    tax: Mapping[str, Any] | None = None,
    marks: Sequence[str] = (),
) -> str:
    """Write the card.

    Args:
        tags: lineage tags of the version.
        metrics: final training metrics by `group/name`; may be empty when only the evaluation is news.
        params: parameters of the stage.
        evaluation: numbers of this policy on the test prompts, None while there are none.
        tax: what this policy still does of what the SFT model did, with the changes; the SFT model has none.
        marks: sentences about whether it ended where it was meant to.

    Returns:
        Markdown.
    """
    stage = tags["ratchet.stage"]
    parts = [f"**{stage}** `{tags['ratchet.output_md5'][:8]}`: {METHODS.get(stage, 'Model of that stage.')}"]
    data = {name.removeprefix("ratchet.data."): md5 for name, md5 in tags.items() if name.startswith("ratchet.data.")}
    parts.append(_section("Data", (f"`{path}` {md5}" for path, md5 in data.items())))
    parents = {name.rpartition(".")[2]: value for name, value in tags.items() if name.startswith("ratchet.parent.")}
    parts.append(_section("Made from", (f"{stage}: {value}" for stage, value in parents.items())))
    parts.append(_section("Training", _training(stage, metrics, params)))
    parts.append(_section("Computed on", _machine(tags)))
    cost = tax_lines(tax or {})
    if evaluation:
        # The section on the tax says the perplexity again, with the one before.
        told = {name: value for name, value in evaluation.items() if not (cost and name == "perplexity")}
        parts.append(_section("Evaluation on held-out test prompts", evaluation_lines(told)))
    parts.append(_section("Alignment tax: what it still does of what sft did", cost))
    parts.append(_section("Marks", marks))
    parts.append(_section("Rebuild", _rebuild(stage, tags)))
    return "\n\n".join(part for part in parts if part)


def evaluation_lines(numbers: Mapping[str, Any]) -> list[str]:
    """Say a policy's test numbers, win rates with their 95% interval."""
    lines = []
    for name, stem, words in RATES:
        if name in numbers:
            interval = ""
            if f"{stem}_low" in numbers and f"{stem}_high" in numbers:
                interval = f" (95% interval {numbers[f'{stem}_low']:.3f} to {numbers[f'{stem}_high']:.3f})"
            lines.append(f"{words}: {numbers[name]:.3f}{interval}")
    lines += [f"{words}: {numbers[name]:.4g}" for name, words in PLAIN if isinstance(numbers.get(name), int | float)]
    return lines


def tax_lines(numbers: Mapping[str, Any]) -> list[str]:
    """Say what alignment cost: each measure after and before; nothing where the one before is unknown."""
    return [
        f"{words}: {numbers[name]:.4g}, sft {numbers[name] - numbers[f'{name}_change']:.4g}"
        for name, words in TAX
        if name in numbers and f"{name}_change" in numbers
    ]


def _training(stage: str, metrics: Mapping[str, float], params: Mapping[str, Any]) -> list[str]:
    chosen = params.get(stage)
    own = chosen if isinstance(chosen, Mapping) else {}
    named = ", ".join(f"{name} {value}" for name, value in own.items() if not isinstance(value, Mapping | list))
    seed = [f"seed {params['seed']}"] if "seed" in params else []
    ends = [f"{name}: {value:.4g}" for name, value in list(metrics.items())[:SHOWN_METRICS]]
    return [*seed, *([named] if named else []), *ends]


def _machine(tags: Mapping[str, str]) -> list[str]:
    """Name processor, threads and libraries of the training; nothing where they are not known."""
    return [f"{name.removeprefix(TAG)}: {value}" for name, value in tags.items() if name.startswith(TAG)]


def _rebuild(stage: str, tags: Mapping[str, str]) -> list[str]:
    commit = tags.get("ratchet.git_commit")
    start = f"`git worktree add ../rebuild {commit[:12]}`, there " if commit else ""
    by_command = (
        ["`ratchet reproduce` of this version makes it again from raw data and compares every hash"] if commit else []
    )
    return [
        *by_command,
        f"{start}`dvc repro {stage}`; the folder `data/models/{stage}` then has the hash {tags['ratchet.output_md5']}",
    ]


def _section(title: str, lines: Iterable[str]) -> str:
    items = list(lines)
    return f"### {title}\n" + "\n".join(f"- {line}" for line in items) if items else ""
