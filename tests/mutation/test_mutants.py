"""Faults put into the source, one at a time: a run aborts on each, or a test that names it fails.

Each line is a fault that somebody could make. `make faults` tries them all, each in a copy of the checkout.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("lab", "conf", "hydra_plugins", "tests", "pyproject.toml", "README.md", "docs")


@dataclass(frozen=True)
class Mutant:
    """A fault: text of a file that occurs once, what it becomes, and the test that must fail then."""

    path: str
    text: str
    becomes: str
    caught_by: str


RUN = "tests/test_run.py::test_the_record_is_read_back_from_the_model"
SIDES = "tests/training/test_sides_and_modes.py"
DAMAGED = "tests/test_damaged_files.py"
MUTANTS = {
    # Once seen to survive run and tests.
    "A left out of the optimizer": Mutant(
        "lab/training/optim.py",
        "        if parameter.requires_grad:\n            (faster",
        '        if parameter.requires_grad and "lora_A" not in name:\n            (faster',
        RUN,
    ),
    "validation on training data": Mutant(
        "lab/run/host.py",
        'partial(self._evaluated, "val")',
        'partial(self._evaluated, "train")',
        f"{SIDES}::test_each_loss_is_stock_pefts_on_the_side_of_its_name",
    ),
    "test loss on the validation side": Mutant(
        "lab/run/ending.py",
        'self._evaluate("test")',
        'self._evaluate("val")',
        f"{SIDES}::test_each_loss_is_stock_pefts_on_the_side_of_its_name",
    ),
    "one dropout mask for every step": Mutant(
        "lab/training/module.py",
        'batch["step"] * 4_099',
        "4_099",
        f"{SIDES}::test_dropout_draws_other_masks_at_every_step_and_micro_batch",
    ),
    "dropout in evaluation": Mutant(
        "lab/training/evaluate.py",
        "    scorer.net.eval()\n",
        "    scorer.net.train()\n",
        f"{SIDES}::test_each_loss_is_stock_pefts_on_the_side_of_its_name",
    ),
    "clipping never applied": Mutant(
        "lab/training/module.py",
        "if limit > 0 and self.grad_norm",
        "if limit > 1e9 and self.grad_norm",
        f"{SIDES}::test_the_gradients_that_an_optimizer_sees_are_clipped",
    ),
    "ledger cut back one step late": Mutant(
        "lab/instruments/decider.py",
        "ledger.cut_back(self.run_dir, step - 1)",
        "ledger.cut_back(self.run_dir, step)",
        f"{SIDES}::test_a_checkpoint_without_hashes_of_its_files_cuts_them_back_to_its_step",
    ),
    # A run, or a test of the part, stops on these.
    "ranks that never reach the layers": Mutant(
        "lab/adapter/build.py",
        '"rank_pattern": {pattern(name): rank for name, rank in ranks.items()}',
        '"rank_pattern": {}',
        "tests/adapter/test_build_adapters.py",
    ),
    "alphas that never reach the layers": Mutant(
        "lab/adapter/build.py",
        '"alpha_pattern": {pattern(name): _plain(scaling * rank) for name, rank in ranks.items()}',
        '"alpha_pattern": {}',
        "tests/adapter/test_build_adapters.py",
    ),
    "an offset that adds": Mutant(
        "lab/adapter/layer.py",
        "self.B - self.offset_B",
        "self.B + self.offset_B",
        "tests/test_run.py::test_with_a_separate_offset_step_0_is_the_base",
    ),
    "an offset that trains": Mutant(
        "lab/adapter/layer.py",
        "self.offset_A = nn.Parameter(torch.empty_like(self.A).copy_(A), requires_grad=False)",
        "self.offset_A = nn.Parameter(torch.empty_like(self.A).copy_(A))",
        "tests/test_run.py::test_with_a_separate_offset_step_0_is_the_base",
    ),
    "an offset lost in the export": Mutant(
        "lab/adapter/delta.py",
        "torch.cat([layer.B.detach(), -layer.offset_B], dim=1)",
        "torch.cat([layer.B.detach(), layer.offset_B], dim=1)",
        "tests/test_run.py::test_the_exported_adapter_gives_the_runs_logits_in_stock_peft",
    ),
    "a merge without its scaling": Mutant(
        "lab/adapter/delta.py",
        "own.double() + layer.s * (B.double() @ A.double())",
        "own.double() + (B.double() @ A.double())",
        "tests/adapter/test_merge.py",
    ),
    "the same init for every seed": Mutant(
        "lab/adapter/initialise.py",
        'f"{seed}:{name}".encode()',
        'f"{name}".encode()',
        "tests/adapter/test_initialise.py",
    ),
    "the same order in every epoch": Mutant(
        "lab/training/loader.py",
        "(self.seed * 1_000_003 + epoch)",
        "(self.seed * 1_000_003)",
        "tests/training/test_loader.py",
    ),
    "a last batch that weighs as much as a full one": Mutant(
        "lab/training/loader.py", '"share": len(chosen) / self.plan.batch_size', '"share": 1.0', "tests/training"
    ),
    "prompts that are learned too": Mutant(
        "lab/data/encode.py", "np.where(mask, ids, IGNORED)", "ids", "tests/data/test_encode.py"
    ),
    "logits of every position": Mutant(
        "lab/training/loss.py",
        "chosen = args[0][self.mask]",
        "chosen = args[0].flatten(0, 1)",
        "tests/test_run.py::test_the_loss_is_transformers_own",
    ),
    "a warm-up that starts at 0": Mutant(
        "lab/training/optim.py",
        "return (step + 1) / (self.warmup + 1)",
        "return step / (self.warmup + 1)",
        "tests/training/test_optim.py",
    ),
    "Muon with other coefficients": Mutant(
        "lab/training/muon.py", "(3.4445, -4.7750, 2.0315)", "(1.5, -0.5, 0.0)", "tests/training/test_optim.py"
    ),
    "B at the rate of A": Mutant(
        "lab/training/optim.py",
        '"lr": optim.rate * optim.lora_plus_ratio',
        '"lr": optim.rate',
        "tests/training/test_optim.py",
    ),
    "full weights that a resumed ending never loads": Mutant(
        "lab/run/setup.py",
        "    load_model_state(built, state)\n",
        "",
        "tests/test_kills_in_the_ending.py",
    ),
    "another base that is not noticed": Mutant(
        "lab/run/setup.py", "        if was != stored:", "        if False:", "tests/test_other_machines.py"
    ),
    "a flipped bit that is trained on": Mutant(
        "lab/training/checkpoint.py",
        "    if broken is not None:\n        raise ValueError",
        "    if False:\n        raise ValueError",
        DAMAGED,
    ),
    "lost rows that nobody misses": Mutant(
        "lab/record/run_files.py", '    if digest.hexdigest() != recorded["sha256"]:', "    if False:", DAMAGED
    ),
    "the last weights reported as the best": Mutant(
        "lab/run/ending.py",
        'if self.config.select == "best" and',
        "if False and",
        "tests/test_run.py::test_select_best_is_what_the_record_reports",
    ),
    "two processes in one run": Mutant(
        "lab/record/__init__.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "tests/test_damaged_files.py tests/test_resume.py",
    ),
    "NaN in a record": Mutant(
        "lab/record/__init__.py",
        "    if isinstance(value, float) and not math.isfinite(value):\n        return None\n",
        "",
        "tests/test_record.py",
    ),
    "Holm without its steps": Mutant(
        "lab/report/statistics.py", "(len(tested) - position) * p", "p", "tests/report/test_statistics.py"
    ),
    "angles of the wrong side": Mutant(
        "lab/spectral/subspace.py",
        "return torch.atan2(sines, cosines)",
        "return torch.atan2(cosines, sines)",
        "tests/spectral/test_subspace.py",
    ),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_mutants_text_occurs_once_so_that_it_can_be_made(fault):
    mutant = MUTANTS[fault]
    assert (ROOT / mutant.path).read_text().count(mutant.text) == 1, mutant.text
    assert all((ROOT / test.split("::")[0]).exists() for test in mutant.caught_by.split())


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", MUTANTS)
def test_a_fault_is_caught(fault, tmp_path):
    mutant = MUTANTS[fault]
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / part)
    path = tmp_path / mutant.path
    path.write_text(path.read_text().replace(mutant.text, mutant.becomes))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.caught_by.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, f"{fault} survives {mutant.caught_by}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
