"""Model with its structure: changed only by edits, read back after each, saved with the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from lab.adapter.build import reshape
from lab.adapter.layer import adapted_layers
from lab.adapter.read import check_structure, form_at, refuse
from lab.adapter.state import load_model_state, model_state
from lab.adapter.switched import SwitchedLinear
from lab.model import base_of
from lab.structure import LayerForm, Structure, differences


@dataclass
class Structured:
    """A live model and the structure that it was asked to have."""

    net: Any  # a PeftModel where there are pairs, else the transformers model
    structure: Structure
    base: Mapping[str, str | None]  # the base's identity: base_sha256 as held, stored_sha256 as its files have it

    def change(self, name: str, form: LayerForm) -> None:
        """Take up the form that a module was given; raises Mismatch where the live module has another."""
        self.structure = self.structure.changed(name, **vars(form))
        live = Structure({name: form_at(self.net, name)})
        refuse(differences(self.structure, live, [name]))

    def saved_structure(self) -> dict[str, Any]:
        """The base's identity and each module's form, with the directions that act now."""
        structure = self.structure
        for name, layer in adapted_layers(self.net).items():
            if layer.E is not None:  # between two cuts the optimizer may move a value away from 0 again
                structure = structure.changed(name, active=layer.rank)
        return {**self.base, "layers": structure.to_plain()}

    def state_dict(self) -> dict[str, Tensor]:
        """The pairs, or all weights where those train."""
        return model_state(self.net)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave; raises where tensors are missing or unexpected."""
        load_model_state(self.net, state)

    def restore(self, saved: Mapping[str, Any], state: dict[str, Tensor]) -> None:
        """Take the structure and the weights of a checkpoint of this run, whose layers may have other forms.

        Raises Mismatch where the live model is not what the checkpoint holds.
        """
        if "layers" in saved:
            self.structure = Structure.from_plain(saved["layers"])
            reshape(base_of(self.net), self.structure)
        self.load_state_dict(state)
        if not self.structure.pairs:
            check_structure(self.net, self.structure)

    def switched(self) -> Sequence[SwitchedLinear]:
        """The layers that a switch has made low-rank, in module order. Cheap: each step asks."""
        base = base_of(self.net)
        return [cast(SwitchedLinear, base.get_submodule(name)) for name in self.structure.switched]

    def fast_parameters(self) -> Sequence[nn.Parameter]:
        """Each pair's B, as LoRA+ has it (arXiv:2402.12354)."""
        return [layer.B for layer in adapted_layers(self.net).values()]
