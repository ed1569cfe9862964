"""What a stage's process loads. Each check is a process of its own: here everything is loaded already."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "accelerate", "deepspeed", "dvc", "mlflow", "pandas", "pandera", "peft", "prefect", "scipy", "sklearn",
    "torch._dynamo.utils", "torch._inductor", "torch.onnx", "torchvision",
}  # fmt: skip
PROGRAM = """
import json, sys
from pathlib import Path
from rlhf import quick_import
quick_import.install()
{body}
print(json.dumps(sorted(sys.modules)))
"""
STAGES = {
    "sft": "from tests.rlhf.recipes.tiny_models import write_sft; write_sft(Path('sft'))",
    "reward": "from tests.rlhf.recipes import tiny_reward as tiny; "
    "tiny.run(tiny.CONFIG, Path('out'), tiny.write_inputs(Path('in')))",
    "dpo": "from tests.rlhf.recipes import tiny_dpo as tiny; tiny.run(tiny.write_inputs(Path('in')), Path('out'))",
}


def modules(body: str, folder: Path) -> set[str]:
    """Modules loaded at the end of a process that runs `body` in a folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_loads_nothing_that_it_does_not_use(stage: str, tmp_path: Path) -> None:
    found = modules(STAGES[stage], tmp_path)
    assert {"torch", "transformers.modeling_utils"} <= found
    assert found & HEAVY == set()


@pytest.mark.parametrize("recipe", ["generate", "validate"])
def test_data_stages_load_no_torch(recipe: str, tmp_path: Path) -> None:
    found = modules(f"import rlhf.launch, rlhf.recipes.{recipe}", tmp_path)
    assert (
        found & ({"torch", "transformers", "scipy", "mlflow"} | ({"pandas"} if recipe == "generate" else set()))
        == set()
    )


def test_the_compiler_is_there_for_those_who_use_it(tmp_path: Path) -> None:
    body = """
import torch
from transformers import PreTrainedModel
assert torch.compiler.disable(len) is len
torch._dynamo.graph_break()
assert 'torch._dynamo.utils' not in sys.modules
model = torch.compile(torch.nn.Linear(2, 2), backend='eager')
assert model(torch.ones(1, 2)).shape == (1, 2)
"""
    assert "torch._dynamo.utils" in modules(body, tmp_path)


def test_masks_that_need_the_compiler_get_it(tmp_path: Path) -> None:
    body = """
import transformers.masking_utils as masks
with masks.TransformGetItemToIndex():
    pass
"""
    assert "torch._dynamo.utils" in modules(body, tmp_path)


def test_adapters_still_find_accelerate(tmp_path: Path) -> None:
    body = """
from transformers import LlamaConfig, LlamaForCausalLM
from rlhf.adapters import Lora, add_adapter
config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
model = add_adapter(LlamaForCausalLM(config), Lora(2, 4.0), seed=1)
assert any(weight.requires_grad for weight in model.parameters())
"""
    assert {"peft", "accelerate"} <= modules(body, tmp_path)


def test_later_calls_change_nothing() -> None:
    before = list(sys.meta_path)
    import torch  # noqa: F401

    from rlhf import quick_import

    quick_import.install()
    assert sys.meta_path == before
