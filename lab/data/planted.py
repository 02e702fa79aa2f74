"""Texts sampled from the base with a known low-rank change planted in one layer: data with a known right rank."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lab.cache import cache_dir, write_atomically
from lab.data import Splits, Text
from lab.errors import UsageError
from lab.model import weights_sha256
from lab.model.pretrained import Pretrained

if TYPE_CHECKING:
    from torch import Tensor

PROBES = 64  # sequences the base writes to show where its activations lie


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What a teacher writes that is `base` plus a rank-r* change of the weight of `target`.

    ΔW = size · Σᵢ uᵢ vᵢᵀ / σᵢ for i = 1 … r*: vᵢ and σᵢ² are the leading principal directions and variances of the
    layer's input (uncentred) on text the base writes, so that every vᵢᵀx / σᵢ has unit mean square, and uᵢ are the
    leading right singular vectors of the centred unembedding. The r* directions are therefore uncorrelated, equally
    strong at the layer's output, and lie where a gradient sees them: short training can find them, and a LoRA of
    rank r < r* on that layer must leave some out. With adapters on `target` alone the teacher is inside the student's
    model class exactly from r = r* on, and no loss below the teacher's entropy can be learned.
    """

    name: str
    template: str | None
    max_length: int  # tokens of a block
    retention: str | None
    answer_pattern: str | None
    base: str  # `lab:base`, a folder, or a hub name; the model that is to be trained on this data
    target: str  # the changed layer's name in that model
    true_rank: int  # r*
    size: float  # Euclidean length that each direction adds to the layer's output, root mean square
    length: int  # tokens per text
    seed: int
    train_examples: int  # texts
    val_examples: int
    test_examples: int

    def check(self) -> None:
        """Raise UsageError within 3 s where the base cannot be had."""
        self._base().check()

    def load(self) -> Splits:
        """Sample the texts at first use (seconds), then read them from the cache.

        Raises UsageError where `target` is no linear layer of the base or r* does not fit it.
        """
        import torch

        net = self._base().load(torch.float32, self.seed)
        asked = json.dumps(asdict(self), sort_keys=True) + weights_sha256(net)
        path = cache_dir("planted") / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"
        if not path.exists():
            rows = self._sample(net)
            write_atomically(path, lambda temporary: temporary.write_text(json.dumps(rows)))
        texts = [Text(text) for text in json.loads(path.read_text())]
        first, second = self.train_examples, self.train_examples + self.val_examples
        return Splits(train=tuple(texts[:first]), val=tuple(texts[first:second]), test=tuple(texts[second:]))

    def _base(self) -> Pretrained:
        return Pretrained(name_or_path=self.base, revision=None, quantization=None, attn_implementation=None)

    def _sample(self, net: Any) -> list[str]:
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
        return [tokenizer.decode(_until(row, self._end())) for row in ids[:, 1:].tolist()]

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
    """(out, in) ΔW of the given rank for a layer; `ids` (n, T) are texts that show its input. See Planted."""
    import torch

    inputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, out: inputs.append(args[0].detach().flatten(0, 1)))
    with torch.no_grad():
        net(ids)
    handle.remove()
    x = torch.cat(inputs)  # (n·T, in)
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))
    top = slice(-rank, None)
    unembedding = net.get_output_embeddings().weight.detach()
    _, _, rows = torch.linalg.svd(unembedding - unembedding.mean(0), full_matrices=False)
    return size * rows[:rank].T @ (directions[:, top] / variances[top].sqrt()).T.flip(0)


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


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
