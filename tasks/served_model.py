"""The model that MLflow serves: a few kilobytes that find their weights by DVC hash, check them and really generate.

MLflow copies this one file into every registered version and runs the copy where no Ratchet is installed, so it
imports nothing of the project: torch, transformers and, only when weights must come from a remote, dvc.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

OVERRIDE = "RATCHET_WEIGHTS_DIR"
SAFE: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
DEFAULTS = {"temperature": 0.0, "max_new_tokens": 128, "seed": 0}
BATCH = 32  # prompts generated together; more would only raise the peak memory


class WeightsMissing(RuntimeError):
    """Nowhere are there files with the recorded hashes; the message lists where was looked."""


def materialise(config: Mapping[str, Any]) -> Path:
    """Return a folder with exactly the recorded files, each checked against its md5.

    Looked for in this order: the folder that `$RATCHET_WEIGHTS_DIR` names (it alone, when set), an earlier
    result, a copy beside the model, the DVC cache, weights kept at a promotion, the DVC remote.

    Args:
        config: `output_md5`; `files`, md5 by relative path; and, each may be null, `project_root`, `cache_dir`,
            `remote` (address), `copy` (folder).

    Raises:
        WeightsMissing: no place has all files intact.
    """
    files: Mapping[str, str] = config["files"]
    if named := os.environ.get(OVERRIDE):
        if not intact(Path(named), files):
            raise WeightsMissing(f"{OVERRIDE}={named}: its files do not have the md5 sums of {config['output_md5']}")
        return Path(named)
    short = str(config["output_md5"]).removesuffix(".dir")
    folder, copy = _home(config) / short, config.get("copy")
    for place in (folder, Path(copy)) if copy else (folder,):
        if intact(place, files):
            return place
    root, cache_dir, remote = (config.get(name) for name in ("project_root", "cache_dir", "remote"))
    caches = [Path(cache_dir)] if cache_dir else []
    caches += [Path(root) / ".ratchet" / "state" / "keep" / short] if root else []
    if any(_link(cache, folder, files) for cache in caches):
        return folder
    if remote:
        with tempfile.TemporaryDirectory(prefix="ratchet-pull-") as scratch:
            if _link(_pull(config, Path(scratch)), folder, files):
                return folder
    where = ", ".join(map(str, [*caches, *([remote] if remote else [])])) or "no cache and no remote is recorded"
    raise WeightsMissing(
        f"weights {config['output_md5']}: not found intact in {where}; "
        f"set {OVERRIDE} to a folder that has them, or `dvc pull` in the project"
    )


def cached(cache: Path, md5: str) -> Path:
    """Return where a DVC cache keeps the object of that hash."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def intact(folder: Path, files: Mapping[str, str]) -> bool:
    """Tell whether the folder holds every file with the bytes that its md5 says."""
    for relative, md5 in files.items():
        path = folder / relative
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "md5").hexdigest() != md5:
                return False
    return True


def _home(config: Mapping[str, Any]) -> Path:
    """Choose the folder for materialised weights: in the project where it is at hand, else a private one."""
    root = config.get("project_root")
    if root and (Path(root) / "dvc.yaml").is_file() and os.access(root, os.W_OK):
        return Path(root) / ".ratchet" / "tmp" / "weights"
    private = Path(tempfile.gettempdir()) / f"ratchet-weights-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise WeightsMissing(f"{private}: belongs to another user; remove it or set {OVERRIDE}")
    return private


def _link(cache: Path, folder: Path, files: Mapping[str, str]) -> bool:
    """Build the folder of hard links (copies across file systems) beside its place, check it, rename it."""
    if not all(cached(cache, md5).is_file() for md5 in files.values()):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for relative, md5 in files.items():
            target = building / relative
            if ".." in Path(relative).parts or Path(relative).is_absolute():
                raise WeightsMissing(f"weights {folder.name}: the recorded path {relative!r} leaves the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(cached(cache, md5), target)
            except OSError:
                shutil.copyfile(cached(cache, md5), target)
        if not intact(building, files):
            return False
        building.chmod(0o755)
        if folder.exists() and not intact(folder, files):
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another process was quicker; what it made is checked like ours
            building.rename(folder)
        return intact(folder, files)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _pull(config: Mapping[str, Any], scratch: Path) -> Path:
    """Fetch the weights from the DVC remote into a cache of a throw-away repository; returns that cache."""
    own, root, md5 = scratch / ".dvc", config.get("project_root"), config["output_md5"]
    own.mkdir()
    settings = f"[core]\n no_scm = true\n remote = origin\n analytics = false\n site_cache_dir = {scratch / 'site'}\n"
    settings += f"['remote \"origin\"']\n url = {config['remote']}\n"
    (own / "config").write_text(settings, encoding="utf-8")
    if root and (Path(root) / ".dvc" / "config.local").is_file():  # the project's own access to its remotes
        shutil.copyfile(Path(root) / ".dvc" / "config.local", own / "config.local")
    path = "weights" if md5.endswith(".dir") else next(iter(config["files"]))
    (scratch / "weights.dvc").write_text(f"outs:\n- {{md5: {md5}, hash: md5, path: {path}}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "dvc", "fetch", "--quiet", "weights.dvc"]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WeightsMissing(f"weights {md5}: dvc could not fetch from {config['remote']}: {last}")
    return own / "cache"


def conversations(model_input: Any) -> list[list[dict[str, str]]]:
    """Read prompts: a table or records with a column `prompt` (text) or `messages` (chat), or plain texts.

    Raises:
        ValueError: a row has neither.
    """
    found: list[list[dict[str, str]]] = []
    if isinstance(model_input, pd.DataFrame) and model_input.columns.empty:  # MLflow dropped what it does not know
        raise ValueError('input: neither `prompt` nor `messages` in it; wanted, for example, [{"prompt": "Hello"}]')
    for number, row in enumerate(records(model_input)):
        messages, prompt = row.get("messages"), row.get("prompt")
        if messages is not None and not isinstance(messages, float):  # a missing cell of a table is a NaN
            found.append([{"role": str(m["role"]), "content": str(m["content"])} for m in messages])
        elif isinstance(prompt, str):
            found.append([{"role": "user", "content": prompt}])
        else:
            raise ValueError(f"input row {number}: neither a text `prompt` nor a list `messages`")
    return found


def records(model_input: Any) -> list[Any]:
    """Return the rows of any accepted input; a plain text is a row with a prompt only."""
    if isinstance(model_input, pd.DataFrame):
        return model_input.to_dict("records")
    listed = [model_input] if isinstance(model_input, str | Mapping) else model_input
    return [{"prompt": row} if isinstance(row, str) else row for row in listed]


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the token ids of a conversation up to where the answer begins, as in training."""
    safe = [{**message, "content": disarmed(tokenizer, message["content"])} for message in messages]
    text = tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def disarmed(tokenizer: Any, text: str) -> str:
    """Break special tokens that somebody typed: a prompt must not be able to end a turn or fake a role."""
    for token in tokenizer.all_special_tokens:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make sampling repeatable without disturbing the caller's random state."""
    import torch

    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        yield


class Policy:
    """A causal language model that answers prompts."""

    def __init__(self, folder: Path) -> None:
        """Load weights (safetensors only), tokenizer and the token ids that end or never occur in an answer."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loader: Any = AutoModelForCausalLM
        self.model = loader.from_pretrained(folder, **SAFE).to(self.device).eval()
        ends = self.model.generation_config.eos_token_id
        found = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.ends = sorted(int(token) for token in found)
        self.pad = self.ends[0] if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        rows = self.model.get_input_embeddings().num_embeddings
        self.never = sorted({self.pad, *range(len(self.tokenizer), rows)} - set(self.ends))
        self.context = getattr(self.model.config, "max_position_embeddings", None)

    def answer(self, prompts: list[list[dict[str, str]]], options: Mapping[str, Any]) -> list[str]:
        """Generate one answer per conversation, in their order."""
        encoded = [encode(self.tokenizer, messages) for messages in prompts]
        with _seeded(int(options["seed"])):
            batches = [self._generate(encoded[at : at + BATCH], options) for at in range(0, len(encoded), BATCH)]
        return [answer for batch in batches for answer in batch]

    def _generate(self, batch: list[list[int]], options: Mapping[str, Any]) -> list[str]:
        import torch
        from transformers import GenerationConfig

        width = max(map(len, batch))
        room = self.context - width if self.context else int(options["max_new_tokens"])
        if room < 1:
            raise ValueError(f"a prompt has {width} tokens, which leaves no room in a context of {self.context}")
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in batch], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=self.device)
        temperature = float(options["temperature"])
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        config: Any = GenerationConfig
        settings = config(
            do_sample=temperature > 0,
            max_new_tokens=min(int(options["max_new_tokens"]), room),
            eos_token_id=self.ends,
            pad_token_id=self.pad,
            suppress_tokens=self.never or None,
            **sampling,
        )
        made = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return [self._text(row[width:].tolist()) for row in made]

    def _text(self, ids: list[int]) -> str:
        stop = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        return str(self.tokenizer.decode(ids[:stop], skip_special_tokens=True))


class Scorer:
    """A reward model or judge: one number per pair of prompt and response."""

    def __init__(self, folder: Path) -> None:
        """Load the per-token head, and how its scores are pooled and normalised."""
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = AutoModelForTokenClassification.from_pretrained(folder, **SAFE).float().eval()
        self.settings = json.loads((folder / "reward.json").read_text(encoding="utf-8"))

    def score(self, prompts: list[list[dict[str, str]]], responses: list[str]) -> list[float]:
        """Return normalised scores, in standard deviations of the reference answers."""
        import torch

        how, scores = self.settings, list[float]()
        for messages, response in zip(prompts, responses, strict=True):
            prompt, text = encode(self.tokenizer, messages), disarmed(self.tokenizer, response)
            answer = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
            with torch.inference_mode():
                tokens = self.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) :, 0]
            pooled = {"last": tokens[-1], "mean": tokens.mean(), "sum": tokens.sum()}[how["pooling"]]
            scores.append((how["scale"] * float(pooled) - how["mean"]) / how["std"])
        return scores


class ServedModel(PythonModel):
    """What `mlflow.pyfunc.load_model` and `mlflow models serve` drive."""

    def load_context(self, context: Any) -> None:
        """Find the weights and load them; `kind` in the configuration says which of the two models it is."""
        config = {**context.model_config, "copy": context.artifacts.get("weights")}
        folder = materialise(config)
        self.model: Policy | Scorer = Policy(folder) if config["kind"] == "policy" else Scorer(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Answer prompts (texts), or score responses (numbers)."""
        prompts = conversations(model_input)
        if isinstance(self.model, Policy):
            return self.model.answer(prompts, {**DEFAULTS, **(params or {})})
        return self.model.score(prompts, [str(row["response"]) for row in records(model_input)])


set_model(ServedModel())
