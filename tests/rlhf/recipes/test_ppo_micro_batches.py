"""Gradients are accumulated to the end of a step and no further: the last micro-batch of each step is marked."""

from rlhf.engine import PlainEngine
from tests.rlhf.recipes.tiny_ppo import run, write_inputs


def test_only_the_last_micro_batch_of_a_step_ends_it(tmp_path, monkeypatch):
    events = {}
    backward, step = PlainEngine.backward, PlainEngine.step

    def watched_backward(engine, loss, *, final=True):
        events.setdefault(id(engine), []).append("last" if final else "more")
        backward(engine, loss, final=final)

    def watched_step(engine):
        events[id(engine)].append("step")
        return step(engine)

    monkeypatch.setattr(PlainEngine, "backward", watched_backward)
    monkeypatch.setattr(PlainEngine, "step", watched_step)
    inputs = write_inputs(tmp_path / "inputs")
    run(inputs, tmp_path, updates=1, warmup_updates=0, epochs=1, rollouts=8, minibatch=4, micro_batch=2)
    # Policy and value model: two minibatches of two micro-batches each.
    assert list(events.values()) == [["more", "last", "step"] * 2] * 2
