"""What a user may type, and the sentence that answers what they may not."""

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from lab.config import CONF, ConfigError, RunConfig, compose, typed
from lab.config.validate import CHOICES


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
    assert typed(plain) == config


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


@pytest.mark.parametrize("init", [name for name in INITS if name != "random"])
def test_adalora_takes_no_init_but_random(init):
    with pytest.raises(ConfigError, match="AdaLoRA fills its triplets"):
        compose("rank_strategy=adalora", f"init={init}")


def test_adalora_refuses_dora_and_weights_from_before_its_end():
    with pytest.raises(ConfigError, match="knows no magnitude"):
        compose("rank_strategy=adalora", "adapter.use_dora=true")
    with pytest.raises(ConfigError, match="meets its budget only near its end"):
        compose("rank_strategy=adalora", "select=best")


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


@pytest.mark.parametrize("group", ["init", "rank_strategy"])
def test_what_an_adapter_alone_could_use_is_refused_without_one(group):
    for path in sorted((CONF / group).glob("*.yaml")):
        if path.stem in ("random", "uniform", "custom"):  # custom asks for its ranks before anything else
            continue
        with pytest.raises(ConfigError, match="method=full"):
            compose("method=full", f"{group}={path.stem}")
