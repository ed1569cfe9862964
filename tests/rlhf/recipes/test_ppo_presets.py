"""Every preset of `profiles/algorithms` on tiny models: it runs, and does what its name says."""

import dataclasses
import math

import pytest

from rlhf.config import load_section, read_params
from rlhf.ppo_config import GROUP_ADVANTAGES, Config
from rlhf.recipes import ppo
from tests.rlhf.recipes.tiny_ppo import ROOT, TINY, run, write_inputs

FOLDER = ROOT / "profiles/algorithms"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml") if "ppo" in read_params(file))
GROUPED = ("dapo", "dr-grpo", "grpo", "rloo")
ONCE = ("actor-critic", "reinforce", "reinforce-baseline", "reinforce-to-go", "rloo")
"""Presets that use each sample once."""
WITHOUT_VALUES = (*GROUPED, "reinforce", "reinforce-baseline", "reinforce-to-go")
SIZES = {**TINY, "updates": 3, "rollouts": 16, "micro_batch": 8, "missing_eos_penalty": 1.0}
METHOD = ("kl_coef", "epochs", "learning_rate", "minibatch")
"""Keys of SIZES that are a preset's own where it sets them."""


def preset(name):
    """Settings of a preset at the size of a test; what makes the method stays as the preset says."""
    sections = read_params(FOLDER / f"{name}.yaml")
    assert sections["from"] == "default"
    assert set(sections) == {"from", "ppo"}
    own = sections["ppo"]
    default = read_params(ROOT / "profiles/default.yaml")["ppo"]
    whole = load_section({"ppo": {**default, **own}}, "ppo", Config)
    kept = {key: own[key] for key in METHOD if key in own}
    sizes = {**SIZES, **kept, "minibatch": 16 if whole.step_rollouts == whole.rollouts else 8}
    sizes["overlong_buffer"] = min(whole.overlong_buffer, 3)
    return dataclasses.replace(whole, **sizes)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def loaded(monkeypatch):
    """The roles that the recipe loads."""
    found = []
    load = ppo.load_roles

    def record(*paths, **settings):
        found.append(load(*paths, **settings))
        return found[-1]

    monkeypatch.setattr(ppo, "load_roles", record)
    return found


def test_there_is_a_preset_for_every_published_method():
    assert set(NAMES) == {
        *ONCE, "dapo", "dr-grpo", "grpo", "importance-sampled", "ppo-after-dpo", "ppo-clip-penalty", "ppo-dual-clip",
        "ppo-lora", "ppo-ptx", "ppo-shared-value", "ppo1", "ppo2", "trpo",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs_and_is_what_its_name_says(name, inputs, loaded, tmp_path):
    config = preset(name)
    rows, _ = run(inputs, tmp_path, config)
    (roles,) = loaded
    assert len(rows) == 3
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # Before anything is learnt the policy is the reference, and every first minibatch finds the policy that sampled.
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert max(row["first_ratio"] for row in rows) < 5e-6
    assert rows[0]["ess_tokens_epoch_1"] <= 1 + 1e-9
    assert rows[-1]["kl"] > 0  # it learns
    assert rows[0]["skipped"] == 0

    assert (config.advantage in GROUP_ADVANTAGES) == (name in GROUPED)
    assert ("equal_groups" in rows[0]) == (name in GROUPED)
    needs_model = name not in WITHOUT_VALUES and name != "ppo-shared-value"
    assert (roles.value_model is not None) == needs_model
    assert ("value_loss" in rows[0]) == (name not in WITHOUT_VALUES)
    assert ("explained_variance" in rows[0]) == (name not in WITHOUT_VALUES)
    assert rows[0]["steps"] == (1 if name in ONCE else 4)
    if name in ONCE:
        assert rows[0]["ess_tokens_epoch_1"] == pytest.approx(1.0, abs=1e-6)
        assert rows[0]["approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert ("kl_loss" in rows[0]) == (name == "grpo")
    assert ("step_kl_coef" in rows[0]) == (name in ("ppo1", "ppo-clip-penalty"))
    assert ("ptx_loss" in rows[0]) == (name == "ppo-ptx")
    assert ("idle_steps" in rows[0]) == (name == "dapo")


def test_trpo_keeps_its_bound_and_takes_a_step(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path, preset("trpo"))
    assert all(0 < row["step_kl"] <= 0.01 for row in rows)
    assert all(row["improvement"] > 0 for row in rows)


def test_the_price_of_ppo1_doubles_or_halves(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path, preset("ppo1"), step_kl_target=1e-9)
    assert [row["step_kl_coef"] for row in rows] == [1, 2, 4]
    rows, _ = run(inputs, tmp_path / "b", preset("ppo1"), step_kl_target=1e9)
    assert [row["step_kl_coef"] for row in rows] == [1, 0.5, 0.25]


def test_lora_trains_the_adapter_alone_and_saves_a_plain_model(inputs, loaded, tmp_path):
    from transformers import AutoModelForCausalLM

    _, outputs = run(inputs, tmp_path, preset("ppo-lora"))
    start = AutoModelForCausalLM.from_pretrained(inputs["sft"]).state_dict()
    end = AutoModelForCausalLM.from_pretrained(outputs["model"]).state_dict()
    assert start.keys() == end.keys()
    changed = {name for name in start if not start[name].equal(end[name])}
    assert changed
    assert not [name for name in changed if "embed" in name or "norm" in name]
    assert "reference" not in loaded[0].held()
