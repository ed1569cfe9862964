"""`ratchet collect POLICY --as NAME`: new preference pairs from a policy's own answers, labelled by a judge."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.chat import open_policy
from flows.errors import CommandError
from flows.output import note, show, table

if TYPE_CHECKING:
    from rlhf.collection import Collection, Label, Plan

TRAINING_PROMPTS = "data/validated/prompts/train.jsonl"
JUDGES = ("judge", "reward", "rubric", "endpoint")
WARNINGS = {
    "judge": "the labels are the judge's: a reward model trained on them has learnt from the judge, whose verdict in "
    "evaluation and gate is then no longer independent of it",
    "reward": "the labels are the reward model's own: they show where a policy stands, but teach it nothing new",
    "rubric": "THE LABELS ARE THE TRUTH of the embedded task: what is trained on them has seen what is kept for "
    "measuring, so its gold scores are an upper bound and no evidence",
}
BATCH = 32


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "collect",
        help="new preference pairs from a policy's answers, labelled by a judge",
        description="Draw several answers to each of N training prompts, have a judge compare them, and add the pairs "
        "to the project as raw data with their provenance. An endpoint is named by RATCHET_JUDGE_URL (such as "
        "https://host/v1), RATCHET_JUDGE_MODEL and, where the server wants one, RATCHET_JUDGE_KEY.",
    )
    parser.add_argument("policy", metavar="POLICY", help="policy@champion, policy/3, ppo, or a folder")
    parser.add_argument("--as", dest="name", metavar="NAME", required=True, help="what to call the data")
    parser.add_argument("--judge", choices=JUDGES, default="judge", help="who compares; default %(default)s")
    parser.add_argument("--answers", type=int, default=4, metavar="K", help="to each prompt; default %(default)s")
    parser.add_argument("--prompts", type=int, default=500, metavar="N", help="most prompts; default %(default)s")
    pairs_help = "of a prompt's answers; default %(default)s (an endpoint compares all of them either way)"
    parser.add_argument("--pairs", choices=("best_worst", "all"), default="best_worst", help=pairs_help)
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of prompts and answers; default %(default)s")
    longest = "longest answer, longer ones are left out; default %(default)s"
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help=longest)
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads, part of the result; default 1"
    )
    parser.add_argument(
        "--guideline", type=Path, metavar="FILE", help="endpoint: what makes an answer better, in words"
    )
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="endpoint: questions at once; default 4")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="endpoint: seconds; default 60")


def run(args: argparse.Namespace) -> int:
    """Collect, bring the pairs in, and say what comes next."""
    from rlhf.collection import Plan, collect, folder_digest
    from rlhf.device import make_reproducible
    from rlhf.outputs import read_jsonl, write_jsonl
    from tasks.ingest import checked_name, ingest_data
    from tasks.settings import project_root, tmp_dir

    root = project_root()
    name = checked_name(args.name, data=True)
    plan = _plan(args, Plan)
    if args.threads < 1:
        raise CommandError(f"ratchet collect: --threads is {args.threads}, wanted 1 or more")
    reference, folder = resolved(args.policy, root)
    guideline = _guideline(args)
    judge = _judge_identity(args, root, folder_digest, guideline)
    origin = {"policy": reference, "policy_sha256": folder_digest(folder), "judge": judge}
    work = tmp_dir(root) / "collect" / hashlib.sha256(repr((name, origin, plan)).encode()).hexdigest()[:16]
    label = _label(args, root, work, guideline)  # before anything is drawn, so that what is missing is said at once
    if args.judge in WARNINGS:
        note(f"warning: {WARNINGS[args.judge]}")
    set_threads(args.threads)
    make_reproducible(plan.seed)
    records = read_jsonl(root / TRAINING_PROMPTS)
    annotator = judge["model"] if args.judge == "endpoint" else args.judge
    found = collect(open_policy(args.policy), records, plan, label, annotator=annotator, origin=origin, work=work)
    if not found.rows:
        raise CommandError(
            f"ratchet collect: no pair was found ({_listed(found.counts)}); try more --answers, another "
            "--temperature or a larger --max-new-tokens",
            exit_code=1,
        )
    file = work / f"{name}.jsonl"
    write_jsonl(file, found.rows)
    report = ingest_data(root, [file], name=name, format="comparison")
    shutil.rmtree(work)
    step = next_step(root, report.name)
    document = {"name": report.name, "status": report.status, "origin": origin, **_measured(found), "next": step}
    place = f"data/raw/{report.name}"
    lines = [f"{report.status}: {place}; commit {place}.dvc with git", table(("", ""), _facts(found), indent=2)]
    show(args, document, [*lines, f"next: {step}"])
    return 0


def resolved(reference: str, root: Path) -> tuple[str, Path]:
    """The folder of a policy, and its reference with an alias replaced by the version that it points at now."""
    from tasks.registry import resolve_weights, version
    from tasks.settings import applied_environment

    with applied_environment(root):
        folder = resolve_weights(reference, root)
        model, at, _ = reference.partition("@")
        if at and not Path(reference).exists():
            found = version(root, reference)
            if found.model.endswith(model):
                return found.reference, folder
    return reference, folder


def set_threads(count: int) -> None:
    """Another number of threads takes sums in another order, so the number is given and not left to the machine."""
    import torch

    torch.set_num_threads(count)


def next_step(root: Path, name: str) -> str:
    """What makes the pipeline use the new file."""
    from rlhf.config import read_params

    named = list(read_params(root / "params.yaml").get("validate", {}).get("files", []))
    if name in named:
        return "`ratchet run` (validate.files in params.yaml names it already)"
    return f"set `files: [{', '.join([*named, name])}]` under `validate:` in params.yaml, then `ratchet run`"


def _plan(args: argparse.Namespace, cls: type[Plan]) -> Plan:
    try:
        return cls(
            prompts=args.prompts,
            answers=args.answers,
            which=args.pairs,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
            batch=BATCH,
            precision="auto",
        )
    except ValueError as error:
        raise CommandError(f"ratchet collect: {error}") from error


def _guideline(args: argparse.Namespace) -> str:
    from rlhf.evaluation.endpoint import GUIDELINE

    if args.guideline is None:
        return GUIDELINE
    if args.judge != "endpoint":
        raise CommandError("ratchet collect: --guideline is for --judge endpoint; the others are trained or have rules")
    try:
        return str(args.guideline.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{args.guideline}: cannot be read as UTF-8 text ({error}); check the path") from error


def _judge_identity(args: argparse.Namespace, root: Path, digest_of: Any, guideline: str) -> dict[str, str]:
    """Who judges, for the provenance: no address and no key."""
    if args.judge == "endpoint":
        from rlhf.evaluation.chat_completions import Access

        access = Access.from_environment(os.environ, timeout=args.timeout)
        said = hashlib.sha256(guideline.encode()).hexdigest()
        return {"kind": "endpoint", "model": access.model, "guideline_sha256": said}
    if args.judge == "rubric":
        return {"kind": "rubric"}
    folder = root / "data/models" / args.judge
    if not (folder / "reward.json").is_file():
        raise CommandError(f"{folder}: there is no {args.judge} model; `ratchet run --until {args.judge}` trains one")
    return {"kind": args.judge, "sha256": digest_of(folder)}


def _label(args: argparse.Namespace, root: Path, work: Path, guideline: str) -> Label:
    from rlhf.collection import label_by_endpoint, label_by_rubric, label_by_score

    if args.judge == "rubric":
        return label_by_rubric
    if args.judge == "endpoint":
        from rlhf.evaluation.chat_completions import Access
        from rlhf.evaluation.endpoint import EndpointJudge

        access = Access.from_environment(os.environ, timeout=args.timeout)
        return label_by_endpoint(EndpointJudge(access, work=work, guideline=guideline, parallel=args.parallel))
    from rlhf.device import choose_device
    from rlhf.evaluation.judging import Scorer

    folder = root / "data/models" / args.judge
    return label_by_score(Scorer.load(folder, device=choose_device(), batch=BATCH, precision="auto"))


def _measured(found: Collection) -> dict[str, Any]:
    return {"counts": found.counts, "gold_accuracy": found.gold_accuracy}


def _facts(found: Collection) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [(name.replace("_", " "), str(count)) for name, count in found.counts.items()]
    if found.gold_accuracy is not None:
        facts.append(("labels that the rubric shares", f"{found.gold_accuracy:.3f}"))
    return facts


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
