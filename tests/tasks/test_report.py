"""The page as a whole: what is in it, that nothing in it can run, and that it renders from any part of the files."""

import html.parser
import json
import re
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.report import render
from tests.tasks.report_project import EVALUATION, EVIL, write_project

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(html.parser.HTMLParser):
    """Collects ids and what is loaded or run, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    return parsed


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("whole") / "project"
    path = render(write_project(root))
    assert path == root / ".ratchet/tmp/report/index.html"
    return path.read_text(encoding="utf-8")


def test_every_part_is_there(page: str) -> None:
    assert "PPO was chosen on dev prompts" in page
    assert "80%" in page
    for part in ("Win rate against SFT", "KL against judge", "Entropy", "Largest gains", "minimal pairs"):
        assert (part in page) == (part != "Entropy")  # the curve file has no such column
    assert "12\N{NARROW NO-BREAK SPACE}345" in page
    assert "Where is a?" in page
    assert "learns from &lt;demonstrations&gt;" in page
    assert "nested.clip_range" in page


def test_marks_are_sentences_with_their_verdict(page: str) -> None:
    for tone, word, sentence in (
        ("good", "passed", "KL of ppo 2 nats per response: inside the band 0.5 to 3.5."),
        ("bad", "failed", "KL of dpo 4 nats per response: above the band 0.5 to 3.5."),
        ("bad", "failed", "Reward of dpo rose while the judge fell: over-optimised."),
        ("good", "passed", "Preference accuracy of the reward model 0.775: reached the mark 0.75."),
    ):
        assert f'<li><b class="{tone}">{word}</b> {sentence}</li>' in page


def test_what_an_evaluation_says_beyond_the_test_prompts_has_sections(page: str) -> None:
    assert "300 prompts, one sample each." in page
    assert '<td rowspan="4">Win rate against SFT, judge</td><td>usual test prompts</td>' in page
    assert '<td>unlike: new language</td><td class="number">\N{EN DASH}</td>' in page
    assert '<th class="number">sft, before</th><th class="number">dpo, after</th>' in page
    assert '<td class="number">1.75 (+0.25)</td>' in page
    assert "Samples that still count" in page


def test_an_older_evaluation_has_none_of_these_sections(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    (root / "data/metrics/evaluate.json").write_text(json.dumps(EVALUATION))
    parsed = outline(render(root).read_text(encoding="utf-8"))
    assert not {"marks", "unlike", "tax"} & set(parsed.ids)
    assert {target.removeprefix("#") for target in parsed.loaded} <= set(parsed.ids)


def test_a_models_text_is_shown_and_never_run(page: str) -> None:
    assert EVIL not in page
    assert "&lt;script&gt;alert(" in page
    assert "script" not in outline(page).tags


def test_the_page_loads_nothing(page: str) -> None:
    assert all(target.startswith("#") for target in outline(page).loaded)
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_ids_are_unique_and_links_lead_somewhere(page: str) -> None:
    parsed = outline(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {target.removeprefix("#") for target in parsed.loaded} <= set(parsed.ids)


def test_equal_files_give_an_equal_page(tmp_path: Path) -> None:
    first, second = (render(write_project(tmp_path / name / "project")) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "missing",
    ["data/metrics/evaluate.json", "data/metrics/validate.json", "data/evaluation/answers.jsonl", "data/curves/ppo.csv",
     "data/curves/frontier.csv", "dvc.yaml", "params.yaml"],
)  # fmt: skip
def test_a_missing_part_says_what_to_run(tmp_path: Path, page: str, missing: str) -> None:
    root = write_project(tmp_path / "project")
    (root / missing).unlink()
    less = render(root).read_text(encoding="utf-8")
    outline(less)
    if missing != "data/curves/frontier.csv":  # its charts are left out of a section that has others
        assert less.count('class="missing"') > page.count('class="missing"')


def test_an_empty_project_renders(tmp_path: Path) -> None:
    page = render(tmp_path).read_text(encoding="utf-8")
    assert "No policy has been evaluated yet." in page
    assert "ratchet run" in page
    outline(page)


def test_a_torn_file_is_one_sentence(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    (root / "data/metrics/evaluate.json").write_text('{"selected": ')
    with pytest.raises(BadInput, match=r"evaluate\.json: not JSON"):
        render(root)
