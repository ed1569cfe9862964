from pathlib import Path

from prefect.cache_policies import NO_CACHE

from flows.stage_tasks import StageRunner, _ranks, stage_needs, stage_task
from tasks.graph import Graph, PlannedStage, Stage, load_graph, plan_with_graph
from tasks.timings import write_timing
from tests.tiny_project import count, edit

PARAMS = """\
seed: 1
sft: {threads: 2, launch: python}
reward: {threads: 1, launch: torchrun --nproc-per-node=4}
ppo: {threads: 1, launch: deepspeed --num_gpus 2}
dpo: {threads: 1, launch: python}
"""


class Recorder:
    """A display that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def begin(self, stage: str) -> None:
        self.said.append((stage, "begin"))

    def end(self, stage: str, status: str, seconds: float) -> None:
        self.said.append((stage, status))

    def note(self, text: str) -> None:
        self.said.append(("", text))


def stage(name: str, *upstream: str, deps: tuple[str, ...] = (), outs: tuple[str, ...] = ()) -> Stage:
    return Stage(name=name, deps=deps, outs=outs, params=(), upstream=frozenset(upstream))


def test_needs_follow_threads_ranks_and_the_longest_path(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    model = "data/models/{}".format
    stages = [
        stage("validate"),
        stage("sft", "validate", outs=(model("sft"),)),
        stage("reward", "sft", deps=(model("sft"),)),
        stage("ppo", "reward", outs=(model("ppo"),)),
        stage("dpo", "sft", outs=(model("dpo"),)),
    ]
    graph = Graph(stages={entry.name: entry for entry in stages}, order=tuple(entry.name for entry in stages))
    for name, seconds in {"sft": 70.0, "reward": 30.0, "ppo": 100.0, "dpo": 50.0}.items():
        write_timing(tmp_path, name, seconds=seconds, peak_mb=1.0)
    needs = stage_needs(tmp_path, graph, gpus=8)
    assert {name: need.cpu for name, need in needs.items()} == {
        "validate": 1, "sft": 2, "reward": 4, "ppo": 2, "dpo": 1,
    }  # fmt: skip
    assert {name: need.gpu for name, need in needs.items()} == {
        "validate": 0, "sft": 1, "reward": 4, "ppo": 2, "dpo": 1,
    }  # fmt: skip
    # reward leads to ppo: 30 + 100 s are still ahead of it, against 50 of dpo.
    assert needs["reward"].priority == 130.0
    assert needs["dpo"].priority == 50.0
    assert {need.gpu for need in stage_needs(tmp_path, graph, gpus=0).values()} == {0}


def test_ranks_of_a_launcher() -> None:
    assert _ranks("python", every=4) == 1
    assert _ranks("torchrun --nnodes=2 --nproc_per_node 8", every=4) == 8
    # As many as there are; and a line that its stage will refuse.
    assert _ranks("deepspeed", every=4) == _ranks("torchrun --nproc-per-node=gpu", every=4) == 4
    assert _ranks("torchrun 'x", every=4) == 1


def test_the_runner_skips_what_is_cached_and_runs_the_rest(finished_project: Path) -> None:
    edit(finished_project, "word: two", "word: TWO")
    graph, planned = plan_with_graph(finished_project)
    display = Recorder()
    runner = StageRunner(finished_project, graph, planned, force=(), display=display)
    lines: list[str] = []
    statuses = [runner.run(name, lines.append).status for name in graph.order]
    runner.close()
    assert statuses == ["cached", "run", "cached", "run"]
    assert [count(finished_project, name) for name in graph.order] == [1, 2, 1, 2]
    assert ("left", "begin") in display.said
    assert ("first", "cached") in display.said
    assert "left: done" in lines
    assert "left: done" in (finished_project / ".ratchet" / "tmp" / "logs" / "left.log").read_text()


def test_a_plan_that_is_cached_is_not_believed_after_a_change_upstream(finished_project: Path) -> None:
    graph = load_graph(finished_project)
    planned = [PlannedStage(name=name, action="cached") for name in graph.order]
    runner = StageRunner(finished_project, graph, planned, force=(), display=Recorder())
    edit(finished_project, "word: two", "word: TWO")
    runner.results["first"] = runner.run("first", lambda line: None)
    runner.planned["left"] = PlannedStage(name="left", action="run")
    runner.run("left", lambda line: None)
    runner.run("right", lambda line: None)
    assert runner.run("last", lambda line: None).status == "run"
    runner.close()


def test_dvc_is_the_only_cache(finished_project: Path) -> None:
    graph, planned = plan_with_graph(finished_project)
    runner = StageRunner(finished_project, graph, planned, force=(), display=Recorder())
    assert all(stage_task(name, runner).cache_policy is NO_CACHE for name in graph.order)
    runner.close()
