"""What docs/architecture.md says of adding a part holds: a throw-away example of each, its files put into a copy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import SMALL

ROOT = Path(__file__).resolve().parent.parent
OBSERVE = (ROOT / "conf/svd_policy/observe.yaml").read_text()
MINE = "from lab.{0}.mine import Mine\n        return "
FILES = {  # what is added -> its files; a test of the page compares the two
    "an init scheme": {
        "lab/init/mine.py": '''
            from dataclasses import dataclass
            from typing import ClassVar
            import torch
            from lab.init import Factors
            from lab.layer import Need

            @dataclass(frozen=True, kw_only=True)
            class Mine:
                needs: ClassVar[frozenset[Need]] = frozenset()
                starts_at_zero: ClassVar[bool] = True
                size: float

                def factors(self, target, weight, rank, scaling, evidence, generator):
                    out, inner = target.shape
                    return Factors(torch.full((rank, inner), self.size), torch.zeros(out, rank))
        ''',
        "conf/init/mine.yaml": "_target_: lab.init.mine.Mine\nsize: 0.25\n",
    },
    "a rank strategy": {
        "lab/rank_strategy/mine.py": '''
            from dataclasses import dataclass
            from typing import ClassVar
            from lab.layer import Need

            @dataclass(frozen=True, kw_only=True)
            class Mine:
                needs: ClassVar[frozenset[Need]] = frozenset()

                def allocate(self, targets, rank, weights, evidence, generator):
                    return {target.name: 1 + (target.role == "mlp") for target in targets}
        ''',
        "conf/rank_strategy/mine.yaml": "_target_: lab.rank_strategy.mine.Mine\n",
    },
    "a policy": {
        "lab/svd_policy/mine.py": '''
            from dataclasses import dataclass
            from lab.svd_policy import Decision
            from lab.svd_policy.observing import Observing, default_decision

            @dataclass(frozen=True, kw_only=True)
            class Mine(Observing):
                @property
                def rules(self):
                    return {}

                def decide(self, row, state):
                    return default_decision(row) or Decision(row.mode, "none", row.rank, (), "mine"), state

                def reach(self, row):
                    return ()
        ''',
        "conf/svd_policy/mine.yaml": OBSERVE.replace("observe.Observe", "mine.Mine"),
    },
    "a data set": {
        "lab/data/mine.py": '''
            from dataclasses import dataclass
            from lab.data import Pair, Splits

            @dataclass(frozen=True, kw_only=True)
            class Mine:
                name: str
                template: str | None
                max_length: int
                retention: str | None
                answer_pattern: str | None

                def load(self):
                    pairs = [Pair(f"What is {n} + 1?", f"{n + 1}.") for n in range(40)]
                    return Splits(pairs[:24], pairs[24:32], pairs[32:])
        ''',
        "conf/data/mine.yaml": "\n".join(
            [
                *("_target_: lab.data.mine.Mine", "name: mine", "template: auto", "max_length: 64"),
                *("retention: null", "answer_pattern: null"),
            ]
        ),
    },
    "a figure of the report": {
        "lab/report/figure/mine.py": '''
            from matplotlib.figure import Figure
            from lab.report.figure import Drawing

            def mine(analysis):
                figure = Figure()
                figure.subplots().bar(["runs"], [len(analysis.arms)])
                return figure

            MINE = Drawing(mine, "How many arms there were.", "Training", "no arms")
        ''',
    },
    "an instrument": {
        "lab/instruments/mine.py": '''
            from lab.training.step import Instrument

            class Mine(Instrument):
                def after_step(self, trainer, module, batch):
                    with open(module.run.run_dir / "mine.txt", "a") as file:
                        print(module.grad_norm, file=file)
        ''',
        "lab/run/host.py": (
            "        return instruments\n", f"        {MINE.format('instruments')}[*instruments, Mine()]\n"
        ),
    },
    "an editor": {
        "lab/editors/mine.py": '''
            from dataclasses import replace
            from lab.adapter.layer import adapted_layers
            from lab.adapter.read import form_of
            from lab.editors import Edit

            class Mine:
                name = "mine"

                def __init__(self, model):
                    self.layers = adapted_layers(model.net)

                def loss_term(self, scale):
                    return None

                def after_step(self, step, optimizer):
                    for layer in self.layers.values():
                        layer.scaling["default"] = 0.5
                    return [Edit(name, replace(form_of(layer), scaling=0.5)) for name, layer in self.layers.items()]

                def state_dict(self):
                    return {}

                def load_state_dict(self, state):
                    pass

                def finish(self, record):
                    record.scalings = {name: layer.s for name, layer in self.layers.items()}
        ''',
        "lab/editors/start.py": (
            "        return Started()\n", f"        {MINE.format('editors')}Started([Mine(model)])\n"
        ),
    },
}  # fmt: skip


def test_the_page_names_these_parts_and_for_each_these_files():
    page = (ROOT / "docs/architecture.md").read_text()
    table = dict(re.findall(r"^\| (an? [^|]*?) \| (.*?) \|$", page, re.M))
    assert table.keys() == FILES.keys()
    for part, files in FILES.items():
        assert len(files) <= 2
        for file in files:
            assert file.rsplit("/", 1)[0] in table[part] or "Host._instruments" in table[part], (part, file)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the package and its options with every part added."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "lab", root / "lab", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    shutil.copytree(ROOT / "conf", root / "conf")
    (root / "lab/assets").symlink_to(ROOT / "lab/assets")
    for files in FILES.values():
        for name, content in files.items():
            path = root / name
            if isinstance(content, tuple):
                old, new = content
                assert path.read_text().count(old) == 1
                path.write_text(path.read_text().replace(old, new))
            else:
                assert not path.exists()
                path.write_text("\n".join(line.removeprefix(" " * 12) for line in content.splitlines()) + "\n")
    return root


def python(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_all_of_them_work_in_a_run_and_its_report(checkout):
    kept = [item for item in SMALL if not item.startswith(("data", "rank="))]
    mine = [f"{group}=mine" for group in ("init", "rank_strategy", "svd_policy", "data")]
    short = ["schedule.max_steps=2", "evaluate.accuracy=false", "evaluate.num_samples=0", "svd_policy.k=2", "rank=1"]
    study = ["seed=0,1", "hydra.sweep.dir=study"]
    python(checkout, "-m", "lab.train", "-m", *kept, *mine, *short, *study)
    run = checkout / "study/0"
    result = json.loads((run / "result.json").read_text())
    assert (result["init"]["scheme"], result["data"]["name"]) == ("Mine", "mine")
    assert set(result["ranks"].values()) == {1, 2}
    assert set(result["scalings"].values()) == {0.5}
    assert len((run / "mine.txt").read_text().split()) == 2
    assert '"mine"' in (run / "decisions.jsonl").read_text()
    python(checkout, "-m", "lab.report", "study")
    assert "How many arms there were." in (checkout / "study/report/README.md").read_text()
