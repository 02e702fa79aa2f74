"""Positions of a model, and whether what a run reads and writes fits them."""

from typing import Any

from torch import nn

from lab.config import Evaluate
from lab.data.corpus import Corpus
from lab.errors import UsageError
from lab.training.progress import console


def position_limit(net: nn.Module) -> int | None:
    """Tokens that a model can read at most; None where positions are computed as they come, as rotary ones are.

    The limit is hard where a table holds a row per position: a learned embedding, or a buffer of sines.
    """
    model: Any = net
    config = model.config.get_text_config(decoder=True)
    if config.model_type == "mpt":  # slices a row of biases
        return int(config.max_seq_len)
    made = made_for(net)
    if made is None:
        return None
    embeddings = [module for module in net.modules() if isinstance(module, nn.Embedding)]
    rows = [  # two more than positions in OPT and BART; in RoBERTa the rows up to the padding's are no positions
        min(made, table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
        for table in embeddings
        if table is not model.get_input_embeddings() and made <= table.num_embeddings <= made + 2
    ]
    rows += [made for name, table in net.named_buffers() if "pos" in name and table.ndim == 2 and len(table) == made]
    return min(rows, default=None)


def made_for(net: nn.Module) -> int | None:
    """Tokens that a model was made for, as its configuration says."""
    model: Any = net
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None if most is None else int(most)


def room_for_prompt(net: nn.Module, new_tokens: int, key: str) -> int | None:
    """Tokens that a prompt may have beside new ones, None where any number; raises UsageError where none are left."""
    limit = position_limit(net)
    if limit is None:
        return None
    if new_tokens >= limit:
        raise UsageError(
            f"{key}={new_tokens} leaves no room for a prompt in the model's {limit} positions; set it below {limit}."
        )
    return limit - new_tokens


def check_fits(net: nn.Module, corpus: Corpus, evaluate: Evaluate, judged: bool) -> None:
    """Raises UsageError where an example, or new tokens alone, exceed a model's positions; a skeleton tells.

    A model that computes its positions goes on beyond those it was made for, and training it there is how its context
    is extended: that is said, not refused. With `judged`, answers are generated at the end.
    """
    longest = max(len(sample.input_ids) for side in (corpus.train, corpus.val, corpus.test) for sample in side.samples)
    retained = max((len(sample.input_ids) for sample in corpus.retention), default=0)
    limit, made = position_limit(net), made_for(net)
    if limit is not None and longest > limit:
        raise UsageError(
            f"the longest example has {longest} tokens and the model {limit} positions; set data.max_length={limit} or "
            f"less, which cuts longer ones."
        )
    if limit is not None and retained > limit:
        raise UsageError(
            f"the text of data.retention={corpus.retention_name} is read {retained} tokens at a time and the model has "
            f"{limit} positions; set data.retention=null."
        )
    if limit is None and made is not None and longest > made:
        console.print(
            f"the longest example has {longest:,} tokens and the model was made for {made:,}: "
            f"it computes positions beyond, but starts there untrained"
        )
    if evaluate.num_samples or evaluate.prompts:
        room_for_prompt(net, evaluate.sample_tokens, "evaluate.sample_tokens")
    if judged:
        room_for_prompt(net, evaluate.max_new_tokens, "evaluate.max_new_tokens")
