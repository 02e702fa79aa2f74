"""Greedy generation from prompts: the likeliest token each time, whatever a model's folder asks for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from lab.model import base_of

PROMPTS_PER_BATCH = 100


@torch.no_grad()
def complete(
    net: nn.Module,
    prompts: Sequence[Tensor],
    end_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    device: torch.device,
    until: StoppingCriteria | None = None,
) -> list[Tensor]:
    """The greedy continuation of each prompt (token ids, at least one), up to the first of the end tokens, without it.

    Of the model's own generation settings nothing counts, and they are left as they were. `until` is asked after each
    token whether to end there.
    """
    model: Any = base_of(net)
    was_training = net.training
    net.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(prompts)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        **_cache(model),
    )
    ends = torch.tensor(list(end_ids))
    # Eagerly: a cache makes a graph of each layer's index, and they would use up what blocks may have of graphs.
    with _only(model, greedy), _rows(model.get_output_embeddings()), torch.compiler.set_stance("force_eager"):
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
                generation_config=greedy,
                stopping_criteria=StoppingCriteriaList([until] if until is not None else []),
            ).cpu()
            for row, i in enumerate(chosen):
                new = out[row, longest:]
                end = torch.isin(new, ends).nonzero()
                done[i] = new[: int(end[0])] if len(end) else new
    net.train(was_training)
    return done


@contextmanager
def _only(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Within the context no other settings exist: `generate` fills what a call leaves open from the model's own."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _rows(head: nn.Module | None) -> Iterator[None]:
    """Within the context the head sees its last positions in one piece.

    A slice of a batch is none, and a product with a frozen weight then repeats that weight for every prompt: 5.7 GB and
    a minute for 100 prompts of SmolLM2-135M in bf16 on a CPU (torch's `should_fold` in LinearAlgebra.cpp).
    """
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def _cache(model: Any) -> dict[str, Any]:
    """A cache of fixed length where the architecture takes one: a growing one is copied at every token."""
    return {"cache_implementation": "static", "disable_compile": True} if model._can_compile_fullgraph else {}
