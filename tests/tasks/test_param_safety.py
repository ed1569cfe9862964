import pytest

from rlhf.errors import BadInput
from tasks.param_safety import refuse_secrets, require_pinned


def test_usual_settings_hold_no_secret() -> None:
    refuse_secrets({"sft": {"max_tokens": 3, "eos_token": "", "launch": "torchrun --rdzv-id=$ID", "files": ["a"]}}, "p")
    shared = ["x"] * 9
    for _ in range(40):
        shared = [shared] * 9  # what aliases of YAML can make: 9**40 texts
    refuse_secrets({"a": shared}, "p")


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"sft": {"revision": "ghp_" + "a" * 36}}, "sft.revision"),
        ({"a": [{"b": "https://u:pw@host"}]}, "a.0.b"),
        ({"a": {"db_password": "x"}}, "a.db_password"),
        ({"a": {"AKIA" + "B" * 16: 1}}, "a looks like a key of AWS"),
    ],
)
def test_what_looks_like_one_is_refused_by_its_key(params: dict[str, object], key: str) -> None:
    with pytest.raises(BadInput, match=f"p: {key}"):
        refuse_secrets(params, "p")


@pytest.mark.parametrize("name", ["/abs", "../x", "a/../b", ".hidden", "-rf", "~/x", "a/b/c"])
def test_a_base_model_is_no_path(name: str) -> None:
    with pytest.raises(BadInput, match=r"p: sft\.base_model is .* a path"):
        require_pinned(name, None, "p")


def test_ids_of_the_hub_need_a_commit() -> None:
    require_pinned("scratch", None, "p")
    require_pinned("stories260k", None, "p")
    require_pinned("owner/model", "v1.0", "p")
    for moving in (None, "main", " Main", "refs/pr/3", ""):
        with pytest.raises(BadInput, match=r"sft\.revision .* set it to a commit"):
            require_pinned("owner/model", moving, "p")
