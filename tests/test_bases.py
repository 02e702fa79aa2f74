"""What a config leaves to its base: the learning rate, which the record gives a reason for, and the retention text."""

import pytest
import yaml
from jobs import run

from lab import config, record
from lab.config import bases
from lab.launch import resume
from lab.report.card import card
from lab.report.run import load_run

LOCAL = ("model=pretrained", "model.name_or_path=my_model")


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ((), 1e-3),  # the shipped base, as ever
        (("method=full",), 1e-4),
        (("model=qwen2_5_7b",), 3e-4),
        (("model=llama3_2_3b", "method=full"), 3e-5),
        (LOCAL, 3e-4),
        (("model=smollm2_135m",), bases.BASES["lab:smollm2_135m"].lr),
        (("model=smollm2_135m", "init=pissa"), 1.69e-4),
        (("model=smollm2_135m", "init=svd"), 3.45e-4),
        (("model=smollm2_135m", "init=milora"), 5.96e-4),
        (("model=smollm2_135m", "init=pissa", "init.offset=fold", "init.svd=exact"), 1.69e-4),  # the same start
        (("model=smollm2_135m", "init=svd", "init.warmup_steps=10"), 3.45e-4),  # which is for another source
        (("model=smollm2_135m", "init=svd", "init.source=warmup"), 1e-3),
        (("model=smollm2_135m", "init=svd", "method=full", "init=random"), 1e-4),
        (("model=smollm2_135m", "init=pissa", "init.magnitude=matched"), 1e-3),  # of another size, another start
        (("model=smollm2_135m", "init=olora"), 1e-3),
        (("model=micro",), 1e-3),
        (("model=micro", "method=full"), 1e-3),  # from scratch there is nothing to keep
        (("model=nanochat_d4", "method=full", "optim=nanochat"), 4e-3),  # its option's own
        (("model=base_scratch", "method=full", "optim=muon"), 3e-3),
    ],
)
def test_a_rate_that_is_left_open_is_the_bases_and_one_of_an_option_stays(overrides, rate):
    assert config.compose(*overrides).optim.lr == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("overrides", [(), ("model=qwen2_5_7b",), ("method=full",), ("model=smollm2_135m",)])
def test_the_command_line_wins_and_is_not_given_another_reason(overrides):
    optim = config.compose(*overrides, "optim.lr=0.0123").optim
    assert (optim.lr, optim.lr_from) == (0.0123, None)


def test_full_fine_tuning_takes_a_tenth_and_says_so():
    lora, full = (config.compose("model=qwen2_5_7b", f"method={method}").optim for method in ("lora", "full"))
    assert full.lr == pytest.approx(lora.lr / 10)
    assert full.lr_from == f"{lora.lr_from}, times 0.1 for method=full"


def test_a_rate_says_where_the_run_differs_from_those_it_is_of():
    assert "at alpha 32" not in config.compose().optim.lr_from
    other = config.compose("alpha=16", "scaling=rslora").optim.lr_from
    assert other.endswith(", at alpha 32 over the rank; this run has alpha=16 and scaling=rslora")


def test_a_rate_says_which_start_it_is_of():
    def reason(*overrides):
        return config.compose("model=smollm2_135m", *overrides).optim.lr_from

    plain = bases.BASES["lab:smollm2_135m"].lr_from
    assert reason() == reason("init=random") == plain
    assert reason("init=pissa") == f"{plain}, init=pissa"
    assert reason("init=pissa", "alpha=16") == (
        f"{plain}, init=pissa, at alpha 32 over the rank; this run has alpha=16"
    )
    assert reason("init=olora") == f"{plain}; that is plain LoRA's, and this init may like another (lab.suggest lr)"
    assert "may like another" not in config.compose("model=micro", "init=svd").optim.lr_from


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (config.CONF / "experiment").glob("*.yaml")))
def test_every_experiment_has_a_rate(experiment):
    given = ["model.name_or_path=x"] if experiment == "base_docs" else []
    assert config.compose(f"experiment={experiment}", *given).optim.rate > 0


def test_a_run_records_its_rate_and_where_it_is_from_and_the_card_shows_both(tmp_path, capsys):
    result = run(tmp_path / "run", "schedule.max_steps=1", "evaluate.accuracy=false")
    assert result.config["optim"]["lr"] == 1e-3
    assert result.config["optim"]["lr_from"] == bases.UNKNOWN.lr_from
    assert f"optim.lr=0.001: {bases.UNKNOWN.lr_from}" in capsys.readouterr().out
    shown = repr(card(load_run(tmp_path / "run")))
    assert bases.UNKNOWN.lr_from in shown
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optim"]["lr"] == 1e-3


def test_a_run_goes_on_at_its_own_rate_whatever_the_table_says_by_then(tmp_path, monkeypatch):
    run(tmp_path, "schedule.max_steps=1", "evaluate.accuracy=false")
    monkeypatch.setattr(bases, "UNKNOWN", bases.Base(5e-2, "a later table"))
    assert config.load(tmp_path).optim.lr == 1e-3


def test_a_run_of_before_rates_had_reasons_is_the_same_run(tmp_path):
    given = config.compose("model=micro")
    old = config.plain_of(given)
    del old["optim"]["lr_from"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    record.write(tmp_path, record.RunRecord(status="interrupted"))
    resume.check_same(given, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("data=jsonl", "data.path=x"), "stdlib_docs"),
        (("data=hub", "data.path=owner/x", "data.messages_field=messages"), "stdlib_docs"),
        (("data=alpaca",), "stdlib_docs"),
        (("data=parquet", "data.path=x"), "stdlib_docs"),
        (("data=text", "data.path=x"), "stdlib_docs"),
        (("data=jsonl", "data.path=x", "model=micro"), None),  # from scratch: nothing to forget
        (("data=jsonl", "data.path=x", "model=qwen2_5_7b"), None),  # nothing is known of what it learned
        (("data=jsonl", "data.path=x", "data.retention=null"), None),
        (("data=jsonl", "data.path=x", "data.retention=stdlib_code"), "stdlib_code"),
        (("data=probability_qa", "data.retention=auto"), "stdlib_docs"),
    ],
)
def test_the_retention_text_is_the_bases_where_it_has_one(overrides, text):
    assert config.compose(*overrides).data["retention"] == text
