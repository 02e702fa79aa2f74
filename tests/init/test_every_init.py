"""What holds for every conf/init/*.yaml; a scheme is covered the moment its YAML exists."""

import dataclasses
import math

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Generator

from lab.config import CONF, trust
from lab.config.instantiate import make
from lab.errors import UsageError
from lab.layer import Evidence, Target
from lab.testing import check_init, example_evidence, example_weight

YAMLS = sorted((CONF / "init").glob("*.yaml"))
NAMES = [path.stem for path in YAMLS]
SHAPE = (56, 40)
TARGET = Target("block.0.q_proj", "attention", 0, SHAPE, False)


def config(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(CONF / "init" / f"{name}.yaml"))


def scheme(name: str, **changes):
    return make({**config(name), **changes})


def fill(init, *, rank=4, seed=0, scaling=2.0, weight=None, evidence=None):
    weight = example_weight(SHAPE) if weight is None else weight
    evidence = example_evidence(SHAPE, init.needs) if evidence is None else evidence
    return init.factors(TARGET, weight, rank, scaling, evidence, Generator().manual_seed(seed))


CONTROLLED = [name for name in NAMES if "magnitude" in config(name)]
SPECTRAL = [name for name in CONTROLLED if name != "eva"]  # eva never looks at the weight, and its product is zero


LATER = ("gain",)  # options that configs of earlier runs do not have


@pytest.mark.parametrize("path", YAMLS, ids=NAMES)
def test_the_yaml_holds_every_default_and_the_class_none(path):
    given = OmegaConf.to_container(OmegaConf.load(path))
    fields = dataclasses.fields(get_class(given.pop("_target_")))
    assert set(given) == {field.name for field in fields}
    assert all(field.default is dataclasses.MISSING for field in fields if field.name not in LATER)
    assert path.read_text().startswith("# ")


def test_no_two_schemes_have_one_label_and_controls_show_in_it():
    labels = [scheme(name).label for name in NAMES]
    assert len(set(labels)) == len(labels)
    assert scheme("svd").label == "svd[gradient]"
    assert scheme("pissa", direction="random").label == "pissa[random]"
    assert scheme("svd", direction="random", magnitude="matched").label == "svd[gradient,random,matched]"


@pytest.mark.parametrize("name", NAMES)
def test_the_scheme_follows_the_protocol(name):
    check_init(scheme(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_scheme_says_whether_the_product_of_its_pair_is_zero(name):
    made = fill(scheme(name))
    product = float(torch.linalg.vector_norm(made.B.double() @ made.A.double()))
    size = float(torch.linalg.vector_norm(made.A.double()) * torch.linalg.vector_norm(made.B.double()))
    # one side is zero, or float32 rounds what is orthogonal by construction; the others reach 0.1 of their size
    assert scheme(name).starts_at_zero == (product <= 1e-6 * size)


@pytest.mark.parametrize("name", NAMES)
def test_a_strangers_run_may_have_the_scheme_whether_it_needs_evidence_by_option_or_by_class(name, tmp_path):
    trust.check({"init": config(name)}, tmp_path, "config.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_choice_is_refused_by_name(name):
    for key, value in config(name).items():
        if key not in ("_target_", "teacher") and isinstance(value, str):
            with pytest.raises(UsageError, match=rf"init\.{key}='zzz' is unknown; it takes "):
                scheme(name, **{key: "zzz"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_a_size_that_is_not_positive_and_finite_is_refused_by_name(name, value):
    for key in ("size", "gamma", "stable_gamma", "damping", "matched_norm", "warmup_lr"):
        if key in config(name):
            with pytest.raises(UsageError, match=rf"init\.{key}={value}"):
                scheme(name, **{key: value})


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_beyond_the_smaller_side_is_refused_with_the_layer(name):
    with pytest.raises(UsageError, match=r"rank=42 for block\.0\.q_proj"):
        fill(scheme(name), rank=42)


@pytest.mark.parametrize("name", NAMES)
def test_a_bfloat16_weight_still_gives_float32_factors(name):
    made = fill(scheme(name), weight=example_weight(SHAPE).bfloat16())
    assert made.A.dtype == made.B.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in NAMES if scheme(name).needs])
def test_missing_and_non_finite_evidence_is_refused_with_the_layer(name):
    init = scheme(name)
    with pytest.raises(UsageError, match=r"was not gathered for block\.0\.q_proj"):
        fill(init, evidence=Evidence())
    for need in init.needs:
        good = example_evidence(SHAPE, init.needs)
        broken = getattr(good, need).clone()
        broken[0, 0] = math.nan
        with pytest.raises(UsageError, match=r"of block\.0\.q_proj has 1 non-finite"):
            fill(init, evidence=dataclasses.replace(good, **{need: broken}))
        with pytest.raises(UsageError, match=r"of block\.0\.q_proj is zero"):
            fill(init, evidence=dataclasses.replace(good, **{need: torch.zeros_like(broken)}))


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_non_finite_weight_is_refused_with_the_layer(name):
    weight = example_weight(SHAPE)
    weight[3, 2] = math.inf
    with pytest.raises(UsageError, match=r"the weight of block\.0\.q_proj has 1 non-finite of 2240 entries"):
        fill(scheme(name), weight=weight)


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_recorded_product_norm_is_the_products(name):
    made = fill(scheme(name), scaling=0.5)
    # the norm is computed from the factors in float64, the product here in float32
    assert made.info["product_norm"] == pytest.approx(float((0.5 * made.B @ made.A).norm()), rel=1e-5)
    assert made.info["dead_components"] == 0


@pytest.mark.parametrize("name", SPECTRAL)
def test_matched_magnitude_gives_the_stated_norm_and_keeps_the_direction(name):
    native, matched = fill(scheme(name)), fill(scheme(name, magnitude="matched", matched_norm=0.03))
    P, Q = native.B @ native.A, matched.B @ matched.A
    norm = float(2.0 * Q.norm()) / float(example_weight(SHAPE).norm())
    assert norm == pytest.approx(0.03, rel=1e-5)  # float32 rounding of one product
    assert float((P * Q).sum() / (P.norm() * Q.norm())) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", CONTROLLED)
def test_random_direction_keeps_every_singular_value_and_leaves_the_subspace(name):
    native, random = fill(scheme(name)), fill(scheme(name, direction="random"))
    for a, b in ((native.A, random.A), (native.B, random.B), (native.B @ native.A, random.B @ random.A)):
        values = torch.linalg.svdvals(a)
        # QR and one product in float32: 1e-5 of the greatest value
        assert torch.allclose(values, torch.linalg.svdvals(b), atol=1e-5 * float(values[0]) + 1e-12)
    old, new = torch.linalg.qr(native.A.T).Q, torch.linalg.qr(random.A.T).Q
    overlap = float((old.T @ new).square().sum()) / 4
    assert overlap < 0.4  # two random 4-planes of R^40 overlap 4/40 on average; the deviation is about 0.04
    other = fill(scheme(name, direction="random"), seed=1)
    assert not torch.equal(random.A, other.A)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_changes_what_is_drawn_and_nothing_else(name):
    same = torch.equal(fill(scheme(name)).A, fill(scheme(name), seed=1).A) and torch.equal(
        fill(scheme(name)).B, fill(scheme(name), seed=1).B
    )
    drawn = {"random", "gaussian", "init_b", "orthogonal", "random_components", "gora"}
    assert same == (name not in drawn)
