"""NanoChat from scratch: one number, the depth, gives every shape; the weights are drawn as its author draws them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.errors import UsageError
from lab.model import weights_sha256
from lab.model.scratch import Scratch

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WIDTH_PER_LAYER = 64
HEAD_WIDTH = 128
ZERO_AT_START = ("o_proj", "fc2")  # what writes into the residual stream; every block starts as the identity


@dataclass(frozen=True, kw_only=True)
class NanoChat:
    """An untrained NanoChat: width 64 · depth, heads of 128 channels, MLP four times as wide, untied head.

    Transformers' class is the architecture that github.com/karpathy/nanochat had in October 2025.
    """

    depth: int
    vocab_size: int | None  # None: as many as the tokenizer has; more are ids that no text holds
    max_position_embeddings: int  # tokens
    tokenizer_name_or_path: str  # as Pretrained.name_or_path; only its tokenizer is read
    attn_implementation: str | None  # None: transformers takes sdpa

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UsageError(f"model.depth={self.depth} is no number of blocks; use 1 or more.")

    @property
    def name_or_path(self) -> str:
        """`scratch:nanochat_d<depth>`."""
        return f"scratch:nanochat_d{self.depth}"

    @property
    def revision(self) -> None:
        """None: there is no hub behind it."""
        return None

    def check(self) -> None:
        """Raise UsageError within 3 s where the tokenizer cannot be had."""
        self._scratch().check()

    def skeleton(self) -> "PreTrainedModel":
        """The architecture on the meta device; raises UsageError for a vocabulary smaller than the tokenizer's."""
        return self._scratch().skeleton()

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer whose ids the model reads; raises UsageError where it cannot be read."""
        return self._scratch().tokenizer()

    def stored_sha256(self, seed: int) -> str:
        """Identity of the weights as they are drawn from `seed`, in float32."""
        import torch

        return weights_sha256(self.load(torch.float32, seed))

    def load(self, dtype: "torch.dtype", seed: int) -> "PreTrainedModel":
        """The model, drawn by nanochat's own initialisation in float32 from `seed`, then cast to `dtype`."""
        import torch

        net = self._scratch().load(torch.float32, seed)
        initialise(net, torch.Generator().manual_seed(seed))
        return net.to(dtype)  # type: ignore[arg-type]

    def _scratch(self) -> Scratch:
        width = WIDTH_PER_LAYER * self.depth
        heads = -(-width // HEAD_WIDTH)
        architecture = {
            "model_type": "nanochat",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": self.max_position_embeddings,
            "pad_token_id": None,  # else one row of the embedding is zero and never gets a gradient
            **({} if self.vocab_size is None else {"vocab_size": self.vocab_size}),
        }
        return Scratch(
            architecture=architecture,
            tokenizer_name_or_path=self.tokenizer_name_or_path,
            attn_implementation=self.attn_implementation,
        )


def initialise(net: "nn.Module", generator: "torch.Generator") -> None:
    """Fill every weight in place: embedding N(0, 1), head and what ends a branch 0, else N(0, σ²).

    σ = min(1, √(out/in)) / √in for a weight (out, in) (nanochat's `gpt.py`, October 2025; after Yang et al.,
    arXiv:2310.17813).
    """
    from torch import nn

    head = net.get_output_embeddings()  # type: ignore[operator]
    for name, module in net.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
        elif isinstance(module, nn.Linear):
            out, inner = module.weight.shape
            if module is head or name.rpartition(".")[2] in ZERO_AT_START:
                nn.init.zeros_(module.weight)
            else:
                sigma = min(1.0, (out / inner) ** 0.5) / inner**0.5
                nn.init.normal_(module.weight, std=sigma, generator=generator)
