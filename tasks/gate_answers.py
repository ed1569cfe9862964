"""Answers of one policy to given prompts, scored by the judge: `python -m tasks.gate_answers REQUEST.json`.

A process of its own: the gate needs it only when the champion's answers are not at hand, and torch should not be
loaded, nor its memory held, by whoever asked.
"""

import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from rlhf.outputs import read_jsonl, write_jsonl


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is wanted; everything that the answers depend on."""

    weights: str
    """Folder of the policy."""
    name: str
    """Name of the sample; with equal weights, equal names give equal answers."""
    judge: str
    """Folder of the held-out judge."""
    reference: str
    """Folder of the sft model that KL is measured from."""
    prompts: str
    """JSON lines with id, prompt and meta."""
    temperature: float
    max_new_tokens: int
    batch: int
    matmul: str
    precision: str
    seed: int


def answer(request: Request) -> list[dict[str, Any]]:
    """Sample one answer per prompt and score it.

    Returns:
        Rows id, response, ended, tokens, judge, kl (nats per response, None where the policy and the reference do
        not share their tokens) and gold, by prompt id.

    Raises:
        BadInput: a folder or the prompts cannot be read.
    """
    from rlhf import matmul
    from rlhf.device import choose_device, make_reproducible
    from rlhf.evaluation.answers import Policy, Sampling, divergences, sample
    from rlhf.evaluation.judging import Scorer, gold_score

    make_reproducible(request.seed)
    matmul.choose(request.matmul)
    device = choose_device()
    policy, reference = (Policy.load(Path(folder), device=device) for folder in (request.weights, request.reference))
    judge = Scorer.load(Path(request.judge), device=device, batch=request.batch, precision=request.precision)
    sampling = Sampling(
        temperature=request.temperature,
        max_new_tokens=request.max_new_tokens,
        batch=request.batch,
        precision=request.precision,
        seed=request.seed,
    )
    prompts = list(read_jsonl(Path(request.prompts)))
    drawn = sample(policy, prompts, sampling, name=request.name)
    kl: list[float | None] = [None] * len(drawn)
    if policy.tokenizer.get_vocab() == reference.tokenizer.get_vocab():
        kl = [*divergences(policy, reference, drawn, sampling)]
    if policy.tokenizer.get_vocab() == judge.tokenizer.get_vocab():
        scores = judge.score_ids([one.prompt_ids for one in drawn], [one.ids for one in drawn])
    else:
        scores = judge.score_texts(
            [one.prompt["prompt"] for one in drawn], [one.text for one in drawn], ended=[one.ended for one in drawn]
        )
    return [
        {
            "id": one.prompt["id"],
            "response": one.text,
            "ended": one.ended,
            "tokens": len(one.ids),
            "judge": score,
            "kl": spent,
            "gold": gold_score(one.prompt["meta"], one.text, ended=one.ended),
        }
        for one, score, spent in zip(drawn, scores, kl, strict=True)
    ]


def main(arguments: list[str]) -> int:
    """Read the request, write the rows beside it as `answers.jsonl`; the exit code is that of the command line."""
    path = Path(arguments[0])
    try:
        request = Request(**json.loads(path.read_text(encoding="utf-8")))
        write_jsonl(path.with_name("answers.jsonl"), answer(request))
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def as_json(request: Request) -> str:
    """Write a request down, the same text for the same request."""
    return json.dumps(asdict(request), sort_keys=True, indent=1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
