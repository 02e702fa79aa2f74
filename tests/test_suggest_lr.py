"""lab.suggest lr: the curvature against autograd's dense Hessian, the rule in other units, and what it refuses."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from in_process import call
from jobs import SMALL
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab import config
from lab.data.corpus import load_corpus
from lab.errors import UsageError
from lab.model import base_of
from lab.run.parts import Parts
from lab.run.setup import adapt, base_hashes, load_base, resolve_hardware
from lab.suggest.__main__ import main
from lab.suggest.curvature import hessian_product, largest_eigenvalue
from lab.suggest.lr import Predicted, anchor_of, check, curvature, plain, predict
from lab.training.loss import LabelGate

FEW = (
    "data.max_length=128",
    "adapter.target_modules=.*layers\\.1\\.self_attn\\.o_proj",
    "rank=1",
    "evidence.num_examples=4",
)
OTHER_UNITS = ("init.gain=2", "alpha=8")  # A and B twice as large, a quarter of the scaling: as in planted_lr


def small(*overrides: str):
    return config.compose(*SMALL, *overrides)


def symmetric(eigenvalues: torch.Tensor) -> torch.Tensor:
    Q = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=torch.Generator().manual_seed(1))).Q
    return (Q * eigenvalues) @ Q.T


@pytest.mark.parametrize(
    "eigenvalues",
    [
        torch.cat([torch.tensor([5.0, -3.0]), torch.linspace(-1, 1, 198)]),  # one outlier, as a loss has it
        torch.cat([torch.tensor([2.0, -9.0]), torch.linspace(-1, 1, 198)]),  # the greatest in size is negative
    ],
)
def test_lanczos_finds_the_greatest_eigenvalue_of_a_matrix_with_outliers(eigenvalues):
    matrix = symmetric(eigenvalues)
    found = largest_eigenvalue(lambda v: matrix @ v, 200)
    expected = float(torch.linalg.eigvalsh(matrix.double())[-1])
    assert expected * 0.98 < found < expected * (1 + 1e-5)  # a Ritz value comes from below


def test_lanczos_is_exact_where_the_space_is_exhausted():
    matrix = symmetric(torch.tensor([3.0, 3.0, 1.0, 0.0]))
    assert largest_eigenvalue(lambda v: matrix @ v, 4, steps=50) == pytest.approx(3.0, rel=1e-5)
    assert largest_eigenvalue(torch.zeros_like, 4) == 0.0


def test_the_hessian_product_is_that_of_autograds_dense_hessian_of_the_whole_loss():
    asked = small(*FEW, "init=pissa")
    parts, hardware = Parts.of(asked), resolve_hardware(asked)
    corpus = load_corpus(parts.data, parts.model.tokenizer())
    samples = corpus.train.samples[:3]
    net, targets = load_base(parts.model, asked, hardware)
    hashes = base_hashes(parts.model, net, 0)
    net = adapt(net, targets, parts, asked, hardware, corpus.train.samples, corpus.pad_id, hashes).net.eval()
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    trained = [net.get_parameter(name) for name in names]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        """Mean over labelled tokens, an example at a time, from all logits."""
        given = dict(zip(names, values, strict=True))
        nats = labels = 0.0
        for sample in samples:
            logits = functional_call(net, given, (), {"input_ids": sample.input_ids[None]}).logits[0, :-1]
            nats = nats + F.cross_entropy(logits, sample.labels[1:], reduction="sum", ignore_index=-100)
            labels += int((sample.labels[1:] != -100).sum())
        return nats / labels

    with sdpa_kernel(SDPBackend.MATH):
        blocks = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in trained))
    sizes = [parameter.numel() for parameter in trained]
    dense = torch.cat(
        [
            torch.cat([block.reshape(m, n) for block, n in zip(row, sizes, strict=True)], 1)
            for row, m in zip(blocks, sizes, strict=True)
        ]
    )
    assert dense.abs().max() > 1e-3
    with LabelGate(base_of(net)) as gate:
        product = hessian_product(net, gate, trained, samples, corpus.pad_id)
        columns = torch.stack([product(unit) for unit in torch.eye(len(dense))[::16]])
        found = largest_eigenvalue(product, len(dense), steps=25)
    # second derivatives in float32, summed in another order
    assert torch.allclose(columns, dense[::16], rtol=1e-3, atol=1e-5 * float(dense.abs().max()))
    assert found == pytest.approx(float(torch.linalg.eigvalsh(dense.double())[-1]), rel=1e-3)


def test_in_other_units_the_curvature_is_that_of_the_same_loss():
    """In planted_lr's other units A and B are twice as large, so every second derivative is a quarter."""
    one, other = (curvature(small(*FEW, *units), examples=4) for units in ((), OTHER_UNITS))
    assert other == pytest.approx(one / 4, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 16])
def test_plain_lora_of_any_rank_has_the_anchor_and_loads_nothing(rank, monkeypatch):
    monkeypatch.setattr("lab.suggest.lr.curvature", None)
    assert predict(small(f"rank={rank}"), anchor=3e-3).rate == 3e-3


def test_the_arm_is_compared_with_plain_lora_of_its_own_rank_and_is_left_as_it_was():
    asked = small("init=pissa", "rank=2", "alpha=7", "scaling=rslora", "rank_strategy=linear_decay")
    assert plain(asked) == small("rank=2", "alpha=7", "scaling=rslora", "rank_strategy=linear_decay")
    assert asked.init["_target_"] != plain(asked).init["_target_"]


def test_the_anchor_is_of_the_base():
    assert anchor_of(config.compose())[0] == 1e-2
    assert anchor_of(config.compose("model=llama3_2_3b"))[0] == 3e-4
    with pytest.raises(UsageError, match="nothing is known of plain LoRA's best rate on a model from scratch"):
        anchor_of(small())
    for other in ("alpha=16", "scaling=rslora"):
        with pytest.raises(UsageError, match=f"and not for {other}; sweep it once"):
            anchor_of(config.compose(other))


def test_the_reasons_name_every_number_that_the_rate_follows_from():
    found = Predicted(1e-2, "this base", curvature=32.0, plain=1.0)
    assert found.rate == 5e-3  # 32^-0.2 = 1/2
    assert all(number in " ".join(found.reasons()) for number in ("0.01", "32", "^0.2", "0.50"))


def test_a_start_that_is_no_plain_lora_is_measured_and_so_is_plain_lora(tmp_path: Path):
    said = call(lambda: main(["lr", "--anchor=1e-2", "--examples=4", *SMALL, *FEW, "init=pissa"]), cwd=tmp_path)
    assert said.code == 0, said.err
    found = predict(small(*FEW, "init=pissa"), anchor=1e-2, examples=4)
    assert found.rate != 1e-2
    assert f"optim.lr={found.rate:g}: a start for a sweep" in said.out


def test_a_check_trains_at_the_rate_and_a_quarter_decade_to_each_side():
    losses = check(small("schedule.max_epochs=10"), 1e-2)
    assert list(losses) == [5.62e-3, 1e-2, 1.78e-2]
    assert len(set(losses.values())) == 3
    assert all(0 < loss < 9 for loss in losses.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("method=full",), "method=full has no adapter"),
        (("model=micro",), "give it by --anchor"),
        (("rnk=3",), "there is no key rnk; did you mean rank?"),
        (("init=pisa",), "init=pisa is no option; did you mean pissa?"),
        (("rank=0",), "rank must be at least 1; got 0."),
        (("init=pissa,svd",), "Ambiguous value for argument 'init=pissa,svd'"),
        (("--anchor", "0"), "--anchor 0 is no learning rate"),
        (("--anchor", "nan"), "--anchor nan is no learning rate"),
        (("--examples", "0"), "--examples 0 leaves nothing to look at"),
    ],
)
def test_a_mistake_ends_in_a_sentence(arguments, said, tmp_path: Path):
    assert said in call(lambda: main(["lr", *arguments]), cwd=tmp_path).sentence
