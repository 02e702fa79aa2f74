"""Suggestions for an option, a key or a value that Hydra refuses, in one sentence each."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf

from lab.config import CONF, GROUPS, ConfigError, RunConfig, compose
from lab.config.arguments import TEST, with_test
from lab.config.instantiate import NAMES
from lab.errors import UsageError, closest, nearest

# What transformers, peft and Lightning call our keys where their word is another.
ELSEWHERE = {
    "learning_rate": "optim.lr",
    "num_train_epochs": "schedule.max_epochs",
    "per_device_train_batch_size": "hardware.micro_batch_size",
    "gradient_accumulation_steps": "schedule.batch_size",
    "model_name_or_path": "model.name_or_path",
    "gradient_clip_val": "optim.max_grad_norm",
    "lora_alpha": "alpha",
    "lora_dropout": "adapter.dropout",
    "r": "rank",
    "use_rslora": "scaling",
    "lr_scheduler_type": "schedule.lr_scheduler",
    "full_determinism": "hardware.deterministic",
}
QUOTE = "write KEY=VALUE, and a value with other characters in quotes of its own: \"KEY='VALUE'\"."
MAP = "a map"
ALL = "python -m lab.train --cfg job lists all."


def composed(overrides: Sequence[str]) -> RunConfig:
    """The checked config of a command line; raises UsageError with the sentence that answers a mistake in it."""
    try:
        return compose(*overrides)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except HydraException as error:
        raise UsageError(explain(error, overrides)) from None


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Hydra's complaint about a command line in one sentence an override, with what may have been meant."""
    overrides = [with_test(argument) for argument in arguments if "=" in argument and not argument.startswith("-")]
    complaint = str(error)
    sentences = [*suggestions(overrides, complaint), *_type_errors(complaint)]
    if not sentences and complaint.startswith("Config group override must be"):
        sentences = list(_no_options(overrides))
    if sentences:
        return "\n".join(sentences)
    messages = [str(each).strip().splitlines()[0] for each in (error, error.__cause__) if each and str(each).strip()]
    line = ": ".join(part.rstrip(".") for part in messages)
    return f"cannot read the overrides: {line}; {QUOTE}" if isinstance(error, OverrideParseException) else f"{line}."


def _is_refused(override: str, complaint: str) -> bool:
    """True where Hydra complains of this override; one it is content with may name an option of the user's own."""
    key, _, value = override.lstrip("+~").partition("=")
    return any(f"'{name}'" in complaint for name in (key, f"{key.partition('@')[0]}/{value}"))


def suggestions(overrides: Sequence[str], complaint: str) -> Iterator[str]:
    """A sentence for each override complained of whose option or key is unknown, naming the nearest known ones."""
    chosen = {"experiment": ""}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group, _, package = key.partition("@")
        folder = CONF / group
        if key and folder.is_dir() and not (folder / f"{value}.yaml").is_file():
            if _is_refused(override, complaint) and "," not in value:
                yield _no_option(group, value, package)
        elif package and f"'{key}.test'" in complaint:
            yield f"{package}={value} is itself tested on another data set; name one that has a test side."
        elif folder.is_dir():
            chosen[key] = value
    keys = None
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        is_group = (CONF / key.partition("@")[0]).is_dir()
        if not key or key.startswith("hydra") or is_group or not _is_refused(override, complaint):
            continue
        keys = keys or [known for known in _keys(chosen) if not known.endswith("_target_")]
        if key not in keys:
            yield f"there is no key {key}{did_you_mean(key, keys) or '.'} {ALL}"


def _no_option(group: str, value: str, package: str = "") -> str:
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    listed = f" There are {', '.join(options)}." if options and "/" not in group else ""
    return f"{package or group}={value} is no option{nearest(value, options) or '.'}{listed}"


def _no_options(overrides: Sequence[str]) -> Iterator[str]:
    """A sentence for each group that is given what can be no option's name, such as null."""
    for override in overrides:
        parsed = OverridesParser.create().parse_override(override)
        group = parsed.key_or_group
        if not group:
            yield f"cannot read the overrides: {override!r} names no key."
        elif (CONF / group).is_dir() and not isinstance(parsed.value(), str | list | dict):
            yield _no_option(group, override.partition("=")[2])


def did_you_mean(key: str, keys: Sequence[str]) -> str:
    """'did you mean a, b?' for a key that is not among the known ones: those that end in its very word come first."""
    group, _, word = key.rpartition(".")
    if word in ELSEWHERE:
        return f"; did you mean {ELSEWHERE[word]}?"
    near = [known for known in keys if known.startswith(f"{group}.")] if group in keys else list(keys)
    leaves = [known for known in near if not any(other.startswith(f"{known}.") for other in keys)]
    for close in (
        [leaf for leaf in leaves if _word(leaf) == word],
        [leaf for leaf in leaves if set(word.split("_")) <= set(_word(leaf).split("_"))],
    ):
        if close:
            return f"; did you mean {', '.join(sorted(close, key=len)[:3])}?"
    by_word = {_word(known): known for known in reversed(near)}  # a key of the root before one of a group
    if alike := closest(word, list(by_word), cutoff=0.6):
        return f"; did you mean {', '.join(by_word[name] for name in alike)}?"
    return f"; {group} has {', '.join(map(_word, near))}." if group in keys and near else ""


def _word(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _type_errors(complaint: str) -> Iterator[str]:
    """A sentence for an override whose value is not of its key's type."""
    first = complaint.strip().split("\n")[0]
    if not (match := re.fullmatch(r"Error merging override (\S.*)|Could not override '(.*)'\.", first)):
        return
    key, _, value = (match[1] or match[2]).lstrip("+~").partition("=")
    parent, _, word = key.rpartition(".")
    kind = _kind(key)
    if kind == MAP:
        yield f"{key} is {MAP}, which takes a name at a time: +{key}.NAME=…"
    elif kind is not None and not (match[1] or "~").startswith("~"):
        yield f"{key}={value} is not {kind}."
    elif _kind(parent) in (*NAMES.values(), *(f"{name} or null" for name in NAMES.values())):
        yield f"there is no key {key}: {parent} is {_kind(parent)} and holds no {word}."


def _kind(key: str) -> str | None:
    """Type of a key's value, in words; None for a key that no schema knows."""
    hint: Any = RunConfig
    for part in key.split("."):
        if not is_dataclass(hint) or part not in (hints := get_type_hints(hint)):
            return None
        hint = hints[part]
    if is_dataclass(hint):
        return f"a value but a group of keys: {', '.join(f'{key}.{name}' for name in get_type_hints(hint))}"
    if get_origin(hint) is list:
        return f"a list, each of which is {NAMES[get_args(hint)[0]]}"
    if get_origin(hint) is dict:
        return MAP
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if not all(kind in NAMES or kind is NoneType for kind in kinds):
        return None
    return " or ".join("null" if kind is NoneType else NAMES[kind] for kind in kinds)


def _keys(chosen: dict[str, str]) -> Iterator[str]:
    """Every key of the default config, with the options that were chosen."""
    tree: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(RunConfig))  # type: ignore[assignment]
    defaults = OmegaConf.load(CONF / "config.yaml")
    picked = {name: option for item in defaults.defaults if OmegaConf.is_dict(item) for name, option in item.items()}
    for group in GROUPS:
        known = tree.get(group)
        loaded = _option(group, chosen.get(group) or picked[group])
        tree[group] = {**(known if isinstance(known, dict) else {}), **loaded}
    tree["data"]["test"] = _option("data", chosen.get(f"data@{TEST}"))
    yield from _flat(tree, "")


def _option(group: str, name: Any) -> dict[str, Any]:
    """The keys of an option; none where there is no such option of the lab's."""
    path = CONF / group / f"{name}.yaml"
    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    return {str(k): v for k, v in loaded.items() if k != "defaults"} if isinstance(loaded, dict) else {}


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
