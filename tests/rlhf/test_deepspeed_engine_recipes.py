"""Every recipe on two ranks equals the same recipe on one: weights, every number of its report and curve, samples."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.rlhf.recipes import across_ranks
from tests.rlhf.recipes.across_ranks import RECIPES

TOLERANCE = 2e-5
"""Largest difference of a weight or a number, relative where it is above 1: sums in another order, and no more."""
FRACTION_TOLERANCE = 0.05
"""Of shares of tokens beyond a limit: a token that stands on it by rounding is on either side of it."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    across_ranks.write_inputs(folder)
    return folder


def start(project, inputs, out, ranks, *words):
    line = [sys.executable]
    if ranks > 1:
        line += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    variables = {**os.environ, "PYTHONPATH": str(project), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    line += ["-m", "tests.rlhf.recipes.across_ranks", str(inputs), str(out), *words]
    result = subprocess.run(
        line, env=variables, cwd=out, check=False, timeout=900, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]


def numbers(document, prefix=""):
    for name, value in document.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", float(value)


def curves(folder):
    for file in sorted(folder.glob("*.csv")):
        for index, row in enumerate(csv.DictReader(file.read_text().splitlines())):
            yield from ((f"{file.name}:{index}:{name}", float(value)) for name, value in row.items() if value)


def measured(folder):
    found = dict(curves(folder))
    for file in folder.glob("*.json"):
        found |= dict(numbers(json.loads(file.read_text()), f"{file.name}:"))
    return found


def compare(alone, together):
    for recipe in RECIPES:
        one, two = measured(alone / recipe), measured(together / recipe)
        assert one.keys() == two.keys()
        for name, value in one.items():
            tolerance = FRACTION_TOLERANCE if "fraction" in name else TOLERANCE
            assert two[name] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), (recipe, name)
        files = sorted((alone / recipe).rglob("*.safetensors"))
        assert files
        for file in files:
            weights = load_file(together / recipe / file.relative_to(alone / recipe))
            for name, weight in load_file(file).items():
                torch.testing.assert_close(weights[name], weight, rtol=0, atol=TOLERANCE, msg=f"{file} {name}")
        for file in (alone / recipe).rglob("samples.jsonl"):
            assert file.read_bytes() == (together / recipe / "samples.jsonl").read_bytes()


def test_two_ranks_of_zero_2_and_3_equal_one_process(project, inputs, tmp_path):
    start(project, inputs, tmp_path, 1, "2")
    start(project, inputs, tmp_path, 2, "2", "3")
    compare(tmp_path / "1-2", tmp_path / "2-2")
    compare(tmp_path / "1-2", tmp_path / "2-3")


@pytest.mark.slow
def test_so_do_the_other_stages_offload_checkpointing_and_adapters(project, inputs, tmp_path):
    start(project, inputs, tmp_path, 1, "0", "lora")
    start(project, inputs, tmp_path, 2, "0", "1", "lora", "checkpointing", "offload")
    for word in ("0", "1", "checkpointing", "offload"):
        compare(tmp_path / "1-0", tmp_path / f"2-{word}")
    compare(tmp_path / "1-lora", tmp_path / "2-lora")
