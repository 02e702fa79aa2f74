"""A model with random weights, from the numbers of an architecture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.errors import UsageError, nearest
from lab.model import hub, weights_sha256
from lab.model.pretrained import read_tokenizer
from lab.model.vocabulary import rows_needed

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

KEY = "model.tokenizer_name_or_path"


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """An untrained model: transformers' numbers of an architecture, with the vocabulary of a tokenizer."""

    architecture: dict[str, Any]  # model_type and fields of its configuration
    tokenizer_name_or_path: str  # as Pretrained.name_or_path; only its tokenizer is read
    attn_implementation: str | None  # None: transformers takes sdpa where the architecture has it

    def __post_init__(self) -> None:
        if "model_type" not in self.architecture:
            raise UsageError("model.architecture has no model_type; name one of transformers', such as llama.")

    @property
    def name_or_path(self) -> str:
        """`scratch:<model type>`."""
        return f"scratch:{self.architecture['model_type']}"

    @property
    def revision(self) -> None:
        """None: there is no hub behind it."""
        return None

    def check(self) -> None:
        """Raise UsageError within 3 s where the tokenizer cannot be had."""
        hub.check(self.tokenizer_name_or_path, None, needs_weights=False, key=KEY)

    def fetch(self) -> None:
        """Download the tokenizer into the hub's cache; raises UsageError where it cannot be had."""
        hub.fetch(self.tokenizer_name_or_path, None, needs_weights=False, key=KEY)

    def skeleton(self) -> "PreTrainedModel":
        """The architecture on the meta device; raises UsageError for an unknown model type or number."""
        import torch

        with torch.device("meta"):
            return self._build()

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer whose vocabulary the model has; raises UsageError where it cannot be read."""
        return read_tokenizer(self.tokenizer_name_or_path, None)

    def stored_sha256(self, seed: int) -> str:
        """Identity of the weights as they are drawn from `seed`, in float32."""
        import torch

        return weights_sha256(self.load(torch.float32, seed))

    def load(self, dtype: "torch.dtype", seed: int) -> "PreTrainedModel":
        """The model, drawn by transformers' own initialisation in float32 from `seed`, then cast to `dtype`."""
        import torch

        hub.show_bars_to_people()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net: Any = self._build()
            return net.to(dtype).eval()

    def _build(self) -> "PreTrainedModel":
        from huggingface_hub.errors import StrictDataclassError
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

        try:
            config = self._config()
        except StrictDataclassError as error:  # wrong types, or sizes that do not divide
            cause = str(error.__cause__ or error).strip().split("\n")[-1]
            raise UsageError(f"model.architecture={self.architecture} cannot be built: {cause.strip()}") from error
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UsageError(
                f"model.architecture.model_type={config.model_type} is no causal language model; "
                f"choose one, such as llama, qwen3 or gpt2."
            )
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    def _config(self) -> "PretrainedConfig":
        from transformers import AutoConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        numbers = dict(self.architecture)
        kind = numbers.pop("model_type")
        if kind not in CONFIG_MAPPING_NAMES:
            raise UsageError(
                f"model.architecture.model_type={kind} is not among transformers' types"
                f"{nearest(kind, list(CONFIG_MAPPING_NAMES)) or '.'}"
            )
        default = AutoConfig.for_model(kind)
        known = sorted({*default.to_dict(), *default.attribute_map})
        for key in numbers:
            if key not in known:  # a configuration would keep a misspelt number and build the default
                raise UsageError(f"model.architecture.{key} is no number of {kind}{nearest(key, known) or '.'}")
        tokenizer = self.tokenizer()
        rows = rows_needed(tokenizer)
        options = {
            "vocab_size": rows,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "attn_implementation": self.attn_implementation,
        }
        config = AutoConfig.for_model(kind, **(options | numbers))
        if config.vocab_size < rows:
            raise UsageError(
                f"model.architecture.vocab_size={config.vocab_size} is smaller than the {rows} tokens of "
                f"{self.tokenizer_name_or_path}; leave it out, and it follows the tokenizer."
            )
        if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
            raise UsageError(
                f"model.architecture.pad_token_id={config.pad_token_id} is no id of a vocabulary of "
                f"{config.vocab_size}; leave it out, and it follows the tokenizer."
            )
        return config
