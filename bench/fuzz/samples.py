"""Valid rows of every format that can be read, to be broken."""

import random
from typing import Any

SYLLABLES = ("ka", "ro", "mi", "tel", "su", "ben", "or", "dax", "vi", "é", "ß", "文", "🙂")


def text(rng: random.Random, words: int = 4) -> str:
    """A few made-up words."""
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(words))


def row(format: str, rng: random.Random) -> dict[str, Any]:
    """One valid row of a format, a key of `rlhf.data.readers.READERS`."""
    ask, first, second, third = (text(rng) + f" {rng.randrange(10**6)}{mark}" for mark in "?.!;")
    prompt = rng.choice((ask, [{"role": "user", "content": ask}]))
    turns = [{"from": "human", "value": ask}]
    rows: dict[str, dict[str, Any]] = {
        "comparison": {"prompt": prompt, "response_a": first, "response_b": second, "label": rng.choice((0, 1, 0.5,
        "a", "tie"))},
        "scored_completions": {
            "instruction": ask,
            "completions": [{"response": answer, "overall_score": score} for answer, score in ((first, 3), (second,
            8.5), (third, 1))],
        },
        "ranking": {"prompt": prompt, "responses": [first, second, third], "ranks": rng.sample((1, 2, 3), 3),
        "scores": [0.1, 2, 3]},
        "probe": {"prompt": prompt, "chosen": first, "rejected": second, "meta": {"probe": "name"}},
        "sharegpt_preference": {
            "conversations": turns, "chosen": {"from": "gpt", "value": first}, "rejected": {"from": "gpt",
            "value": second},
        },
        "alpaca_preference": {"instruction": ask, "input": "", "chosen": first, "rejected": second, "output": third},
        "hh": {
            "chosen": f"\n\nHuman: {ask}\n\nAssistant: {first}", "rejected": f"\n\nHuman: {ask}\n\nAssistant: {second}",
        },
        "preference": {"prompt": prompt, "chosen": first, "rejected": second, "label": 0.9, "annotator": "ann",
        "score_chosen": 2},
        "judgement": {"prompt": prompt, "completion": first, "label": rng.choice((True, False))},
        "sharegpt": {"system": "be kind", "conversations": [*turns, {"from": "gpt", "value": first}]},
        "alpaca": {"instruction": ask, "input": third, "output": first, "history": [[second, third]]},
        "messages": {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": first}]},
        "demonstration": {"prompt": prompt, "response": first, "id": rng.randrange(10**9)},
        "prompt": {"prompt": prompt, "meta": {"unlike": rng.choice((True, False))}},
    }  # fmt: skip
    return rows[format]
