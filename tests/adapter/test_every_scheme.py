"""Every scheme in conf/init, from installation to a stock peft reload; a new YAML is covered the moment it exists."""

from pathlib import Path

import pytest
import torch
from adapter_models import base, installed, logits, train
from hydra.utils import instantiate
from omegaconf import OmegaConf
from peft import PeftModel

from lab.adapter.build import planned
from lab.adapter.delta import trained_base
from lab.adapter.export import export, verify_export
from lab.adapter.initialise import initialise
from lab.adapter.state import adapter_state, load_adapter_state
from lab.adapter.verify import Mismatch, verify
from lab.layer import find_targets
from lab.testing import example_evidence

SCHEMES = sorted(Path(__file__).parents[2].joinpath("conf", "init").glob("*.yaml"))
EVEN = {target.name: 4 for target in find_targets(base("llama"))}


@pytest.fixture(params=SCHEMES, ids=lambda path: path.stem)
def scheme(request):
    return instantiate(OmegaConf.load(request.param), _convert_="all")


def evidence_for(targets, scheme):
    return {target.name: example_evidence(target.shape, scheme.needs) for target in targets}


def test_a_scheme_trains_resumes_and_loads_in_stock_peft(scheme, tmp_path) -> None:
    targets, plan, model = installed(base("llama"), plan=EVEN)
    filled = initialise(model, scheme, targets, evidence_for(targets, scheme), seed=0)
    applied = verify(model, planned(targets, plan, scaling=1.5), filled)
    replaced = any(layer.base_replaced for layer in applied.structure.pairs.values())
    if applied.structure.offset == "separate":
        assert torch.equal(logits(model), logits(base("llama")))
    train(model)
    if applied.structure.offset != "fold" and not replaced:
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(base("llama")))

    _, _, resumed = installed(base("llama"), plan=EVEN)
    load_adapter_state(resumed, adapter_state(model))
    assert torch.equal(logits(resumed), logits(model))

    export(model, tmp_path)
    verify_export(tmp_path, applied.structure)
    torch.manual_seed(77)
    home = trained_base(model).eval() if replaced else base("llama")
    expected = logits(model)
    found = logits(PeftModel.from_pretrained(home, tmp_path))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()  # the contract, fp32


def test_skipping_one_layer_in_a_scheme_aborts(scheme) -> None:
    targets, plan, model = installed(base("llama"), plan=EVEN)
    filled = initialise(model, scheme, targets[1:], evidence_for(targets, scheme), seed=0)
    with pytest.raises(Mismatch, match=f"{targets[0].name} was never initialised"):
        verify(model, planned(targets, plan, scaling=1.5), filled)
