import subprocess
from pathlib import Path

import pytest

from rlhf.config import read_params
from rlhf.errors import BadInput
from tasks.profiles import check, locate, merge, names, requests_of_stages, waiting_files

ROOT = Path(__file__).parents[2]

DVC = """\
stages:
  judge:
    cmd: >-
      exec python -m rlhf.launch judge --recipe reward --set max_tokens=sft.max_tokens
      --model data/models/judge
"""
DEFAULT = """\
# How the judge is trained.
seed: 1                      # of everything
sft:
  max_tokens: 64             # tokens
judge:
  pooling: mean              # last, mean or sum
  scale: 1.0                 # factor
  learning_rate: 1e-3        # peak
  batch_size: 32             # pairs
  micro_batch: null          # all
  epochs: 2.0                # passes
  centering: 0.01            # weight
  margin_coef: 0.0           # weight
  ranking_loss: pairs        # pairs or plackett_luce
  members: 1                 # models
  member_share: 1.0          # share
  warmup_fraction: 0.05      # share
  final_lr_fraction: 0.1     # share
  max_grad_norm: 1.0         # clip
  weight_decay: 0.0          # decay
  max_pairs: null            # all
  precision: auto            # format
  normalise_samples: 128     # answers
  max_new_tokens: 72         # tokens
  swap_weight: 0.5           # of the second task
  swap_share: 0.5            # of the pairs in it
  threads: 1
  launch: python
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one stage, which borrows a setting from another section."""
    # The borrowed section needs a stage of its own to be known; `sft` is given the same recipe with all its keys.
    (tmp_path / "dvc.yaml").write_text(DVC)
    text = DEFAULT.replace("sft:\n  max_tokens: 64             # tokens\n", "").replace(
        "  threads", "  max_tokens: 64             # tokens\n  threads"
    )
    (tmp_path / "dvc.yaml").write_text(DVC.replace(" --set max_tokens=sft.max_tokens", ""))
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "profiles" / "algorithms").mkdir(parents=True)
    (tmp_path / "profiles" / "default.yaml").write_text(text)
    return tmp_path


def add(project: Path, name: str, text: str) -> None:
    (project / "profiles" / f"{name}.yaml").write_text(text)


def test_a_merge_changes_values_and_keeps_comments(project: Path) -> None:
    add(project, "small", "seed: 7\njudge:\n  learning_rate: 3e-6\n  epochs: 2.0\n  max_pairs: 100\n")
    merged = merge(project, "small")
    assert [(c.key, c.old, c.new) for c in merged.changes] == [
        ("seed", 1, 7),
        ("judge.learning_rate", 0.001, 3e-6),
        ("judge.max_pairs", None, 100),
    ]
    expected = (project / "params.yaml").read_text().replace("seed: 1 ", "seed: 7 ")
    expected = expected.replace("1e-3 ", "3e-6 ").replace("max_pairs: null", "max_pairs: 100")
    assert merged.text == expected


def test_a_merge_twice_is_a_merge_once(project: Path) -> None:
    add(project, "small", "judge:\n  epochs: 1.0\n")
    (project / "params.yaml").write_text(merge(project, "small").text)
    assert merge(project, "small").changes == ()


def test_an_algorithm_and_a_path_are_profiles_too(project: Path) -> None:
    add(project, "algorithms/tied", "judge:\n  pooling: last\n")
    assert merge(project, "algorithms/tied").params["judge"]["pooling"] == "last"
    assert merge(project, str(project / "profiles" / "algorithms" / "tied.yaml")).changes[0].new == "last"
    assert names(project) == ["algorithms/tied", "default"]


def test_a_profile_may_build_on_another(project: Path) -> None:
    add(project, "one", "from: default\njudge:\n  epochs: 1.0\n  batch_size: 8\n")
    add(project, "two", "from: one\njudge:\n  batch_size: 4\n")
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("scale: 1.0", "scale: 5.0"))
    merged = merge(project, "two")
    assert [(c.key, c.new) for c in merged.changes] == [
        ("judge.scale", 1.0),
        ("judge.batch_size", 4),
        ("judge.epochs", 1.0),
    ]
    add(project, "one", "from: two\n")
    with pytest.raises(BadInput, match="leads back to two"):
        merge(project, "two")


def test_a_method_may_be_laid_over_another_profile(project: Path) -> None:
    add(project, "small", "from: default\nseed: 5\njudge:\n  epochs: 1.0\n  batch_size: 8\n")
    add(project, "algorithms/tied", "from: default\njudge:\n  pooling: last\n  batch_size: 4\n")
    merged = merge(project, "small", "algorithms/tied")
    # The method's own two values, and the rest of `small`: the defaults below the method are not laid a second time.
    assert {c.key: c.new for c in merged.changes} == {
        "seed": 5, "judge.pooling": "last", "judge.batch_size": 4, "judge.epochs": 1.0,
    }  # fmt: skip
    assert merged.profile == "small algorithms/tied"
    (project / "params.yaml").write_text(merged.text)
    # Alone it stands on what it builds on, whatever was in use before.
    assert {c.key: c.new for c in merge(project, "algorithms/tied").changes} == {"seed": 1, "judge.epochs": 2.0}
    # The same whichever method was in use before: nothing of it is left.
    assert {c.key: c.new for c in merge(project, "small").changes} == {"judge.pooling": "mean", "judge.batch_size": 8}
    # The later one goes first, also where it is what the earlier one builds on.
    assert merge(project, "small", "default").params == read_params(project / "profiles" / "default.yaml")
    # And over a profile that builds on nothing.
    add(project, "twin", "seed: 9\n")
    assert merge(project, "twin", "algorithms/tied").params["seed"] == 9
    add(project, "bad", "judge:\n  scale: -1.0\n")
    with pytest.raises(BadInput, match=r"params.yaml with small.yaml and bad.yaml: judge: scale"):
        merge(project, "small", "bad")


def test_the_defaults_heal_a_broken_file(project: Path) -> None:
    whole = (project / "params.yaml").read_text()
    for broken in ("a: [", "seed: 1\n", whole.replace("  epochs", "  epoch"), whole.replace("2.0", "two")):
        (project / "params.yaml").write_text(broken)
        assert merge(project, "default").text == whole


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("judge:\n  epocs: 1\n", r"bad.yaml: unknown key judge.epocs; did you mean judge.epochs\?"),
        ("jugde:\n  epochs: 1.0\n", r"bad.yaml: unknown key jugde.epochs; did you mean judge.epochs\?"),
        ("judge: 3\n", r"bad.yaml: judge is 3, wanted a section"),
        ("judge:\n  epochs: many\n", r"params.yaml with bad.yaml: judge.epochs is 'many' .* wanted a number"),
        ("judge:\n  scale: -1.0\n", r"params.yaml with bad.yaml: judge: scale"),
        ("judge:\n  threads: 0\n", r"judge.threads is 0, wanted a whole number of at least 1"),
        ("judge:\n  launch: sh\n", r"judge.launch is 'sh'"),
        ("seed: -1\n", r"seed is -1, wanted a whole number from 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(text: str, sentence: str, project: Path) -> None:
    add(project, "bad", text)
    with pytest.raises(BadInput, match=sentence):
        merge(project, "bad")


def test_an_unknown_profile_gets_the_nearest_name(project: Path) -> None:
    with pytest.raises(BadInput, match=r"no profile 'defualt' .* did you mean default\?"):
        locate(project, "defualt")


def test_a_setting_may_be_borrowed_from_another_section(project: Path) -> None:
    (project / "dvc.yaml").write_text(DVC)
    request = requests_of_stages(project)["judge"]
    assert (request.recipe, request.borrowed) == ("reward", {"max_tokens": "sft.max_tokens"})
    params = read_params(project / "params.yaml")
    del params["judge"]["max_tokens"]
    with pytest.raises(BadInput, match=r"missing key sft.max_tokens, which another stage takes"):
        check(project, params)


def test_an_unknown_section_and_a_foreign_command_are_refused(project: Path) -> None:
    with pytest.raises(BadInput, match=r"unknown section jugde; did you mean judge\?"):
        check(project, {"seed": 1, "jugde": {}})
    (project / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo\n")
    with pytest.raises(BadInput, match=r"a runs 'echo', wanted `exec python -m rlhf.launch"):
        requests_of_stages(project)


def test_what_a_profile_needs_and_is_not_there(project: Path) -> None:
    params = {"validate": {"files": ["support_desk/pairs.jsonl", "mine.jsonl.gz"]}, "sft": {"base_model": "small"}}
    data, base = waiting_files(project, params)
    assert data == "data/raw/mine.jsonl.gz; bring it with `ratchet ingest FILE --as mine`"
    assert base == "data/base/small; bring it with `ratchet ingest --model FOLDER --as small`"
    (project / "data" / "raw").mkdir(parents=True)
    (project / "data" / "raw" / "mine.jsonl.gz").touch()
    assert waiting_files(project, {**params, "sft": {"base_model": "owner/small"}}) == []
    assert waiting_files(project, {"sft": {"base_model": "scratch"}}) == []


def test_the_default_profile_is_the_committed_configuration() -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "show", "HEAD:params.yaml"], capture_output=True, check=False)
    committed = done.stdout if done.returncode == 0 else (ROOT / "params.yaml").read_bytes()
    assert (ROOT / "profiles" / "default.yaml").read_bytes() == committed


@pytest.mark.parametrize("name", names(ROOT))
def test_every_profile_fits_the_stages(name: str) -> None:
    merged = merge(ROOT, name)  # loads every section through the settings of its recipe
    assert set(merged.params) == {"seed", *requests_of_stages(ROOT)}


@pytest.mark.parametrize("name", names(ROOT))
def test_hub_models_are_pinned_by_commit(name: str) -> None:
    sft = merge(ROOT, name).params["sft"]
    if "/" in sft["base_model"]:
        assert len(sft["revision"]) == 40
        assert int(sft["revision"], 16) > 0
