"""Instantiation: config to live objects; the only caller of hydra.utils.instantiate."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from lab.errors import UsageError
from lab.record import METRICS


def make(node: dict[str, Any], where: str | None = None) -> Any:
    """The object a `_target_` mapping describes; raises UsageError with the constructor's own sentence.

    `where` is the key that the user wrote the values under, where it is not the group's.

    Where the target is a dataclass, values are first compared with the plain types that its fields name: a constructor
    would compare text with numbers, or count to 1.5, and say so in words that are not the user's.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or not target:
        raise UsageError(f"_target_={target!r} names no class, and {sorted(node)} need one, such as mypackage.Mine.")
    try:
        _check_types(node, where or _group(node))
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        if cause is not None and str(error).startswith("Error in call to target"):
            raise UsageError(f"{target}: {' '.join(str(cause).split())}") from cause
        if str(error).startswith("Error locating target"):
            why = _innermost(error, target)
            raise UsageError(f"_target_={target} cannot be imported ({why}); mend the path.") from error
        raise UsageError(" ".join(str(error).split("\nfull_key")[0].split())) from error


def make_data(node: dict[str, Any]) -> Any:
    """The data set of a config; with `test`, the options of another, that one's test side instead of its own."""
    test = node.get("test")
    if not isinstance(test, dict):
        return make(node)
    own = make({key: value for key, value in node.items() if key != "test"})
    return locate("lab.data.elsewhere.TestedElsewhere")(own, make(test, "data.test"))


def _innermost(error: BaseException, target: str) -> str:
    """The innermost reason why an import failed, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    module, _, name = target.rpartition(".")
    missing = isinstance(error, ModuleNotFoundError) and error.name == target and module
    return f"{module} has no {name}" if missing else " ".join(str(error).split())


NAMES: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _group(node: dict[str, Any]) -> str:
    """Key that the user wrote the values under: `init` for lab.init.svd.Svd; for anybody else's, the class's path."""
    target = str(node.get("_target_"))
    return target.split(".")[1] if target.startswith("lab.") else target


def locate(target: str) -> Any:
    """Object that a dotted path names, imported and not called; raises ImportError, in a line, where it cannot be."""
    try:
        return get_object(target)
    except Exception as error:  # of Hydra, or whatever a module raises at its import
        raise ImportError(_innermost(error, target) or type(error).__name__) from error


def _check_types(node: dict[str, Any], where: str) -> None:
    try:
        target = get_object(str(node["_target_"]))
        hints = get_type_hints(target) if isinstance(target, type) and is_dataclass(target) else {}
    except Exception:  # of a module that cannot be imported, of a type without a name: instantiate says what is wrong
        return
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            _check_types(value, f"{where}.{key}")
            continue
        hint = hints.get(key)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if kinds and all(kind in NAMES or kind is NoneType for kind in kinds) and not _fits(value, kinds):
            named = " or ".join("null" if kind is NoneType else NAMES[kind] for kind in kinds)
            raise UsageError(f"{where}.{key}={value!r} is not {named}.")


def _fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return int in kinds or float in kinds
    return isinstance(value, tuple(kind for kind in kinds if kind is not int))


def make_measures(nodes: Mapping[str, Any]) -> dict[str, Callable[[Any, Any], Any]]:
    """The user's own measures by name, each to be called with the model and its tokenizer once training has ended.

    Raises UsageError, hours before that, for one that does not exist, cannot be called so, or has a name of ours.
    """
    return {name: _measure(f"metrics.{name}", name, node) for name, node in nodes.items()}


def _measure(key: str, name: str, node: Any) -> Callable[[Any, Any], Any]:
    if name in METRICS:
        raise UsageError(f"{key} has the name of a measure that every run takes; give yours another.")
    if not isinstance(node, dict) or not node.get("_target_"):
        raise UsageError(f"{key}={node!r} has no _target_; write {{_target_: mypackage.measure}}.")
    measure: Callable[[Any, Any], Any] = make({**node, "_partial_": True})
    settings = {each: value for each, value in node.items() if not each.startswith("_")}
    try:
        inspect.signature(get_object(node["_target_"])).bind(None, None, **settings)
    except TypeError as error:
        raise UsageError(
            f"{key}: {node['_target_']} cannot be called as measure(model, tokenizer) with these settings: {error}."
        ) from None
    return measure


def make_logger(node: dict[str, Any], run_dir: Path, step: int = 0) -> Any:
    """The Lightning logger of a run, or None; `{run_dir}` in its values is filled in.

    A run that goes on from a step has TensorBoard drop what an earlier start wrote of it and later ones; TensorBoard
    heeds that from the second start on, so the first says it too.
    """
    if node.get("_target_") is None:
        return None
    filled = {k: v.replace("{run_dir}", str(run_dir)) if isinstance(v, str) else v for k, v in node.items()}
    if str(node["_target_"]).endswith(".TensorBoardLogger"):
        filled["purge_step"] = step
    return make(filled)
