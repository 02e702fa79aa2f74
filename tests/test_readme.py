"""What README tells a user to type is true."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from lab import config, evaluate, export
from lab.launch import job
from lab.suggest import __main__ as suggest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
LINES = [
    line.split(" #")[0].strip()
    for page in (README, *((ROOT / f"docs/{name}.md").read_text() for name in ("observe", "suggest", "data", "switch")))
    for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
TRAIN = [line for line in LINES if "lab.train" in line]


def test_readme_has_commands():
    assert len(LINES) > 8
    assert len(TRAIN) > 4


@pytest.mark.parametrize("line", TRAIN)
def test_every_training_command_composes(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(line.split("lab.train", 1)[1]) if word != "-m"]
    if any(word.startswith("resume=") for word in words):
        assert len(words) == 1, "resume needs no other argument"
        return
    first_of_each = [re.sub(r"=([^,\[{]+),.*", r"=\1", word) for word in words]  # a grid's first job
    assert config.compose(*first_of_each).rank >= 1


SWITCH = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/switch.md").read_text(), flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
TINY = (  # of the same kind, a second or two long
    *("model.depth=1", "data.max_length=32", "schedule.max_steps=45", "schedule.batch_size=2", "logger=none"),
    *("evaluate.max_examples=4", "evaluate.num_samples=0", "svd_policy.every_n_steps=2", "hardware=cpu"),
    *("hardware.threads=1", "hardware.precision=32-true", "schedule.eval_every_n_steps=45", "evaluate.test=false"),
)


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """The run that commands about thresholds look at."""
    folder = tmp_path_factory.mktemp("observed")
    asked = ("experiment=thresholds", *TINY, "svd_policy.warmup_steps=20", "svd_policy.outside_low=0.745")
    job.launch(config.compose(*asked), folder, choices={}, overrides=list(asked), alone=False)
    return folder


def keys_of(tree, above=""):
    """Every key of a config, written as on a command line."""
    for key, value in tree.items():
        yield from (f"{above}{key}", *(keys_of(value, f"{above}{key}.") if isinstance(value, dict) else ()))


@pytest.mark.slow
@pytest.mark.parametrize("line", SWITCH)
def test_every_command_about_switches_runs_in_few_steps(line, observed, tmp_path):
    words = shlex.split(line.split("lab.train", 1)[1])
    words = [word.replace("=RUN", f"={observed}") for word in words if not word.startswith("schedule.max_steps=")]
    asked = config.plain_of(config.compose(*words))
    skipped = (
        [] if asked["data"]["name"] == "stdlib_text" else ["data.max_length"]
    )  # of pairs, only questions were left
    skipped += [] if asked["svd_policy"]["every_n_steps"] else ["svd_policy.every_n_steps"]  # it has no ticks
    short = [
        *words,
        *(item for item in TINY if (key := item.partition("=")[0]) in keys_of(asked) and key not in skipped),
    ]
    if "warmup_steps" in config.compose(*words).svd_policy:
        short.append("svd_policy.warmup_steps=20")
    if any(word.startswith("svd_policy.observed_path") for word in words):
        short.append("svd_policy.outside_low=0.745")
    assert job.launch(config.compose(*short), tmp_path, choices={}, overrides=short, alone=False) < 9.1  # ln 8192


@pytest.mark.parametrize("line", [line for line in LINES if "lab.export" in line])
def test_every_export_command_is_taken(line, monkeypatch):
    asked = []
    monkeypatch.setattr(export, "export_run", lambda *given: asked.append(given) or {"to": given[1], "notes": []})
    export.main(shlex.split(line.split("lab.export", 1)[1]))
    assert len(asked) == 1


@pytest.mark.parametrize("line", [line for line in LINES if "lab.evaluate" in line])
def test_every_evaluate_command_is_taken(line, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *given, **settings: asked.append(given) or {})
    evaluate.main(shlex.split(line.split("lab.evaluate", 1)[1]))
    assert len(asked) == 1


@pytest.mark.parametrize("line", [line for line in LINES if "lab.replay" in line])
def test_every_replay_command_names_settings_of_its_policy(line):
    run, *words = shlex.split(line.split("lab.replay", 1)[1])
    assert run == "RUN"
    settings = config.compose("svd_policy=phase1", "method=full").svd_policy
    for word in words:
        key = word.split("=")[0]
        assert key in ("svd_policy", "--suggest") or key.removeprefix("svd_policy.") in settings, word


@pytest.mark.parametrize("line", [line for line in LINES if "lab.suggest" in line])
def test_every_suggest_command_is_taken(line, monkeypatch):
    kind, *words = shlex.split(line.split("lab.suggest", 1)[1])
    asked = []
    monkeypatch.setattr(suggest, f"_{kind}", asked.append)
    suggest.main([kind, *words])
    (given,) = asked
    assert kind == "rank" or config.compose(*given.overrides).rank >= 1


def test_every_make_target_exists_and_explains_itself():
    makefile = (ROOT / "Makefile").read_text()
    asked = {word for line in LINES for word in re.findall(r"\bmake ([a-z0-9]+)", line)}
    asked |= set(re.findall(r"`make ([a-z0-9]+)`", README))
    for target in asked:
        assert re.search(rf"^{target}:.*##", makefile, flags=re.MULTILINE), target


def test_every_option_in_the_tables_is_a_file():
    for group, options in re.findall(r"^\| `(\w+)` \| (.*) \|$", README, flags=re.MULTILINE):
        if not (config.CONF / group).is_dir():
            continue
        for option in re.findall(r"`(\w+)`", options):
            if option == "_target_":
                continue
            assert (config.CONF / group / f"{option}.yaml").is_file(), f"{group}={option}"


PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "log.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_and_file_of_the_lab_that_a_page_names_is_there(page):
    text = page.read_text()
    for name in set(re.findall(r"`(lab(?:\.\w+)+)`", text)):
        parent, _, leaf = name.rpartition(".")
        there = importlib.util.find_spec(name) if importlib.util.find_spec(parent).submodule_search_locations else None
        assert there or hasattr(importlib.import_module(parent), leaf), name
    for name in set(re.findall(r"`((?:lab|conf|tests|hydra_plugins)/[\w./]*)`", text)):
        assert (ROOT / name).exists() or "/mine." in name, name


LINKING = [*PAGES, ROOT / "docs/log.md", *sorted((ROOT / "docs/studies").rglob("*.md"))]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            path, _, heading = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not heading or heading in headings(there), target


def headings(page):
    """The anchors that GitHub gives a page's headings: lower case, no punctuation, hyphens for spaces."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}
