"""Arms: runs grouped so that the labels carry everything that differs, each at its own learning rate."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lab.record.study import best_learning_rate
from lab.report.run import Run
from lab.report.settings import by_difference, label
from lab.report.study import LoadedStudy
from lab.verdict.choice import Tuned


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
    tried_on: Mapping[float, Sequence[int | None]] = field(default_factory=dict)  # learning rate -> seeds of outcomes
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
            _arm(label(differs, "all runs"), runs, [], selection_metric, set(), differs)
            for differs, runs in by_difference(study.runs)
        ]
    declared, every = study.declared, []
    names = [*declared.arms, *sorted({run.record.arm or "–" for run in study.runs} - set(declared.arms))]
    for name in names:
        own = [run for run in verdicts if (run.record.arm or "–") == name]
        tuned = [run for run in tuning if (run.record.arm or "–") == name]
        parts = by_difference(own)
        twins = set(declared.twin_seeds) if name == declared.baseline else set()
        # A run that went wrong under other settings must not take the arm's name from those that completed.
        done = [differs for differs, runs in parts if any(run.status == "completed" for run in runs)]
        for differs, runs in parts or [({}, [])]:
            plain = len(parts) < 2 or done == [differs]
            full = name if plain else f"{name} [{label(differs, 'as declared')}]"
            every.append(_arm(full, runs, tuned, declared.selection_metric, twins, differs))
    return every


def on_shared_seeds(arms: Iterable[Arm], metric: str) -> dict[str, list[float]]:
    """The metric by arm, over the seeds on which all arms that have it have it, in one order; without any, of each own.

    Means over other seeds than each other's differ by what these seeds do.
    """
    found = {
        arm.name: {run.pair: value for run in arm.runs if (value := run.value(metric)) is not None} for arm in arms
    }
    found = {name: values for name, values in found.items() if values}
    shared = sorted(set.intersection(*map(set, found.values())), key=str) if found else []
    return {name: [values[pair] for pair in shared or values] for name, values in found.items()}


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
    outcomes, tried_on = _outcomes(tuned or runs, metric), _seeds(tuned or runs)
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
        tried_on=tried_on,
        chosen_on="verdict" if peeked else "tune" if tuned else "",
    )


def _outcomes(runs: Iterable[Run], metric: str) -> dict[float, list[float | None]]:
    """Selection metric by learning rate; a diverged run counts, as None; a stopped one ended too early to compare."""
    return {
        rate: [None if run.status == "diverged" else run.value(metric) for run in own]
        for rate, own in _by_rate(runs).items()
    }


def _seeds(runs: Iterable[Run]) -> dict[float, list[int | None]]:
    """The seed of each outcome."""
    return {rate: [run.pair[0] for run in own] for rate, own in _by_rate(runs).items()}


def _by_rate(runs: Iterable[Run]) -> dict[float, list[Run]]:
    found: dict[float, list[Run]] = {}
    for run in runs:
        if run.learning_rate is not None and run.status in ("completed", "diverged"):
            found.setdefault(run.learning_rate, []).append(run)
    return dict(sorted(found.items()))


def _one_per_seed(runs: Iterable[Run]) -> list[Run]:
    """The last completed run of each seed: a job done twice must not count twice."""
    return list({run.pair: run for run in runs}.values())
