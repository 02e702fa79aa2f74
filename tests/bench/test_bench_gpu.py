"""The prepared script for a GPU: it runs whole where there is none, and no part can take the others with it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import peft
import pytest
import torch

from lab.bench import gpu
from lab.bench.__main__ import main
from lab.bench.gpu import checks, drawn, packed
from lab.bench.gpu.part import Started, finite
from lab.bench.shapes import LLAMA_135M, QWEN2_7B, TINY
from lab.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SHAPE = LLAMA_135M | TINY


@pytest.mark.slow
def test_the_whole_script_runs_tiny_on_a_cpu(tmp_path):
    """A process as a user would start it; on a machine with a GPU the checks run too, and that takes longer."""
    line = [sys.executable, "-m", "lab.bench", "gpu", "--tiny", "--budget", "240", "--to", str(tmp_path)]
    hidden = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, cwd=tmp_path, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "bench_gpu.jsonl").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "bench_gpu.json").read_text())
    assert [row["part"] for row in lines] == [part.name for part in gpu.PARTS]
    status = {row["part"]: row["status"] for row in lines}
    assert status.pop("checks") == "skipped"
    assert set(status.values()) == {"done"}, lines
    found = {row["part"]: row["rows"] for row in lines}
    assert all(row["same_losses"] and row["same_weights"] for row in found["resumed"]), "bitwise, on a CPU"
    losses = [row["loss"] for row in found["large"] if "loss" in row]
    assert losses == pytest.approx([losses[0]] * 4, abs=5e-3)  # bfloat16's step at 6 is 0.03, and a mean of 60 tokens
    skipped = [row for rows in found.values() for row in rows if "skipped" in row]
    assert {row["skipped"] for row in skipped} == {"no CUDA"}


def test_without_a_gpu_it_is_refused_in_one_sentence_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["gpu", "--to", str(tmp_path)])
    assert str(ended.value).startswith("the suite gpu needs a CUDA device")
    assert "--tiny" in str(ended.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Makes parts from their source, found where the lab's own are."""
    folder = tmp_path / "parts"
    folder.mkdir()
    found = (
        f"import sys\nsys.path.append({str(ROOT)!r})\nimport lab.bench.gpu as g\ng.__path__.append({str(folder)!r})\n"
    )
    (folder / "sitecustomize.py").write_text(found)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")

    def make(**sources):
        for name, body in sources.items():
            (folder / f"{name}.py").write_text(f"import os, subprocess, sys, time\ndef rows(tiny):\n    {body}\n")
        return [gpu.Part(name, 1.0) for name in sources]

    return make


def test_a_part_that_fails_hangs_or_dies_is_a_line_and_the_next_goes_on(parts, tmp_path):
    made = parts(
        first='yield {"a": 1}',
        wrong='yield {"a": 2}\n    raise ValueError("no such\\nthing")',
        dies='yield {"a": 3}\n    os.kill(os.getpid(), 9)',
        absent="yield {'a': float('nan')}",
        last='yield {"a": tiny}',
    )
    (tmp_path / "parts/absent.py").write_text("import no_such_library\n")
    lines = tmp_path / "lines.jsonl"
    rows = gpu.run(False, 60, True, lines, made)
    assert [json.loads(line) for line in lines.read_text().splitlines()] == rows
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "failed", "done"]
    assert [row["rows"] for row in rows] == [[{"a": 1}], [{"a": 2}], [{"a": 3}], [], [{"a": True}]]
    assert rows[1]["error"] == "exit code 1: ValueError: no such thing"
    assert "exit code -9" in rows[2]["error"]
    assert rows[3]["error"].endswith("No module named 'no_such_library'")


def test_a_part_at_its_deadline_is_killed_with_what_it_started_and_keeps_its_rows(parts, tmp_path):
    sleep = '[sys.executable, "-c", "import time; time.sleep(600)"]'
    mark = tmp_path / "pid"
    (part,) = parts(
        hangs=f'yield {{"a": 1}}\n    p = subprocess.Popen({sleep})\n    open({str(mark)!r}, "w").write(str(p.pid))\n'
        "    time.sleep(600)"
    )
    rows = gpu.run(False, 3, True, tmp_path / "lines.jsonl", [part, gpu.Part("ceilings", 1.0)])
    assert (rows[0]["status"], rows[0]["rows"]) == ("timed out", [{"a": 1}])
    assert 2 <= rows[0]["seconds"] < 10
    assert rows[1]["error"] == "skipped: 3 s are spent"
    for _ in range(100):
        if not Path(f"/proc/{mark.read_text()}").exists():
            break
        time.sleep(0.05)
    else:
        state = Path(f"/proc/{mark.read_text()}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state == "Z", "its child still runs"


def test_a_part_has_its_own_deadline_and_what_is_left_over_goes_to_the_later_ones(monkeypatch):
    given = []

    class Quick:
        def __init__(self, name, tiny, folder):
            pass

        def go(self, deadline):
            given.append(deadline)
            return {"status": "done", "seconds": 0.0, "deadline": deadline, "rows": [], "error": None}

        def end(self):
            pass

    monkeypatch.setattr(gpu, "Started", Quick)
    gpu.run(False, 100, True, None, [gpu.Part("a", 0.2), gpu.Part("b", 0.9), gpu.Part("c", 2.0)])
    assert given == pytest.approx([20, 90, 100], abs=1)


def test_an_end_by_the_user_keeps_the_lines_and_leaves_no_process(monkeypatch, tmp_path):
    ended = []

    class Slow:
        def __init__(self, name, tiny, folder):
            self.name = name

        def go(self, deadline):
            if self.name == "b":
                raise KeyboardInterrupt
            return {"status": "done", "rows": [], "error": None}

        def end(self):
            ended.append(self.name)

    monkeypatch.setattr(gpu, "Started", Slow)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(False, 100, True, tmp_path / "lines", [gpu.Part(name, 1.0) for name in "abc"])
    assert len((tmp_path / "lines").read_text().splitlines()) == 1
    assert ended == ["c"], "b ends itself, by its own finally"


def test_every_part_is_a_file_with_rows_and_a_process_that_was_not_told_ends(tmp_path):
    folder = Path(gpu.__file__).parent
    assert all((folder / f"{part.name}.py").is_file() for part in gpu.PARTS)
    started = Started("factors", True, tmp_path / "factors")
    started.process.stdin.close()
    assert started.process.wait(60) != 0
    assert not (tmp_path / "factors/rows.jsonl").exists()


def test_numbers_that_json_has_not_are_named():
    assert finite({"a": [1.0, float("nan"), (float("-inf"),)], 2: "x"}) == {"a": [1.0, "nan", ["-inf"]], "2": "x"}


def test_the_shapes_are_those_of_the_models_they_name():
    with torch.device("meta"):
        large = drawn.model(QWEN2_7B, torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in large.parameters()) == 7_615_616_512  # Qwen2.5-7B's card: 7.61 billion
    assert {p.dtype for p in large.parameters()} == {torch.bfloat16}


def test_each_packed_job_is_what_peft_computes_for_it_alone():
    torch.manual_seed(0)
    net = drawn.model(SHAPE, CPU, torch.float32)
    jobs, rank, ids = 3, 4, torch.randint(SHAPE["vocab_size"], (6, 10))
    layers = packed.layers_of(net)
    pairs = packed.pack(net, layers, jobs, rank)
    with torch.no_grad():
        for layer in pairs.values():
            layer.B.normal_(std=0.05)
    each = packed.losses(net, ids, jobs)
    each.sum().backward()
    for name, layer in layers.items():
        net.set_submodule(name, layer)
    config = peft.LoraConfig(r=rank, lora_alpha=packed.SCALING * rank, target_modules=list(layers))
    alone = peft.get_peft_model(net, config)
    for job in range(jobs):
        own = {name: alone.base_model.model.get_submodule(name) for name in layers}
        for name, layer in own.items():
            layer.lora_A["default"].weight.data.copy_(pairs[name].A[job])
            layer.lora_B["default"].weight.data.copy_(pairs[name].B[job])
        alone.zero_grad()
        texts = ids[2 * job : 2 * job + 2]
        loss = alone(input_ids=texts, labels=texts).loss
        loss.backward()
        assert float(each[job].detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, layer in own.items():
            for ours, theirs in (("A", "lora_A"), ("B", "lora_B")):
                expected = getattr(layer, theirs)["default"].weight.grad
                found = getattr(pairs[name], ours).grad[job]
                # float32 sums in another order, relative to the largest entry
                assert torch.allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_packed_layer_can_be_packed_anew_for_another_number_of_jobs():
    net = drawn.model(SHAPE, CPU, torch.bfloat16)
    layers = packed.layers_of(net)
    ids = torch.randint(SHAPE["vocab_size"], (8, 6))
    for jobs in (1, 4):
        step = packed.step_of(net, packed.pack(net, layers, jobs), ids, jobs)
        first = step()
        assert [step() for _ in range(3)][-1] < first
    assert sum(isinstance(module, packed.Packed) for module in net.modules()) == len(layers) == 14


def test_the_checks_say_what_they_lack(monkeypatch):
    monkeypatch.setattr(checks, "TESTS", Path("/no/such/folder"))
    assert list(checks.rows(True)) == [{"skipped": "/no/such/folder is not there: no checkout"}]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(checks.rows(True)) == [{"skipped": "pytest and pytest_timeout and xdist not installed"}]


def test_checks_are_told_by_name_as_they_end(monkeypatch, tmp_path):
    settings = (ROOT / "pyproject.toml").read_text()  # the project's own, which ask pytest to be quiet
    (tmp_path / "pyproject.toml").write_text(settings)
    marked = "import pytest\npytestmark = pytest.mark.gpu\n"
    (tmp_path / "test_x.py").write_text(f"{marked}def test_a():\n    assert 1 == 2\ndef test_b():\n    pass\n")
    monkeypatch.setattr(checks, "TESTS", tmp_path)
    given = checks.rows(True)
    ended = [next(given), next(given)]
    assert {row["test"].split("::")[-1]: row["outcome"] for row in ended} == {"test_a": "failed", "test_b": "passed"}
    last = next(given)
    assert "1 failed, 1 passed" in last["summary"]
    assert any("test_a - assert 1 == 2" in line for line in last["told"])
    with pytest.raises(RuntimeError, match="pytest -m gpu ended with 1"):
        next(given)


def test_a_usage_error_of_a_suite_is_one_sentence(monkeypatch, tmp_path):
    def refuse(quick, lines, **own):
        raise UsageError("this is the sentence.")

    monkeypatch.setattr(gpu, "run", refuse)
    with pytest.raises(SystemExit, match=r"^this is the sentence\.$"):
        main(["gpu", "--tiny", "--to", str(tmp_path)])


def test_what_is_not_installed_is_named_before_anything_starts(monkeypatch):
    find = gpu.find_spec
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in ("hydra", "peft") else find(name))
    with pytest.raises(UsageError, match=r"^the suite gpu needs peft, hydra, which \S+ does not have: install"):
        gpu.run(False, tiny=True)


@pytest.mark.parametrize("suite", ["train", "init", "spectral", "pretrain", "job"])
def test_every_suite_says_what_it_lacks_in_one_sentence(suite, tmp_path):
    hide = "import sys; sys.modules.update(hydra=None, rich=None); from lab.bench.__main__ import main"
    line = [sys.executable, "-c", f"{hide}; main([{suite!r}, '--to', {str(tmp_path)!r}])"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"the suite {suite} needs ")
    assert not list(tmp_path.iterdir())
