"""Where the time of our step goes, and how far it is from what its arithmetic alone would take on this core."""

import statistics
from collections.abc import Callable, Iterable
from time import perf_counter, process_time
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from bench.peers.models import SIZES, Sequence, Size
from bench.peers.pairing import cpu_seconds, keep, say
from rlhf.matmul import product

GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "matmul", "linear", "_linear_pointwise"),
    "attention": ("_scaled_dot", "scaled_dot"),
    "log-softmax and look-up": (
        "_log_softmax", "log_softmax", "_softmax", "logsumexp", "exp", "gather", "scatter_add", "cumsum",
        "searchsorted",
    ),
    "optimizer and clip": ("_fused_adam", "_foreach", "linalg_vector_norm", "stack"),
    "moving data": (
        "copy_", "index", "cat", "clone", "fill_", "zero_", "embed", "masked", "slice_backward", "nonzero", "unique",
        "scatter", "sort", "to_mkldnn",
    ),
    "elementwise": (
        "mul", "add", "silu", "sum", "mean", "pow", "rsqrt", "neg", "sub", "div", "sigmoid", "where", "eq", "abs",
    ),
}  # fmt: skip
"""Beginnings of the names of operators; the first group that fits has it."""
REPEATS = 3
RATE_ROWS = 1536
"""Rows of the products whose speed is measured: about the tokens of a batch."""


class Work(NamedTuple):
    """Tokens that a step cannot do without."""

    sequences: list[tuple[int, int, bool]]
    """Tokens of each sequence, how many of them are computed nowhere else, and whether gradients are wanted."""
    scored: list[tuple[int, bool]]
    """Numbers of tokens whose logits are wanted, and whether with gradients."""


def gigaflops(size: Size, work: Work) -> float:
    """Multiplications and additions of a step in 10^9: products, the head where it is asked for, causal attention.

    Forward costs 2 per weight and token, backward twice that.
    """
    weights = size.layers * (4 * size.hidden**2 + 3 * size.hidden * size.intermediate)
    total = 0.0
    for length, own, trained in work.sequences:
        passes = 3 if trained else 1
        total += passes * (2 * weights * own + 2 * size.layers * size.hidden * length * own)
    for tokens, trained in work.scored:
        total += (3 if trained else 1) * 2 * size.hidden * size.vocabulary * tokens
    return total / 1e9


def work_of(examples: Iterable[Sequence], *, scored: bool) -> Work:
    """What a training step on demonstrations or pairs needs; a pair's prompt is computed once.

    Args:
        examples: the batch.
        scored: whether logits of the responses are wanted.
    """
    sequences, tokens = [], 0
    for one in examples:
        whole = len(one.prompt) + len(one.response)
        sequences.append((whole, whole, True))
        if one.other:
            sequences.append((len(one.prompt) + len(one.other), len(one.other), True))
        tokens += len(one.response) + len(one.other)
    return Work(sequences, [(tokens, True)] if scored else [])


def gemm_rate(size: Size) -> dict[str, float]:
    """10^9 operations per CPU second of fp32 products: of the model's shapes by each library, and of large ones."""
    wide, deep = (size.intermediate, size.hidden), (size.hidden, size.intermediate)
    source = torch.Generator().manual_seed(0)
    functions = {"native": lambda a, b: a @ b.t(), "onednn": product}
    made = [
        (torch.randn(RATE_ROWS, k, generator=source), torch.randn(n, k, generator=source))
        for n, k in [(size.hidden, size.hidden)] * 4 + [wide, wide, deep]
    ]
    work = sum(2 * a.numel() * b.shape[0] for a, b in made) / 1e9
    found = {name: work / _best(lambda call=call: [call(*two) for two in made]) for name, call in functions.items()}
    square = torch.randn(2048, 2048, generator=source)
    return found | {"onednn, 2048 x 2048": 2 * 2048**3 / 1e9 / _best(lambda: product(square, square))}


@torch.no_grad()
def _best(function: Callable[[], object]) -> float:
    """CPU seconds of the fastest of some calls: the machine is shared, and what is wanted is the core's own speed."""
    function()
    return min(cpu_seconds(lambda: [function() for _ in range(REPEATS)])[0] / REPEATS for _ in range(6))


def explain(name: str, scale: str, work: Work, step: Callable[[], object], *, steps: int = 5) -> int:
    """Print where a step's time goes and keep it as JSON; the exit code.

    Args:
        name: of the comparison.
        scale: name of the model's size.
        work: of the step.
        step: takes one, always the same.
        steps: that are timed, and as many that are looked into.
    """
    step()
    seconds = statistics.median(cpu_seconds(step)[0] for _ in range(steps))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        began, cpu = perf_counter(), process_time()
        for _ in range(steps):
            step()
        # The profiler's clock is the wall's; a shared core does not work all the time.
        busy = (process_time() - cpu) / (perf_counter() - began)
    each = 1e-6 * busy / steps
    shares = _grouped((event.key, event.self_cpu_time_total * each) for event in recorded.key_averages())
    shares["Python and the rest"] = max(0.0, seconds - sum(shares.values()))
    rates, wanted = gemm_rate(SIZES[scale]), gigaflops(SIZES[scale], work)
    limit = wanted / max(rates.values())
    say(
        f"{name}, size {scale}: {seconds:.3f} CPU s a step, {wanted:.1f} GFLOP, {wanted / seconds:.0f} GFLOP/s; the "
        f"core alone would take {limit:.3f} s, so this is {100 * limit / seconds:.0f}% of the limit"
    )
    say("; ".join(f"{library}: {rate:.0f} GFLOP/s" for library, rate in rates.items()) + "\n")
    say("| part of the step | CPU s | share |\n| --- | ---: | ---: |")
    for group, spent in sorted(shares.items(), key=lambda item: -item[1]):
        say(f"| {group} | {spent:.3f} | {100 * spent / seconds:.0f}% |")
    found = {"seconds": seconds, "gigaflop": wanted, "limit": limit, "rates": rates, "parts": shares}
    keep(f"{name}-{scale}-profile", found)
    return 0


def _grouped(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds by group; operators of no group are mostly these, and what is no operator is left out."""
    found = dict.fromkeys((*GROUPS, "views, allocation, autograd"), 0.0)
    for name, seconds in events:
        if "::" not in name:
            continue
        operator = name.split("::")[1]
        group = next(
            (group for group, names in GROUPS.items() if operator.startswith(names)), "views, allocation, autograd"
        )
        found[group] += seconds
    return found
