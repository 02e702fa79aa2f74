"""Command line of lab-train before Hydra reads it: overrides on both sides of options, paths as users write them."""

import os
from collections.abc import Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException

from lab import paths
from lab.errors import UsageError

TEST = "data.test"  # a data set within a data set: what a run is tested on, where that is another's


def arrange(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: overrides first, then options; each path one value of Hydra's grammar.

    Raises UsageError for an option that Hydra does not know, and for what no file could record.
    """
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):  # bytes that are no UTF-8
            shown = argument.encode(errors="replace").decode()
            raise UsageError(f"{shown} is not valid UTF-8 and could be recorded nowhere; rename what it names.")
    overrides = _overrides(arguments)
    waiting, options = list(overrides), []
    for argument in arguments:
        if waiting and argument == waiting[0]:
            waiting.pop(0)
        else:
            options.append(_expand_home(argument))
    return [*(with_test(with_path(override)) for override in overrides), *options]


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Arguments that are no option, nor the value of one, wherever they stand."""
    parser = get_args_parser()

    def error(message: str) -> Any:
        hint = "; an override has no dashes, as in rank=8" if "unrecognized" in message else ""
        raise UsageError(f"{message}{hint}; python -m lab.train --hydra-help lists the options.")

    parser.error = error  # type: ignore[method-assign,assignment]
    return list(parser.parse_intermixed_args(list(arguments)).overrides)


def _expand_home(option: str) -> str:
    """An option with its `~` expanded, as in `--config-dir=~/conf`, which no shell does."""
    name, equals, value = option.partition("=")
    return f"{name}{equals}{paths.at_home(value)}" if value.startswith("~") else option


def with_path(override: str) -> str:
    """An override whose value, if its key holds a path, is quoted where it exists or Hydra could not read it.

    A list of paths, each of which exists, stays a list, to be swept over. Raises UsageError for an empty path, and for
    an existing one with `${` in it.
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+~")
    whole = name.startswith(("hydra.", "resume"))  # never a list
    if not equals or not (paths.is_path(name) or name == "hydra.sweep.subdir"):
        return override
    if not value:
        raise UsageError(f"{key}= is an empty path; give one, or leave {name} out.")
    if value == "null" and name.endswith("retention"):  # none, whatever lies here; a file of that name is ./null
        return override
    if os.path.lexists(paths.at_home(value)):
        return f"{key}={_quote(value, key)}"
    parts = value.split(",")
    if not whole and len(parts) > 1 and all(os.path.lexists(paths.at_home(part)) for part in parts):
        return f"{key}={','.join(_quote(part, key) for part in parts)}"
    try:
        parsed = _parse(override).value()
    except HydraException:
        return f"{key}={paths.quoted(paths.at_home(value))}"
    if isinstance(parsed, str) and parsed.startswith("~"):
        return f"{key}={paths.quoted(paths.at_home(parsed))}"
    if whole and isinstance(parsed, list | dict | ChoiceSweep):
        return f"{key}={paths.quoted(value)}"
    return override


def with_test(override: str) -> str:
    """An override of `data.test` as Hydra takes it: the option of `data` that stands there, or none for null."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") != TEST or not equals or value.lstrip().startswith(("{", "$")):
        return override
    return f"~data@{TEST}" if value.strip() in ("null", "") else f"data@{TEST}={value}"


def _quote(place: str, key: str) -> str:
    if "${" in place:
        raise UsageError(f"{key}={place} has ${{ in its name, which Hydra reads as a reference; rename it.")
    return paths.quoted(paths.at_home(place))


def value_of(arguments: Sequence[str], *keys: str) -> str | None:
    """The text that the last override of one of the keys gives it; None where none does, or gives it null."""
    text = None
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and key.lstrip("+") in keys:
            value = _parse(argument)._value
            text = value.text if isinstance(value, QuotedString) else None if value is None else str(value)
    return text


def _parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)
