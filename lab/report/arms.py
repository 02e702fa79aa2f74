"""Arms: runs grouped so that the labels carry everything that differs, each at its own learning rate."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lab.record.study import best_learning_rate
from lab.report.run import Run
from lab.report.study import LoadedStudy
from lab.verdict.choice import Tuned

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


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The runs of one configuration that are judged: verdict runs at one learning rate."""

    name: str
    differs: Mapping[str, str] = field(default_factory=dict)  # settings that tell it from the other arms, as text
    runs: tuple[Run, ...]  # completed, one per seed
    twins: tuple[Run, ...] = ()  # completed; the A/A partners, which no summary counts
    diverged: tuple[Run, ...] = ()  # at the same learning rate, A/A partners apart
    diverged_twins: tuple[Run, ...] = ()
    unfinished: tuple[Run, ...] = ()  # at the same learning rate: diverged, failed, stopped, interrupted, running
    learning_rate: float | None = None
    outcomes: Mapping[float, Sequence[float | None]] | None = None  # learning rate -> selection metric, None: diverged
    tuned: Tuned | None = None  # how its rate was chosen, where the study refines rates
    chosen_on: str = ""  # tune: on seeds no verdict uses; verdict: on the validation side of the same seeds

    @property
    def at_edge(self) -> bool:
        """True where the chosen learning rate is the smallest or largest of several that were tried."""
        if self.tuned is not None:
            return self.tuned.at_edge
        rates = sorted(self.outcomes or {})
        return len(rates) > 1 and self.learning_rate in (rates[0], rates[-1])

    def values(self, metric: str) -> list[float]:
        """The metric of every completed run that has it."""
        return [value for run in self.runs if (value := run.value(metric)) is not None]

    def lost(self, metric: str) -> str:
        """The seeds that its mean leaves out although they ended, in words; empty where there is none."""
        blank = [run for run in self.runs if run.value(metric) is None]
        seeds = len({run.pair for run in (*self.runs, *self.diverged)})
        parts = []
        for runs, what in ((self.diverged, "diverged"), (blank, f"has no finite {metric.replace('_', ' ')}")):
            which = sorted({run.pair[0] for run in runs if run.pair[0] is not None})
            if runs:
                parts.append(
                    f"{what} on {len({run.pair for run in runs})} of {seeds} seeds ({', '.join(map(str, which))})"
                )
        return f"{self.name} {' and '.join(parts)}" if parts else ""


def arms(study: LoadedStudy, selection_metric: str = "val_loss") -> list[Arm]:
    """The arms of a study in their declared order; a plain multirun's in the order of its jobs."""
    verdicts = [run for run in study.runs if run.record.stage in ("verdict", None)]
    tuning = [run for run in study.runs if run.record.stage in ("tune", "halve")]
    if study.declared is None:
        return [
            _arm(_label(differs, "all runs"), runs, [], selection_metric, set(), differs)
            for differs, runs in _by_difference(study.runs)
        ]
    declared, every = study.declared, []
    names = [*declared.arms, *sorted({run.record.arm or "–" for run in study.runs} - set(declared.arms))]
    for name in names:
        own = [run for run in verdicts if (run.record.arm or "–") == name]
        tuned = [run for run in tuning if (run.record.arm or "–") == name]
        parts = _by_difference(own)
        twins = set(declared.twin_seeds) if name == declared.baseline else set()
        # A run that went wrong under other settings must not take the arm's name from those that completed.
        done = [differs for differs, runs in parts if any(run.status == "completed" for run in runs)]
        for differs, runs in parts or [({}, [])]:
            plain = len(parts) < 2 or done == [differs]
            full = name if plain else f"{name} [{_label(differs, 'as declared')}]"
            every.append(_arm(full, runs, tuned, declared.selection_metric, twins, differs))
    return every


def ran_in_blocks(arms: Sequence[Arm]) -> bool:
    """True where no arm took turns with another, by the running numbers of the runs."""
    numbers = sorted(
        (int(head), arm.name) for arm in arms for run in arm.runs if (head := run.name.split("_")[0]).isdigit()
    )
    changes = sum(before != after for (_, before), (_, after) in pairwise(numbers))
    return len(arms) > 1 and len(numbers) > len(arms) and changes < len(arms)


def _arm(
    name: str, runs: Sequence[Run], tuned: Sequence[Run], metric: str, twins: set[int], differs: Mapping[str, str]
) -> Arm:
    outcomes = _outcomes(tuned or runs, metric)
    rates = {run.learning_rate for run in runs} - {None}
    if len(rates) == 1:
        rate = rates.pop()
    elif runs:
        rate = best_learning_rate(_outcomes(runs, metric))
    else:
        rate = best_learning_rate(outcomes)
    chosen = [run for run in runs if run.learning_rate == rate]
    done = _one_per_seed(run for run in chosen if run.status == "completed")
    peeked = len(_outcomes(runs, metric)) > 1 or not {run.pair for run in tuned}.isdisjoint(run.pair for run in runs)
    unfinished = [run for run in runs if run.status != "completed" and run.learning_rate in (rate, None)]
    diverged = [run for run in unfinished if run.status == "diverged"]
    return Arm(
        name=name,
        differs=differs,
        runs=tuple(run for run in done if run.record.seed not in twins),
        twins=tuple(run for run in done if run.record.seed in twins),
        diverged=tuple(run for run in diverged if run.pair[0] not in twins),
        diverged_twins=tuple(run for run in diverged if run.pair[0] in twins),
        unfinished=tuple(unfinished),
        learning_rate=rate,
        outcomes=outcomes,
        chosen_on="verdict" if peeked else "tune" if tuned else "",
    )


def _outcomes(runs: Iterable[Run], metric: str) -> dict[float, list[float | None]]:
    """Selection metric by learning rate; a diverged run counts, as None; a stopped one ended too early to compare."""
    outcomes: dict[float, list[float | None]] = {}
    for run in runs:
        if run.learning_rate is not None and run.status in ("completed", "diverged"):
            outcomes.setdefault(run.learning_rate, []).append(None if run.status == "diverged" else run.value(metric))
    return dict(sorted(outcomes.items()))


def _one_per_seed(runs: Iterable[Run]) -> list[Run]:
    """The last completed run of each seed: a job done twice must not count twice."""
    return list({run.pair: run for run in runs}.values())


def _label(differs: Mapping[str, str], nothing: str) -> str:
    return " ".join(f"{key}={value}" for key, value in differs.items()) or nothing


def _by_difference(runs: Sequence[Run]) -> list[tuple[dict[str, str], list[Run]]]:
    """Runs grouped by every choice and setting in which any two of those that trained to an end differ.

    A run that failed early knows less about itself; it joins the first group that it does not contradict.
    """
    trained = [run for run in runs if run.status in ("completed", "diverged")] or list(runs)
    varying = _varying([labels(run) for run in trained])
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in [*trained, *(run for run in runs if run not in trained)]:
        own = labels(run)
        key = tuple((name, own[name]) for name in varying if name in own)
        if run not in trained:
            key = next((group for group in groups if _agrees(own, dict(group))), key)
        groups.setdefault(key, []).append(run)
    return [(dict(differs), group) for differs, group in groups.items()]


def _varying(parts: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys in which any two differ, without those that a differing choice already implies."""
    keys = list(dict.fromkeys(key for part in parts for key in part))
    varying = [key for key in keys if len({part.get(key) for part in parts}) > 1]
    inner = {key: key.split(".")[0] for key in varying if "." in key and key.split(".")[0] in varying}
    for key, group in inner.items():
        by_choice: dict[str | None, set[str | None]] = {}
        for part in parts:
            by_choice.setdefault(part.get(group), set()).add(part.get(key))
        if all(len(values) == 1 for values in by_choice.values()):
            varying.remove(key)
    return varying


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


def _free(key: str) -> bool:
    return key in _FREE or re.split(r"[./@]", key)[0] in _FREE_GROUPS


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
