"""Rules about the shape of the repository: what lies where, how long it may be, and what must agree with what."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rlhf.config import LAUNCH_KEYS, read_params
from tasks.profiles import requests_of_stages
from tasks.source_closure import compare

ROOT = Path(__file__).parents[1]
LAYERS = ("flows", "tasks", "rlhf")
PYTHON_FOLDERS = (*LAYERS, "tests", "bench")
TEXT_FOLDERS = (*PYTHON_FOLDERS, "docs", "profiles", "mlflow")
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "core", "base", "types"}
LONGEST_FILE = 300
LONGEST_FUNCTION = 50
LONGEST_RECIPE = 120
LONGEST_README = 200

SECRETS = (
    re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\b(ghp|gho|github_pat|hf|sk|xox[bap])[-_][A-Za-z0-9_-]{16,}\b"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"://[^/\s:@]+:[^/\s@]+@"),
    re.compile(r"(?i)^\s*\w*(password|passwd|secret|api_?key|access_?key|auth_token)\w*\s*:", re.MULTILINE),
)
# Put together from parts, so that this file does not find itself.
MACHINE_PATHS = re.compile("|".join((r"(?<![\w.])/" + r"work/", r"(?<![\w.])/" + r"opt/", r"/" + r"root/")))


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` on, less its docstring: what has to be understood, not what explains it."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_every_module_has_a_test_file_in_the_same_place() -> None:
    missing = [
        name(source)
        for source in python_files(*LAYERS)
        if source.name != "__init__.py"
        and not (ROOT / "tests" / source.relative_to(ROOT).parent / f"test_{source.name}").is_file()
    ]
    assert missing == []


def test_every_test_file_mirrors_a_module() -> None:
    above = {"test_house.py", "test_end_to_end.py", "test_security.py"}
    strays = []
    for test in (ROOT / "tests").rglob("test_*.py"):
        inside = test.relative_to(ROOT / "tests")
        if inside.parts[0] in LAYERS:
            # A module's tests may fill several files: test_engine.py, test_engine_ranks.py.
            modules = [module.stem for module in (ROOT / inside.parent).glob("*.py")]
            about = inside.stem.removeprefix("test_")
            if not any(about == module or about.startswith(f"{module}_") for module in modules):
                strays.append(name(test))
        elif len(inside.parts) == 1 and inside.name not in above and not inside.name.startswith("test_real_"):
            strays.append(name(test))
    assert strays == []


def test_files_and_functions_are_short() -> None:
    long = []
    for file in python_files(*PYTHON_FOLDERS):
        text = file.read_text(encoding="utf-8")
        if (count := len(text.splitlines())) > LONGEST_FILE:
            long.append(f"{name(file)}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                recipe = node.name == "main" and file.parent == ROOT / "rlhf" / "recipes"
                if (count := body_lines(node)) > (LONGEST_RECIPE if recipe else LONGEST_FUNCTION):
                    long.append(f"{name(file)}:{node.lineno} {node.name}: {count} lines")
    assert long == []


def test_names_say_what_a_module_is_about() -> None:
    assert [name(file) for file in python_files(*PYTHON_FOLDERS) if file.stem in FORBIDDEN_NAMES] == []


def test_package_files_are_empty() -> None:
    full = []
    for file in python_files(*LAYERS):
        if file.name == "__init__.py":
            body = ast.parse(file.read_text(encoding="utf-8")).body
            legend = file == ROOT / "rlhf" / "__init__.py" and len(body) == 1 and isinstance(body[0], ast.Expr)
            if body and not legend:
                full.append(name(file))
    assert full == []


def test_tests_are_no_package() -> None:
    assert [name(file) for file in (ROOT / "tests").rglob("__init__.py")] == []


def test_the_folder_mlflow_does_not_shadow_the_package() -> None:
    assert [name(file) for file in (ROOT / "mlflow").rglob("*.py")] == []
    code = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in done.stdout


def test_layers_and_what_they_may_import() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_no_secret_in_what_is_committed_or_recorded() -> None:
    files = [ROOT / "params.yaml", ROOT / "dvc.yaml", ROOT / "dvc.lock", *(ROOT / "profiles").rglob("*.yaml")]
    found = [
        f"{name(file)}: {match.group(0)[:12]}..."
        for file in files
        if file.is_file()
        for pattern in SECRETS
        for match in pattern.finditer(file.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line", ["hf_abcdefghijklmnopqrst", "url: s3://me:pass@host/x", "  api_key: x", "db_password: y"]
)
def test_the_search_for_secrets_can_find_one(line: str) -> None:
    assert any(pattern.search(line) for pattern in SECRETS)


def test_no_path_of_one_machine_in_any_file() -> None:
    endings = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".jinja", ".jinja2", ".json", ".cfg", ""}
    top = [file for file in ROOT.iterdir() if file.is_file() and not file.is_symlink()]
    inside = [file for folder in TEXT_FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    found = [
        f"{name(file)}:{number}"
        for file in (*top, *inside)
        if file.suffix in endings and "__pycache__" not in file.parts
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATHS.search(line)
    ]
    assert found == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_every_parameter_is_commented() -> None:
    requests = requests_of_stages(ROOT)
    explained: set[tuple[str, str]] = set()  # (recipe, key): a second stage of one recipe need not repeat it
    bare, recipe = [], ""
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"(\s*)([A-Za-z_]\w*):", line)
        if not match:
            continue
        key = match.group(2)
        if not match.group(1) and key in requests:
            recipe = requests[key].recipe
        if "#" in line or (number and lines[number - 1].strip().startswith("#")):
            explained.add((recipe, key))
        elif key not in LAUNCH_KEYS and (recipe, key) not in explained:  # the launcher's keys are explained at the top
            bare.append(f"params.yaml:{number + 1}: {key}")
    assert bare == []


def test_every_stage_has_a_recipe_a_section_and_tests() -> None:
    params = read_params(ROOT / "params.yaml")
    requests = requests_of_stages(ROOT)
    for stage, request in requests.items():
        assert (ROOT / "rlhf" / "recipes" / f"{request.recipe}.py").is_file(), stage
        assert (ROOT / "tests" / "rlhf" / "recipes" / f"test_{request.recipe}.py").is_file(), stage
        assert set(LAUNCH_KEYS) <= set(params[stage]), stage
    assert set(params) == {"seed", *requests}
    recipes = {file.stem for file in (ROOT / "rlhf" / "recipes").glob("*.py")} - {"__init__"}
    assert recipes == {request.recipe for request in requests.values()}


def test_a_stage_depends_on_exactly_the_sources_that_its_recipe_imports() -> None:
    wrong = [f"{d.stage}: missing {list(d.missing)}, too much {list(d.extra)}" for d in compare(ROOT)]
    assert wrong == []  # `python -m tasks.source_closure --write` puts the right files into dvc.yaml


def test_what_dvc_tracks_stays_out_of_runtime_folders() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage, block in stages.items():
        outs = [
            next(iter(out)) if isinstance(out, dict) else out
            for key in ("outs", "metrics", "plots")
            for out in block.get(key, [])
        ]
        assert all(out.startswith("data/") for out in outs), stage
        assert block["cmd"].startswith("exec "), stage  # else a shell stays between DVC and the stage's process


def test_the_project_itself_is_what_tests_import() -> None:
    for package in LAYERS:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin == str(ROOT / package / "__init__.py")


def test_every_line_of_the_correctness_list_is_held_by_a_test_that_exists_or_says_why_not() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    rows = {int(number): row for number, row in re.findall(r"^\| (\d+) \|(.*)\|$", text, re.MULTILINE)}
    assert sorted(rows) == list(range(1, 51))
    assert [number for number, row in rows.items() if not re.search(r"`[\w/]*test_\w+: |Does not apply: ", row)] == []
    missing, tests = [], set[str]()
    # `file: test`, and after it perhaps more tests of the same file: `test`.
    for file, test in re.findall(r"`(?:([\w/]*test_\w+): )?(\w+)`", text):
        if file:
            path = ROOT / "tests" / "rlhf" / f"{file}.py"
            tests = set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)) if path.is_file() else set()
        if test not in tests and (file or test.startswith("test_")):
            missing.append(f"{file or '(the file before)'}: {test}")
    assert missing == []
