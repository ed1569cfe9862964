"""The reward model: a language model's trunk with a scalar head, read at one token or pooled over the response."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf import packed_attention
from rlhf.adapters import FOLDER, Lora, add_adapter, merged, save_adapter
from rlhf.errors import BadInput
from rlhf.models import load_pretrained, save_folder
from rlhf.outputs import atomic_writer
from rlhf.packing import pack

POOLINGS = ("last", "mean", "sum")
SETTINGS_FILE = "reward.json"


class RewardModel(nn.Module):
    """Scores responses in fp32; the same class, read per token, is the value model.

        score = scale * pool_t h(token t),    normalised = (score - mean) / std

    `pool` reads the last response token ("last"), or takes the mean ("mean") or the sum ("sum") over the response.
    The head h is an affine map of the trunk's last hidden state.
    """

    def __init__(self, trunk: PreTrainedModel, *, pooling: str, scale: float, mean: float, std: float) -> None:
        """Wrap a token classifier with one label.

        Args:
            trunk: an AutoModelForTokenClassification with num_labels = 1.
            pooling: "last", "mean" or "sum".
            scale: factor on the pooled score; with "sum" about 1 / (typical tokens).
            mean: raw score that counts as 0 after normalising, in reward-model units.
            std: raw spread that counts as 1 after normalising, above 0.

        Raises:
            ValueError: unknown pooling, or a scale or std that is not above 0.
        """
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"RewardModel: pooling is {pooling!r}, wanted one of {', '.join(POOLINGS)}")
        if not (scale > 0 and std > 0):
            raise ValueError(f"RewardModel: scale is {scale} and std is {std}, wanted both above 0")
        self.trunk = trunk
        self.pooling, self.scale, self.mean, self.std = pooling, scale, mean, std

    @classmethod
    def from_policy(
        cls, folder: Path, *, pooling: str, scale: float = 1.0, device: torch.device | str = "cpu"
    ) -> "RewardModel":
        """Start from a policy's trunk with a fresh head: weights N(0, 1 / (d + 1)), so small first scores, bias 0.

        Draws from torch's global generator.

        Raises:
            BadInput: the folder holds no loadable model.
        """
        trunk = load_pretrained(
            AutoModelForTokenClassification,
            folder,
            device="cpu",
            revision=None,
            may_miss=("score.", "classifier."),
            num_labels=1,
        )
        model = cls(trunk, pooling=pooling, scale=scale, mean=0.0, std=1.0)
        head = model.head
        nn.init.normal_(head.weight, std=1.0 / math.sqrt(head.in_features + 1))
        if head.bias is not None:
            nn.init.zeros_(head.bias)
        return model.to(device).eval()

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str) -> "RewardModel":
        """Load what `save` wrote.

        Raises:
            BadInput: a file is missing or broken, or the head is not among the weights.
        """
        path = folder / SETTINGS_FILE
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            pooling, *numbers = (settings[key] for key in ("pooling", "scale", "mean", "std"))
            scale, mean, std = map(float, numbers)
            if pooling not in POOLINGS or not math.isfinite(mean) or not (0 < scale < math.inf and 0 < std < math.inf):
                raise ValueError(f"pooling {pooling}, scale {scale}, mean {mean}, std {std}")
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise BadInput(
                f"{path}: cannot be read as the settings of a reward model ({type(error).__name__}); wanted "
                "pooling, scale, mean and std, so run the stage that writes this folder again"
            ) from error
        trunk = load_pretrained(
            AutoModelForTokenClassification, folder, device=device, revision=None, may_miss=(), num_labels=1
        )
        return cls(trunk, pooling=pooling, scale=scale, mean=mean, std=std).to(device).eval()

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that plain AutoModelForTokenClassification loads too; `reward.json` holds the rest."""
        save_folder(merged(self.trunk), tokenizer, folder)
        save_adapter(self.trunk, folder / FOLDER, also=self.head_name)
        settings = {"pooling": self.pooling, "scale": self.scale, "mean": self.mean, "std": self.std}
        with atomic_writer(folder / SETTINGS_FILE) as stream:
            stream.write(json.dumps(settings, indent=2, sort_keys=True) + "\n")

    def adapt(self, lora: Lora, *, seed: int) -> None:
        """Put an adapter into the trunk; only it and the head stay trainable.

        Args:
            lora: size and strength.
            seed: of its first weights.
        """
        add_adapter(self.trunk, lora, seed=seed)
        self.head.requires_grad_(True)

    @property
    def head(self) -> nn.Linear:
        """The scalar head, whatever its name in this architecture."""
        layer: nn.Linear = getattr(self.trunk, self.head_name)
        return layer

    @property
    def head_name(self) -> str:
        """Its name inside the trunk."""
        for name in ("score", "classifier"):
            if isinstance(getattr(self.trunk, name, None), nn.Linear):
                return name
        raise ValueError(f"RewardModel: {type(self.trunk).__name__} has no linear head named score or classifier")

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.head.weight.device

    @torch.no_grad()
    def scale_head(self, factor: float) -> None:
        """Multiply head weights and bias, as when a value model starts from a reward model with small values."""
        self.head.weight.mul_(factor)
        if self.head.bias is not None:
            self.head.bias.mul_(factor)

    def token_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Head output at every position of a right-padded batch, fp32; values at padding mean nothing.

        Args:
            input_ids: token ids. [B, T] int64
            attention_mask: True at real tokens, which come first in every row. [B, T] bool

        Returns:
            Per-token scores. [B, T]

        Raises:
            ValueError: the batch is padded on the left.
        """
        if not bool(attention_mask[:, 0].all()):
            raise ValueError("token_scores: a row begins with padding; wanted right-padded rows, as collate makes them")
        trunk = self.trunk.base_model
        if packed_attention.fits(trunk):
            packed = pack(input_ids, attention_mask)
            scores = self._head_scores(packed_attention.hidden_states(trunk, packed))
            return packed_attention.to_batch(scores, packed)
        # No mask: causal attention never looks right, where all padding is, and the maskless kernel is quicker.
        return self._head_scores(trunk(input_ids=input_ids, use_cache=False).last_hidden_state)

    def _head_scores(self, hidden: Tensor) -> Tensor:
        """[..., H] to [...]."""
        # Only the head leaves autocast: bf16 margins have three digits, and near-ties would become ties.
        with torch.autocast(hidden.device.type, enabled=False):
            scores: Tensor = self.head(hidden.float()).squeeze(-1)
        return scores

    def score(self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """Raw score of each response.

        Args:
            input_ids: right-padded prompt + response. [B, T] int64
            attention_mask: True at real tokens. [B, T] bool
            response_mask: True at response tokens. [B, T] bool

        Returns:
            Raw scores in reward-model units. [B]

        Raises:
            ValueError: a row without response tokens.
        """
        return self.pool(self.token_scores(input_ids, attention_mask), response_mask)

    def pool(self, token_scores: Tensor, response_mask: Tensor) -> Tensor:
        """Raw scores of responses from the scores of their tokens.

        Args:
            token_scores: what `token_scores` returned; gradient flows. [B, T]
            response_mask: True at response tokens. [B, T] bool

        Returns:
            Raw scores in reward-model units. [B]

        Raises:
            ValueError: a row without response tokens.
        """
        counts = response_mask.sum(dim=1)
        if not bool((counts > 0).all()):
            raise ValueError("score: a row has no response token, so there is nothing to read the score from")
        if self.pooling == "last":
            place = torch.arange(token_scores.shape[1], device=token_scores.device)
            last = (place * response_mask).argmax(dim=1, keepdim=True)
            return self.scale * token_scores.gather(1, last).squeeze(1)
        total = token_scores.masked_fill(~response_mask, 0.0).sum(dim=1)
        return self.scale * (total if self.pooling == "sum" else total / counts)

    def normalised(self, raw: Tensor) -> Tensor:
        """Scores in units of the reference answers' spread: 0 is their mean, 1 their standard deviation."""
        return (raw - self.mean) / self.std

    def forward(self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor | None = None) -> Tensor:
        """`score` when a response mask is given, else `token_scores`; engines that wrap modules call this."""
        if response_mask is None:
            return self.token_scores(input_ids, attention_mask)
        return self.score(input_ids, attention_mask, response_mask)
