"""Keys that hold a path, and what becomes of one: absolute in a config, quoted in Hydra's grammar. Standard library.

A key says by its name that it holds a path: its last word is `path`, `file`, `dir` or `folder`, or it is one of NAMED.
So a class of anybody's own is served as ours are, and before anything is imported.
"""

import re
from os.path import lexists
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
# The shipped options: inside the package in a wheel, beside it in a checkout.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

INPUTS = ("path", "paths", "file", "files")  # read: what does not exist may be a hub name, and stays as it is
OUTPUTS = ("dir", "dirs", "folder", "folders")  # written: made where they do not exist
NAMED = ("teacher", "base", "retention", "resume", "resume_study")  # a model, a text, a run, a study
WITHIN = ("subdir", "sub_dir")  # the end of a path that another key begins


def is_path(key: str) -> bool:
    """True where a dotted key such as `data.val_path` or `hydra.run.dir` holds a path."""
    return _leaf(key) in NAMED or is_output(key) or _last_word(key) in INPUTS


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _last_word(key: str) -> str:
    return _leaf(key).rsplit("_", 1)[-1]


def is_output(key: str) -> bool:
    """True where a key holds a path that is written to."""
    return _last_word(key) in OUTPUTS and _leaf(key) not in WITHIN


def absolute(plain: dict[str, Any], start: Path, prefix: str = "") -> dict[str, Any]:
    """A plain config whose paths hold from any folder: `~` is the home, and relative ones begin at `start`.

    What may be a hub name, because nothing of that name exists, stays as it is; so do URLs and `{run_dir}`.
    """
    return {key: _absolute(value, start, f"{prefix}{key}") for key, value in plain.items()}


def _absolute(value: Any, start: Path, key: str) -> Any:
    if isinstance(value, dict):
        return absolute(value, start, f"{key}.")
    if isinstance(value, list):
        return [_absolute(item, start, key) for item in value]
    if not isinstance(value, str) or not is_path(key) or not value or "://" in value or value.startswith("{"):
        return value
    place = at_home(value)
    relative = value.startswith((".", "~")) or is_output(key) or lexists(start / place)
    return str(start / place) if relative else place


def empty(plain: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of paths that are empty text, as an unset variable of the shell leaves them."""
    keys = []
    for key, value in plain.items():
        if isinstance(value, dict):
            keys += empty(value, f"{prefix}{key}.")
        elif value == "" and is_path(prefix + key):
            keys.append(prefix + key)
    return keys


def at_home(text: str) -> str:
    """Text whose leading `~` or `~user` is that home's path; as it is where nobody knows such a home."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        return text


def quoted(text: str) -> str:
    """Text as one value in Hydra's grammar, whatever it holds.

    A quote is escaped by a backslash, and so is every backslash before a quote; elsewhere a backslash is itself.
    """
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"
