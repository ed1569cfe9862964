"""Sampling: ours beside `generate` of transformers, which the trainers that people use call.

    OMP_NUM_THREADS=1 python -m bench.generation --size M --matmul onednn --rounds 9

Random Llamas of two sizes, 64 prompts of 32 to 64 tokens, 48 new tokens, with tokens that end a response (on average
after some 25 tokens) and without. Both run in one process on one thread, in turn; a round is one call of each, and the
ratio is that of CPU-seconds in a round. Before the clock runs it is checked that greedy tokens are equal and that the
log-probabilities of our samples are those of a padded forward pass; exit code 1 where they are not. `--profile` shows
where our time goes. `--peer-matmul onednn` gives the peer our library for matrix products too.
"""

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from rlhf import matmul
from rlhf.batches import collate
from rlhf.generation import Generation, generate
from rlhf.logprobs import response_logprobs

PAD, NEW_TOKENS, ROWS = 0, 48, 64
SHORTEST, LONGEST = 32, 64
ENDING = 30
"""One token of so many ends a response."""
GAP = 1e-5
SIZES: dict[str, dict[str, Any]] = {
    "S": {"vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8,
          "intermediate_size": 256},
    "M": {"vocab_size": 8192, "hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6,
          "intermediate_size": 768},
}  # fmt: skip


class Case(NamedTuple):
    """What both are asked."""

    prompts: list[list[int]]
    stops: list[int]


def build(size: str, library: str) -> LlamaForCausalLM:
    """A model with random weights, the same for every library."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size], max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=PAD, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.train(False)
    model.requires_grad_(False)
    matmul.choose(library)
    matmul.adopt(model)
    matmul.choose("native")
    return model


def make_case(size: str, *, ends: bool) -> Case:
    """Prompts of random tokens, the same in every run."""
    source, vocabulary = torch.Generator().manual_seed(5), SIZES[size]["vocab_size"]
    lengths = torch.randint(SHORTEST, LONGEST + 1, (ROWS,), generator=source).tolist()
    prompts = [torch.randint(3, vocabulary, (length,), generator=source).tolist() for length in lengths]
    return Case(prompts, list(range(3, 3 + vocabulary // ENDING)) if ends else [])


def ours(model: LlamaForCausalLM, case: Case, *, greedy: bool = False) -> Generation:
    """One call of ours; log-probabilities come with it."""
    return generate(
        model, case.prompts, max_new_tokens=NEW_TOKENS, temperature=1.0, stop_ids=case.stops, forbidden=unused(model),
        pad_id=PAD, generator=torch.Generator().manual_seed(1), greedy=greedy,
    )  # fmt: skip


def peer(model: LlamaForCausalLM, case: Case, *, greedy: bool = False) -> list[list[int]]:
    """One call of transformers, with the settings of a policy-gradient trainer."""
    width = max(map(len, case.prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in case.prompts])
    sampling: dict[str, Any] = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        max_new_tokens=NEW_TOKENS, do_sample=not greedy, eos_token_id=case.stops or None, pad_token_id=PAD,
        suppress_tokens=[PAD] if greedy else None, **sampling,
    )  # fmt: skip
    generates: Any = model
    with torch.no_grad():
        made = generates.generate(input_ids=ids, attention_mask=(ids != PAD).long(), generation_config=settings)
    found = []
    for row in made[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in case.stops), len(row) - 1)
        found.append(row[: end + 1])
    return found


def unused(model: LlamaForCausalLM) -> torch.Tensor:
    """True at the padding token, which is never sampled. [V] bool."""
    mask = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    mask[PAD] = True
    return mask


def agreement(model: LlamaForCausalLM, reference: LlamaForCausalLM, case: Case) -> tuple[float, float]:
    """Share of equal greedy responses, and the largest gap between captured and recomputed log-probabilities, nats."""
    pairs = zip(ours(model, case, greedy=True).responses, peer(reference, case, greedy=True), strict=True)
    equal = sum(a == b for a, b in pairs) / len(case.prompts)
    drawn = ours(model, case)
    batch = collate(case.prompts, drawn.responses, pad_id=PAD)
    with torch.no_grad():
        again = response_logprobs(reference, batch, temperature=1.0, forbidden=unused(model)).logprobs
    captured = torch.tensor([value for row in drawn.logprobs for value in row])
    return equal, float((again[batch.response_mask] - captured).abs().max())


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process for one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def compare(size: str, arguments: argparse.Namespace, *, ends: bool) -> bool:
    """Print one row; whether the numbers agree."""
    model, other, case = build(size, arguments.matmul), build(size, arguments.peer_matmul), make_case(size, ends=ends)
    equal, gap = agreement(model, other, case)
    length = sum(map(len, ours(model, case).responses)) / ROWS
    peer(other, case)
    rounds = [
        (cpu_seconds(lambda: peer(other, case)), cpu_seconds(lambda: ours(model, case)))
        for _ in range(arguments.rounds)
    ]
    ratios = [theirs / mine for theirs, mine in rounds]
    low, _, high = quantiles(ratios, n=4)
    _say(
        f"{size} {'with' if ends else 'without'} ends, mean length {length:.0f} of {NEW_TOKENS}: transformers "
        f"{median(theirs for theirs, _ in rounds):.3f} CPU-s, ours {median(mine for _, mine in rounds):.3f} CPU-s, "
        f"ratio {median(ratios):.2f} (quartiles {low:.2f} to {high:.2f}, {len(rounds)} rounds); greedy responses equal "
        f"{equal:.0%}, log-prob gap {gap:.1e}"
    )
    if arguments.profile:
        profile = cProfile.Profile(time.process_time)
        profile.runcall(ours, model, case)
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(arguments.profile)
    return equal == 1 and gap <= GAP


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--matmul", choices=matmul.LIBRARIES, default="onednn", help="of ours")
    parser.add_argument("--peer-matmul", choices=matmul.LIBRARIES, default="native", help="of transformers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", type=int, default=0, metavar="LINES")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # as above
    torch.set_num_threads(1)
    sizes = list(SIZES) if arguments.size == "all" else [arguments.size]
    agreed = [compare(size, arguments, ends=ends) for size in sizes for ends in (True, False)]
    return 0 if all(agreed) else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
