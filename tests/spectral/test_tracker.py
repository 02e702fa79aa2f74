"""The tracker against full decompositions, along runs of weights whose spectra are known."""

import math

import numpy as np
import pytest
import torch

from lab.spectral import by_gram
from lab.spectral.chance import chance, variance
from lab.spectral.iteration import first_effort, iterate
from lab.spectral.spectrum import spectrum_of, tail_error
from lab.spectral.subspace import overlap, subspace_angle
from lab.spectral.tracker import Tracker

SHAPES = [(96, 96), (160, 96), (96, 160)]
K = 6


def make(engine="warm", k=K, exact=3, seed=0):
    return Tracker(k=k, oversample=8, engine=engine, exact_every_n_ticks=exact, seed=seed)


def drifting(shape, ticks, drift=0.05, seed=0, dtype=torch.float32):
    """Weights with a bulk and six directions above it, walking; gradients; and the one step's update at each tick."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(shape, generator=generator)
    U = torch.linalg.qr(torch.randn(shape[0], K, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(shape[1], K, generator=generator)).Q
    W = W + U @ torch.diag(torch.linspace(60, 40, K)) @ V.T
    for _ in range(ticks):
        G = torch.randn(shape, generator=generator)
        update = -0.01 * G
        yield W.to(dtype), G.to(dtype), update.to(dtype)
        W = W + drift * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("engine", ["warm", "exact"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_is_what_full_decompositions_give(shape, engine):
    tracker, before = make(engine), None
    for tick, (W, G, update) in enumerate(drifting(shape, 5)):
        found = tracker.tick(tick, {"layer": W}, {"layer": G}, {"layer": update})["layer"]
        exact = spectrum_of(W.double(), dtype=torch.float64)
        U, S, V = exact.U[:, :K], exact.S[:K], exact.V[:, :K]
        assert found.singular_values[:K] == pytest.approx(S.numpy(), rel=1e-5)
        for k in (1, K):
            expected = float(tail_error(exact.S, exact.energy)[k - 1])
            assert found.tail_error(k) == pytest.approx(expected, abs=1e-4)
        assert found.stable_rank == pytest.approx(exact.energy / float(S[0]) ** 2, rel=1e-4)
        if before is not None:
            left, right = subspace_angle(before[0], U), subspace_angle(before[1], V)
            assert found.angle(K) == pytest.approx(max(left, right), abs=1e-3)
            assert found.overlap(K) == pytest.approx(min(overlap(before[0], U), overlap(before[1], V)), abs=1e-3)
        G64, total = G.double(), float(G.double().square().sum())
        for side, X in {"left": U.T @ G64, "right": G64 @ V, "core": U.T @ G64 @ V}.items():
            fraction = float(X.square().sum()) / total
            assert found.fraction("gradient", side, K) == pytest.approx(fraction, abs=1e-4)
            assert found.fraction("update", side, K) == pytest.approx(fraction, abs=1e-4)  # the update is −0.01 G
        growth = (U.T @ update.double() @ V).diagonal() / S
        assert found.growth[:K] == pytest.approx(growth.numpy(), abs=1e-5)
        before = (U, V)


def test_the_warm_engine_starts_from_noise_and_keeps_up_with_a_gaussian_that_has_no_gap():
    tracker, generator = make(), torch.Generator().manual_seed(0)
    W = torch.randn(128, 128, generator=generator)
    for tick in range(6):
        found = tracker.tick(tick, {"q": W})["q"]
        assert found.singular_values[:K] == pytest.approx(torch.linalg.svdvals(W)[:K].numpy(), rel=1e-4)
        assert found.residual < 5e-3
        W = W + 0.1 * torch.randn(128, 128, generator=generator)


def test_whole_spectra_come_at_every_third_tick():
    tracker = make(exact=3)
    found = [tracker.tick(t, {"q": W})["q"] for t, (W, _, _) in enumerate(drifting(SHAPES[0], 5))]
    assert [d.whole for d in found] == [True, False, False, True, False]
    assert [len(d.singular_values) for d in found] == [96, K + 8, K + 8, 96, K + 8]
    assert [d.participation is not None for d in found] == [True, False, False, True, False]


def test_a_zero_weight_has_a_reason_and_no_number_until_it_moves():
    tracker = make()
    zero = tracker.tick(0, {"q": torch.zeros(40, 30)}, {"q": torch.ones(40, 30)})["q"]
    assert (zero.reason, zero.directions, zero.stable_rank) == ("zero_matrix", 0, None)
    assert zero.tail_error(K) is None
    assert zero.angle(K) is None
    assert zero.z("gradient", "core", K) is None
    W = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    moved = tracker.tick(1, {"q": W}, {"q": W})["q"]
    assert (moved.reason, moved.directions, moved.previous) == (None, K, None)
    assert moved.fraction("gradient", "core", K) == pytest.approx(1 - moved.tail_error(K) ** 2, abs=1e-5)


@pytest.mark.parametrize("engine", ["warm", "exact"])
def test_curves_end_where_a_rank_deficient_weight_does(engine):
    tracker, generator = make(engine), torch.Generator().manual_seed(1)
    A, B = torch.randn(40, 3, generator=generator), torch.randn(3, 30, generator=generator)
    for tick in range(2):
        found = tracker.tick(tick, {"q": A @ B}, {"q": torch.randn(40, 30, generator=generator)})["q"]
        assert (found.reason, found.directions) == ("rank_deficient", 3)
        assert found.singular_values[:3] == pytest.approx(torch.linalg.svdvals(A @ B)[:3].numpy(), rel=1e-4)
        assert found.fraction("gradient", "left", 3) is not None
        assert found.fraction("gradient", "left", K) is None
    assert found.angle(2) == pytest.approx(0, abs=1e-3)
    assert found.angle(K) is None


def test_a_weight_that_is_not_finite_is_reported_and_does_not_spoil_its_neighbours():
    tracker = make()
    W = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    tracker.tick(0, {"a": W, "b": W})
    broken = W.clone()
    broken[3, 4] = torch.nan
    found = tracker.tick(1, {"a": W, "b": broken}, {"a": broken, "b": W}, {"b": W})
    assert found["b"].reason == "non_finite"
    assert found["a"].singular_values[0] == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-5)
    assert found["a"].gradient.total is None
    recovered = tracker.tick(2, {"a": W, "b": W})["b"]
    assert recovered.angle(K) == pytest.approx(0, abs=5e-3)  # no gap: each tick's basis is off by its residual over it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_measured_in_float32(dtype):
    tracker = make()
    for tick, (W, G, update) in enumerate(drifting((80, 64), 2, dtype=dtype)):
        found = tracker.tick(tick, {"q": W}, {"q": G}, {"q": update})["q"]
        assert found.singular_values[:K] == pytest.approx(torch.linalg.svdvals(W.float())[:K].numpy(), rel=1e-4)


def test_a_basis_that_misses_the_strongest_direction_is_caught_at_the_next_exact_tick():
    tracker = make(exact=2)
    (W, _, _), *_ = drifting((96, 96), 1)
    for tick in range(2):
        tracker.tick(tick, {"q": W})
    U, _, Vh = torch.linalg.svd(W)
    swapped = 100 * U[:, -K:] @ Vh[-K:]  # strongest where the basis holds nothing but what is drawn anew
    tracker.tick(1, {"q": swapped})
    found = tracker.tick(2, {"q": swapped})["q"]
    assert found.singular_values[:K] == pytest.approx([100] * K, rel=1e-3)
    assert tracker.tick(3, {"q": swapped})["q"].singular_values[:K] == pytest.approx([100] * K, rel=1e-3)


def test_layers_of_one_shape_are_measured_together_as_they_are_alone():
    runs = [list(drifting((96, 64), 3, seed=seed)) for seed in range(3)]
    together = make(exact=9)
    for tick in range(3):
        weights = {str(i): run[tick][0] for i, run in enumerate(runs)}
        gradients = {str(i): run[tick][1] for i, run in enumerate(runs)}
        batch = together.tick(tick, weights, gradients)
    for i, run in enumerate(runs):
        alone = make(exact=9)
        for tick in range(3):
            single = alone.tick(tick, {"q": run[tick][0]}, {"q": run[tick][1]})["q"]
        assert batch[str(i)].singular_values == pytest.approx(single.singular_values, rel=1e-4)
        assert batch[str(i)].angle(K) == pytest.approx(single.angle(K), abs=1e-3)


def test_a_tracker_goes_on_bit_for_bit_from_its_saved_state(tmp_path):
    steps = list(drifting((96, 64), 4))
    through, first = make(), make()
    for tick, (W, G, update) in enumerate(steps):
        expected = through.tick(tick, {"q": W}, {"q": G}, {"q": update})["q"]
        if tick < 2:
            first.tick(tick, {"q": W}, {"q": G}, {"q": update})
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for tick, (W, G, update) in list(enumerate(steps))[2:]:
        found = resumed.tick(tick, {"q": W}, {"q": G}, {"q": update})["q"]
    for name, value in vars(expected).items():
        np.testing.assert_equal(vars_of(getattr(found, name)), vars_of(value), err_msg=name)


def vars_of(value):
    return vars(value) if hasattr(value, "__dataclass_fields__") else value


def test_measuring_touches_neither_the_weights_nor_the_global_random_state():
    W, G, update = next(drifting((96, 64), 1))
    copies = [tensor.clone() for tensor in (W, G, update)]
    state = torch.get_rng_state()
    make().tick(0, {"q": W}, {"q": G}, {"q": update}, initial={"q": torch.zeros_like(W)})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip((W, G, update), copies, strict=True))


def test_k_beyond_a_layer_is_refused_with_its_name():
    with pytest.raises(ValueError, match="k=6 directions of small, which is 5x9"):
        make().tick(0, {"small": torch.ones(5, 9)})


def test_unrelated_gradients_score_within_the_null():
    tracker, scores = make(), []
    for tick, (W, G, update) in enumerate(drifting((96, 96), 12, drift=0.0)):
        found = tracker.tick(tick, {"q": W}, {"q": G}, {"q": update})["q"]
        scores += [found.z("gradient", side, K) for side in ("left", "right", "core", "either")]
    assert max(map(abs, scores)) < 4.5  # 48 scores of a null; the sketch may misjudge its spread by a fifth
    spread = variance("left", K, (96, 96), 2 / 96) ** 0.5  # 2/n is the concentration of a square Gaussian
    assert found.fraction("gradient", "left", K) == pytest.approx(chance("left", K, (96, 96)), abs=5 * spread)


def test_with_the_initial_weight_an_exact_tick_counts_spikes_and_intruders():
    tracker, generator = make(exact=2), torch.Generator().manual_seed(0)
    W0 = torch.randn(64, 48, generator=generator)
    W = W0 + 20 * torch.randn(64, 1, generator=generator) @ torch.randn(1, 48, generator=generator)
    found = tracker.tick(0, {"q": W}, initial={"q": W0})["q"]
    assert found.spikes == 1
    assert tracker.tick(1, {"q": W}, initial={"q": W0})["q"].spikes is None


@pytest.mark.parametrize("width", [128, 600])  # by Gram matrix, and by Krylov space
@pytest.mark.parametrize("decay", ["flat", "graded", "deficient"])
def test_iteration_reaches_the_residual_it_states(decay, width):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(width + 40, width, generator=generator)
    if decay != "flat":
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        W = (
            U
            @ torch.diag(
                10.0 ** -torch.linspace(0, 6, width) * (torch.arange(width) < (9 if decay == "deficient" else width))
            )
            @ Vh
        )
    start = torch.randn(1, width, 16, generator=generator)
    found = iterate([W], start, [float(W.square().mean())], K, [first_effort(width, W.device)], tolerance=1e-3)
    U, S, V = found.U[0, :, :K], found.S[0, :K], found.V[0, :, :K]
    assert S.tolist() == pytest.approx(torch.linalg.svdvals(W.double())[:K].tolist(), rel=1e-3)
    both = [torch.linalg.vector_norm(W.T @ U - V * S, dim=0) / S, torch.linalg.vector_norm(W @ V - U * S, dim=0) / S]
    assert float(torch.stack(both).max()) < 1.2e-3
    assert float(found.residual) == pytest.approx(float(both[0].max()), abs=2e-4)
    assert torch.allclose(U.T @ U, torch.eye(K), atol=1e-5)


def test_a_begun_tick_can_be_finished_without_updates():
    W, G, _ = next(drifting((96, 64), 1))
    tracker = make()
    tracker.begin(0, {"q": W}, {"q": G})
    found = tracker.finish()["q"]
    assert found.gradient is not None
    assert (found.update, found.rotation, found.growth) == (None, None, None)


@pytest.mark.parametrize("width", [160, 600])  # by Gram matrix, and by Krylov space
def test_directions_are_true_to_the_tolerance_where_the_gap_is_small(width):
    generator = torch.Generator().manual_seed(3)
    U, _, Vh = torch.linalg.svd(torch.randn(width + 40, width, generator=generator), full_matrices=False)
    S = torch.linspace(2, 1, width)
    S[K:] -= 0.002  # a gap of a thousandth at K; what else is between 1 and 2 follows without one
    start = torch.randn(1, width, 32, generator=generator)
    found = iterate([(U * S) @ Vh], start, [1.0], K, [first_effort(width, U.device)], tolerance=5e-4)
    # `turn` is no bound but first order in the residual, of which it takes the largest of K: twice for the others.
    assert subspace_angle(found.V[0, :, :K], Vh[:K].mT) < 1e-3
    assert subspace_angle(found.U[0], U[:, :K]) < 1e-3


def test_no_block_is_decomposed_whose_squares_float32_cannot_hold(monkeypatch):
    """LAPACK scales what it squares and CUDA does not: there a filter's 1e20 would be infinite."""
    real, largest, grown = torch.linalg.qr, [], []
    filtered = by_gram._filter

    def qr(block):
        largest.append(float(block.square().sum(-2).max()))
        return real(block)

    def grow(B, block, degrees):
        made = filtered(B, block, degrees)
        grown.append(float(made.abs().max()))
        return made

    monkeypatch.setattr(torch.linalg, "qr", qr)
    monkeypatch.setattr(by_gram, "_filter", grow)
    generator = torch.Generator().manual_seed(4)
    U, _, Vh = torch.linalg.svd(torch.randn(200, 160, generator=generator), full_matrices=False)
    S = torch.cat([torch.linspace(40, 8, 16), torch.linspace(7, 1, 144)])
    found = iterate([(U * S) @ Vh], torch.randn(1, 160, 32, generator=generator), [9.0], 16, [16], tolerance=1e-3)
    assert max(grown) > 2e19  # its square is beyond float32's 3.4e38
    assert all(map(math.isfinite, largest))
    assert found.S[0, :16].tolist() == pytest.approx(S[:16].tolist(), rel=1e-3)
