"""The adapted layer: base(x) + s B A x − s B₀ A₀ x, as one pair of twice the rank: an offset cancels exactly."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear, LoraConfig
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lab.errors import UsageError
from lab.layer import weight_of
from lab.model import base_of
from lab.structure import Offset

ADAPTER = "default"  # the one peft adapter; the offset is part of the layer, not a second adapter


class LowRankLinear(Linear):
    """peft's LoRA layer for `nn.Linear` and `Conv1D`, with an optional frozen offset pair.

    A: (rank, in), B: (out, rank), both kept in float32 whatever the base is. Beside a bfloat16 base the pair is
    multiplied in bfloat16 and added to the base's output within the product; beside any other base, in float32. Values
    E (rank, 1) may stand between them: the product is B diag(E) A then, and a direction is cut where its value is 0.
    The offset pair is plain frozen parameters: peft's `set_adapter` would unfreeze a second adapter, and DDP would
    broadcast buffers.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        super().__init__(
            base_layer, adapter_name, config, is_target_conv_1d_layer=isinstance(base_layer, Conv1D), **kwargs
        )
        self.offset: Offset = "none"
        self.base_replaced = False  # True where the scheme gave the layer another weight to train on (LoftQ)
        self.register_parameter("offset_A", None)
        self.register_parameter("offset_B", None)
        self.register_parameter("E", None)

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """peft's, told first which way this layer stores its weight: one config may cover both kinds."""
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        super().update_layer(*args, **kwargs)

    @property
    def A(self) -> nn.Parameter:
        return cast(nn.Parameter, self.lora_A[ADAPTER].weight)

    @property
    def B(self) -> nn.Parameter:
        return cast(nn.Parameter, self.lora_B[ADAPTER].weight)

    @property
    def s(self) -> float:
        """The scaling of the trainable pair."""
        return self.scaling[ADAPTER]

    @property
    def scaled_A(self) -> Tensor:
        """diag(E) A, (rank, in): A itself where there is no E."""
        return self.A if self.E is None else self.A * self.E

    def factors(self) -> tuple[Tensor, Tensor]:
        """What a low-rank forward multiplies by, (r, in) and (out, r) or, with a separate offset, twice that rank.

        B A − B₀ A₀ = [B, B − B₀] [A − A₀; A₀]: an untrained pair gives zeros in any precision, and what is rounded of a
        trained one is a share of its change, where the two products apart would round shares of the pair.
        """
        if self.offset != "separate":
            return self.scaled_A, self.B
        return torch.cat((self.scaled_A - self.offset_A, self.offset_A)), torch.cat((self.B, self.B - self.offset_B), 1)

    @property
    def rank(self) -> int:
        """How many directions the trained pair has left."""
        return self.A.shape[0] if self.E is None else int(torch.count_nonzero(self.E))

    @property
    def magnitude(self) -> nn.Parameter | None:
        """DoRA's length of each row of the weight, (out,); None without DoRA."""
        return cast(nn.Parameter, self.lora_magnitude_vector[ADAPTER].weight) if self.lora_variant else None

    def trained_parameters(self) -> list[nn.Parameter]:
        """A and B, and E and DoRA's magnitude where they are."""
        return [p for p in (self.A, self.B, self.E, self.magnitude) if p is not None]

    def own_parameters(self) -> list[nn.Parameter]:
        """All that the layer has beside its base layer's: what trains, and the offset pair."""
        return [*self.trained_parameters(), *(p for p in (self.offset_A, self.offset_B) if p is not None)]

    @property
    def quantised(self) -> bool:
        """True where the base weight is packed (bitsandbytes) and cannot be written to."""
        return type(self.get_base_layer().weight).__name__ in ("Params4bit", "Int8Params")

    def base_weight(self) -> Tensor:
        """A float32 copy of the base weight as (out, in), dequantised where it is packed (unverified without CUDA)."""
        base = self.get_base_layer()
        weight = dequantize_module_weight(base) if self.quantised else weight_of(base)
        return weight.detach().to(torch.float32, copy=True).contiguous()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output in its own dtype, plus the low-rank part; bitwise the base where that is 0 or cancels.

        One dropout mask serves both pairs, so they cancel under dropout too. DoRA is peft's own forward.
        """
        if self.lora_variant:
            return super().forward(x, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        base = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged or ADAPTER not in self.active_adapters:
            return base
        with torch.autocast(x.device.type, enabled=False):
            A, B = self.factors()
            if base.dtype == x.dtype == torch.bfloat16:
                u = F.linear(self.lora_dropout[ADAPTER](x), A.to(x.dtype))
                B = (self.s * B).to(x.dtype)
                return torch.addmm(base.reshape(-1, len(B)), u.reshape(-1, u.shape[-1]), B.T).view_as(base)
            h = self.lora_dropout[ADAPTER](x.to(A.dtype))
            return (base + F.linear(F.linear(h, A) * self.s, B)).to(base.dtype)

    @torch.no_grad()
    def set_offset(self, kind: Offset, A: Tensor, B: Tensor) -> None:
        """Keep (A, B) as the frozen offset pair, and with `fold` subtract s B A from the base weight, in its dtype."""
        assert kind != "none", "no pair to keep"
        assert self.offset == "none", "an offset is set once"
        self.offset_A = nn.Parameter(torch.empty_like(self.A).copy_(A), requires_grad=False)
        self.offset_B = nn.Parameter(torch.empty_like(self.B).copy_(B), requires_grad=False)
        if kind == "fold":
            weight_of(self.get_base_layer()).copy_(self.folded(A, B))
        self.offset = kind

    def add_values(self) -> None:
        """Put values between the factors, all 0."""
        self.E = nn.Parameter(torch.zeros(self.A.shape[0], 1, device=self.A.device))

    @torch.no_grad()
    def replace_base(self, weight: Tensor) -> None:
        """Train on this weight, (out, in), in place of the layer's own."""
        weight_of(self.get_base_layer()).copy_(weight)
        self.base_replaced = True

    def folded(self, A: Tensor, B: Tensor) -> Tensor:
        """W − s B A in the base's dtype, (out, in); W itself is left alone."""
        weight = self.base_weight()
        weight -= self.s * (B.to(weight) @ A.to(weight))
        return weight.to(weight_of(self.get_base_layer()).dtype)

    def row_norms(self) -> Tensor:
        """‖W + s B A‖ row by row, (out,): DoRA's magnitude at step 0 (arXiv 2402.09353, eq. 5)."""
        return torch.linalg.vector_norm(self.base_weight() + self.s * (self.B.detach() @ self.A.detach()), dim=1)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the pairs add to the base weight as it now stands, stored as the base stores it; peft's merging asks."""
        delta = self.s * (self.B @ self.scaled_A)
        if self.offset == "separate":
            delta = delta - self.s * (self.offset_B @ self.offset_A)
        return delta.T if self.fan_in_fan_out else delta

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """peft's; raises UsageError on a quantised base, whose packed weight cannot take the sum."""
        if self.quantised:
            raise UsageError(
                "a quantised base cannot take the adapter in; export the adapter and merge it on the unquantised base."
            )
        super().merge(*args, **kwargs)


def adapted_layers(net: nn.Module) -> dict[str, LowRankLinear]:
    """The adapted layers of a model, named as in the pristine base, in module order; none of one without adapters."""
    return {name: module for name, module in base_of(net).named_modules() if isinstance(module, LowRankLinear)}
