"""Reward models that read text: any tokenizer of their own, whatever the policy's is."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.batches import collate, sorted_batches
from rlhf.device import autocast
from rlhf.errors import BadInput
from rlhf.models import context_length, load_pretrained
from rlhf.reward_model import SETTINGS_FILE, RewardModel
from rlhf.rewards.answer import Answer
from rlhf.tokenizer import disarm, encode_prompt, encode_response, load_tokenizer


class TextModel(Protocol):
    """Scores answers given as text."""

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One number for each answer, in the order given."""


def load_text_model(folder: Path, *, device: torch.device, precision: str, rows: int) -> TextModel:
    """A folder that our reward recipe wrote, or any sequence classifier with one label.

    Args:
        folder: with weights in safetensors and a tokenizer.
        device: where the weights go.
        precision: "auto", "float32" or "bfloat16", see `rlhf.device.autocast`.
        rows: answers in one forward pass.

    Raises:
        BadInput: neither of the two, or it cannot be loaded safely.
    """
    if (folder / SETTINGS_FILE).is_file():
        return OwnModel(folder, device=device, precision=precision, rows=rows)
    return Classifier(folder, device=device, precision=precision, rows=rows)


class OwnModel:
    """A reward model of this project; its scores are normalised."""

    def __init__(self, folder: Path, *, device: torch.device, precision: str, rows: int) -> None:
        """See `load_text_model`."""
        self.model = RewardModel.load(folder, device=device).requires_grad_(False)
        self.tokenizer = load_tokenizer(folder)
        self.precision, self.rows = precision, rows
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """Scores in standard deviations of the reference answers; a cut answer is read without an end token.

        Of an exchange longer than the model's context the beginning is left out.
        """
        limit = context_length(self.model.trunk) or 2**31
        scores = [0.0] * len(answers)
        with self._lock:  # a tokenizer is not made for two threads at once
            exchanges = [self._encode(answer, limit) for answer in answers]
            for places in sorted_batches([len(p) + len(r) for p, r in exchanges], self.rows):
                batch = collate([exchanges[row][0] for row in places], [exchanges[row][1] for row in places], pad_id=0)
                batch = batch.to(self.model.device)
                with autocast(self.model.device, self.precision):
                    raw = self.model.score(batch.input_ids, batch.attention_mask, batch.response_mask)
                for row, value in zip(places, self.model.normalised(raw.float()).tolist(), strict=True):
                    scores[row] = value
        return scores

    def _encode(self, answer: Answer, limit: int) -> tuple[list[int], list[int]]:
        response = encode_response(self.tokenizer, answer.text)
        if not answer.ended and len(response) > 1:
            response = response[:-1]
        response = response[: limit - 1]
        return encode_prompt(self.tokenizer, answer.messages)[-(limit - len(response)) :], response


class Classifier:
    """A sequence classifier with one label, read as plain transformers reads it; its logit is the score.

    With a chat template the exchange is written by it; without one, prompt and answer are given to the tokenizer as a
    pair of texts.
    """

    def __init__(self, folder: Path, *, device: torch.device, precision: str, rows: int) -> None:
        """See `load_text_model`."""
        self.model: PreTrainedModel = load_pretrained(
            AutoModelForSequenceClassification, folder, device=device, revision=None, may_miss=()
        ).requires_grad_(False)
        labels = self.model.config.num_labels
        if labels != 1:
            raise BadInput(f"{folder}: a classifier with {labels} labels, wanted a reward model, which has one")
        self.tokenizer = _plain_tokenizer(folder)
        pad: Any = self.tokenizer.pad_token_id
        # Without a PAD of its own a row's end cannot be told from its padding: then every row goes alone.
        self.rows = 1 if pad is None or pad == self.tokenizer.eos_token_id else rows
        if self.rows > 1:
            self.model.config.pad_token_id = pad
        self.precision = precision
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """The logit of each exchange."""
        scores = [0.0] * len(answers)
        with self._lock:
            inputs = [self._encode(answer) for answer in answers]
            for places in sorted_batches([len(row["input_ids"]) for row in inputs], self.rows):
                batch = self._pad([inputs[row] for row in places])
                with autocast(self.model.device, self.precision):
                    logits = self.model(**batch).logits
                for row, value in zip(places, logits.float().squeeze(-1).tolist(), strict=True):
                    scores[row] = value
        return scores

    def _encode(self, answer: Answer) -> dict[str, list[int]]:
        limit = context_length(self.model)
        text = disarm(self.tokenizer, answer.text)
        turns = [
            {"role": message["role"], "content": disarm(self.tokenizer, message["content"])}
            for message in answer.messages
        ]
        if self.tokenizer.chat_template:
            turns.append({"role": "assistant", "content": text})
            whole = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
            ids = list(self.tokenizer(whole, add_special_tokens=False)["input_ids"])[-(limit or 2**31) :]
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        prompt = "\n".join(turn["content"] for turn in turns)
        return dict(self.tokenizer(prompt, text, truncation="longest_first" if limit else False, max_length=limit))

    def _pad(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Right-padded tensors of some rows."""
        width = max(len(row["input_ids"]) for row in rows)
        fill: dict[str, Any] = {"input_ids": self.tokenizer.pad_token_id or 0}
        return {
            name: torch.tensor([list(row[name]) + [fill.get(name, 0)] * (width - len(row[name])) for row in rows]).to(
                self.model.device
            )
            for name in rows[0]
        }


def _plain_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as it is: a classifier needs no end token and no template."""
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the parser of tokenizer.json raises nothing more specific
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{folder}: the tokenizer cannot be loaded ({reason}); give a folder that holds one") from error
