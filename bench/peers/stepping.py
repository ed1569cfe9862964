"""Steps of one of TRL's trainers, and after each of them ours on the same batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback

from bench.peers.breakdown import Work, explain
from bench.peers.models import Sequence as Example
from bench.peers.ours import CLIP, RATE, choosing, multiplied
from bench.peers.pairing import CONTROL, LIMITS, STATE, Row, cpu_seconds
from rlhf.engine import Engine
from rlhf.optimizers import BETAS, EPSILON

BATCH = 16
"""Demonstrations or pairs in a step."""
BF16 = {"bf16": True}


class Lane(Protocol):
    """One way to run ours: a model of its own with an engine."""

    engine: Engine
    matmul: str
    """Library of its fp32 products."""

    def probe(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities per token, or scores, of a batch in the peer's order, without gradient."""

    def step(self, examples: Sequence[Example]) -> float:
        """One optimizer step, as the recipe takes it; its loss."""

    def weight(self) -> Tensor:
        """A row of weights that matters, to be made wrong. [H]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A TRL trainer, and how to read its batches."""

    trainer: type
    arguments: Callable[..., Any]
    """Builds its configuration."""
    model: PreTrainedModel
    data: Dataset
    settings: dict[str, Any]
    """Of the algorithm."""
    find: Callable[[dict[str, Tensor]], list[Example]]
    """Examples of a batch, in its order."""
    read: Callable[[Any, dict[str, Tensor]], Tensor]
    """From what its model returned and the batch to what `Lane.probe` returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One run of the peer, and the rows that are measured beside it."""

    precision: str
    matmul: str
    """Of the peer."""
    settings: dict[str, Any]
    """Of the peer, where they differ from what all runs have."""
    rows: dict[str, str]
    """From the name of a row to our matrix multiplication."""


def variants(defaults: dict[str, Any]) -> list[Variant]:
    """All runs.

    Args:
        defaults: settings of the peer's own that the other runs change.
    """
    return [
        Variant(precision="float32", matmul="native", settings={}, rows={"native": "native", "onednn": "onednn"}),
        Variant(precision="float32", matmul="onednn", settings={}, rows={"both-onednn": "onednn"}),
        Variant(precision="bfloat16", matmul="native", settings=BF16, rows={"bf16": "native"}),
        Variant(precision="bfloat16", matmul="native", settings=BF16 | defaults, rows={"defaults": "native"}),
    ]


ROWS = ("native", "onednn", "both-onednn", "bf16", "defaults")


def run_rows(
    wanted: Sequence[str],
    peer: Callable[[Variant], Peer],
    lane: Callable[[str, str], Lane],
    defaults: dict[str, Any],
    *,
    limits: dict[str, tuple[float, float]] = LIMITS,
) -> list[Row]:
    """Measure rows.

    Args:
        wanted: their names.
        peer: the trainer of a variant.
        lane: ours, by precision and matrix multiplication.
        defaults: see `variants`.
        limits: of differences, by precision.
    """
    found: list[Row] = []
    for variant in variants(defaults):
        lanes = [
            (
                Row(
                    name=name, peer=f"{variant.precision}, {variant.matmul}, {variant.settings}",
                    ours=f"{variant.precision}, {ours}", precision=variant.precision,
                    limits=limits[variant.precision],
                ),
                lane(variant.precision, ours),
            ) for name, ours in variant.rows.items() if name in wanted
        ]  # fmt: skip
        if lanes:
            trained = interleave(peer(variant), lanes, matmul=variant.matmul)
            for row, ours in lanes:
                row.notes["largest difference of weights at the end"] = weight_gap(ours.engine.module, trained)
            found += [row for row, _ in lanes]
    return sorted(found, key=lambda row: ROWS.index(row.name))


def interleave(peer: Peer, lanes: Sequence[tuple[Row, Lane]], *, matmul: str) -> nn.Module:
    """Train the peer over its data once, and take each lane's step after each of its steps; fills the rows.

    Args:
        peer: the trainer.
        lanes: rows, and who fills them.
        matmul: the peer's matrix multiplication.

    Returns:
        The trained model of the peer.
    """
    tokenizer = AutoTokenizer.from_pretrained(Path(peer.model.config._name_or_path))
    trainer = _watched(peer.trainer)(
        model=multiplied(peer.model, matmul), args=peer.arguments(**peer.settings), train_dataset=peer.data,
        processing_class=tokenizer,
    )  # fmt: skip
    seen: dict[str, Any] = {}
    trainer.model.register_forward_hook(lambda _, __, output: seen.update(output=output))
    trainer.add_callback(_AfterEachStep(trainer, peer, lanes, seen, matmul))
    with own_products(matmul):
        trainer.train()
    return trainer.model


@contextmanager
def own_products(matmul: str) -> Iterator[None]:
    """Products that the peer computes outside of linear layers, such as that with the head, go to oneDNN too.

    The name of the setting permits bf16; whether the CPU used it shows in the comparison of numbers.
    """
    kept = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if matmul == "onednn" else kept
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = kept


class _AfterEachStep(TrainerCallback):
    """Takes our steps; what lies between them is the peer's time, its data loading and logging included."""

    def __init__(
        self, trainer: Any, peer: Peer, lanes: Sequence[tuple[Row, Lane]], seen: dict[str, Any], matmul: str
    ) -> None:
        self.trainer, self.peer, self.lanes, self.seen = trainer, peer, lanes, seen
        self.precision, self.began = torch.backends.mkldnn.matmul.fp32_precision, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.began = process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock, take our steps, compare, start it again."""
        seconds = process_time() - self.began
        mine = torch.backends.mkldnn.matmul.fp32_precision
        torch.backends.mkldnn.matmul.fp32_precision = self.precision
        examples = self.peer.find(self.trainer.batch)
        with torch.no_grad():
            theirs = self.peer.read(self.seen["output"], self.trainer.batch).float().clone()
        for row, lane in self.lanes:
            row.peer_seconds.append(seconds)
            with choosing(lane.matmul):
                _pair(row, lane, examples, theirs, float(self.trainer.loss.detach()))
        self.seen.clear()
        torch.backends.mkldnn.matmul.fp32_precision = mine
        self.began = process_time()


def _pair(row: Row, lane: Lane, examples: list[Example], theirs: Tensor, loss: float) -> None:
    """Our half of a pair."""
    if not row.our_seconds:
        row.control_gap = _control(lane, examples, theirs, row.precision)
    row.logprob_gap = max(row.logprob_gap, _gap(lane.probe(examples), theirs))
    seconds, ours = cpu_seconds(lambda: lane.step(examples))
    row.our_seconds.append(seconds)
    row.loss_gap = max(row.loss_gap, abs(ours - loss))


def weight_gap(ours: nn.Module, theirs: nn.Module) -> float:
    """Largest difference of two models' weights."""
    found = [parameter.detach() for parameter in theirs.parameters()]
    return max(float((mine.detach() - other).abs().max()) for mine, other in zip(ours.parameters(), found, strict=True))


@torch.no_grad()
def _control(lane: Lane, examples: list[Example], theirs: Tensor, precision: str) -> float:
    """The gap when one weight is wrong."""
    weight = lane.weight()
    kept = weight[1].clone()
    weight[1] += CONTROL[precision]
    found = _gap(lane.probe(examples), theirs)
    weight[1] = kept
    return found


def _gap(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has the shape {tuple(ours.shape)}, the peer's {tuple(theirs.shape)}: other tokens")
    return float((ours.float() - theirs).abs().max())


def _watched(trainer: type) -> type:
    """The trainer, keeping its last batch and loss."""

    class Watched(trainer):  # type: ignore[misc]  # its base is known at run time only
        """A trainer that can be looked at between steps."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
            # Token ids as they are; some trainers would encode text again.
            return dataset

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.batch = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            self.loss = super().compute_loss(model, inputs, *args, **kwargs)
            return self.loss

    return Watched


def explain_step(name: str, options: Any, lane: Lane, work: Work, examples: Sequence[Example]) -> int:
    """Where the time of a lane's step goes; the exit code."""
    with choosing(lane.matmul):
        return explain(name, options.size, work, lambda: lane.step(examples))


def trainer_arguments(name: str, seed: int, **more: Any) -> dict[str, Any]:
    """What the trainers' configurations have in common: ours, and nothing but training."""
    return {
        "output_dir": str(STATE / "peers" / name), "per_device_train_batch_size": BATCH, "num_train_epochs": 1,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "adam_beta1": BETAS[0], "adam_beta2": BETAS[1],
        "adam_epsilon": EPSILON, "weight_decay": 0.0, "max_grad_norm": CLIP, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "seed": seed, "bf16": False, "gradient_checkpointing": False,
        "dataloader_pin_memory": False, **more,
    }  # fmt: skip
