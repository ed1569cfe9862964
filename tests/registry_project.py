"""A small real project for tests of the registry: real models, a real dvc.lock by `dvc repro`, a real SQLite store."""

import json
import shutil
from pathlib import Path

from rlhf.models import build_policy, save_policy
from rlhf.outputs import write_jsonl
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import train_tokenizer
from tests.tiny_project import command, dvc

TEXTS = ["Hello, where is order 201?", "I sent a full refund.", "Sorry for the trouble. Please allow 5 days."]
PROMPTS = [f"Hello, where is order {number}?" for number in range(201, 297)]  # enough for the gate's margins

DVC_YAML = """\
stages:
  sft:
    cmd: cp -r seed/sft data/models/sft && cp seed/sft.json data/metrics/sft.json && cp seed/sft.csv data/curves/sft.csv
    deps: [data/validated/demonstrations, seed/sft]
    params: [seed, sft]
    outs: [data/models/sft]
    metrics: [{data/metrics/sft.json: {cache: false}}]
    plots: [data/curves/sft.csv]
  judge:
    cmd: cp -r seed/judge data/models/judge && cp seed/judge.json data/metrics/judge.json
    deps: [data/models/sft, data/validated/judge_pairs, seed/judge]
    params: [seed, judge]
    outs: [data/models/judge]
    metrics: [{data/metrics/judge.json: {cache: false}}]
  ppo:
    cmd: >-
      cp -r seed/ppo data/models/ppo && cp seed/ppo.json data/metrics/ppo.json && cp seed/ppo.csv data/curves/ppo.csv
      && cp seed/ppo.jsonl data/samples/ppo.jsonl
    deps: [data/models/sft, data/validated/demonstrations, seed/ppo]
    params: [seed, ppo]
    outs: [data/models/ppo, data/samples/ppo.jsonl]
    metrics: [{data/metrics/ppo.json: {cache: false}}]
    plots: [data/curves/ppo.csv]
  evaluate:
    cmd: cp seed/answers.jsonl data/evaluation/answers.jsonl && cp seed/evaluate.json data/metrics/evaluate.json
    deps: [data/models/judge, data/models/ppo, data/models/sft, seed/answers.jsonl, seed/evaluate.json]
    params: [seed, evaluate]
    outs: [data/evaluation/answers.jsonl]
    metrics: [{data/metrics/evaluate.json: {cache: false}}]
"""

PARAMS = """\
seed: 1
sft: {learning_rate: 1e-3, epochs: 2}
judge: {pooling: mean}
ppo: {kl_coef: 0.05, updates: 3, nested: {clip: 0.2}}
evaluate: {temperature: 1.0, max_new_tokens: 8, batch: 8, precision: float32, tie_tolerance: 0.0001}
"""

CURVE = "step,kl,score\n1,0.1,0.5\n2,0.2,0.6\n3,0.3,0.7\n"


def make_registry_project(folder: Path) -> Path:
    """Write the project and run its whole pipeline."""
    repository = Path(__file__).resolve().parent.parent
    for name in ("models", "metrics", "curves", "samples", "evaluation"):
        (folder / "data" / name).mkdir(parents=True)
    for name in ("demonstrations", "judge_pairs"):
        (folder / "data" / "validated" / name).mkdir(parents=True)
        (folder / "data" / "validated" / name / "train.jsonl").write_text(f'{{"id": "{name}"}}\n')
    (folder / "mlflow").mkdir()
    shutil.copy(repository / "mlflow" / "registry.yaml", folder / "mlflow")
    (folder / ".gitignore").write_text("/.ratchet/\n")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text(PARAMS)
    write_models(folder / "seed")
    write_results(folder / "seed")
    command(folder, "git", "init", "-q", "-b", "main")
    dvc(folder, "init", "-q")
    dvc(folder, "config", "core.analytics", "false")
    dvc(folder, "repro", "-q")
    return folder


def write_models(seed: Path) -> None:
    """Write tiny policies and a judge as Hugging Face folders."""
    import torch

    tokenizer = train_tokenizer(TEXTS, vocab_size=280)
    for number, name in enumerate(("sft", "ppo")):
        torch.manual_seed(number)
        model = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=32, context=64)
        save_policy(model, tokenizer, seed / name)
    RewardModel.from_policy(seed / "sft", pooling="mean").save(seed / "judge", tokenizer)


def write_results(seed: Path, *, ppo_judge: float = 1.0) -> None:
    """Write metrics, curves, samples and the evaluation, in which ppo scores `ppo_judge` and sft 0 on every prompt."""
    (seed / "sft.csv").write_text("step,loss\n1,2.5\n2,1.5\n")
    (seed / "ppo.csv").write_text(CURVE)
    for name in ("sft", "judge", "ppo"):
        (seed / f"{name}.json").write_text(json.dumps({"dev": {"loss": 1.25}, "accuracy": 0.75, "note": "text"}))
    prompt = [{"role": "user", "content": PROMPTS[0]}]
    write_jsonl(seed / "ppo.jsonl", [{"step": 3, "prompt": prompt, "response": "I sent a full refund.", "reward": 0.5}])
    rows = [
        {
            "split": split, "policy": policy, "id": f"p{number}", "prompt": [{"role": "user", "content": text}],
            "response": "I sent a full refund.", "ended": True, "tokens": tokens, "kl": kl,
            "judge": judge, "reward": judge, "gold": None, "meta": {},
        }
        for split in ("dev", "test")
        for policy, judge, kl, tokens in (("sft", 0.0, 0.0, 6), ("ppo", ppo_judge, 2.0, 7))
        for number, text in enumerate(PROMPTS)
    ]  # fmt: skip
    write_jsonl(seed / "answers.jsonl", rows)
    numbers = {"judge_win_vs_sft": 1.0, "judge_win_low": 0.9, "judge_win_high": 1.0, "kl": 2.0, "end_rate": 1.0}
    found = {
        "selected": "ppo",
        "dev": {"ppo": numbers, "sft": {"kl": 0.0}},
        "test": {"ppo": numbers, "sft": {"kl": 0.0}},
    }
    (seed / "evaluate.json").write_text(json.dumps(found))


def retrain(folder: Path, *, seed: int) -> None:
    """Make another ppo model and run the pipeline again."""
    import torch

    from rlhf.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "seed" / "ppo")
    torch.manual_seed(seed)
    model = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=32, context=64)
    shutil.rmtree(folder / "seed" / "ppo")
    save_policy(model, tokenizer, folder / "seed" / "ppo")
    dvc(folder, "repro", "-q")


_made: list[Path] = []


def fresh_copy(base: Path, target: Path) -> Path:
    """Return a copy, at `target`, of a project that is made once per test session, in `base`; nothing is published."""
    if not _made:
        from tasks.mlflow_store import connect

        root = make_registry_project(base)
        connect(root)  # the tables of an empty store take seconds to make, and are copied in no time
        _made.append(root)
    shutil.copytree(_made[0], target, symlinks=True)
    return target
