"""What all of our lanes share: settings, the engine, the library of matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from bench.peers.pairing import ROOT
from rlhf.config import load_section, read_params
from rlhf.engine import Engine, prepare
from rlhf.matmul import adopt, choose
from rlhf.schedules import constant

RATE = 1e-4
CLIP = 1.0
PARAMS = read_params(ROOT / "params.yaml")
"""Read once: a run of an hour has the settings that it began with."""

M = TypeVar("M", bound=nn.Module)


def multiplied(model: M, matmul: str) -> M:
    """Give a model the named matrix multiplication, ours or the peer's."""
    with choosing(matmul):
        adopt(model)
    return model


@contextmanager
def choosing(matmul: str) -> Iterator[None]:
    """Have `rlhf` use the named matrix multiplication."""
    choose(matmul)
    try:
        yield
    finally:
        choose("native")


def our_engine(model: nn.Module, precision: str, matmul: str) -> Engine:
    """The recipes' engine with the peer's rate, schedule and clip."""
    schedule = constant(1, warmup_fraction=0.0, final_fraction=1.0)
    return prepare(
        multiplied(model, matmul), learning_rate=RATE, schedule=schedule, max_grad_norm=CLIP, precision=precision
    )  # fmt: skip


def embedding_of(model: nn.Module, token: int) -> Tensor:
    """The embedding of a token, which is its row of the head too. [H]."""
    return next(parameter for name, parameter in model.named_parameters() if "embed" in name)[token]


def our_settings(stage: str, config: type, **changed: Any) -> Any:
    """A stage's settings from params.yaml with a few of them changed, as a recipe would load them."""
    return load_section({stage: {**PARAMS[stage], **changed}}, stage, config)
