"""Two-layer models in folders, as the stages before leave them, for tests of the recipes that start from them."""

import json
from pathlib import Path

import torch

from rlhf.models import build_policy, save_policy
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import load_tokenizer, train_tokenizer

WIDTH = 16
LETTERS = "hsetrb"
LIKED = "e"
"""The letter that the tiny reward model likes."""


def write_sft(folder: Path, *, texts: tuple[str, ...] = ("see the tree", "be here"), seed: int = 0) -> Path:
    """A policy with random weights but for a push that makes it write mostly `LETTERS` and the end token.

    Those tokens share one direction of the embedding, and the liked letter has half of another to itself.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(texts, vocab_size=262)
    policy = build_policy(tokenizer, hidden=WIDTH, layers=2, heads=2, intermediate=32, context=64)
    pushed = tokenizer.convert_tokens_to_ids([*LETTERS, "<|end|>", "<|assistant|>"])
    with torch.no_grad():
        policy.get_input_embeddings().weight[pushed, 0] += 1.5
        policy.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(LIKED), 1] += 0.5
    save_policy(policy, tokenizer, folder)
    return folder


def write_reward(folder: Path, sft: Path) -> Path:
    """A reward model whose score grows with the share of the liked letter in a response.

    With the output of every block at zero the last hidden state of a token is its own embedding, normalised, so a head
    along the liked letter's direction sees that letter and nearly nothing else.
    """
    tokenizer = load_tokenizer(sft)
    reward_model = RewardModel.from_policy(sft, pooling="mean")
    with torch.no_grad():
        for layer in reward_model.trunk.base_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        reward_model.head.weight.zero_()
        reward_model.head.weight[0, 1] = 1.0
    reward_model.save(folder, tokenizer)
    return folder


def write_rows(file: Path, rows: list[dict]) -> None:
    """JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_prompts(folder: Path, train: int = 12) -> Path:
    """Prompt records of a few letters."""
    texts = ["tree " + "bhs"[n % 3] * (n % 4) for n in range(train)]
    prompts = [{"id": str(n), "prompt": [{"role": "user", "content": text}]} for n, text in enumerate(texts)]
    write_rows(folder / "train.jsonl", prompts)
    write_rows(folder / "dev.jsonl", prompts[:2])
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
