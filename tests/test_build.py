"""What a `_target_` mapping becomes, and the sentence where its values are not what the class counts with."""

import dataclasses

import pytest

from lab import config
from lab.config import instantiate
from lab.errors import UsageError


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("init.size=abc", "init.size='abc' is not a number."),
        ("init.warmup_steps=1.5", "init.warmup_steps=1.5 is not a whole number."),
        ("init.warmup_steps=true", "init.warmup_steps=True is not a whole number."),
        ("init.teacher=3", "init.teacher=3 is not text or null."),
        ("rank_strategy.max_rank=many", "rank_strategy.max_rank='many' is not a whole number or null."),
        ("rank_strategy.min_rank=null", "rank_strategy.min_rank=None is not a whole number."),
    ],
)
def test_a_value_of_another_type_is_refused_where_the_user_wrote_it(override, sentence):
    settings = config.compose("init=svd", "rank_strategy=linear_decay", override)
    with pytest.raises(UsageError) as error:
        instantiate.make(getattr(settings, override.split(".")[0]))
    assert str(error.value) == sentence


def test_a_value_inside_another_strategy_is_named_by_its_whole_key():
    settings = config.compose("rank_strategy=shuffled", "rank_strategy.of.first=none")
    with pytest.raises(UsageError, match=r"rank_strategy\.of\.first='none' is not a number"):
        instantiate.make(settings.rank_strategy)


def test_a_whole_number_is_a_number_and_null_is_one_of_the_types_where_it_says_so():
    settings = config.compose("rank_strategy=linear_decay", "rank_strategy.first=1", "rank_strategy.max_rank=null")
    assert instantiate.make(settings.rank_strategy).first == 1


@dataclasses.dataclass
class Mine:
    """A class of somebody else's."""

    width: int


def test_anothers_class_is_named_by_its_path_and_one_that_does_not_exist_too():
    with pytest.raises(UsageError, match=r"Mine\.width='wide' is not a whole number"):
        instantiate.make({"_target_": f"{__name__}.Mine", "width": "wide"})
    with pytest.raises(UsageError, match="no_such_module"):
        instantiate.make({"_target_": "no_such_module.Class"})


@pytest.mark.parametrize(
    ("strategy", "override", "sentence"),
    [
        ("linear_decay", "first=-1", r"rank_strategy\.first=-1 is no share of `rank`"),
        ("linear_growth", "last=nan", r"rank_strategy\.last=nan is no share"),
        ("empirical", "middle=inf", r"rank_strategy\.middle=inf is no share"),
        ("attention_heavy", "mlp=-0.5", r"rank_strategy\.mlp=-0\.5 is no share"),
        ("empirical", "early_end=2", r"choose 0 < early_end <= late_start <= 1"),
        ("empirical", "late_start=0.1", r"early_end=0\.3 and late_start=0\.1 are positions"),
        ("gora", "cost_power=nan", r"rank_strategy\.cost_power=nan must lie between 0"),
        ("shuffled", "of=null", r"rank_strategy\.of=None is no rank strategy to permute"),
        ("eva", "rho=nan", r"rank_strategy\.rho=nan must be at least 1"),
        ("posthoc", "wide=inf", r"rank_strategy\.wide=inf must exceed 1"),
        ("adalora", "start=inf", r"rank_strategy\.start=inf must be at least 1"),
        ("adalora", "orthogonality=nan", r"rank_strategy\.orthogonality=nan must be 0 or more"),
        ("custom", "ranks=[3,4]", r"rank_strategy\.ranks=\[3, 4\] is no map; write \{q_proj: 8"),
    ],
)
def test_a_shape_that_means_nothing_is_refused_by_the_key_that_says_it(strategy, override, sentence):
    settings = config.compose(f"rank_strategy={strategy}", f"rank_strategy.{override}")
    with pytest.raises(UsageError, match=sentence):
        instantiate.make(settings.rank_strategy)


@pytest.mark.parametrize("value", [2.5, "four", True])
def test_a_map_of_ranks_holds_whole_numbers(value):
    node = dict(config.compose("rank_strategy=custom").rank_strategy) | {"ranks": {"q_proj": value}}
    with pytest.raises(UsageError, match=r"rank_strategy\.ranks gives q_proj .* not a whole number"):
        instantiate.make(node)
