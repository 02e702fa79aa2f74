"""A structure survives plain files bit for bit, and a difference names the module, the fact and both values."""

import json
import math

import pytest
import torch

from lab.structure import LayerForm, Structure, differences

PAIR = LayerForm("delta", rank=4, scaling=1.5)
OTHERS = {
    "form": ("full", "the form"),
    "rank": (3, "the rank"),
    "scaling": (2.0, "the scaling"),
    "dora": (True, "DoRA"),
    "offset": ("fold", "the offset"),
    "base_replaced": (True, "the base's replacement"),
    "active": (2, "the number of directions that act"),
    "step": (0.5, "the factor on Muon's step"),
    "since": (7, "the step of its switch"),
    "kept": (2, "the number of directions kept"),
}


def test_every_field_of_a_form_can_differ_and_is_named():
    assert set(OTHERS) == set(vars(PAIR))
    for key, (value, name) in OTHERS.items():
        asked = Structure({"a": PAIR, "b": PAIR})
        (difference,) = differences(asked, asked.changed("b", **{key: value}))
        assert vars(difference) == {"module": "b", "what": name, "asked": getattr(PAIR, key), "actual": value}


def test_a_scaling_differs_from_its_quotient_by_no_more_than_the_last_bits_of_a_double():
    third = Structure({"a": LayerForm("delta", rank=3, scaling=1 / 3)})
    assert not list(differences(third, third.changed("a", scaling=math.nextafter(1 / 3, 1))))
    assert list(differences(third, third.changed("a", scaling=1 / 3 + 1e-8)))


@pytest.mark.parametrize("through", ["json", "torch"])
def test_a_structure_comes_back_from_a_file_as_it_was(through, tmp_path):
    forms = {f"layers.{i}": LayerForm("delta", rank=i + 1, scaling=1 / 3, **{key: value}) for i, (key, (value, _)) in
             enumerate((k, v) for k, v in OTHERS.items() if k not in ("form", "rank", "scaling"))}  # fmt: skip
    structure = Structure({"norm": LayerForm("full"), **forms})
    plain = structure.to_plain()
    if through == "json":
        plain = json.loads(json.dumps(plain))
    else:
        torch.save(plain, tmp_path / "plain")
        plain = torch.load(tmp_path / "plain", weights_only=True)
    assert Structure.from_plain(plain) == structure
    assert plain["norm"] == {"form": "full"}, "what is as by default takes no room"


def test_ranks_are_of_pairs_alone_and_directions_that_were_cut_count_no_more():
    cut = LayerForm("delta", rank=4, scaling=1.0, active=0)
    structure = Structure({"a": LayerForm("full"), "b": PAIR, "c": cut})
    assert structure.ranks == {"b": 4, "c": 4}
    assert structure.active_ranks == {"b": 4, "c": 0}
    assert structure.scalings == {"b": 1.5, "c": 1.0}
