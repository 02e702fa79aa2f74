"""What lab.export writes is what stock peft and transformers load: the right base, dtype and files."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from jobs import run
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab import config
from lab.adapter.export import verify_export
from lab.adapter.read import read
from lab.config import instantiate
from lab.errors import Mismatch, UsageError
from lab.export import export_run, load_model, main
from lab.model.hub import ASSETS
from lab.run import selected

SHORT = (
    "schedule.max_epochs=null",
    "schedule.max_steps=2",
    "schedule.warmup_steps=0",
    "schedule.lr_scheduler=constant",
    "optim.lr=0.02",
    "data.train_examples=14",
    "data.val_examples=7",
    "data.test_examples=7",
    "evaluate.accuracy=false",
    "evaluate.num_samples=0",
    "evidence.num_examples=4",
)
IDS = torch.tensor([[5, 17, 40, 3, 99, 250, 7, 31]])
STORED = ["float32", "bfloat16"]
COMPUTED = ["32-true", "bf16-mixed", "bf16-true"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
SETTINGS = {"temperature": 0.6, "top_p": 0.9}  # published models have such, with sampling off; transformers warns


@torch.no_grad()
def logits(net) -> torch.Tensor:
    return net.eval()(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small base on disk in a dtype, with a tokenizer, a chat template and settings of generation."""

    @cache
    def of(dtype: str) -> Path:
        folder = tmp_path_factory.mktemp(dtype) / "base"
        net = instantiate.make(config.compose("model=micro").model).load(torch.float32, 0)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)  # logits that a dtype can spoil
        net.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / "base")
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | SETTINGS))
        return folder

    return of


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """The folder of a short run; each is run once."""

    @cache
    def of(stored: str | None, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        model = () if stored is None else ("model=pretrained", f"model.name_or_path={base(stored)}")
        assert run(folder, *SHORT, *model, *overrides).status == "completed"
        return folder

    return of


def exported(run_dir: Path, to: Path, format: str = "adapter", rank: int | None = None) -> Path:
    export_run(run_dir, to, format, rank)
    return to


def dtypes(folder: Path) -> set[str]:
    return {str(t.dtype).removeprefix("torch.") for t in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("computed", COMPUTED)
def test_a_merged_model_has_the_dtype_of_the_bases_files(stored, computed, base, trained, tmp_path):
    run_dir = trained(stored, "init=svd", f"hardware.precision={computed}")
    whole = exported(run_dir, tmp_path / "whole", "merged")
    assert dtypes(whole) == {stored}
    assert json.loads((whole / "config.json").read_text())["dtype"] == stored
    pristine = AutoModelForCausalLM.from_pretrained(base(stored), dtype=torch.float32)
    before, expected = logits(pristine), logits(PeftModel.from_pretrained(pristine, run_dir / "adapter"))
    found = logits(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32))
    effect = float((expected - before).abs().max())
    assert effect > 0.5
    # In float32 only the order of summation; in bf16 half an ulp of each weight, 2⁻⁹ of it, in logits of 10 or so.
    assert float((found - expected).abs().max()) <= (1e-4 if stored == "float32" else effect / 10)


@pytest.mark.parametrize(
    ("stored", "computed", "kept"),
    [("float32", "bf16-true", "bfloat16"), ("bfloat16", "bf16-mixed", "float32"), ("bfloat16", "32-true", "float32")],
)
def test_weights_that_all_trained_keep_the_dtype_they_trained_in(stored, computed, kept, trained, tmp_path):
    """Rounding them to the base's would undo steps smaller than its spacing; widening them would add nothing."""
    run_dir = trained(stored, "method=full", f"hardware.precision={computed}")
    whole = exported(run_dir, tmp_path / "whole", "merged")
    assert dtypes(whole) == dtypes(run_dir / "model") == {kept}
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, run_dir / "model"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dora_in_bf16_merges_into_a_float32_base(base, trained, tmp_path):
    run_dir = trained("float32", "adapter.use_dora=true", "hardware.precision=bf16-true")
    whole = AutoModelForCausalLM.from_pretrained(exported(run_dir, tmp_path / "whole", "merged"))
    stock = AutoPeftModelForCausalLM.from_pretrained(exported(run_dir, tmp_path / "adapter"))
    assert whole.dtype == torch.float32
    torch.testing.assert_close(logits(whole), logits(stock), rtol=1e-4, atol=1e-4)  # the order of summation


# AutoPeft loads the base that adapter_config.json names; whatever the folder is, that must be the right one.


@pytest.mark.parametrize("format", ["adapter", "portable"])
@pytest.mark.parametrize(
    ("stored", "overrides"),
    [
        ("float32", ("init=svd",)),
        ("float32", ("init=loftq",)),
        ("float32", ("init=pissa", "init.offset=fold")),
        ("bfloat16", ("init=loftq",)),
        (None, ("init=svd",)),  # micro: random weights that no name gives back
        (None, ("init=loftq",)),
        (None, ("rank_strategy=adalora",)),
        (None, ("rank_strategy=linear_decay", "init=svd")),
    ],
)
def test_autopeft_finds_the_base_and_gives_the_runs_logits(format, stored, overrides, trained, tmp_path, monkeypatch):
    run_dir = trained(stored, *overrides)
    monkeypatch.chdir(tmp_path)
    exported(run_dir, Path("here"), format)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = logits(load_model(run_dir)[0])
    stock = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "here", dtype=torch.float32)
    # The contract in float32 is 1e-5 of a logit; the largest here are about 10.
    torch.testing.assert_close(logits(stock), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("overrides", [("init=svd",), ("init=loftq",)])
def test_the_runs_own_adapter_names_its_base_too(overrides, base, trained, tmp_path, monkeypatch):
    run_dir = trained("float32", *overrides)
    monkeypatch.chdir(tmp_path)
    expected = logits(load_model(run_dir)[0])
    found = logits(AutoPeftModelForCausalLM.from_pretrained(run_dir / "adapter"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    named = json.loads((run_dir / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == (base("float32") if overrides == ("init=svd",) else run_dir / "adapter/base")


def test_the_shipped_base_is_named_by_its_folder(tmp_path):
    run(tmp_path / "run", *SHORT, "model=tiny")
    for folder in (tmp_path / "run/adapter", exported(tmp_path / "run", tmp_path / "to")):
        named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert Path(named) == ASSETS / "base"
        assert not (folder / "base").exists()
    stock = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "to", dtype=torch.float32)
    expected = logits(load_model(tmp_path / "run")[0])
    torch.testing.assert_close(logits(stock), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_model_drawn_at_random_is_named_so_in_the_runs_own_adapter(trained):
    run_dir = trained(None, "init=svd")
    named = json.loads((run_dir / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "scratch:llama"
    assert not (run_dir / "adapter/base").exists(), "every run of a large model would carry one"


def test_a_copied_folder_loads_from_the_base_in_it(trained, tmp_path):
    """AutoPeft follows the path in adapter_config.json, which is of the place it was written to."""
    run_dir = trained("float32", "init=loftq")
    exported(run_dir, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "moved/base")
    expected = logits(load_model(run_dir)[0])
    found = logits(PeftModel.from_pretrained(net, tmp_path / "moved"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_revision_of_the_base_is_named(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/v1").write_text("a" * 40)
    shutil.copytree(base("bfloat16"), repository / "snapshots" / ("a" * 40))
    named = ("model=pretrained", "model.name_or_path=some/model", "model.revision=v1")
    run(tmp_path / "run", *SHORT, *named)
    for folder in (tmp_path / "run/adapter", exported(tmp_path / "run", tmp_path / "to")):
        written = json.loads((folder / "adapter_config.json").read_text())
        assert (written["base_model_name_or_path"], written["revision"]) == ("some/model", "v1")
    whole = exported(tmp_path / "run", tmp_path / "whole", "merged")
    assert dtypes(whole) == {"bfloat16"}


def verified(run_dir: Path, folder: Path, **named) -> None:
    verify_export(folder, read(load_model(run_dir)[0]), **named)


BASES = {
    "another base": ("init=svd", lambda f: {"base_model_name_or_path": "some/other"}, "name_or_path is some/other"),
    "no base": ("init=svd", lambda f: {"base_model_name_or_path": None}, "base_model_name_or_path is None"),
    "another revision": ("init=svd", lambda f: {"revision": "v2"}, "revision is v2, asked None"),
    "the pristine base": (
        "init=loftq", lambda f: {"base_model_name_or_path": str(ASSETS / "base")}, "base_model_name_or_path is .*assets"
    ),
    "a relative base": ("init=loftq", lambda f: {"base_model_name_or_path": "base"}, "base_model_name_or_path is base"),
    "a base without weights": ("init=loftq", lambda f: (f / "base/model.safetensors").unlink() or {}, "no weights"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BASES)
def test_an_adapter_on_another_base_is_found(fault, base, trained, tmp_path):
    scheme, spoil, said = BASES[fault]
    run_dir = trained("float32", scheme)
    folder = exported(run_dir, tmp_path / "to")
    named = {"base": str(base("float32"))} if scheme == "init=svd" else {}
    verified(run_dir, folder, **named)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | spoil(folder)))
    with pytest.raises(Mismatch, match=said):
        verified(run_dir, folder, **named)


@pytest.mark.parametrize("format", ["adapter", "portable", "merged"])
@pytest.mark.parametrize("overrides", [("init=svd",), ("init=loftq",)])
def test_tokenizer_chat_template_and_settings_of_generation_come_along(format, overrides, base, trained, tmp_path):
    to = exported(trained("float32", *overrides), tmp_path / "to", format)
    models = [to] if format == "merged" else [to / "base"] * (overrides == ("init=loftq",))
    asked = [{"role": "user", "content": "What is 1/2 + 1/3?"}]
    theirs = AutoTokenizer.from_pretrained(base("float32"))
    for folder in {to, *models}:
        ours = AutoTokenizer.from_pretrained(folder)
        assert ours.apply_chat_template(asked) == theirs.apply_chat_template(asked)
        assert (ours.eos_token, ours.pad_token) == (theirs.eos_token, theirs.pad_token)
    for folder in models:
        assert SETTINGS.items() <= json.loads((folder / "generation_config.json").read_text()).items()


def test_what_other_readers_would_do_is_said_in_a_line_each(trained, tmp_path, capsys):
    uneven = trained(None, "rank_strategy=linear_decay", "init=svd")
    capsys.readouterr()  # what the run said
    main([str(uneven), "--to", str(tmp_path / "plain")])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"wrote {tmp_path / 'plain'}"
    assert sum("ranks differ by layer" in line and "--format portable" in line for line in said) == 1
    main([str(uneven), "--to", str(tmp_path / "portable"), "--format", "portable"])
    assert "ranks differ" not in capsys.readouterr().out
    main([str(uneven), "--to", str(tmp_path / "large"), "--rank", "99"])
    assert "so --rank 99 cut nothing" in capsys.readouterr().out
    main([str(trained(None, "alpha=1")), "--to", str(tmp_path / "damped")])
    assert "alpha / r is 0.25" in capsys.readouterr().out
    main([str(trained(None, "init=svd", "rank=12")), "--to", str(tmp_path / "doubled")])
    assert "vLLM serves rank 24 with --max-lora-rank 32; its default is 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "format", "rank", "said"),
    [
        (
            ("method=full",),
            "adapter",
            None,
            r"trained every weight \(method=full\), so it has no adapter; use --format",
        ),
        (
            ("method=full",),
            "portable",
            None,
            r"trained every weight \(method=full\), so it has no adapter; use --format",
        ),
        (("method=full",), "merged", 2, "trained every weight"),
        (("adapter.use_dora=true",), "portable", None, "--format portable writes plain low-rank pairs, and DoRA"),
        (("adapter.use_dora=true",), "adapter", 2, "--rank cuts a plain low-rank change, and DoRA's has full rank"),
        (("init=svd",), "merged", 2, "--rank re-truncates an adapter; with --format merged there is none"),
        (("init=svd",), "adapter", 0, "--rank must be at least 1; got 0"),
        (
            ("model=qwen2_5_7b",),
            "merged",
            None,
            "quantised base .*=nf4.*, which cannot take the adapter in; put .*/adapter",
        ),
    ],
)
def test_what_a_run_cannot_give_is_refused_before_anything_is_loaded(
    overrides, format, rank, said, tmp_path, monkeypatch
):
    config.save(config.compose("model=micro", *overrides), tmp_path)
    monkeypatch.setattr(selected, "load", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=said):
        export_run(tmp_path, tmp_path.parent / "to", format, rank)
