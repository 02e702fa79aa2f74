"""What a full run keeps of its weights before training: exact on disk, and directions that belong to them."""

import torch

from lab.instruments.initial_weights import OnDisk

CPU = torch.device("cpu")


def test_directions_are_computed_once_and_forgotten_with_their_weights(tmp_path, monkeypatch):
    weights = OnDisk(tmp_path)
    generator = torch.Generator().manual_seed(0)
    first = {
        "tall": torch.randn(30, 20, generator=generator),
        "half": torch.randn(20, 30, generator=generator).bfloat16(),
        "zero": torch.zeros(20, 20),
    }
    weights.write(first)
    asked = {name: weights.directions(name, CPU) for name in first}
    assert {name: U.shape for name, U in asked.items()} == {"tall": (30, 20), "half": (20, 20), "zero": (20, 0)}
    for name in ("tall", "half"):
        U = torch.linalg.svd(first[name].float(), full_matrices=False)[0]
        torch.testing.assert_close(asked[name].abs(), U.flip(1).abs(), atol=1e-5, rtol=0)  # weakest first
    with monkeypatch.context() as patch:
        patch.setattr("lab.instruments.initial_weights.left_directions", None)  # nothing may ask for it again
        again = OnDisk(tmp_path)  # as a resumed run does
        assert all(torch.equal(again.directions(name, CPU), asked[name]) for name in first)

    weights.write({name: -weight.flip(0) for name, weight in first.items()})
    torch.testing.assert_close(weights.directions("tall", CPU).abs(), asked["tall"].flip(0).abs(), atol=1e-5, rtol=0)
