"""torch.compile, block by block: the blocks of a transformer are alike, so one compilation serves them all."""

import os
import shutil
from typing import Any

import torch
from torch import nn

from lab.errors import UsageError
from lab.model import base_of

SLACK = 8  # graphs beside those of the layouts: other lengths of text, a batch of one


def compile_blocks(net: Any, accelerator: str) -> int:
    """Compile every block of a causal language model in place, for any length of text; returns their number.

    Names and state dict stay as they are, and whatever surrounds the blocks, such as the label gate at the head, stays
    eager. Raises UsageError where the model has no blocks, or the CPU's code generator no C++ compiler.
    """
    compiler = os.environ.get("CXX") or "g++"
    if accelerator == "cpu" and shutil.which(compiler) is None:
        raise UsageError(f"hardware.compile=true needs a C++ compiler on a CPU, and {compiler} is not found; set CXX.")
    lists = [module for module in base_of(net).modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        raise UsageError(f"hardware.compile=true compiles a model's blocks, and {type(net).__name__} has none.")
    blocks = max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))
    torch.compiler.set_stance("default")  # a step that failed in an earlier job of this process may have left it eager
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)


def allow_graphs(layouts: int) -> None:
    """Let a block's code have two graphs, to train and to score, for each layout that blocks have had, and some more.

    All blocks share one code object, and torch would go on without compiling, in silence, behind its limit of 8.
    """
    import torch._dynamo

    limit = 2 * layouts + SLACK
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, max(limit, getattr(torch._dynamo.config, name)))


def graphs_made() -> int:
    """Graphs that this process has compiled so far."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
