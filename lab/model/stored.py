"""Models as they lie on disk."""

import json
from pathlib import Path

from lab.model import hub


def weight_files(name_or_path: str, revision: str | None) -> list[Path]:
    """The files that transformers reads a model's weights from, in a folder or in the hub's cache; empty where none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    place = hub.resolve(name_or_path)

    def find(name: str) -> Path | None:
        if hub.is_folder(place):
            path = Path(place) / name
            return path if path.is_file() else None
        try:
            found = try_to_load_from_cache(name_or_path, name, revision=revision)
        except HFValidationError:  # `scratch:llama` is no name of the hub's
            return None
        return Path(found) if isinstance(found, str) else None

    for single, index in zip(hub.WEIGHTS, hub.WEIGHT_INDICES, strict=True):
        if (path := find(single)) is not None:
            return [path]
        if (path := find(index)) is not None:
            return [path.parent / shard for shard in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
    return []
