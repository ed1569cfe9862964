"""Which library multiplies fp32 matrices on a CPU: part of a result, so it is chosen, checked and never guessed.

PyTorch gives fp32 products to MKL, which on some CPUs reaches half of what the core can do; oneDNN, which the same
build carries, reaches nearly all of it there (docs/performance.md). Both are fp32 throughout and differ in the order of
sums.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers.pytorch_utils import Conv1D

from rlhf.errors import BadInput
from rlhf.ranges import require_choice

LIBRARIES = ("native", "onednn")
PROBE_SIZE = 192
PROBE_ERROR = 1e-5
"""Largest relative error of a product of that size that fp32 explains; bf16 is off by about 3e-3."""

_chosen = "native"


class _Product(Function):
    """a b^T + bias by oneDNN, as often differentiable as the product is."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.has_bias = bias is not None
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], ""))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (a, b), gradient = ctx.saved_tensors, gradients[0]
        need_a, need_b, need_bias = ctx.needs_input_grad
        return (
            product(gradient, b.t()) if need_a else None,
            product(gradient.t(), a.t()) if need_b else None,
            gradient.sum(dim=0) if ctx.has_bias and need_bias else None,
        )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix product with a transposed second factor, by oneDNN.

    Args:
        a: fp32 on the CPU; gradient flows. [M, K]
        b: as `a`. [N, K]
        bias: added to each row; as `a`. [N]

    Returns:
        a b^T + bias. [M, N]
    """
    return cast(Tensor, _Product.apply(a, b, bias))  # type: ignore[no-untyped-call]


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """A b^T by the chosen library, on any device. [M, K], [N, K] to [M, N]."""
    if _chosen == "onednn" and a.device.type == "cpu" and a.dtype == torch.float32:
        return product(a, b)
    return a @ b.t()


class _Linear(nn.Linear):
    """A linear layer whose products oneDNN computes."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`. [..., in] to [..., out]."""
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        found = product(input.reshape(-1, self.in_features), self.weight, self.bias)
        return found.view(*input.shape[:-1], self.out_features)


class _Conv1D(Conv1D):
    """GPT-2's linear layer, which keeps its weight the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        """As `Conv1D`. [..., in] to [..., out]."""
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            plain: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return plain
        return product(x.reshape(-1, x.shape[-1]), self.weight.t(), self.bias).view(*x.shape[:-1], self.nf)


REPLACED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, Conv1D: _Conv1D}
"""Layers by exact class; a subclass knows something that these do not."""


def choose(library: str) -> None:
    """Set the library for all models that are made or loaded after this, in this process.

    Args:
        library: "native" (what torch uses) or "onednn". On a GPU both mean the same.

    Raises:
        BadInput: oneDNN is wanted and this build of torch has none, or it does not compute in fp32 here.
        ValueError: another library.
    """
    global _chosen
    require_choice(LIBRARIES, matmul=library)
    if library == "onednn" and not torch.cuda.is_available():
        _check()
    _chosen = library


def chosen() -> str:
    """The library in use."""
    return _chosen


def adopt(model: nn.Module) -> nn.Module:
    """Have a model on the CPU use the chosen library; its weights and their names stay.

    Args:
        model: changed in place.
    """
    if _chosen == "onednn":
        for module in model.modules():
            wanted = REPLACED.get(type(module))
            if wanted is not None and next(module.parameters()).device.type == "cpu":
                module.__class__ = wanted
    return model


def _check() -> None:
    """Refuse an unusable oneDNN."""
    advice = "set engine.matmul (evaluate.matmul) to native, which gives other last digits"
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (there and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        raise BadInput(f"matmul is onednn, but this build of torch ({torch.__version__}) has no oneDNN; {advice}")
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(PROBE_SIZE, PROBE_SIZE, generator=source) for _ in range(2))
    exact = a.double() @ b.double().t()
    error = float((product(a, b).double() - exact).norm() / exact.norm())
    if not error <= PROBE_ERROR or math.isnan(error):
        raise BadInput(
            f"matmul is onednn, but its products here are off by {error:.1e} of their size, wanted at most "
            f"{PROBE_ERROR:.0e} as fp32 gives; {advice}"
        )
