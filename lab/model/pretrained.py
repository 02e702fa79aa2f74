"""Any causal language model with weights: the lab's, in a folder or a GGUF file, or on the hub."""

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lab.errors import UsageError
from lab.model import gguf, hub, vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model that stock `AutoModelForCausalLM` loads; code from its repository is never run."""

    name_or_path: str  # `lab:<name>`, a folder, a GGUF file, or a hub name
    revision: str | None
    quantization: Literal["nf4"] | None
    attn_implementation: str | None  # None: transformers takes sdpa where the architecture has it

    def __post_init__(self) -> None:
        if self.quantization not in (None, "nf4"):
            raise UsageError(f"model.quantization={self.quantization} is not one of null, nf4.")

    def check(self) -> None:
        """Raise UsageError within 3 s where the files, or what quantisation needs, cannot be had, or do not fit."""
        if self.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
            raise UsageError(
                f"model {self.name_or_path} with quantization={self.quantization} needs bitsandbytes; "
                f"install lowrank-lab[qlora], or set model.quantization=null."
            )
        hub.check(self.name_or_path, self.revision)
        if not gguf.is_gguf(self.name_or_path):  # whose files are made when they are first read
            vocabulary.check_files(self.name_or_path, self.revision)

    def fetch(self) -> None:
        """Download what is not here yet into the hub's cache; raises UsageError where it cannot be had."""
        hub.fetch(self.name_or_path, self.revision)

    def skeleton(self) -> "PreTrainedModel":
        """The architecture on the meta device, unquantised; raises UsageError where it cannot be read or run."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if self.quantization is not None and not torch.cuda.is_available():
            raise UsageError(
                f"model {self.name_or_path} with quantization={self.quantization} needs CUDA, and there is none here; "
                f"run it on a machine with a GPU, or set model.quantization=null."
            )
        with hub.explain_errors(self.name_or_path, self.revision), torch.device("meta"):
            config = AutoConfig.from_pretrained(**self._source())
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer; raises UsageError where it cannot be read, has no EOS token or an id without a row."""
        from transformers import AutoConfig

        tokenizer = read_tokenizer(self.name_or_path, self.revision)
        with hub.explain_errors(self.name_or_path, self.revision):
            config = AutoConfig.from_pretrained(**self._source()).get_text_config()
        rows = getattr(config, "vocab_size", None)
        if rows is not None:
            vocabulary.check_ids(self.name_or_path, rows, tokenizer.get_vocab())
        return tokenizer

    def stored_sha256(self, seed: int) -> str:
        """Identity of the files' tensors in their own dtype, quantised or not; `seed` plays no part."""
        from lab.model.identity import stored_sha256

        return stored_sha256(self.name_or_path, self.revision)

    def load(self, dtype: "torch.dtype", seed: int) -> "PreTrainedModel":
        """The model with its weights, which must all be in the checkpoint: nothing is left to chance, so to `seed`.

        With quantization=nf4 the linear layers are 4-bit NormalFloat with double quantisation (QLoRA,
        arXiv:2305.14314) on the current CUDA device and compute in `dtype`. Raises UsageError for a checkpoint
        that lacks weights, holds some of other shapes or cannot be read.
        """
        from transformers import AutoModelForCausalLM

        hub.show_bars_to_people()
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": self.attn_implementation}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are refused below, by name
        if self.quantization is not None:
            options |= _nf4(dtype)
        with hub.explain_errors(self.name_or_path, self.revision):
            loaded: Any = AutoModelForCausalLM.from_pretrained(**self._source(), **options)
        model, info = loaded
        for name, held, needed in sorted(info["mismatched_keys"]):
            raise UsageError(
                f"model {self.name_or_path} holds {name} of shape {tuple(held)}, and its config.json asks for "
                f"{tuple(needed)}; give the config.json that belongs to the weights."
            )
        missing = sorted(info["missing_keys"])
        if missing:
            raise UsageError(
                f"model {self.name_or_path} lacks {len(missing)} weights of its architecture (such as {missing[0]}), "
                f"which would be random; give a complete causal language model."
            )
        return model

    def _source(self) -> dict[str, Any]:
        return source(self.name_or_path, self.revision)


def source(name_or_path: str, revision: str | None) -> dict[str, Any]:
    """Arguments for `from_pretrained`; what is wholly cached is read from there, without asking the hub."""
    place = hub.resolve(name_or_path)
    local = hub.is_folder(place) or hub.is_cached(name_or_path, revision)
    return {
        "pretrained_model_name_or_path": place,
        "revision": revision or "main",
        "trust_remote_code": False,
        "local_files_only": local,
    }


def read_tokenizer(name_or_path: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """A tokenizer with an EOS and a pad token; raises UsageError where it cannot be read or has no EOS token."""
    from transformers import AutoTokenizer

    with hub.explain_errors(name_or_path, revision):
        tokenizer = AutoTokenizer.from_pretrained(**source(name_or_path, revision))
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {name_or_path} has no EOS token, so a model could never learn to stop; "
            f"set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        # GPT-2 and Llama have none. EOS may stand in, since labels and attention masks are built from lengths
        # and never by comparing with the pad id: a real EOS stays a label.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _nf4(dtype: "torch.dtype") -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}
