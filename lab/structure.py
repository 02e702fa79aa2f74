"""Structure of a model: which modules train, and in which form. Plain types, for checkpoints and records."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Form = Literal["full", "fading", "low_rank", "delta", "osf"]
Offset = Literal["separate", "fold", "none"]
NAMES = {  # of a form's fields, as sentences have them
    "form": "the form",
    "rank": "the rank",
    "scaling": "the scaling",
    "dora": "DoRA",
    "offset": "the offset",
    "base_replaced": "the base's replacement",
    "active": "the number of directions that act",
    "step": "the factor on Muon's step",
    "since": "the step of its switch",
    "kept": "the number of directions kept",
}


@dataclass(frozen=True)
class LayerForm:
    """Form of one module that trains.

    full: the module's own weights. delta: a low-rank pair on a frozen weight, W + s B A. low_rank: the pair in the
    weight's place, s B A. fading: the pair, and what it leaves of the weight while that fades away. osf: the weight,
    whose leading singular directions are frozen.
    """

    form: Form
    rank: int | None = None  # directions that the pair holds
    scaling: float | None = None  # s
    dora: bool = False
    offset: Offset = "none"  # of the pair at step 0
    base_replaced: bool = False  # True where the frozen weight is not the base's own (LoftQ)
    active: int | None = None  # directions left, where values between the factors can cut some; None without values
    step: float | None = None  # factor on Muon's step of the pair; None where no switch made it
    since: int | None = None  # optimizer steps taken when a switch gave it this form; None where it began so
    kept: int | None = None  # leading directions that are frozen; None where none is


@dataclass(frozen=True)
class Structure:
    """Forms of all modules that train, named as in the pristine base, in module order; frozen ones are not listed."""

    layers: Mapping[str, LayerForm] = field(default_factory=dict)

    @property
    def pairs(self) -> dict[str, LayerForm]:
        """Those that an adapter was given to before step 0."""
        return {name: layer for name, layer in self.layers.items() if layer.rank is not None and layer.since is None}

    @property
    def switched(self) -> dict[str, LayerForm]:
        """Those that a switch has made low-rank, and that are so still."""
        held = self.layers.items()
        return {name: layer for name, layer in held if layer.rank is not None and layer.since is not None}

    @property
    def kept(self) -> dict[str, int]:
        """Leading directions that a layer keeps, of those that keep some."""
        return {name: layer.kept for name, layer in self.layers.items() if layer.kept is not None}

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each low-rank pair, whatever made it."""
        return {name: layer.rank for name, layer in self.layers.items() if layer.rank is not None}

    @property
    def active_ranks(self) -> dict[str, int]:
        """Rank of each pair, less the directions that were cut; a layer may be left with none."""
        return {name: rank if (left := self.layers[name].active) is None else left for name, rank in self.ranks.items()}

    @property
    def scalings(self) -> dict[str, float]:
        """The s of each low-rank pair."""
        return {name: layer.scaling for name, layer in self.layers.items() if layer.scaling is not None}

    @property
    def offset(self) -> str:
        """The one kind of offset of the pairs, or the kinds that occur joined by +."""
        return "+".join(sorted({layer.offset for layer in self.pairs.values()}))

    def changed(self, name: str, **values: Any) -> "Structure":
        """The structure with other values for one module."""
        return Structure({**self.layers, name: replace(self.layers[name], **values)})

    def to_plain(self) -> dict[str, dict[str, Any]]:
        """Each module's form without what is as by default."""
        usual = asdict(LayerForm("full"))
        return {
            name: {"form": layer.form} | {key: value for key, value in asdict(layer).items() if value != usual[key]}
            for name, layer in self.layers.items()
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Mapping[str, Any]]) -> "Structure":
        """The structure that `to_plain` gave."""
        return cls({name: LayerForm(**layer) for name, layer in plain.items()})


@dataclass(frozen=True)
class Difference:
    """A field in which two forms of modules differ."""

    module: str
    what: str
    asked: object
    actual: object


def differences(asked: Structure, actual: Structure, names: Iterable[str] | None = None) -> Iterator[Difference]:
    """Fields of modules that both structures hold, or of those named, in which they differ, field by field.

    Scalings are compared to the last bits of a double: peft stores alpha and divides by the rank.
    """
    both = [name for name in (asked.layers if names is None else names) if name in actual.layers]
    for each in fields(LayerForm):
        for name in both:
            mine, theirs = getattr(asked.layers[name], each.name), getattr(actual.layers[name], each.name)
            if isinstance(mine, float) and isinstance(theirs, float) and math.isclose(mine, theirs, rel_tol=1e-9):
                continue
            if mine != theirs:
                yield Difference(name, NAMES[each.name], mine, theirs)
