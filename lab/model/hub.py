"""Files of a model: shipped, in a folder, in the hub's cache, or on the hub. No torch here."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lab.errors import UsageError, nearest
from lab.model import gguf, packaged

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED = "lab:"  # lab:base is the folder lab/assets/base of the installed package; others are fetched into the cache
REQUEST_SECONDS = 2.0  # a hub that does not answer one request in this time is treated as out of reach

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")  # configuration, tokenizer and chat template
FILES = (".gguf", ".safetensors", ".bin")  # endings that name a file, and no folder or repository
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def shipped(name: str) -> Path:
    """The folder of a model that comes with the package, or was fetched; raises UsageError where there is none."""
    if name in packaged.MODELS:
        return packaged.place(name)
    folder = ASSETS / name
    if not name or not (folder / "tokenizer.json").is_file():
        known = [*sorted(path.parent.name for path in ASSETS.glob("*/tokenizer.json")), *packaged.MODELS]
        raise UsageError(
            f"{SHIPPED}{name} is no model of this lab{nearest(name, known)} "
            f"(it has {', '.join(SHIPPED + item for item in known)})."
        )
    return folder


def resolve(name_or_path: str) -> str:
    """A folder where the name is one, the lab's, or a GGUF file's, which is converted first; else the hub name."""
    if name_or_path.startswith(SHIPPED):
        return str(shipped(name_or_path.removeprefix(SHIPPED)))
    if gguf.is_gguf(name_or_path):
        show_bars_to_people()
        return str(gguf.folder_of(name_or_path))
    folder = Path(name_or_path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name_or_path


def origin(name_or_path: str) -> gguf.Origin | None:
    """Where the weights of a fetched or converted model are from; None of any other, which its name says."""
    place = resolve(name_or_path)
    found = gguf.origin_of(Path(place)) if is_folder(place) else None
    return None if found is None else {key: value for key, value in found.items() if key != "files"}


def show_bars_to_people() -> None:
    """Keep transformers' progress bars, of loading and of saving, out of files and pipes."""
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def is_folder(place: str) -> bool:
    """True where a resolved place is a local folder."""
    return Path(place).is_dir()


def check(name_or_path: str, revision: str | None, needs_weights: bool = True, key: str = "model.name_or_path") -> None:
    """Raise UsageError within 3 s where a model cannot be had: local folder, then hub cache, then one short request.

    `needs_weights=False` asks for the tokenizer alone; `key` is where the user gave the name.
    """
    if gguf.is_gguf(name_or_path):
        gguf.check(name_or_path, f"{key}={name_or_path}")
        return
    place = resolve(name_or_path)
    if is_folder(place):
        _check_folder(Path(place), f"{key}={name_or_path}", needs_weights)
    elif not name_or_path:
        raise UsageError(f"{key} is empty; give a folder or a hub name.")
    elif Path(name_or_path).expanduser().is_file():
        raise UsageError(
            f"{key}={name_or_path} is a file; give the Hugging Face folder that holds a model's files, or a GGUF file."
        )
    elif name_or_path.lower().endswith(FILES):
        raise UsageError(f"{key}={name_or_path}: there is no such file; give a GGUF file, a folder or a hub name.")
    elif _looks_like_a_path(name_or_path):
        raise UsageError(f"{key}={name_or_path}: there is no such folder; give a folder or a hub name.")
    elif not is_cached(name_or_path, revision, needs_weights, key):
        _check_hub(name_or_path, revision, key)


def fetch(name_or_path: str, revision: str | None, needs_weights: bool = True, key: str = "model.name_or_path") -> None:
    """Download into the hub's cache what a run reads of a model; nothing where it is a folder or cached already.

    Weights as safetensors where there are any, else as PyTorch files. Raises UsageError where it cannot be had.
    """
    check(name_or_path, revision, needs_weights, key)
    if is_folder(resolve(name_or_path)) or is_cached(name_or_path, revision, needs_weights):
        return
    from huggingface_hub import snapshot_download

    def download(*patterns: str) -> Path:
        got = snapshot_download(
            name_or_path, revision=revision, allow_patterns=[*patterns], ignore_patterns=["*/*"], max_workers=4
        )
        return Path(got)

    print(f"fetching {_label(name_or_path, revision)} from the hub, once for all jobs")
    with explain_errors(name_or_path, revision):
        folder = download(*SMALL_FILES, *(["*.safetensors"] if needs_weights else []))
        if needs_weights and not any(folder.glob("*.safetensors")):
            download("*.bin")


def is_cached(
    name_or_path: str, revision: str | None, needs_weights: bool = True, key: str = "model.name_or_path"
) -> bool:
    """True where the hub's local cache holds configuration and tokenizer, and every shard of the weights if needed."""
    from huggingface_hub.errors import HFValidationError

    cached = partial(file_of, name_or_path, revision)
    try:
        if cached("config.json") is None and needs_weights:
            return False
    except HFValidationError as error:
        raise UsageError(
            f"{key}={name_or_path} is neither a folder nor a hub name like owner/model ({error})."
        ) from None
    if not any(cached(name) for name in TOKENIZERS):
        return False
    if not needs_weights or any(cached(name) for name in WEIGHTS):
        return True
    indices = [path for path in map(cached, WEIGHT_INDICES) if path is not None]
    return any(all(cached(shard) for shard in shards(path)) for path in indices)


def file_of(name_or_path: str, revision: str | None, filename: str) -> Path | None:
    """A file of a model, in its folder or in the hub's cache; None where it is not here."""
    place = resolve(name_or_path)
    if is_folder(place):
        path = Path(place) / filename
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name_or_path, filename, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def shards(index: Path) -> set[str]:
    """The names of the files that an index of a model's weights names."""
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _check_folder(folder: Path, named: str, needs_weights: bool) -> None:
    if not needs_weights:
        if not any((folder / file).is_file() for file in TOKENIZERS):
            raise UsageError(f"{named} holds no tokenizer ({', '.join(TOKENIZERS)}).")
        return
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"{named} is an adapter, not a model; merge it first: python -m lab.export RUN --to DIR --format merged."
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"{named} holds no config.json, so it is no Hugging Face model folder.")
    if not any((folder / file).is_file() for file in WEIGHTS + WEIGHT_INDICES):
        raise UsageError(f"{named} holds no weights ({', '.join(WEIGHTS)}, or their index).")


def _check_hub(name: str, revision: str | None, key: str) -> None:
    def request() -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=REQUEST_SECONDS)

    error = ask(request, _label(name, revision), _offline_remedy(key))
    if error is not None:
        raise UsageError(reason(name, revision, error, key)) from error


def ask(request: Callable[[], object], what: str, remedy: str) -> Exception | None:
    """The error that one request to the hub for `what` ends in; None where it is answered.

    Raises UsageError after REQUEST_SECONDS, with the `remedy`: a blocked name look-up ignores a client's own timeout.
    """
    outcome: list[Exception | None] = []

    def run() -> None:
        try:
            request()
            outcome.append(None)
        except Exception as error:  # carried to the caller's thread, which makes a sentence of it
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(REQUEST_SECONDS)
    if not outcome:
        raise UsageError(f"{what}: the hub did not answer in {REQUEST_SECONDS:g} s; {remedy}")
    return outcome[0]


def is_offline() -> bool:
    """True where the environment forbids requests to the hub, in huggingface_hub's words."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _offline_remedy(key: str) -> str:
    return (
        f"download it where there is a network (hf download NAME) and share the cache, give a local folder as {key}, "
        f"or use model=tiny, which needs none."
    )


def _label(name: str, revision: str | None) -> str:
    return f"model {name}" + (f" at revision {revision}" if revision else "")


def reason(name: str, revision: str | None, error: BaseException, key: str = "model.name_or_path") -> str:
    """The reason why a model cannot be had, and the remedy, in one sentence."""
    from huggingface_hub import errors as hub

    what = _label(name, revision)
    chain = list(_causes(error))
    if any(isinstance(item, hub.GatedRepoError) for item in chain):
        return f"{what} is gated: accept its licence on its hub page, then `hf auth login` or set HF_TOKEN."
    if any(isinstance(item, hub.RevisionNotFoundError) for item in chain):
        return f"{what} does not exist; check model.revision (null is the default branch)."
    if any(isinstance(item, hub.RepositoryNotFoundError) for item in chain):
        return f"{what} is not on the hub, or is private; check the spelling, or `hf auth login` / HF_TOKEN if private."
    if any(isinstance(item, hub.RemoteEntryNotFoundError) for item in chain):
        return f"{what} has no config.json on the hub, so transformers cannot load it; choose another model."
    here = is_folder(resolve(name)) or is_cached(name, revision)
    if not here and is_offline():
        return f"{what} is not in the local cache and HF_HUB_OFFLINE is set: unset it, {_offline_remedy(key)}"
    first = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    if any(isinstance(item, hub.LocalEntryNotFoundError) or _is_network(item) for item in chain):
        return f"{what} is not in the local cache and the hub cannot be reached ({first}): {_offline_remedy(key)}"
    return f"{what} cannot be loaded ({first}); check that its files are whole and are a causal language model's."


def _is_network(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}  # httpx's and requests' errors, without importing either
    return bool(names & {"ConnectionError", "TransportError", "ConnectError", "TimeoutException", "Timeout"})


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def explain_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what transformers raises while reading a model into a UsageError with the model's name and the remedy."""
    try:
        yield
    except (UsageError, RuntimeError, MemoryError):  # said already, or of the machine
        raise
    except Exception as error:  # whatever a file may hold: transformers and tokenizers check little of it
        raise UsageError(reason(name, revision, error)) from error
