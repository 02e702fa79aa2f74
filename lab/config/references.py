"""Environment references of a config: live values in the process that needs them, references in every file.

A secret such as `logger.api_key=${oc.env:TOKEN}` so lies in no run directory, and a run that goes on reads it anew.
"""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lab.errors import UsageError

Place = tuple[str | int, ...]  # keys and positions, from the root of a config
_MARK = re.compile("lab_env_([0-9a-f]*)_")
_NONE = object()


def _mark(name: str, *default: Any) -> str:
    """Stands for a value of the environment in a text, until all else is resolved; a plain word in any grammar."""
    arguments = [name, *("null" if each is None else _quote(str(each)) for each in default)]
    return f"lab_env_{','.join(arguments).encode().hex()}_"


def _quote(text: str) -> str:
    return "'" + re.sub(r"(\\*)('|\Z)", lambda run: 2 * run[1] + ("\\'" if run[2] else ""), text) + "'"


OmegaConf.register_new_resolver("lab.env", _mark, replace=True)


def with_references(root: DictConfig, key: str | None = None) -> Any:
    """A config, or its node at a dotted key, resolved into plain types but for what comes from the environment."""
    raw = OmegaConf.create(_mark_all(OmegaConf.to_container(root, resolve=False)))
    node = raw if key is None else OmegaConf.select(raw, key)
    return _unmark_all(OmegaConf.to_container(node, resolve=True, throw_on_missing=False))


def references_in(root: DictConfig, resolved: Mapping[str, Any]) -> dict[Place, str]:
    """Every text of a resolved config that holds something of the environment, as a reference.

    Raises UsageError where what is there is not a text with the environment's in it, and so cannot be written as one.
    """
    by_place: dict[Place, str] = {}
    if "oc.env" in str(OmegaConf.to_container(root, resolve=False)):
        _collect(with_references(root), resolved, (), by_place)
    return by_place


def put(plain: dict[str, Any], by_place: Mapping[Place, str]) -> dict[str, Any]:
    """The same config with the references in their places."""
    return {key: _put(value, (key,), by_place) for key, value in plain.items()}


def escape(value: Any) -> Any:
    """The same plain value, in whose texts OmegaConf finds no reference."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def make_absolute(by_place: Mapping[Place, str], before: Any, after: Any) -> dict[Place, str]:
    """References to paths that were made absolute, with what was put before them."""
    kept = {}
    for place, text in by_place.items():
        was, now = _at(before, place), _at(after, place)
        if str(now).endswith(str(was)):  # else its `~` has become the home, and no reference gives that
            kept[place] = str(now).removesuffix(str(was)) + text
    return kept


def _at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def _mark_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mark_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark_all(item) for item in value]
    return re.sub(r"\$\{\s*oc\.env\s*:", "${lab.env:", value) if isinstance(value, str) else value


def _unmark_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmark_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unmark_all(item) for item in value]
    if not isinstance(value, str):
        return value
    return _MARK.sub(lambda mark: f"${{oc.env:{bytes.fromhex(mark[1]).decode()}}}", value)


def _collect(reference: Any, resolved: Any, place: Place, by_place: dict[Place, str]) -> None:
    if isinstance(reference, dict) and isinstance(resolved, dict):
        for key, item in reference.items():
            _collect(item, resolved.get(key, _NONE), (*place, key), by_place)
    elif isinstance(reference, list) and isinstance(resolved, list):
        for position, item in enumerate(reference):
            _collect(item, resolved[position], (*place, position), by_place)
    elif isinstance(reference, str) and "${oc.env:" in reference and reference != resolved:
        if isinstance(resolved, str):
            by_place[place] = reference
        elif isinstance(resolved, dict | list):
            raise UsageError(
                f"{'.'.join(map(str, place))} takes a whole list or map from the environment, which no file could keep "
                f"as a reference; write ${{oc.env:NAME}} for each of its texts."
            )


def _put(value: Any, place: Place, by_place: Mapping[Place, str]) -> Any:
    if isinstance(value, dict):
        return {key: _put(item, (*place, key), by_place) for key, item in value.items()}
    if isinstance(value, list):
        return [_put(item, (*place, position), by_place) for position, item in enumerate(value)]
    return by_place.get(place, value)
