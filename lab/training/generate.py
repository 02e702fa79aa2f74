"""Greedy generation from prompts, and exact match of the answers extracted from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lab.training.loss import base_of

PROMPTS_PER_BATCH = 100


@torch.no_grad()
def complete(
    net: nn.Module, prompts: Sequence[Tensor], eos_id: int, pad_id: int, max_new_tokens: int, device: torch.device
) -> list[Tensor]:
    """The greedy continuation of each prompt (token ids), without the prompt and cut before its end-of-text token."""
    model: Any = base_of(net)
    was_training = net.training
    net.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(prompts)
    for start in range(0, len(order), PROMPTS_PER_BATCH):
        chosen = order[start : start + PROMPTS_PER_BATCH]
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), longest), pad_id, dtype=torch.long)
        mask = torch.zeros((len(chosen), longest), dtype=torch.long)
        for row, i in enumerate(chosen):  # padded on the left, so that every continuation starts in one column
            ids[row, longest - len(prompts[i]) :] = prompts[i]
            mask[row, longest - len(prompts[i]) :] = 1
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            **_cache(model),
            eos_token_id=eos_id,
            pad_token_id=pad_id,
        ).cpu()
        for row, i in enumerate(chosen):
            new = out[row, longest:]
            end = (new == eos_id).nonzero()
            done[i] = new[: int(end[0])] if len(end) else new
    net.train(was_training)
    return done


def _cache(model: Any) -> dict[str, Any]:
    """A cache of fixed length where the architecture takes one: a growing one is copied at every token."""
    return {"cache_implementation": "static", "disable_compile": True} if model._can_compile_fullgraph else {}
