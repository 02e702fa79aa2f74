"""Every id of a tokenizer against the rows of a model's embedding: from the files, then from the objects. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.errors import UsageError
from lab.model import hub

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def check_files(name_or_path: str, revision: str | None) -> None:
    """Raise UsageError where config.json and the tokenizer's files tell of ids without a row, or are no JSON objects.

    Silent where a file is not here, or leaves the size to the architecture: check_ids sees what is loaded.
    """
    config = _read(hub.file_of(name_or_path, revision, "config.json"))
    tokenizer = _read(hub.file_of(name_or_path, revision, "tokenizer.json"))
    settings = _read(hub.file_of(name_or_path, revision, "tokenizer_config.json"))
    with hub.explain_errors(name_or_path, revision):
        rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
        if tokenizer and isinstance(rows, int):
            check_ids(name_or_path, rows, _ids(tokenizer, settings))


def check_ids(name_or_path: str, rows: int, ids: Mapping[str, int]) -> None:
    """Raise UsageError where a token (name -> id) has no row; more rows than tokens are fine."""
    beyond = sorted((number, token) for token, number in ids.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise UsageError(
            f"model {name_or_path} has an embedding of {rows} rows, and {len(beyond)} of its tokenizer's {len(ids)} "
            f"tokens have an id beyond them (the first is {token!r}, id {number}); give it the tokenizer of its "
            f"training, take the tokens out of the tokenizer's files (a pad token may be the EOS token), or resize the "
            f"embedding (resize_token_embeddings) and save it again."
        )


def rows_needed(tokenizer: Any) -> int:
    """One more than the highest id, which is more than there are tokens where ids have gaps."""
    return 1 + max(tokenizer.get_vocab().values())


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); download or save the model again.") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is no JSON object; download or save the model again.")
    return value


def _ids(tokenizer: dict[str, Any], settings: dict[str, Any]) -> dict[str, int]:
    """Name -> id of what tokenizer.json and tokenizer_config.json hold; a special token without one gets the next."""
    vocab = tokenizer.get("model", {}).get("vocab", {})  # of a Unigram model a list of [piece, score]
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
    ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    ids |= {token["content"]: int(number) for number, token in settings.get("added_tokens_decoder", {}).items()}
    for key in NAMED:
        token = settings.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str):
            ids.setdefault(name, 1 + max(ids.values(), default=-1))
    return ids
