"""Shapes of published models, by which a bare size such as 33B is understood.

Sources: Touvron et al. 2023, "LLaMA", table 2, https://arxiv.org/abs/2302.13971 (7B to 65B; feed-forward widths from
the released configs); Grattafiori et al. 2024, "The Llama 3 Herd of Models", table 3,
https://arxiv.org/abs/2407.21783, and the model cards of Llama 3.2; Qwen team 2024, "Qwen2.5 Technical Report", table 1,
and the released configs, https://arxiv.org/abs/2412.15115; Radford et al. 2019 and the released config of GPT-2.
"""

import math
import re

from rlhf.errors import BadInput
from rlhf.sizing.model_shape import ModelShape, widened

LLAMA = "https://arxiv.org/abs/2302.13971"
LLAMA3 = "https://arxiv.org/abs/2407.21783"
QWEN = "https://arxiv.org/abs/2412.15115"

_COLUMNS = ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocabulary", "tied")
_ROWS: dict[str, tuple[tuple[int, int, int, int, int, int, bool], str]] = {
    "Qwen2.5-0.5B": ((896, 24, 14, 2, 4864, 151936, True), QWEN),
    "Qwen2.5-1.5B": ((1536, 28, 12, 2, 8960, 151936, True), QWEN),
    "Qwen2.5-3B": ((2048, 36, 16, 2, 11008, 151936, True), QWEN),
    "Qwen2.5-7B": ((3584, 28, 28, 4, 18944, 152064, False), QWEN),
    "Qwen2.5-14B": ((5120, 48, 40, 8, 13824, 152064, False), QWEN),
    "Qwen2.5-32B": ((5120, 64, 40, 8, 27648, 152064, False), QWEN),
    "Qwen2.5-72B": ((8192, 80, 64, 8, 29568, 152064, False), QWEN),
    "Llama-3.2-1B": ((2048, 16, 32, 8, 8192, 128256, True), LLAMA3),
    "Llama-3.2-3B": ((3072, 28, 24, 8, 8192, 128256, True), LLAMA3),
    "Llama-3.1-8B": ((4096, 32, 32, 8, 14336, 128256, False), LLAMA3),
    "Llama-3.1-70B": ((8192, 80, 64, 8, 28672, 128256, False), LLAMA3),
    "LLaMA-7B": ((4096, 32, 32, 32, 11008, 32000, False), LLAMA),
    "LLaMA-13B": ((5120, 40, 40, 40, 13824, 32000, False), LLAMA),
    "LLaMA-33B": ((6656, 60, 52, 52, 17920, 32000, False), LLAMA),
    "LLaMA-65B": ((8192, 80, 64, 64, 22016, 32000, False), LLAMA),
}

SIZES = {
    "0.1B": "GPT-2", "124M": "GPT-2", "0.5B": "Qwen2.5-0.5B", "1B": "Llama-3.2-1B", "1.5B": "Qwen2.5-1.5B",
    "3B": "Qwen2.5-3B", "7B": "Qwen2.5-7B", "8B": "Llama-3.1-8B", "13B": "LLaMA-13B", "14B": "Qwen2.5-14B",
    "32B": "Qwen2.5-32B", "33B": "LLaMA-33B", "65B": "LLaMA-65B", "70B": "Llama-3.1-70B", "72B": "Qwen2.5-72B",
}  # fmt: skip
"""What a bare size stands for."""

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMbB])")
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


def _shape(name: str) -> ModelShape:
    values, source = _ROWS[name]
    numbers = dict(zip(_COLUMNS, values, strict=True))
    return ModelShape(
        name=name, hidden=values[0], layers=values[1], heads=values[2], kv_heads=values[3], intermediate=values[4],
        vocabulary=values[5], tied=bool(numbers["tied"]), head_width=values[0] // values[2], source=source,
    )  # fmt: skip


PUBLISHED = {name: _shape(name) for name in _ROWS} | {
    "GPT-2": ModelShape(
        name="GPT-2", hidden=768, layers=12, heads=12, kv_heads=12, head_width=64, intermediate=3072, vocabulary=50257,
        gated=False, tied=True, root_norm=False, positions=1024, activation="gelu_new",
        source="Radford et al. 2019, the released config",
    )
}  # fmt: skip


def shape_of_name(name: str) -> ModelShape | None:
    """The shape of a bare size ("33B"), or of a published model whose name is in this one ("Qwen/Qwen2.5-7B-Instruct").

    Args:
        name: a size or a model's name.

    Returns:
        The shape; None when the name is neither.

    Raises:
        BadInput: a size of no weights.
    """
    key = name.strip()
    bare = SIZE.fullmatch(key)
    if bare is None:
        found = [known for known in PUBLISHED if known.lower() in key.lower()]
        return PUBLISHED[max(found, key=len)] if found else None
    label = f"{bare[1]}{bare[2].upper()}"
    if label in SIZES:
        return PUBLISHED[SIZES[label]]
    count = float(bare[1]) * UNITS[bare[2].lower()]
    if count < 1000:
        raise BadInput(f"a model of {name} has fewer than 1,000 weights; wanted a size such as 7B or 500M")
    nearest = min(PUBLISHED.values(), key=lambda shape: abs(math.log(shape.parameters / count)))
    return widened(nearest, count, name=label)
