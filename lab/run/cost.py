"""Cost of a run's step: memory and FLOPs, from one training step on tensors that have shapes and no memory."""

import time
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lab.adapter.build import build, planned, scaling_factor
from lab.config import Optim, RunConfig, instantiate
from lab.data.encode import Sample
from lab.layer import find_targets
from lab.model import base_of
from lab.run.setup import full_structure
from lab.training.hardware import Resolved
from lab.training.loss import LabelGate, loss_at
from lab.training.optim import make_optimizer

# Dense bfloat16 peak of a device, FLOP/s, from NVIDIA's data sheets (A100, H100 and H200 SXM without sparsity).
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
UTILISATION = 0.4  # of a GPU's peak: what LoRA and small pre-training runs reach is between 0.3 and 0.5

# torch counts the fused attention of a GPU, and not that of a CPU, on which all is planned, masked or not.
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors alive that were made in the context, and keeps their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


class StepCount(LiveBytes):
    """Counts FLOPs besides, of the operations that torch has a formula for: products, attention.

    One mode for both: each further one takes seconds of a step of thousands of operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # a question, two of three calls
            return func(*args)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        count = flop_registry.get(ON_CPU.get(func._overloadpacket, func._overloadpacket))
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


@dataclass(frozen=True)
class Cost:
    """What one device holds and computes; bytes and FLOPs."""

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int  # everything else at the peak of a step: saved for the backward pass, and in flight
    flops: float  # of one micro-batch, forward and backward
    optimizer_flops: float  # of the optimizer's step: Muon's products, and nothing else has any

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment of a step."""
        return self.weights + self.gradients + self.optimizer + self.activations


class PlannedGate(LabelGate):
    """The gate of the loss where numbers have no values: the usual model does no more to its logits than a softcap."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        super().__init__(net)
        self.planned_for = kind

    def _only_caps(self, net: nn.Module) -> bool:
        return True


def cost_of_step(
    net: nn.Module,
    optim: Optim,
    examples: int,
    length: int,
    labelled: int,
    autocast: bool,
    devices: int = 1,
    dtype: torch.dtype = torch.float32,
    kind: str = "cpu",
) -> Cost:
    """The cost of a training step with one micro-batch of examples (examples, length), `labelled` of them predicted.

    `net` must have been made under the FakeTensorMode that is active. The optimizer's state is counted at the peak, as
    it is from the second step on; its products are of `dtype`, and the head's loss goes by the chunks of a `kind` of
    device. With several devices DDP holds the gradients once more, in its buckets.
    """
    parameters = list(net.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    weights, gradients = _bytes([*parameters, *net.buffers()]), _bytes(trainable)
    ids = torch.zeros(examples, length, dtype=torch.long)
    targets = torch.zeros(labelled, dtype=torch.long)
    positions = torch.zeros(labelled, dtype=torch.long)  # which they are changes no size
    optimizer = make_optimizer(net, optim, torch.device("cpu"), dtype=dtype)
    net.train()
    with PlannedGate(base_of(net), kind) as gate, StepCount() as step:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_at(net, gate, ids, (positions, positions), targets)
        loss.backward()
    with StepCount() as updates:
        optimizer.step()
    state = _bytes(t for kept in optimizer.state.values() for t in kept.values() if isinstance(t, Tensor))
    # Gradients come to life during the backward pass: they are part of the peak, and not counted twice.
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in trainable),
        weights=weights,
        gradients=gradients * (2 if devices > 1 else 1),
        optimizer=state,
        activations=max(0, step.peak - gradients),
        flops=float(step.flops),
        optimizer_flops=float(updates.flops),
    )


def _bytes(tensors: Any) -> int:
    return sum(
        storage.nbytes() for storage in {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}.values()
    )


def fake_model(config: RunConfig, dtype: torch.dtype, mode: FakeTensorMode) -> nn.Module:
    """The model a run would train, adapters and all, without memory: CPU tensors of the given mode."""
    model = instantiate.make(config.model)
    net: nn.Module = model.skeleton().to(dtype)
    if config.hardware.gradient_checkpointing:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        net.enable_input_require_grads()  # type: ignore[operator]
    if config.method == "full":
        net = build(net, full_structure(net, instantiate.make(config.svd_policy)))
    else:
        targets = find_targets(net, config.adapter.target_modules, config.adapter.exclude_modules)
        scaling = scaling_factor(config.alpha, config.rank, config.scaling)  # type: ignore[arg-type]
        plan = {target.name: config.rank for target in targets}
        structure = planned(targets, plan, scaling=scaling, use_dora=config.adapter.use_dora)
        net = build(net, structure, config.adapter.dropout)
    # From the meta device to a CPU that computes shapes only: on meta, attention would not choose the fused kernels.
    made: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if p not in made:
                    fake = FakeTensor(mode, p.detach().to("meta"), torch.device("cpu"))
                    made[p] = nn.Parameter(fake, requires_grad=p.requires_grad)
                module._parameters[name] = made[p]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer.to("meta"), torch.device("cpu"))
    return net


def predict(config: RunConfig, hardware: Resolved, samples: list[Sample]) -> tuple[Cost, float]:
    """The cost on one device with its longest micro-batch, and the mean FLOPs of an optimizer step on all of them."""
    longest = sorted(samples, key=lambda sample: -len(sample.input_ids))[: hardware.micro]
    labelled = max(1, sum(int((sample.labels != -100).sum()) for sample in longest))
    length = len(longest[0].input_ids)
    mode = FakeTensorMode()
    net = fake_model(config, hardware.weight_dtype, mode)
    with mode:
        cost = cost_of_step(
            net,
            config.optim,
            len(longest),
            length,
            labelled,
            autocast=hardware.autocast,
            devices=hardware.devices,
            dtype=hardware.compute_dtype,
            kind="cuda" if hardware.accelerator == "gpu" else "cpu",
        )
    mean_tokens = sum(len(sample.input_ids) for sample in samples) / len(samples) * config.schedule.batch_size
    return cost, cost.flops / (len(longest) * length) * mean_tokens


def device_speed(hardware: Resolved) -> tuple[str, float, str]:
    """A device's name, the FLOP/s to expect of it, and where that number is from."""
    if hardware.accelerator == "gpu":
        name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "A100"
        kind = next((kind for kind in PEAK_FLOPS if kind in name), "A100")
        return name, PEAK_FLOPS[kind] * UTILISATION, f"{UTILISATION:.0%} of the {kind}'s bf16 peak"
    a = torch.randn(768, 768, dtype=hardware.compute_dtype)
    (a @ a).sum()
    began, count = time.perf_counter(), 8
    for _ in range(count):
        a @ a
    return hardware.device_name, count * 2 * 768**3 / (time.perf_counter() - began), "measured on a matrix product"
