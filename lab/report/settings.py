"""Settings in which runs differ: what tells the arms of a study apart, and what does not."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.report.run import Run

# What may differ between two runs of one arm: the seeds that pair them, the learning rate that is chosen among,
# and where and how fast they ran.
_FREE = (
    "seed",
    "data_seed",
    "optim.lr",
    "optim.lr_from",
    "study",
    "stage",
    "arm",
    "rung",
    "resume",
    "resume_study",
    "study_size",
    "study_budget",
)
_FREE_GROUPS = ("hardware", "logger", "hydra", "dry_run", "keep_checkpoints", "experiment")
PLACES = ("path", "val_path", "test_path", "folder", "retention", "name_or_path")  # of what was hashed


def label(differs: Mapping[str, str], nothing: str) -> str:
    """What tells a group of runs from the others, in one line."""
    return " ".join(f"{key}={value}" for key, value in differs.items()) or nothing


def by_difference(runs: Sequence[Run]) -> list[tuple[dict[str, str], list[Run]]]:
    """Runs grouped by every choice and setting in which any two of those that trained to an end differ.

    A run that failed early knows less about itself; it joins the first group that it does not contradict.
    """
    trained = [run for run in runs if run.status in ("completed", "diverged")] or list(runs)
    known = _at_one_place(runs)
    groups = {group for run in runs for group in run.record.choices}
    varying = _varying([known[run.path] for run in trained], groups, all(run.record.config for run in trained))
    found: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in [*trained, *(run for run in runs if run not in trained)]:
        own = known[run.path]
        key = tuple((name, own[name]) for name in varying if name in own)
        if run not in trained:
            key = next((group for group in found if _agrees(own, dict(group))), key)
        found.setdefault(key, []).append(run)
    return [(dict(differs), group) for differs, group in found.items()]


def _varying(parts: Sequence[Mapping[str, str]], groups: Container[str], whole: bool) -> list[str]:
    """The keys in which any two differ, without those that a differing choice already implies.

    `groups` are those of the choices; without the `whole` config of every run, a setting that one lacks tells it apart.
    """

    def values(key: str, parts: Sequence[Mapping[str, str]]) -> set[str | None]:
        return {part.get(key) for part in parts if key in part or not whole or _otherwise(key, part, groups)}

    keys = list(dict.fromkeys(key for part in parts for key in part))
    varying = [key for key in keys if len(values(key, parts)) > 1]
    inner = {key: key.split(".")[0] for key in varying if "." in key and key.split(".")[0] in varying}
    for key, group in inner.items():
        choices = {part.get(group) for part in parts}
        if all(len(values(key, [part for part in parts if part.get(group) == each])) <= 1 for each in choices):
            varying.remove(key)
    return varying


def _otherwise(key: str, part: Mapping[str, str], groups: Container[str]) -> bool:
    """True where a run has a value in place of a mapping, or the reverse; without either its lab knew no such key."""
    heads = [key[:i] for i, letter in enumerate(key) if letter == "."]
    return any(head in part and head not in groups for head in heads) or any(
        other.startswith(f"{key}.") for other in part if key not in groups
    )


def _agrees(own: Mapping[str, str], group: Mapping[str, str]) -> bool:
    """True where nothing a run knows contradicts the group; `svd` does not contradict `svd[gradient]`."""
    return all(key not in own or own[key] in (value, value.split("[")[0]) for key, value in group.items())


def labels(run: Run) -> dict[str, str]:
    """Everything about a run that could tell its arm from another: choices, then resolved settings."""
    settings = {group: choice for group, choice in run.record.choices.items() if not _free(group)}
    scheme = run.record.init.get("scheme")  # `svd` alone does not say which matrix was decomposed
    if "init" in settings and isinstance(scheme, str) and scheme.startswith(settings["init"] + "["):
        settings["init"] = scheme
    flat = dict(_flatten(run.record.config)) or run.record.override_values
    kept = {key: str(value) for key, value in flat.items() if not _free(key) and key not in (run.rate_key, *settings)}
    return settings | kept


def _at_one_place(runs: Sequence[Run]) -> dict[Path, dict[str, str]]:
    """The labels of every run, those of a file or a folder as they first were where its content is the same."""
    known, first = {}, dict[tuple[str, str], str]()
    for run in runs:
        own = labels(run)
        for key, content in _contents(run, own):
            own[key] = first.setdefault((key, content), own[key])
        known[run.path] = own
    return known


def _contents(run: Run, own: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The settings that name a place, with the hash of what lay there, where it was recorded."""
    data, model = run.record.data, run.record.model
    base = model.get("stored_sha256") or model.get("weights_sha256")
    for key in own:
        group, _, rest = key.partition(".")
        leaf = rest.split(".")[-1]
        content = None
        if group == "data":
            content = data.get("retention_sha256") if leaf == "retention" else data.get("sha256")
        if group == "model" and leaf == "name_or_path":
            content = base
        if content and leaf in PLACES:
            yield key, str(content)


def _free(key: str) -> bool:
    return key in _FREE or re.split(r"[./@]", key)[0] in _FREE_GROUPS


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
