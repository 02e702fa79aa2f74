"""GGUF files as Hugging Face folders: converted once, kept in the lab's cache, read back. No torch until one is."""

import hashlib
import importlib.util
import json
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.cache import alone, cache_dir
from lab.errors import UsageError
from lab.files import new_folder, share_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KIND = "bases"  # of the cache
ORIGIN = "lab_origin.json"  # in a folder: where its weights are from, and its files' sizes; written last
CARD = "README.md"
HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, entries of metadata
VERSIONS = (2, 3)
PLAIN = {"F32", "F16", "BF16"}  # types whose numbers are what they were before
# llama.cpp's names of pre-tokenizers (`tokenizer.ggml.pre`, llama-vocab.cpp) that transformers reads as GPT-2's: some
# are, and the others cut every digit off first, which it does not do.
AS_GPT2 = ("gpt-2", "mpt", "olmo", "jais", "phi-2", "exaone4", "trillion")
BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")

Origin = Mapping[str, Any]  # weights (dequantised | as stored | published), types, file, sha256, from; said, in words


def is_gguf(name: str) -> bool:
    """True for the name of a file that ends in .gguf."""
    return name.lower().endswith(".gguf") and Path(name).expanduser().is_file()


def check(name: str, named: str) -> None:
    """Raise UsageError where a file is no GGUF, or what reads one is not installed; `named` is how the user gave it."""
    with Path(name).expanduser().open("rb") as file:
        begin = file.read(HEADER.size)
    if len(begin) < HEADER.size:
        raise UsageError(f"{named} is cut short: it ends within the header of a GGUF file; download it again.")
    magic, version, *_ = HEADER.unpack(begin)
    if magic != b"GGUF":
        raise UsageError(f"{named} is no GGUF file (it does not begin with GGUF); give the file that was meant.")
    if version not in VERSIONS:
        raise UsageError(
            f"{named} is GGUF of version {version}, and versions {' and '.join(map(str, VERSIONS))} are read; convert "
            f"the model again with a current llama.cpp."
        )
    check_installed(named)


def is_installed() -> bool:
    """True where the package that reads GGUF files is there."""
    return importlib.util.find_spec("gguf") is not None


def check_installed(named: str) -> None:
    """Raise UsageError where it is not."""
    if not is_installed():
        raise UsageError(f"{named} needs the package gguf to be read; pip install 'lowrank-lab[gguf]'.")


def place(name: str) -> Path:
    """The folder of a converted model in the cache, there or not; raises UsageError where there is no cache."""
    folder = cache_dir(KIND)
    if folder is None:
        raise UsageError(f"{name} has no place to be kept in; set LAB_CACHE to a folder that can be written.")
    return folder / name


def origin_of(folder: Path) -> Origin | None:
    """Where the weights of a folder are from; None of a folder that was not made here, or is not whole."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in origin["files"].items())
    except (OSError, ValueError, LookupError):
        return None
    return origin if whole else None


def folder_of(name: str) -> Path:
    """The Hugging Face folder of a GGUF file, made at first use (seconds, and four bytes a parameter) and kept.

    A file that moved or changed is another. Raises UsageError where it cannot be read or kept.
    """
    file = Path(name).expanduser().resolve()
    seen = file.stat()
    key = hashlib.sha256(f"{file} {seen.st_size} {seen.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = place(f"{file.stem}-{key}")
    make(folder, lambda beside: convert(file, beside, str(file)))
    return folder


def make(folder: Path, write: Callable[[Path], Origin]) -> None:
    """Have `write` fill a folder of the cache, unless it is there and whole; other processes wait meanwhile.

    Its origin and a card join it. Raises UsageError where the disk refuses.
    """
    try:
        if origin_of(folder) is not None:
            return
        with alone(folder):
            if origin_of(folder) is not None:
                return
            shutil.rmtree(folder, ignore_errors=True)  # what is not whole
            with new_folder(folder) as beside:
                origin = write(beside)
                (beside / CARD).write_text(f"# {folder.name}\n\nThis folder holds {said(origin)}.\n", encoding="utf-8")
                files = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
                (beside / ORIGIN).write_text(
                    json.dumps({"said": said(origin), **origin, "files": files}, indent=2), encoding="utf-8"
                )
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror}); free space, or set LAB_CACHE to another disk."
        ) from error


def convert(file: Path, folder: Path, source: str) -> Origin:
    """Write a GGUF's model in float32 and its tokenizer into an empty folder, read it back, and say where it is from.

    `source` is the file's own place. Raises UsageError where transformers cannot read the file.
    """
    print(f"converting {file.name}, once", flush=True)
    try:
        types, pre = _described(file)
        model, tokenizer = _read(file, pre)
        model.save_pretrained(folder)
        share_weights(folder)
        tokenizer.save_pretrained(folder)
        _verify(folder, tokenizer)
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # whatever a file may hold: its readers check little of it
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"{file} cannot be converted ({first}); download it again, or give the Hugging Face folder or name that it "
            f"was made from."
        ) from error
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    weights = "as stored" if set(types) <= PLAIN else "dequantised"
    return {"weights": weights, "types": types, "file": file.name, "sha256": sha256, "from": source}


def said(origin: Origin) -> str:
    """Where weights are from, in words."""
    if origin["weights"] == "published":
        return f"the published weights, {origin['from']}"
    what = f"{origin['file']} ({origin['from']}; sha256 {origin['sha256'][:12]})"
    if origin["weights"] == "as stored":
        return f"the weights of {what}"
    blocks = " and ".join(sorted(set(origin["types"]) - PLAIN))
    return f"weights dequantised from the {blocks} blocks of {what}, not the published ones"


def _described(file: Path) -> tuple[dict[str, int], str | None]:
    """How many tensors are of each type, and the name of the pre-tokenizer where the vocabulary is of byte pairs."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    kind, pre = (reader.get_field(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind is None or kind.contents() != "gpt2":
        return dict(types), None
    return dict(types), "none" if pre is None else pre.contents()


def _read(file: Path, pre: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    named = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **named, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UsageError(f"{file} lacks {len(missing)} weights of its architecture (such as {missing[0]}).")
    tokenizer: Any = AutoTokenizer.from_pretrained(**named)
    _mend(tokenizer, pre, f"{file}")
    for key in ("is_local", "local_files_only"):  # of this reading, and nothing of the tokenizer
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.model_max_length = model.config.max_position_embeddings  # transformers leaves 1e30
    return model, tokenizer


def _mend(tokenizer: Any, pre: str | None, named: str) -> None:
    """Give a tokenizer of byte pairs the pre-tokenizer it was trained behind; raises UsageError for an unknown one."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if pre is None or pre in AS_GPT2 or pre in GGUF_PRE_TOKENIZER_SPLITS:
        return
    if pre not in BY_DIGIT:
        raise UsageError(
            f"{named} cuts text by the pre-tokenizer {pre!r}, which neither transformers nor this lab knows, so its "
            f"ids would be wrong; give the Hugging Face folder or name that it was made from."
        )
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)


def _verify(folder: Path, tokenizer: Any) -> None:
    """Raises UsageError where the tokenizer that stock transformers loads from a folder is not the one saved there."""
    from transformers import AutoTokenizer

    again: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    probes = ("It is 12.50 at 7am,  3  times.", "a   b\n\n  x = 10  # naïve 日本\t  9", " 1 2  3   4")
    same = all(again(text)["input_ids"] == tokenizer(text)["input_ids"] for text in probes)
    if not same or again.model_max_length != tokenizer.model_max_length:
        raise UsageError(f"the tokenizer read back from {folder} is not the one that was saved.")
