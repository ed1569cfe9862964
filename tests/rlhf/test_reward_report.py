"""Held-out figures of one scorer and of several, worked out by hand."""

import pytest

from rlhf.reward_report import HeldOut, Scored, ensemble_metrics, held_out_metrics, ranking_accuracy, score_held_out


def pair(label=1.0, **meta):
    return {"prompt": [], "chosen": "a", "rejected": "b", "label": label, "meta": meta}


HELD_OUT = HeldOut(
    pairs={"train": [], "dev": [], "test": [pair(), pair()]},
    rankings={"train": [], "dev": [], "test": [{"ranks": [1, 2, 2]}]},
    probes=[pair(probe="rude")],
)
ONE = Scored(
    pairs={"test": [(2.0, 1.0), (0.0, 1.0)]}, rankings={"test": [[3.0, 2.0, 5.0]]}, probes=[(1.0, 0.0)], unit=2.0
)
OTHER = Scored(
    pairs={"test": [(4.0, 1.0), (4.0, 1.0)]}, rankings={"test": [[5.0, 0.0, 1.0]]}, probes=[(0.0, 3.0)], unit=4.0
)


def test_one_scorer_by_hand():
    report = held_out_metrics(ONE, HELD_OUT)
    # right, wrong; (1 - 1) / 2
    assert report["test"]["accuracy"] == 0.5
    assert report["test"]["margin"] == 0.0
    assert report["probes"] == {"rude": 1.0}
    # the first is above the second and below the third
    assert report["rankings"] == {"test": {"rankings": 1, "accuracy": 0.5}}
    assert list(report) == ["test", "probes", "rankings"]


def test_the_mean_of_two_by_hand():
    report = ensemble_metrics([ONE, OTHER], HELD_OUT)
    # means (3, 1) and (2, 1): both right
    assert report["members"] == 2
    assert report["test"]["accuracy"] == 1.0
    assert report["test"]["margin"] == pytest.approx((2 + 1) / 2)
    # spreads of 2|4, 1|1, 0|4 and 1|1: 1, 0, 2 and 0
    assert report["test"]["disagreement"] == pytest.approx(3 / 4)
    # the second pair is ordered both ways
    assert report["test"]["split_votes"] == 0.5
    # 0.5 against 1.5
    assert report["probes"] == {"rude": 0.0}
    # 4, 1, 3
    assert report["rankings"]["test"]["accuracy"] == 1.0


def test_an_ensemble_of_one_is_the_model():
    report = ensemble_metrics([ONE], HELD_OUT)
    assert report["test"].pop("disagreement") == 0.0
    assert report["test"].pop("split_votes") == 0.0
    assert report.pop("members") == 1
    assert report == held_out_metrics(ONE, HELD_OUT)


def test_ranking_accuracy_counts_each_ranking_alike():
    # 1 of 1; of 1<2, 1<3, 2<3 two and a half: mean of 1 and 5/6
    rows, scores = [{"ranks": [2, 1]}, {"ranks": [1, 2, 3]}], [[0.0, 1.0], [3.0, 1.0, 1.0]]
    assert ranking_accuracy(rows, scores) == pytest.approx((1 + 5 / 6) / 2)
    assert ranking_accuracy([{"ranks": [1, 1]}], [[0.0, 1.0]]) is None
    assert ranking_accuracy([*rows, {"ranks": [1, 1]}], [*scores, [0.0, 1.0]]) == ranking_accuracy(rows, scores)


def test_nothing_held_out_is_an_empty_report():
    no_rows = {"train": [], "dev": [], "test": []}
    nothing = HeldOut(pairs=no_rows, rankings=no_rows, probes=[])
    empty = Scored(pairs={}, rankings={}, probes=[], unit=1.0)
    assert held_out_metrics(empty, nothing) == {}
    assert ensemble_metrics([empty, empty], nothing) == {"members": 2}


class Counting:
    """A scorer that says how long a text is."""

    class model:
        std = 1.5

    def score_texts(self, prompts, texts):
        assert len(prompts) == len(texts)
        return [float(len(text)) for text in texts]

    def score_pairs(self, pairs):
        return [(float(len(row["chosen"])), float(len(row["rejected"]))) for row in pairs]


def test_scores_are_given_back_ranking_by_ranking():
    rankings = [{"prompt": [], "responses": ["a", "bbb"]}, {"prompt": [], "responses": ["cc", "d", "eeee"]}]
    held_out = HeldOut(
        pairs={"train": [pair()], "dev": [], "test": [pair()]},
        rankings={"train": rankings, "dev": rankings, "test": []},
        probes=[],
    )
    scored = score_held_out(Counting(), held_out)
    assert scored.rankings == {"dev": [[1.0, 3.0], [2.0, 1.0, 4.0]]}
    assert scored.pairs == {"test": [(1.0, 1.0)]}
    assert (scored.probes, scored.unit) == ([], 1.5)
