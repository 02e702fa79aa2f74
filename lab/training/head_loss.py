"""Cross-entropy of a linear head over a large vocabulary, in one pass over the logits that never holds them all.

The loss at a position needs its logits only; so do both gradients. Each chunk of positions makes its logits, their
loss and their gradients, and lets them go: nothing is computed twice, and backward only scales.

Under a softcap logits are bounded, so that a row's normaliser may come last. In bfloat16 on a CPU the pass then goes by
blocks of words whose logits stay in cache: three products in bfloat16, and elementwise work once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE_VOCABULARY = 8192  # words from which on the logits dominate time and memory
CHUNK = {"cpu": 2**23, "cuda": 2**27}  # logits at a time: the products stay large, the memory small (32, 512 MB)
IN_CACHE = 2**18  # logits that elementwise work takes at a time on the CPU, where it is bound by memory
WORDS, ROWS = 4096, 32  # of a piece of a block of words, so small that its elementwise work stays in cache
POSITIONS = 512  # whose logits are held at a time by the pass by words
Buffers = dict[str, Tensor]  # kept from step to step: fresh memory costs as much as a product


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap); the logits themselves where cap is None (Gemma 2, arXiv:2408.00118, §2)."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float | None,
    scale: float = 1.0,
    buffers: Buffers | None = None,
    planned_for: str | None = None,
) -> Tensor:
    """Sum over positions of the cross-entropy, in nats, of softcap(hidden weightᵀ); float32 scalar.

    hidden (positions, width), weight (vocabulary, width), targets (positions,) word ids. Products run in autocast's
    dtype where that is on, else in the weight's; all else runs in float32. `scale` is what the loss will be multiplied
    by before backward, if the caller knows: the gradients need no pass of their own for it then. `planned_for`: the
    kind of device whose chunks are taken where tensors have no values, which the pass by words would ask for.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    tracks = torch.is_grad_enabled()
    wanted = (tracks and hidden.requires_grad, tracks and weight.requires_grad)
    faster = kind == "cpu" and dtype == torch.bfloat16 and weight.dtype == torch.float32 and all(wanted)
    if planned_for is None and faster and cap is not None and len(weight) % WORDS == 0 and len(hidden):
        held = {} if buffers is None else buffers
        return _ByWords.apply(hidden, weight, targets, cap, scale, held)  # type: ignore[no-any-return, no-untyped-call]
    return _HeadLoss.apply(hidden, weight, targets, cap, dtype, wanted, planned_for)  # type: ignore[no-any-return, no-untyped-call]


class _ByWords(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, scale: float, buffers: Buffers
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            nats, ctx.d_hidden, ctx.d_weight = _by_words(
                hidden.detach().float(), weight.detach(), targets, cap, scale, buffers
            )
        ctx.scale, ctx.dtype = torch.tensor(scale), hidden.dtype
        return nats

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.d_hidden, ctx.d_weight
        del ctx.d_hidden, ctx.d_weight
        if scale != ctx.scale:  # the caller did not know, or not rightly
            d_hidden, d_weight = d_hidden.mul_(scale / ctx.scale), d_weight.mul_(scale / ctx.scale)
        return d_hidden.to(ctx.dtype), d_weight, None, None, None, None


def _by_words(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, scale: float, buffers: Buffers
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the gradients of `scale` times it, all float32.

    With s = c tanh(z/c) and p = e^s: ∂loss/∂z = (p/Σp − onehot(y)) (1 − (s/c)²). What stands where the logits were is
    p (1 − (s/c)²) / 4; Σp of a row and the 4 are put into the small side of both products with it.
    """
    w = _buffer(buffers, "weight", weight.shape).copy_(weight)
    nats, d_hidden, d_weight = torch.zeros(()), torch.empty_like(hidden), torch.empty_like(weight)
    for start in range(0, len(hidden), POSITIONS):
        part = slice(start, start + POSITIONS)
        x, y = hidden[part].to(torch.bfloat16), targets[part]
        logits = _buffer(buffers, "logits", (len(w) // WORDS, len(x), WORDS))
        total, product = torch.zeros(len(x), 1), torch.zeros(x.shape)
        for own, words in zip(logits, w.split(WORDS), strict=True):
            torch.mm(x, words.T, out=own)
            for rows, sums in zip(own.split(ROWS), total.split(ROWS), strict=True):
                sums += _to_unnormalised(rows, cap)
            product += own @ words
        chosen = w[y].float()
        z = (x.float() * chosen).sum(1, keepdim=True).to(torch.bfloat16).float()  # as the product rounded it
        capped = torch.tanh(z / cap)
        slope = scale * (1 - capped.square())
        nats += (total.log() - cap * capped).sum()
        share = 4 * scale / total
        torch.addcmul(product * share, slope, chosen, value=-1, out=d_hidden[part])
        weighted = (hidden[part] * share).to(torch.bfloat16)
        for own, grads in zip(logits, d_weight.split(WORDS), strict=True):
            grads.copy_(own.T @ weighted) if start == 0 else grads.add_(own.T @ weighted)
        d_weight.index_add_(0, y, slope * hidden[part], alpha=-1)
    return nats, d_hidden, d_weight


def _buffer(buffers: Buffers, name: str, shape: Sequence[int]) -> Tensor:
    held = buffers.get(name)
    if held is None or held.shape != torch.Size(shape):
        held = buffers[name] = torch.empty(shape, dtype=torch.bfloat16)
    return held


def _to_unnormalised(logits: Tensor, cap: float) -> Tensor:
    """Turn logits (rows, words) bfloat16 into p (1 − (s/c)²) / 4, in place; returns Σp of each row, (rows, 1) float32.

    With σ = sigmoid(2z/c): s = c (2σ − 1) and (1 − (s/c)²) / 4 = σ (1 − σ). p is at most e^c, so that no row's maximum
    is needed.
    """
    sigma = logits.float().mul_(2 / cap).sigmoid_()
    p = (sigma * (2 * cap)).sub_(cap).exp_()
    total = p.sum(1, keepdim=True)
    p.mul_(sigma)
    logits.copy_(p.addcmul_(p, sigma, value=-1))
    return total


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float | None,
        dtype: torch.dtype,
        wanted: tuple[bool, bool],
        planned_for: str | None = None,
    ) -> Tensor:
        kind = planned_for or hidden.device.type
        with torch.autocast(hidden.device.type, enabled=False):
            nats, ctx.d_hidden, ctx.d_weight = _one_pass(hidden, weight, targets, cap, dtype, wanted, kind)
        return nats

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.d_hidden, ctx.d_weight
        del ctx.d_hidden, ctx.d_weight  # scaled in place: there is no second backward
        return *(None if grad is None else grad.mul_(scale) for grad in grads), None, None, None, None, None


def _one_pass(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float | None,
    dtype: torch.dtype,
    wanted: tuple[bool, bool],
    kind: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and the gradients of hidden and weight, None where they are not wanted, in the chunks of a device."""
    x, w = hidden.detach().to(dtype), weight.detach().to(dtype)
    positions, vocabulary = len(x), len(w)
    rows = max(1, CHUNK.get(kind, CHUNK["cuda"]) // vocabulary)
    buffer = x.new_empty(min(rows, positions), vocabulary)
    nats = torch.zeros((), dtype=torch.float32, device=x.device)
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_weight = torch.empty_like(weight) if wanted[1] else None
    if positions == 0 and d_weight is not None:
        d_weight.zero_()
    for start in range(0, positions, rows):
        part = slice(start, min(start + rows, positions))
        logits = torch.mm(x[part], w.T, out=buffer[: part.stop - start]).float()  # no copy in float32
        nats += _to_gradient(logits, targets[part], cap, any(wanted), kind)
        gradient = logits.to(dtype)
        if d_hidden is not None:
            d_hidden[part] = gradient @ w
        if d_weight is not None:
            if dtype == d_weight.dtype:
                d_weight.addmm_(gradient.T, x[part], beta=min(start, 1))  # beta 0 overwrites
            elif start == 0:
                d_weight.copy_(gradient.T @ x[part])
            else:
                d_weight += gradient.T @ x[part]
    return nats, d_hidden, d_weight


def _to_gradient(logits: Tensor, targets: Tensor, cap: float | None, wanted: bool, kind: str) -> Tensor:
    """The loss of a chunk (rows, vocabulary) float32, whose logits become their own gradients in place.

    With s = softcap(z): ∂loss/∂z = (softmax(s) − onehot(target)) · (1 − (s / cap)²).
    """
    step = max(1, IN_CACHE // logits.shape[1]) if kind == "cpu" else len(logits)
    nats = torch.zeros((), dtype=torch.float32, device=logits.device)
    for z, y in zip(logits.split(step), targets.split(step), strict=True):
        if cap is not None:
            z.div_(cap).tanh_()
        scale = 1.0 if cap is None else cap
        y = y.unsqueeze(1)
        top = z.amax(1, keepdim=True)
        p = ((z - top) * scale if cap is not None else z - top).exp_()
        total = p.sum(1, keepdim=True)
        nats += (total.log() + scale * (top - z.gather(1, y))).sum()
        if not wanted:
            continue
        p.div_(total).scatter_add_(1, y, torch.full_like(total, -1.0))
        if cap is None:
            z.copy_(p)
        else:
            torch.addcmul(p, p, z.square_(), value=-1, out=z)
    return nats
