"""What holds for every strategy in conf/rank_strategy/*.yaml, so that a new YAML is covered at once."""

import functools
import inspect
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from lab.config import trust
from lab.errors import UsageError
from lab.layer import Evidence, Target
from lab.rank_strategy.shuffled import Shuffled
from lab.testing import check_rank_strategy

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "rank_strategy").glob("*.yaml"))
BUDGETED = [name for name in NAMES if name not in ("uniform", "adalora")]  # uniform has nothing to bound
NEEDED = {"custom": {"default": 6}}  # a map has no default that names a layer
RANK = 6


def composed(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return OmegaConf.to_container(compose(overrides=[*overrides, "+rank=6"]).rank_strategy, resolve=True)


@functools.cache  # composing takes Hydra a tenth of a second, and there are many tests
def as_shipped(name):
    return composed(f"+rank_strategy={name}")


def strategy(name, **changes):
    return instantiate(as_shipped(name) | NEEDED.get(name, {}) | changes, _convert_="all")


@pytest.fixture(scope="module")
def model():
    """Two blocks of a grouped-query transformer: k_proj is cheaper than q_proj, the feed-forward dearer."""
    shapes = {
        "self_attn.q_proj": (48, 48),
        "self_attn.k_proj": (16, 48),
        "mlp.up_proj": (96, 48),
        "mlp.down_proj": (48, 96),
    }
    targets = [
        Target(f"model.layers.{i}.{part}", "mlp" if "mlp" in part else "attention", i, shape, False)
        for i in range(2)
        for part, shape in shapes.items()
    ]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weights = {target.name: draw(*target.shape) * (i + 1) for i, target in enumerate(targets)}
    evidence = {}
    for i, target in enumerate(targets):
        x = draw(200, target.shape[1]) * torch.linspace(1, 0.1 * (i + 1), target.shape[1])
        gradient = draw(*target.shape) * (i + 1)
        evidence[target.name] = Evidence(
            gradient=gradient,
            gradient_square=gradient**2,
            activations=x.T @ x / 200,
            delta=draw(target.shape[0], 12) @ draw(12, target.shape[1]) * (i + 1),
            num_tokens=200,
        )
    return targets, weights, evidence


def allocate(chosen, model, rank=RANK, seed=0):
    targets, weights, evidence = model
    return chosen.allocate(targets, rank, weights, evidence, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [name for name in BUDGETED if name != "custom"])
def test_every_strategy_spends_what_uniform_spends(name, model):
    targets = model[0]
    plan = allocate(strategy(name), model)
    asked = RANK * sum(target.cost for target in targets)
    assert 0 <= asked - sum(plan[target.name] * target.cost for target in targets) < max(t.cost for t in targets)
    assert all(1 <= plan[target.name] <= target.max_rank for target in targets)
    assert set(plan) == {target.name for target in targets}


@pytest.mark.parametrize("name", BUDGETED)
def test_min_equal_to_max_is_uniform(name, model):
    bounds = {"min_rank": RANK, "max_rank": RANK}
    chosen = {"of": as_shipped(name)["of"] | bounds} if name == "shuffled" else bounds
    assert allocate(strategy(name, **chosen), model) == {target.name: RANK for target in model[0]}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adalora"])
def test_one_seed_gives_one_plan_and_touches_nothing(name, model):
    weights = model[1]
    before = {key: weight.clone() for key, weight in weights.items()}
    assert allocate(strategy(name), model, seed=3) == allocate(strategy(name), model, seed=3)
    assert all(torch.equal(before[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", [name for name in BUDGETED if name not in ("custom", "shuffled")])
def test_no_strategy_is_uniform_under_another_name(name, model):
    assert len(set(allocate(strategy(name), model).values())) > 1


# ranks by role are all but constant over layers of equal cost, so there is nothing to permute
@pytest.mark.parametrize(
    "of", [name for name in BUDGETED if name not in ("custom", "shuffled") and "heavy" not in name]
)
def test_every_strategy_can_be_shuffled(of, model):
    plan = allocate(strategy("shuffled", of=as_shipped(of)), model)
    assert set(plan) == {target.name for target in model[0]}
    assert sorted(plan.values()) == sorted(allocate(strategy(of), model).values())


def test_no_strategy_can_be_shuffled_that_knows_its_ranks_only_in_the_end():
    class Cutting:
        plan_is_final = False

        def allocate(self, *_): ...

    for name, of in (("adalora", strategy("adalora")), ("cutting", Cutting())):
        with pytest.raises(UsageError) as error:
            Shuffled(of=of)
        assert str(error.value) == (
            f"rank_strategy=shuffled cannot permute {name}, whose ranks are known only when its run has ended; "
            "give them to rank_strategy=custom, and that to shuffled."
        )


def test_what_is_shuffled_is_chosen_like_any_option():
    node = composed("+rank_strategy=shuffled", "rank_strategy@rank_strategy.of=eva", "rank_strategy.of.rho=3.0")
    assert node["of"] == as_shipped("eva") | {"rho": 3.0}


def test_a_map_of_endings_names_and_expressions_can_be_given_on_the_command_line():
    ranks = {"q_proj": 8, "model.layers.0.mlp.up_proj": 3, r".*\.1\..*": 2}
    written = ", ".join(f"{key}: {rank}" for key, rank in ranks.items())
    node = composed("+rank_strategy=custom", f"rank_strategy.ranks={{{written}}}")
    assert node["ranks"] == ranks


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adalora"])
def test_every_strategy_passes_the_check_that_others_strategies_get(name):
    check_rank_strategy(strategy(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_strangers_run_may_have_the_strategy_whether_it_needs_evidence_by_option_or_by_class(name, tmp_path):
    trust.check({"rank_strategy": as_shipped(name)}, tmp_path, "config.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_holds_every_parameter_and_the_class_no_default(name):
    node = as_shipped(name)
    parameters = inspect.signature(get_class(node["_target_"])).parameters
    assert set(node) == {"_target_", *parameters}
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters.values())
