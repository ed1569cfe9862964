"""What docs/security.md promises: no code from data, nothing from outside the project, no secret written down."""

import ast
import functools
import json
import os
import re
import socket
from pathlib import Path

import pytest

from flows.cli import main
from rlhf.config import read_params
from rlhf.data.raw_files import find_files, rows
from rlhf.errors import BadInput, StageFailed, secret_in
from rlhf.models import load_policy
from rlhf.starting_point import MOVING, from_base
from tasks.ingest import ingest_data, ingest_model
from tasks.profiles import check
from tests.clone import PLANTED

ROOT = Path(__file__).parents[1]
FOLDERS = ("rlhf", "tasks", "flows", "bench")
PICKLING = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "torch.load", "np.load",
    "numpy.load", "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
"""Modules, and functions, that run code out of what they read."""
SAFE_LOADER = re.compile(r"^(Loader|loader|yaml\.C?SafeLoader)$")
"""`Loader` is that of rlhf.config, a SafeLoader; `loader` in rlhf/checkpoint_key.py is one of yaml's two."""
ALLOWED = {
    "bench/fuzz/model_damage.py": "writes a pickle, which must never be read",
}
PAIR = '{"prompt": "Q", "chosen": "A", "rejected": "B"}\n'


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    return [
        (f"{name}:{node.lineno}", ast.unparse(node.func), node)
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def option(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def test_nothing_that_is_read_can_run_code() -> None:
    found = []
    for name, tree in sources():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            elif isinstance(node, ast.Call):
                names = [ast.unparse(node.func)]
            found += [f"{name}: {word}" for word in names if word in PICKLING and name not in ALLOWED]
    # The loaders of yaml.load are checked one by one: PyYAML's unsafe ones build any object.
    running = ("eval", "exec", "os.system", "os.popen")
    found += [f"{place}: {function}" for place, function, _ in calls() if function in running]
    found += [f"{place}: allow_pickle" for place, _, call in calls() if option(call, "allow_pickle") == "True"]
    for place, function, call in calls():
        if function == "yaml.load" and len(call.args) == 2 and not SAFE_LOADER.search(ast.unparse(call.args[1])):
            found.append(f"{place}: yaml.load without a loader")
    assert found == []


def test_yaml_builds_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"x: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(BadInput, match="not valid YAML"):
        read_params(path)
    assert not (tmp_path / "made").exists()


def test_model_code_is_never_trusted() -> None:
    wrong = [place for place, _, call in calls() if option(call, "trust_remote_code") not in (None, "False")]
    assert wrong == []
    settings = [ROOT / "params.yaml", *(ROOT / "profiles").rglob("*.yaml")]
    assert [path for path in settings if "trust_remote" in path.read_text()] == []  # no setting turns it on


def test_no_shell_stands_between_a_command_and_its_words() -> None:
    wrong = []
    for place, function, call in calls():
        if option(call, "shell") not in (None, "False"):
            wrong.append(f"{place}: shell")
        if function.startswith("subprocess.") and call.args and isinstance(call.args[0], ast.Constant | ast.JoinedStr):
            wrong.append(f"{place}: a command in one text")
    assert wrong == []


def test_nothing_is_unpacked_and_nothing_listens_to_other_machines() -> None:
    unpacking = {"extractall", "extract", "unpack_archive"}
    assert [place for place, function, _ in calls() if function.rpartition(".")[2] in unpacking] == []
    hosts = {
        f"{name}:{node.lineno}"
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "[::]")
    }
    assert hosts == set()


def test_the_local_server_listens_on_this_machine_only(tmp_path: Path) -> None:
    from flows.server import LocalServer

    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with LocalServer(tmp_path) as server:
        server.wait()
        port = int(server.api_url.split(":")[2].split("/")[0])
        listening = {
            line.split()[1].rpartition(":")[0]
            for file in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in Path(file).read_text().splitlines()[1:]
            if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
        }
    assert listening == {"0100007F"}  # 127.0.0.1, as the kernel writes it


@pytest.mark.parametrize("revision", [None, "", "main", "HEAD", "refs/pr/1"])
def test_models_of_the_hub_are_pinned(revision: str | None, tmp_path: Path) -> None:
    params = read_params(ROOT / "params.yaml")
    params["sft"] |= {"base_model": "owner/model", "revision": revision}
    with pytest.raises(BadInput, match=r"sft\.revision .*; set it to a commit"):
        check(ROOT, params)
    params["sft"]["revision"] = "7ae557604adf67be50417f59c2c2f167def9a775"
    check(ROOT, params)
    if revision is None or revision.lower() in MOVING:
        with pytest.raises(BadInput, match="commit"):
            from_base("owner/model", revision=revision, base=tmp_path, device="cpu")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x.jsonl", ".hidden.jsonl", "-rf.jsonl", "", "a/../../b", "link.jsonl", "way/x.jsonl", "pipe"],
)
def test_validate_reads_nothing_from_outside(name: str, tmp_path: Path) -> None:
    raw, outside = tmp_path / "raw", tmp_path / "outside"
    raw.mkdir()
    outside.mkdir()
    (outside / "x.jsonl").write_text(PAIR)
    (raw / "link.jsonl").symlink_to(outside / "x.jsonl")
    (raw / "way").symlink_to(outside)
    for hidden in (".hidden.jsonl", "-rf.jsonl"):
        (raw / hidden).write_text(PAIR)
    os.mkfifo(raw / "pipe")
    with pytest.raises(BadInput):
        _read(raw, name)


def _read(raw: Path, name: str) -> list[object]:
    return [row for _, path in find_files(raw, (name,)) for row in rows(path)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for folder in ("data/raw", "data/base"):
        (root / folder).mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    return root


def test_ingest_takes_no_links_pipes_or_names_with_a_dash(project: Path, tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "secret.jsonl"
    folder.mkdir()
    outside.write_text(PAIR)
    (folder / "good.jsonl").write_text(PAIR)
    (folder / "link.jsonl").symlink_to(outside)
    with pytest.raises(BadInput, match=r"link\.jsonl: is a link that leads out of"):
        ingest_data(project, [folder], name="x", format=None)
    with pytest.raises(BadInput, match="is a link that leads out of"):
        ingest_model(project, folder, name="x")
    (folder / "link.jsonl").unlink()
    (folder / "-rf.jsonl").write_text(PAIR)
    with pytest.raises(BadInput, match="has a name on which commands trip"):
        ingest_data(project, [folder], name="x", format=None)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(BadInput, match="is a pipe or a device"):
        ingest_data(project, [tmp_path / "pipe.jsonl"], name="x", format=None)
    for name in ("../x", "/x", "-rf", ".x", "a/b", "x" * 101):
        with pytest.raises(BadInput, match="is not a usable name"):
            ingest_data(project, [folder / "good.jsonl"], name=name, format=None)
    assert list((project / "data/raw").iterdir()) == []


def test_a_model_folder_cannot_name_files_of_the_machine(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model-1.safetensors").write_bytes(b"")
    for named in ("/etc/passwd", "../x.safetensors", "weights.bin"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": named}}))
        with pytest.raises(BadInput, match="wanted safetensors files beside it"):
            load_policy(folder, device="cpu")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sft", "revision", "hf_" + "a" * 34),
        ("sft", "base_model", "https://me:pa55word@host/model"),
        ("ppo", "reward_rules", {"length": {"api_key": "abc"}}),
        ("ppo", "rewards", {"AKIA" + "A" * 16: 1.0}),
        ("sft", "launch", "torchrun --rdzv-id=sk-" + "b" * 30),
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_shown(section: str, key: str, value: object) -> None:
    params = read_params(ROOT / "params.yaml")
    params[section][key] = value
    with pytest.raises(BadInput, match=r"looks like .* set it as an environment variable") as caught:
        check(ROOT, params)
    assert not any(hidden in str(caught.value) for hidden in ("aaaa", "pa55", "abc", "AAAA", "bbbb"))


def test_no_message_shows_a_secret_or_obeys_the_terminal() -> None:
    for kind in (BadInput, StageFailed):
        said = str(kind("http://me:pa55word@host/x refuses hf_" + "a" * 34 + " \x1b[2J\u202e\nnext"))
        assert said == "http://(secret)@host/x refuses (secret) \\x1b[2J\\u202e next"
    assert all(secret_in(value) or name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "RATCHET_JUDGE_KEY")
               for name, value in PLANTED.items())  # fmt: skip


@pytest.mark.parametrize(("variable", "word"), [("PREFECT_API_URL", "run"), ("MLFLOW_TRACKING_URI", "doctor")])
def test_a_password_of_a_server_is_not_shown(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, word: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv(variable, f"http://me:pa55word@127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("RATCHET_ROOT", str(project))
    main([word])
    said = capsys.readouterr()
    assert "pa55word" not in said.out + said.err
    assert said.out + said.err


def test_addresses_of_stores_are_not_on_command_lines() -> None:
    words = [place for place, _, call in calls() if "--backend-store-uri" in ast.unparse(call)]
    assert words == []  # everybody on the machine can read a command line, and an address may hold a password
