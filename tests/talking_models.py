"""A tiny policy that has learnt to give short answers and to end them, with a judge and embedded-task prompts."""

from pathlib import Path
from typing import Any

import torch

from rlhf.models import build_policy, save_policy
from rlhf.outputs import write_jsonl
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import encode_prompt, encode_response, train_tokenizer

NAMES = ("Amara", "Daniel", "Olga", "Pedro")
ANSWERS = ("Good day {name}.", "I booked a full refund.", "Sorry {name}.", "Count on 5 days for that.")


def prompt_record(number: int) -> dict[str, Any]:
    """A ticket with the facts that the rubric needs."""
    name, order = NAMES[number % len(NAMES)], str(200 + number)
    facts = {"action": "refund", "name": name, "order": order, "item": "lamp"}
    asked = [{"role": "user", "content": f"My lamp is broken. Order {order}. {name}"}]
    return {"id": f"p{number}", "prompt": asked, "source": "x", "meta": facts}


def answers_to(record: dict[str, Any]) -> list[str]:
    return [answer.format(name=record["meta"]["name"]) for answer in ANSWERS]


def write_talking_models(root: Path, *, prompts: int = 12, steps: int = 40) -> Path:
    """Write data/models/{sft,judge,reward} and the prompts of three splits.

    Args:
        root: of a project.
        prompts: in the training split; dev and test have one each.
        steps: of training; about 20 ms each.
    """
    records = [prompt_record(number) for number in range(prompts)]
    texts = [message["content"] for record in records for message in record["prompt"]]
    tokenizer = train_tokenizer([*texts, *(text for record in records for text in answers_to(record))], vocab_size=320)
    torch.manual_seed(0)
    model = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=32, context=96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    examples = [
        (encode_prompt(tokenizer, record["prompt"]), encode_response(tokenizer, text))
        for record in records
        for text in answers_to(record)
    ]
    for step in range(steps):
        loss = torch.zeros(())
        for prompt, response in examples[step % 4 :: 4]:
            ids = torch.tensor([[*prompt, *response]])
            labels = torch.tensor([[*[-100] * len(prompt), *response]])
            loss = loss + model(input_ids=ids, labels=labels).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    folder = root / "data/models/sft"
    save_policy(model.eval(), tokenizer, folder)
    for seed, name in enumerate(("judge", "reward")):
        torch.manual_seed(seed)
        RewardModel.from_policy(folder, pooling="mean").save(root / "data/models" / name, tokenizer)
    for split, rows in (("train", records), ("dev", [prompt_record(900)]), ("test", [prompt_record(901)])):
        write_jsonl(root / f"data/validated/prompts/{split}.jsonl", rows)
    return root
