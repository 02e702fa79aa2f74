"""What low rank could bring by arithmetic, against tables worked out by hand and FLOPs that torch counts."""

import math
from types import SimpleNamespace

import pytest
import torch
from constructed import asked, policy, row
from torch.utils.flop_counter import FlopCounterMode

from lab import config
from lab.config import instantiate
from lab.instruments.outlook import attention_width, muon_shapes, outlook
from lab.instruments.targets import spectral_targets
from lab.svd_policy.bound import EFFICIENCY, NATS, WORTH, StepFlops, amdahl, gap_paid, prospect
from lab.svd_policy.switching import Move, Switching
from lab.training.loader import BatchPlan
from lab.training.muon import orthogonalise, orthogonalise_flops

SHAPES = {"a": (40, 40), "b": (56, 32)}


def nothing(shape):
    return 0.0


def step_of(share, shapes=SHAPES):
    """A step of 1 FLOP, so much of it in the targets, by their sizes; no Muon."""
    size = sum(math.prod(shape) for shape in shapes.values())
    return StepFlops({name: share * math.prod(s) / size for name, s in shapes.items()}, 1.0, 0.0, 0.0, nothing)


def of_nanochat(*overrides, length, devices=1, tokens=None, policy="svd_policy=observe", steps=100):
    asked_for = config.compose("method=full", policy, *overrides)
    model, chosen = instantiate.make(asked_for.model), instantiate.make(asked_for.svd_policy)
    examples = (tokens or length) // length
    batches = BatchPlan([length] * examples, examples, 0)
    targets = spectral_targets(model, chosen, None)
    return outlook(targets, model.skeleton(), asked_for.optim, torch.float32, batches, steps, devices)


@pytest.mark.parametrize(
    ("depth", "vocabulary", "length", "share", "with_scores", "speed"),
    [  # blocks 12 d² a layer, head v d, scores T d a layer, d = 64 · depth; multiply-adds a token, worked out by hand
        (4, 8192, 512, 0.60, 0.55, 2.2),
        (4, 65536, 512, 0.16, 0.15, 1.18),
        (12, 65536, 2048, 0.63, 0.55, 2.2),
        (20, 65536, 2048, 0.82, 0.74, 3.9),
    ],
)
def test_the_bound_counts_attention_scores(depth, vocabulary, length, share, with_scores, speed):
    model = ("model=nanochat_d4", f"model.depth={depth}", f"model.vocab_size={vocabulary}")
    bound = of_nanochat(*model, "optim=adamw", length=length).bound
    d = 64 * depth
    exact = 12 * depth * d * d / (12 * depth * d * d + vocabulary * d + length * d * depth)
    assert bound.flops_share == pytest.approx(exact, rel=1e-12)
    assert round(bound.flops_share, 2) == with_scores
    assert round(bound.flops_share / (1 - bound.scores_share), 2) == share
    assert bound.speedup == pytest.approx(speed, abs=0.05)
    assert bound.muon_share == 0
    assert bound.passes_share == bound.flops_share


def test_the_bound_counts_muon_which_every_device_does_for_itself():
    """45 % of all arithmetic at depth 4 and 512 tokens a device, of which the targets' is theirs to spare."""
    model = ("model=nanochat_d4", "model.vocab_size=8192", "optim=nanochat")
    bound = of_nanochat(*model, length=512).bound
    muon = 16 * 30 * 256**3 + 8 * (4 * 256**2 * 1024 + 34 * 256**3)
    blocks, others = 6 * 512 * 12 * 4 * 256**2, 6 * 512 * (8192 * 256 + 512 * 256 * 4)
    assert bound.muon_share == pytest.approx(muon / (muon + blocks + others), rel=1e-12)
    assert bound.muon_share == pytest.approx(0.45, abs=0.01)
    assert bound.speedup == pytest.approx((muon + blocks + others) / others, rel=1e-12)
    assert bound.passes_share == pytest.approx(blocks / (muon + blocks + others), rel=1e-12)
    assert "45.5% orthogonalise for Muon" in str(bound)
    four = of_nanochat(*model, length=512, tokens=2048, devices=4).bound
    assert four.muon_share == pytest.approx(bound.muon_share, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (16, 64), (64, 16), (1, 40)])
def test_the_flops_of_orthogonalising_are_those_that_torch_counts(shape, dtype):
    with FlopCounterMode(display=False) as counted:
        orthogonalise([torch.randn(shape)], dtype)
    assert orthogonalise_flops(shape, dtype) == counted.get_total_flops()


def test_the_shapes_that_muon_takes_are_those_of_the_blocks():
    asked_for = config.compose("method=full", "model=nanochat_d4", "optim=nanochat", "model.depth=2")
    skeleton = instantiate.make(asked_for.model).skeleton()
    assert sorted(muon_shapes(skeleton, asked_for.optim)) == sorted(2 * [*4 * [(128, 128)], (512, 128), (128, 512)])
    assert muon_shapes(skeleton, config.compose("optim=adamw").optim) == []
    assert attention_width(skeleton) == 2 * 128


def test_a_model_without_attention_has_no_scores():
    bare = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=64, num_hidden_layers=2))
    assert attention_width(SimpleNamespace(config=bare)) == 0


def fixed(**changes):
    """`grow` with shares of break-even that are whole ranks: 20 and 20.36 of 40x40 and 56x32."""
    return policy("grow", residual="drop", **changes)


@pytest.mark.parametrize(("first", "last", "ratio"), [(0.1, 0.65, 0.81), (0.1, 0.85, 0.74), (0.0, 0.55, 0.81)])
def test_the_time_ratio_of_a_schedule_is_its_closed_form(first, last, ratio):
    """1 − f (1 − c/e) τ with f = 0.65, c = 0.4, e = 0.85: 0.81 at τ = 0.55, 0.74 at 0.75."""
    shapes = {"a": (40, 40), "b": (80, 80)}  # 0.4 of break-even is 8 and 16
    found = prospect(fixed(rank=0.4, low_from=first, low_until=last), shapes, step_of(0.65, shapes), 1000)
    assert found.time_ratio == pytest.approx(1 - 0.65 * (1 - 0.4 / EFFICIENCY) * (last - first), rel=1e-12)
    assert round(found.time_ratio, 2) == ratio
    assert found.scheduled
    assert found.first == round(first * 1000)


def test_a_fade_and_a_delta_pay_for_the_frozen_weight_that_rides_along():
    """It costs two of a full layer's three products."""
    shapes, step = {"a": (40, 40)}, step_of(0.65, {"a": (40, 40)})
    fading = prospect(policy("grow", low_from=0.1, low_until=0.6, fade_steps=100, rank=8), shapes, step, 1000)
    faded = 0.65 * (0.5 * (1 - 0.4 / EFFICIENCY) - 0.1 * 2 / 3)
    assert fading.time_ratio == pytest.approx(1 - faded, rel=1e-12)
    schedule = [{"step": 200, "layers": "all", "action": "delta", "rank": 8}]
    delta = prospect(policy("scheduled", schedule=schedule), shapes, step, 1000)
    assert delta.time_ratio == pytest.approx(1 - 0.65 * 0.8 * (1 / 3 - 0.4 / EFFICIENCY), rel=1e-12)
    assert delta.time_ratio > 1
    assert delta.gap == 0
    assert "pays for none of a higher loss; training less would be as good or better" in str(delta)


def test_a_schedule_whose_layers_come_back_counts_each_stretch():
    shapes, step = {"a": (40, 40)}, step_of(0.65, {"a": (40, 40)})
    events = [(0, "compress", 8), (100, "full", None), (300, "compress", 4)]
    schedule = [{"step": at, "layers": "all", "action": to, "rank": r} for at, to, r in events]
    found = prospect(policy("scheduled", residual="drop", schedule=schedule), shapes, step, 400)
    expected = (100 * (1 - 0.4 / EFFICIENCY) + 100 * (1 - 0.2 / EFFICIENCY)) / 400
    assert found.time_ratio == pytest.approx(1 - 0.65 * expected, rel=1e-12)


def test_a_pair_orthogonalises_two_thin_factors_in_the_weights_place():
    shape, rank = (64, 64), 16
    step = StepFlops({"a": 0.0}, 0.0, 0.0, 30.0 * 64**3, lambda s: orthogonalise_flops(s, torch.bfloat16))
    with FlopCounterMode(display=False) as counted:
        orthogonalise([torch.randn(64, rank), torch.randn(rank, 64)], torch.bfloat16)
    assert step.spared("a", shape, rank, frozen=False) == 30 * 64**3 - counted.get_total_flops()


def test_the_gap_that_a_ratio_pays_for_is_chinchillas_slope():
    """L(D) = E + B/D^β with B = 410.7 and β = 0.28 at 11.2e9 tokens."""
    assert pytest.approx(0.28 * 410.7 / 11.2e9**0.28, abs=0.005) == NATS
    assert gap_paid(0.65, WORTH) == pytest.approx(0.037, abs=5e-4)
    assert gap_paid(0.81, WORTH) == 0
    assert gap_paid(0.81, 1.0) == pytest.approx(0.18 * math.log(1 / 0.81))
    assert gap_paid(1.0, 1.0) == 0


@pytest.mark.parametrize("name", ["compress", "delta", "auto", "random", "phase1"])
def test_the_earliest_switch_is_that_of_a_layer_for_which_everything_holds(name):
    changes = {"warmup_steps": 50, "every_n_steps": 20}
    more = {"random": {"probability": 1.0}, "phase1": {"principal_danger": -1.0}}
    chosen = policy(name, **changes, **more.get(name, {}))
    state, step = {}, 0
    while True:
        decision, state = asked(chosen, row(step), state)
        if decision.action == "to_low_rank":
            break
        step += 20
    shape = row(0).shape
    at, moves = chosen.foreseen(1000, {"a": shape})[0]
    assert at == step + 1, "a tick at step s decides after step s + 1"
    assert isinstance(chosen, Switching)
    assert moves[0] in (chosen.move(row(step), decision), Move("a", "delta", moves[0].rank, moves[0].reason))


def test_where_layers_go_a_few_at_a_tick_the_last_goes_as_many_ticks_later():
    chosen = policy("compress", warmup_steps=100, patience=3, layers_per_event=2, every_n_steps=20)
    shapes = dict.fromkeys("abcde", (40, 40))
    foreseen = chosen.foreseen(1000, shapes)
    assert [(at, len(moves)) for at, moves in foreseen] == [(141, 2), (161, 2), (181, 1)]
    found = prospect(chosen, shapes, step_of(0.5, shapes), 1000)
    assert "were all layers to go as early as they may (step 141 on)" in str(found)
    assert prospect(chosen, shapes, step_of(0.5, shapes), 140) is None


def test_a_bound_of_everything_is_infinite():
    assert amdahl({"a": (40, 40)}, step_of(1.0, {"a": (40, 40)}), 1600).speedup == math.inf
