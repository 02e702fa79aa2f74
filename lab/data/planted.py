"""Texts sampled from the base with a known low-rank change planted in one layer: data with a known right rank."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lab.cache import cache_dir, keep_json, read_json
from lab.data import Splits, Written
from lab.data.answer import check_answer_pattern
from lab.errors import UsageError
from lab.model import hub, weights_sha256
from lab.model.pretrained import Pretrained

if TYPE_CHECKING:
    from torch import Tensor

PROBES = 256  # sequences the base writes to show where its activations and gradients lie
AT_ONCE = 32  # of them, since every token has its logits


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Texts of a teacher that is `base` plus a rank-r* change of the weight of `target`.

    ΔW = size · Σᵢ (eᵢ/√φᵢ) (vᵢ/√λᵢ)ᵀ for i = 1 … r*: vᵢ and λᵢ are the leading eigenpairs of E[x xᵀ] of the layer's
    input x, eᵢ and φᵢ those of F = E[g gᵀ], g the gradient of a token's −log p at the layer's output, both on text that
    the base writes, where F is the Fisher matrix. With K-FAC's independence of g and x (Martens and Grosse, ICML 2015)
    a change D costs ½‖F^½ D E[x xᵀ]^½‖² nats per token to second order; of ΔW that matrix has r* singular values, all
    equal to `size`. So the teacher lies ½·r*·size² from the base, and by Eckart and Young a rank r < r* can take back
    no more than r/r* of it: with adapters on `target` alone the right rank is r*, and no smaller one does.
    """

    name: str
    template: str | None
    max_length: int  # tokens of a block
    retention: str | None
    answer_pattern: str | None
    base: str  # `lab:base`, a folder, or a hub name; the model that is to be trained on this data
    target: str  # the changed layer's name in that model
    true_rank: int  # r*
    size: float  # of each direction; ½·size² is its share of the loss, in nats per token
    length: int  # tokens per text
    seed: int
    train_examples: int  # texts
    val_examples: int
    test_examples: int

    def check(self) -> None:
        """Raise UsageError within 3 s where the base cannot be had, or an answer is asked of running text."""
        check_answer_pattern(self.answer_pattern, running_text=True)
        hub.check(self.base, None, key="data.base")

    def load(self) -> Splits:
        """Sample the texts at first use (seconds), then read them from the cache.

        Raises UsageError where `target` is no linear layer of the base or r* does not fit it.
        """
        import torch

        net = self._base().load(torch.float32, self.seed)
        identity = json.dumps({"as": "tokens"} | asdict(self), sort_keys=True) + weights_sha256(net)
        folder = cache_dir("planted")
        path = folder and folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
        rows = read_json(path)
        if rows is None:
            rows = self._sample(net)
            keep_json(path, rows)
        texts = [Written(text, tuple(ids)) for text, ids in rows]
        first, second = self.train_examples, self.train_examples + self.val_examples
        return Splits(train=tuple(texts[:first]), val=tuple(texts[first:second]), test=tuple(texts[second:]))

    def _base(self) -> Pretrained:
        return Pretrained(name_or_path=self.base, revision=None, quantization=None, attn_implementation=None)

    def _sample(self, net: Any) -> list[tuple[str, list[int]]]:
        import torch

        layer = self._layer(net)
        generator = torch.Generator().manual_seed(self.seed)
        probes = sample(net, PROBES, self.length, self._end(), generator)
        change = planted_change(net, layer, probes, self.true_rank, self.size)
        with torch.no_grad():
            layer.weight += change
        wanted = self.train_examples + self.val_examples + self.test_examples
        ids = sample(net, wanted, self.length, self._end(), generator)
        tokenizer = self._base().tokenizer()
        rows = [_up_to_end(row, self._end()) for row in ids[:, 1:].tolist()]
        return [(tokenizer.decode(row, skip_special_tokens=True), row) for row in rows]

    def _end(self) -> int:
        end = self._base().tokenizer().eos_token_id
        assert isinstance(end, int)
        return end

    def _layer(self, net: Any) -> Any:
        import torch

        layer = dict(net.named_modules()).get(self.target)
        if not isinstance(layer, torch.nn.Linear):
            raise UsageError(f"data.target={self.target} is no linear layer of {self.base}; name one that is.")
        if not 1 <= self.true_rank <= min(layer.weight.shape):
            raise UsageError(
                f"data.true_rank={self.true_rank} does not fit {self.target}, whose weight is "
                f"{' x '.join(map(str, layer.weight.shape))}; use 1 to {min(layer.weight.shape)}."
            )
        return layer


def planted_change(net: Any, layer: Any, ids: "Tensor", rank: int, size: float) -> "Tensor":
    """(out, in) ΔW of the given rank for a layer; `ids` (n, T) are texts that the model wrote. See Planted."""
    inputs, gradients = moments(net, layer, ids)
    return size * _whiten(gradients, rank) @ _whiten(inputs, rank).T


def moments(net: Any, layer: Any, ids: "Tensor") -> "tuple[Tensor, Tensor]":
    """E[x xᵀ] (in, in) of the layer's inputs and E[g gᵀ] (out, out) of each token's gradient at its outputs.

    A layer of the last block after its attention: a token's output there reaches no other token's loss.
    """
    import torch
    from torch.nn.functional import cross_entropy

    seen: list[Tensor] = []

    def hook(module: Any, args: Any, out: Any) -> None:
        out.requires_grad_()
        out.retain_grad()
        seen[:] = args[0], out

    inputs, gradients, count = torch.zeros(()), torch.zeros(()), 0
    handle = layer.register_forward_hook(hook)
    for part in ids.split(AT_ONCE):
        with torch.enable_grad():
            logits = net(part).logits[:, :-1]
            cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").backward()
        assert seen[1].grad is not None
        x, g = (rows[:, :-1].detach().flatten(0, 1) for rows in (seen[0], seen[1].grad))
        inputs, gradients, count = inputs + x.T @ x, gradients + g.T @ g, count + len(x)
    handle.remove()
    net.zero_grad()
    return inputs / count, gradients / count


def _whiten(moment: "Tensor", rank: int) -> "Tensor":
    """(n, rank): the leading eigenvectors, strongest first, each over the root of its eigenvalue."""
    import torch

    values, vectors = torch.linalg.eigh(moment)
    return (vectors[:, -rank:] / values[-rank:].sqrt()).flip(1)


def sample(net: Any, count: int, length: int, end: int, generator: Any) -> "Tensor":
    """(count, length + 1) token ids at temperature 1, the first of each row `end`."""
    import torch

    ids = current = torch.full((count, 1), end)
    cache = None
    with torch.no_grad():
        for _ in range(length):
            out = net(current, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            current = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, current], dim=1)
    return ids


def _up_to_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
