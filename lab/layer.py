"""Linear layers that may be adapted: Target, its role and depth, how they are found, and Evidence about them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lab.errors import UsageError, nearest

Role = Literal["attention", "mlp", "other"]
Need = Literal["gradient", "gradient_square", "activations", "delta"]

ATTENTION_PARTS = ("attn", "attention", "self_attn", "self_attention")
MLP_PARTS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
MLP_LEAVES = ("fc1", "fc2")  # OPT holds them in the block itself


@dataclass(frozen=True)
class Target:
    """One linear layer that a method may adapt."""

    name: str  # as in named_modules() of the pristine base
    role: Role
    depth: int  # index of its block, 0 nearest the input; -1 outside the blocks
    shape: tuple[int, int]  # (out_features, in_features), whatever way the weight is stored
    transposed: bool  # True where the weight is stored (in, out), as in GPT-2's Conv1D

    @property
    def leaf(self) -> str:
        """The last part of the name: `q_proj`."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def cost(self) -> int:
        """Parameters that one unit of rank costs here: out + in."""
        return self.shape[0] + self.shape[1]

    @property
    def max_rank(self) -> int:
        """The smaller side, beyond which a low-rank pair is no longer one."""
        return min(self.shape)


@dataclass(frozen=True)
class Evidence:
    """What training data said about one layer; only what was needed is filled. float32."""

    gradient: Tensor | None = None  # (out, in), dL/dW of the mean loss over the gathered training batches
    gradient_square: Tensor | None = None  # (out, in), mean over the examples of each one's own dL/dW squared
    activations: Tensor | None = None  # (in, in), mean of x xᵀ over all real tokens that reach the layer
    delta: Tensor | None = None  # (out, in), a weight change: of a warm-up run or of a teacher
    num_tokens: int = 0  # labelled tokens that the gradient is the mean over


def is_transposed(module: nn.Module) -> bool:
    """True for GPT-2's `Conv1D`, which stores its weight as (in, out)."""
    from transformers.pytorch_utils import Conv1D  # a second, which who only names a scheme need not wait for

    return isinstance(module, Conv1D)


def is_linear(module: nn.Module) -> bool:
    """True for `nn.Linear` (and its quantised subclasses) and GPT-2's `Conv1D`."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer as (out, in); a view, so writing to it in place writes to the layer."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if is_transposed(module) else weight


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of a linear layer, from its own numbers: a quantised weight is packed."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    nf, nx = module.nf, module.nx  # of a Conv1D
    assert isinstance(nf, int) and isinstance(nx, int)  # noqa: PT018
    return nf, nx


def _role(name: str) -> Role:
    *parents, leaf = name.split(".")
    if any(part in ATTENTION_PARTS for part in parents):
        return "attention"
    return "mlp" if leaf in MLP_LEAVES or any(part in MLP_PARTS for part in parents) else "other"


def _depth(name: str) -> int:
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(match.group(1)) if match else -1


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    if isinstance(patterns, str):
        try:
            return re.fullmatch(patterns, name) is not None
        except re.error as error:
            raise UsageError(f"{patterns!r} is no regular expression ({error}); mend it or give a list.") from None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _check_matches(key: str, patterns: str | Sequence[str], names: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the names, with what there is."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if any(_matches(name, patterns if isinstance(patterns, str) else [pattern]) for name in names):
            continue
        if isinstance(patterns, str) and any(_matches(name, [pattern]) for name in names):
            raise UsageError(
                f"{key} {pattern!r} is a regular expression for the whole name of a layer and matches none; "
                f"write [{pattern}] for the layers whose names end so."
            )
        leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise UsageError(
            f"{key} {pattern!r} matches no linear layer{nearest(pattern, leaves)} (this model has {', '.join(leaves)})."
        )


def matching(names: Sequence[str], patterns: str | Sequence[str], key: str) -> list[str]:
    """The names that a pattern names, as `find_targets` has it; raises UsageError naming `key` where one names none."""
    _check_matches(key, patterns, names)
    return [name for name in names if _matches(name, patterns)]


def find_targets(
    net: nn.Module,
    target_modules: str | Sequence[str] = "all-linear",
    exclude_modules: str | Sequence[str] | None = None,
    key: str = "target_modules",
) -> list[Target]:
    """The linear layers a pattern names, in module order, with peft's semantics.

    `all-linear` is every linear layer but the output head; another string is a regular expression for the whole
    name; a list holds names or their endings. Raises UsageError where a pattern matches nothing, naming `key`
    and listing what there is.
    """
    head_of = getattr(net, "get_output_embeddings", None)
    head = head_of() if callable(head_of) else None
    linear = {name: module for name, module in net.named_modules() if is_linear(module) and module is not head}
    if target_modules == "all-linear":
        chosen = set(linear)
    else:
        _check_matches(key, target_modules, list(linear))
        chosen = {name for name in linear if _matches(name, target_modules)}
    if exclude_modules:
        _check_matches("exclude_modules", exclude_modules, list(linear))
        chosen -= {name for name in linear if _matches(name, exclude_modules)}
    if not chosen:
        raise UsageError("target_modules less exclude_modules leaves no layer to adapt.")
    return [
        Target(name, _role(name), _depth(name), shape_of(module), is_transposed(module))
        for name, module in linear.items()
        if name in chosen
    ]


def evenly_spaced(names: Sequence[str], count: int) -> list[str]:
    """`count` layers evenly spaced in module order, the first and the last among them; all where there are fewer."""
    if count >= len(names):
        return list(names)
    if count == 1:
        return [names[0]]
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
