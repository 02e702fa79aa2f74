"""What a user may type, and the sentence that answers what they may not."""

import subprocess
import sys
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from lab.config import CONF, ConfigError, RunConfig, check, compose, from_plain
from lab.config.validate import CHOICES, DEFAULTS


def test_the_default_config_is_typed_and_plain():
    config = compose()
    assert isinstance(config, RunConfig)
    assert (config.rank, config.alpha, config.method, config.data_seed) == (16, 32.0, "lora", config.seed)
    assert isinstance(config.init, dict)


def test_data_seed_follows_seed_until_it_is_set():
    assert compose("seed=3").data_seed == 3
    assert compose("seed=3", "data_seed=1").data_seed == 1


def test_a_saved_config_comes_back_equal():
    config = compose("init=svd", "rank=8")
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert from_plain(plain) == config


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("+foo=1", "Unknown key 'foo'"),
        ("+rnak=3", "did you mean rank"),
        ("rank=0", "rank must be at least 1; got 0"),
        ("rank=-4", "rank must be at least 1; got -4"),
        ("method=lorra", "did you mean lora"),
        ("optim.lr=0", "optim.lr must be above 0; got 0"),
        ("model=pretrained", "model.name_or_path has no value; give it one: model.name_or_path="),
        ("alpha=inf", "alpha must be above 0 and finite; got inf"),
        ("adapter.dropout=1", "adapter.dropout must be at least 0 and below 1; got 1.0"),
        ("evaluate.prompts=[[a]]", "evaluate.prompts=[['a']] is no list of texts"),
        ("optim.weight_decay=-1", "optim.weight_decay must be at least 0; got -1"),
        ("optim.max_grad_norm=nan", "optim.max_grad_norm must be at least 0; got nan"),
        ("adapter.target_modules=3", "adapter.target_modules=3 is neither a regular expression nor a list"),
        ("adapter.exclude_modules=[q_proj,3]", "adapter.exclude_modules=['q_proj', 3] is neither"),
        ("optim.betas=[0.9]", "optim.betas must be two numbers"),
        ("optim.betas=[0.9,1]", "optim.betas must be two numbers from 0 to below 1"),
        ("hardware.timeout_s=0", "hardware.timeout_s must be above 0 (or null); got 0"),
        ("hardware.devices=3", "nearest batch sizes are 15 or 18"),
        ("hardware.micro_batch_size=5", "nearest batch sizes are 15 or 20"),
    ],
)
def test_what_types_cannot_see_is_refused_with_a_remedy(override, part):
    with pytest.raises(ConfigError, match=None) as error:
        compose(override)
    assert part in str(error.value)


INITS = sorted(path.stem for path in (CONF / "init").glob("*.yaml"))
STRATEGIES = sorted(path.stem for path in (CONF / "rank_strategy").glob("*.yaml"))
DORAS = {"random", "gaussian", "init_b", "orthogonal", "eva"}  # by their formulas B A = 0; test_every_init measures it


def refusals(*overrides: str) -> list[str]:
    """The sentences that answer a command, none where it may run."""
    try:
        compose(*overrides)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def option(group: str, name: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def test_the_default_options_are_those_that_stand_for_none():
    for group, default in DEFAULTS.items():
        assert getattr(compose(), group) == default


@pytest.mark.parametrize("init", INITS)
def test_an_init_goes_with_what_it_can_serve(init):
    node = option("init", init)
    target = f"init._target_={node['_target_']}"
    if node["_target_"] == "lab.init.random.Random":  # the class of three options, told apart by one value each
        target += {"random": "", "gaussian": " with init.distribution=gaussian", "init_b": " with init.filled=B"}[init]
    full = (
        f"method=full with {target} is refused: method=full trains every weight and fills no adapter, so this init "
        "would do nothing; use method=lora, or init=random."
    )
    adalora = (
        f"rank_strategy._target_=lab.rank_strategy.adalora.Adalora with {target} is refused: AdaLoRA fills its "
        "triplets P Λ Q itself, with Λ = 0, so a pair or an offset from this init would have no place; use init=random."
    )
    dora = (
        f"adapter.use_dora=True with {target} is refused: DoRA rescales the whole weight, so it starts from B A = 0, "
        "and this init's product is not zero; use init=random, gaussian, init_b, orthogonal or eva."
    )
    assert refusals(f"init={init}") == []
    assert refusals(f"init={init}", "method=full") == [full] * (init != "random")
    assert refusals(f"init={init}", "rank_strategy=adalora") == [adalora] * (init != "random")
    assert refusals(f"init={init}", "adapter.use_dora=true") == [dora] * (init not in DORAS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_strategy_goes_with_what_it_can_serve(strategy):
    target = f"rank_strategy._target_={option('rank_strategy', strategy)['_target_']}"
    full = (
        f"method=full with {target} is refused: method=full has no ranks to spread; use method=lora, or "
        "rank_strategy=uniform."
    )
    dora = (
        f"{target} with adapter.use_dora=True is refused: DoRA rescales the whole weight and peft's AdaLoRA knows no "
        "magnitude; use adapter.use_dora=false."
    )
    best = (
        f"{target} with select=best is refused: AdaLoRA meets its budget only near its end, so weights from before may "
        "cost more than was asked; use select=last."
    )
    chosen, cuts = f"rank_strategy={strategy}", strategy == "adalora"
    assert refusals(chosen) == []
    assert refusals(chosen, "method=full") == [full] * (strategy != "uniform")
    assert refusals(chosen, "adapter.use_dora=true") == [dora] * cuts
    assert refusals(chosen, "select=best") == [best] * cuts
    assert refusals(chosen, "select=best", "adapter.use_dora=true") == [dora, best] * cuts


def test_full_training_refuses_each_choice_that_needs_an_adapter_in_a_sentence_of_its_own():
    told = refusals("method=full", "adapter.use_dora=true", "init=gaussian", "init.filled=B", "rank_strategy=adalora")
    assert [sentence.split(" is refused")[0] for sentence in told] == [
        "method=full with adapter.use_dora=True",
        "method=full with init._target_=lab.init.random.Random with init.distribution=gaussian",
        "method=full with init._target_=lab.init.random.Random with init.filled=B",
        "method=full with rank_strategy._target_=lab.rank_strategy.adalora.Adalora",
    ]


class Mine:
    """A class of the user's own that says nothing of what it goes with."""


class Moving(Mine):
    """One whose product is not zero at step 0."""

    starts_at_zero = False


class Picky(Mine):
    """One that refuses something beside it."""

    conflicts = (
        ("select", "best", "mine is at its worst there; use select=last"),
        ("init.filled", "B", "mine fills A; use init.filled=A"),
        ("init.nowhere", 3, "mine has no such option"),
    )


@pytest.mark.parametrize("group", ["init", "rank_strategy"])
def test_a_class_of_ones_own_is_refused_where_it_could_do_nothing_and_elsewhere_by_what_it_says(group):
    def mine(cls: type, *overrides: str) -> list[str]:
        return refusals(f"{group}._target_={__name__}.{cls.__name__}", *overrides)

    own = f"{group}._target_={__name__}"
    (full,) = mine(Mine, "method=full")
    assert full.startswith(f"method=full with {own}.Mine is refused: method=full ")
    assert mine(Mine) == mine(Mine, "adapter.use_dora=true") == mine(Mine, "select=best") == []
    dora = [sentence.split(":")[0] for sentence in mine(Moving, "adapter.use_dora=true")]
    assert dora == [f"adapter.use_dora=True with {own}.Moving is refused"] * (group == "init")
    assert mine(Picky) == []
    assert mine(Picky, "select=best", "init.filled=B") == [
        f"{own}.Picky with select=best is refused: mine is at its worst there; use select=last.",
        f"{own}.Picky with init.filled=B is refused: mine fills A; use init.filled=A.",
    ]


@pytest.mark.parametrize("target", ["nowhere.Init", "lab.init.svd.Nothing", "''", "3", "null"])
def test_a_class_that_does_not_exist_is_left_to_the_sentence_that_says_so(target):
    assert refusals(f"init._target_={target}", f"rank_strategy._target_={target}", "adapter.use_dora=true") == []


def test_only_a_config_that_a_class_could_refuse_waits_for_torch():
    script = """
import sys
from lab.config import ConfigError, compose

compose()
compose("init=svd", "select=best")
for wrong in (["init=svd"], ["rank_strategy=adalora"], ["init=svd", "adapter.use_dora=true", "rank=0"]):
    try:
        compose("method=full", *wrong)
    except ConfigError:
        continue
    raise AssertionError(wrong)
assert "torch" not in sys.modules
compose("rank_strategy=gora")
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("override", ["rank=sixteen", "init=svdd", "rnak=3", "init.nitr=3", "hardware.devices=two"])
def test_what_hydra_sees_is_refused_at_composition(override):
    with (
        initialize_config_dir(version_base="1.3", config_dir=str(CONF)),
        pytest.raises((ConfigCompositionException, Exception)) as error,
    ):
        hydra_compose("config", overrides=[override])
    assert override.split("=")[0].split(".")[-1] in str(error.value) or "svdd" in str(error.value)


def test_every_problem_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        compose("rank=0", "optim.lr=-1", "select=worst")
    assert all(part in str(error.value) for part in ("rank", "optim.lr", "select"))


def test_every_choice_is_documented_by_its_default():
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(OmegaConf.structured(compose()), key)
        assert value in allowed


@pytest.mark.parametrize("group", ["model", "data", "init", "rank_strategy", "svd_policy", "logger"])
def test_a_file_that_names_an_option_where_its_values_belong_is_told_where_names_go(group):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra_compose("config")
    cfg[group] = "mine"  # as `init: mine` in an experiment's file
    with pytest.raises(ConfigError) as told:
        check(cfg)
    assert str(told.value).startswith(f"{group}: mine is a name where its values belong; in a file's defaults list")
