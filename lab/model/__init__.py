"""Causal language models behind one protocol: checked in a blink, shaped without weights, then loaded.

Nothing here imports torch or transformers before it is asked for shapes, text or weights.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Model(Protocol):
    """A causal language model, from the cheapest question about it to its weights."""

    @property
    def name_or_path(self) -> str:
        """The name in the record: a hub name, a folder, `lab:<name>` or `scratch:<type>`."""
        ...

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit on the hub; None is whatever the hub or the cache has."""
        ...

    def check(self) -> None:
        """Raise UsageError within 3 s where the model cannot be had; imports neither torch nor transformers."""
        ...

    def skeleton(self) -> "PreTrainedModel":
        """The architecture on the meta device: every name and shape, no weight."""
        ...

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer, which has an EOS token and a pad token."""
        ...

    def stored_sha256(self, seed: int) -> str:
        """Identity of the weights in the dtype they are stored (or, from `seed`, drawn) in, whatever `load` takes."""
        ...

    def load(self, dtype: "torch.dtype", seed: int) -> "PreTrainedModel":
        """The model with its weights, on the CPU unless it is quantised, in eval mode; `seed` fills what is random."""
        ...


def weights_sha256(model: "nn.Module") -> str:
    """Identity of a model's parameters: sha256 over name, shape, dtype and raw bytes of each, by name.

    Raw bytes of what is in memory: the same checkpoint held in another dtype, or quantised, is another identity
    (`Model.stored_sha256` is not).
    A tied weight counts once, under its first name.
    """
    return combined(digests_of(list(model.named_parameters())))


def combined(digests: dict[str, bytes]) -> str:
    """One digest of many, in the order of their names."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def digests_of(named: "Sequence[tuple[str, Tensor]]") -> dict[str, bytes]:
    """The digest of each weight, by name."""
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashlib and device copies release the interpreter lock
        return dict(zip((name for name, _ in named), pool.map(lambda item: digest_of(*item), named), strict=True))


def digest_of(name: str, weight: "Tensor") -> bytes:
    """sha256 of one weight: its name, shape, dtype and raw bytes."""
    import torch

    digest = hashlib.sha256(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
    raw = weight.detach().reshape(-1).contiguous().view(torch.uint8).cpu()
    digest.update(raw.numpy().data)
    return digest.digest()


def base_of(net: Any) -> Any:
    """The transformers model inside a peft wrapper, or the model itself."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net
