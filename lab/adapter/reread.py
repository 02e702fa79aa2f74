"""An adapter's folder read back as a checkpoint's state: what is left of a run whose checkpoints were dropped."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lab.adapter.delta import truncate
from lab.adapter.export import BASE, PREFIX, WEIGHTS
from lab.layer import weight_of

LEAVES = {"A.weight": "A", "B.weight": "B", "magnitude_vector": "magnitude"}


def reread(directory: Path) -> dict[str, Tensor]:
    """The state that `adapter_state` names, of the folder that `export` wrote.

    An offset is part of the pair there, so the ranks are those that were saved and there is no offset left. A pair of
    more directions than its layer has is written with as many as that, which is the same product.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in load_file(directory / WEIGHTS).items():
        name, _, leaf = key.removeprefix(PREFIX).rpartition(".lora_")
        state[f"{name}.{LEAVES[leaf]}"] = tensor
    names = [key.removesuffix(".A") for key in state if key.endswith(".A")]
    for name in names:
        A, B = state[f"{name}.A"], state[f"{name}.B"]
        most = min(B.shape[0], A.shape[1])
        if A.shape[0] > most:
            same = truncate(B, A, most)
            state |= {f"{name}.A": same.R, f"{name}.B": same.L}
    if (directory / BASE).is_dir():
        base = AutoModelForCausalLM.from_pretrained(directory / BASE, dtype="auto")
        state |= {f"{name}.base": weight_of(base.get_submodule(name)).detach() for name in names}
    return state
