"""Tables of a report, each cell formatted; a value nobody measured is a dash."""

import math

from lab.report import statistics
from lab.report.analysis import Analysis, best_run
from lab.report.arms import on_shared_seeds
from lab.report.cells import difference, interval, verdict_of, versus
from lab.report.document import MISSING, Table, number, p_text, signed, span
from lab.report.looks_tables import looks_table
from lab.report.run import Run
from lab.report.statistics import mean_sd

MOST_TRACE_ROWS = 10
TRACE_STEP = 10  # optimizer steps a row of the trace averages over, or a multiple of it


def arms_table(analysis: Analysis) -> Table:
    """Every arm: its part in the study, what it cost and what it reached."""
    metric, judgement = analysis.judgement.metric, analysis.judgement
    rows = []
    for arm in analysis.arms:
        values = arm.values(metric)
        mean, sd = mean_sd(values)
        best = best_run([arm], judgement)
        role = (
            "baseline" if arm.name == judgement.baseline else "judged" if arm.name in judgement.judged else "described"
        )
        rows.append(
            [
                arm.name,
                role,
                str(len(values)),
                str(len(arm.unfinished)),
                "–" if arm.learning_rate is None else f"{arm.learning_rate:g}" + (" (edge)" if arm.at_edge else ""),
                span(run.record.trainable_params for run in arm.runs),
                number(mean),
                number(sd),
                _perplexity(metric, mean),
                number(best[1] if best else None),
                number(mean_sd(arm.values("seconds.total"))[0], 1),
            ]
        )
    columns = [
        "arm", "role", "runs", "not completed", "learning rate", "trainable parameters",
        f"mean {metric}", "SD", "perplexity", "best run", "seconds",
    ]  # fmt: skip
    caption = (
        "Arms at their own learning rate: mean and standard deviation over seeds. Perplexity is exp of the mean loss."
    )
    aside = ("role", "perplexity", "best run", "seconds")
    return Table("arms", caption, columns, rows, text=("role",), screen=aside)


def _perplexity(metric: str, mean: float | None) -> str:
    """exp of the mean loss: the mean of exp would grow with the spread (Jensen)."""
    return number(math.exp(mean), 2) if mean is not None and metric.endswith("loss") and mean < 50 else MISSING


def contrasts_table(analysis: Analysis) -> Table | None:
    """The judged contrasts and the A/A row, with everything a verdict rests on."""
    rows = ([analysis.aa] if analysis.aa else []) + analysis.contrasts
    if not rows:
        return None
    if any(row.looked for row in rows):
        return looks_table(analysis, rows)
    columns = ["contrast", "pairs", "difference", "95 % interval", "p", "Holm p", "TOST p", "Holm TOST p", "verdict"]
    cells = [
        [
            versus(row),
            str(row.statistics.pairs),
            signed(row.statistics.mean),
            interval(row.statistics.ci_low, row.statistics.ci_high),
            p_text(row.statistics.p_value),
            p_text(row.p_adjusted),
            p_text(row.statistics.p_equivalence),
            p_text(row.p_equivalence_adjusted),
            verdict_of(row),
        ]
        for row in rows
    ]
    unit = "" if analysis.judgement.margin is None else f" Margin ±{number(analysis.judgement.margin)}."
    caption = f"Differences a − b in {analysis.judgement.metric}, paired by seed.{unit}"
    return Table("contrasts", caption, columns, cells, text=("verdict",), screen=("p", "TOST p"))


def information_table(analysis: Analysis) -> Table | None:
    """Information beside the verdicts that decides none of them: bootstrap, Wilcoxon, seeds of a new study."""
    rows = [row for row in analysis.contrasts if row.statistics.p_value is not None and row.looked is None]
    if not rows:
        return None
    cells = []
    for row in rows:
        low, high = statistics.bootstrap_interval(row.differences) or (None, None)
        wanted = number(row.seeds_to_decide, 0) if row.seeds_to_decide else MISSING
        if row.verdict == "inconclusive" and row.seeds_to_decide is None:
            wanted = f"> {statistics.MOST_SEEDS}"
        cells.append(
            [
                versus(row),
                number(row.statistics.sd),
                interval(low, high),
                p_text(statistics.wilcoxon_p(row.differences)),
                wanted,
            ]
        )
    columns = ["contrast", "SD of differences", "bootstrap interval", "Wilcoxon p", "seeds of a new study"]
    caption = (
        "Information, not verdicts. Seeds of a new study: those it would have to declare to decide with a chance of "
        "80 %, were mean and spread the true ones; not seeds to add to this one."
    )
    return Table("information", caption, columns, cells)


def described_table(analysis: Analysis) -> Table | None:
    """Differences from the baseline in every other metric: numbers without a verdict."""
    rows = [row for row in analysis.comparisons if row.kind == "described" and row.statistics.mean is not None]
    if not rows:
        return None
    cells = [
        [
            row.arm_a,
            row.metric.replace("_", " "),
            str(row.statistics.pairs),
            difference(row.statistics.mean, row.metric),
            interval(row.statistics.ci_low, row.statistics.ci_high, row.metric),
        ]
        for row in rows
    ]
    caption = (
        f"Described, not judged: differences from {analysis.judgement.baseline}, without correction for their number."
    )
    return Table(
        "described", caption, ["arm", "metric", "pairs", "difference", "95 % interval"], cells, text=("metric",)
    )


def ranks_table(analysis: Analysis) -> Table | None:
    """A row per rank of a rank sweep."""
    answers = analysis.ranks
    if answers is None:
        return None
    by_name = {arm.name: arm for arm in analysis.arms}
    by_rank = {rank: by_name[name] for rank, name in answers.ranks.items()}
    shared = on_shared_seeds(by_rank.values(), analysis.judgement.metric)
    values = {rank: shared.get(arm.name, []) for rank, arm in by_rank.items()}
    means = {rank: mean_sd(own)[0] for rank, own in values.items()}
    known = [mean for mean in means.values() if mean is not None]
    start = answers.base if answers.base is not None else means[min(by_rank)]
    best = (max if analysis.judgement.higher_is_better else min)(known) if known else None
    rows = []
    for rank, arm in by_rank.items():
        mean = means[rank]
        share = None
        if mean is not None and start is not None and best is not None and start != best:
            share = 100 * (start - mean) / (start - best)
        seconds, _ = mean_sd(arm.values("seconds.train"))
        rows.append(
            [
                str(rank),
                arm.name,
                str(len(values[rank])),
                number(mean),
                number(share, 1),
                span(run.record.trainable_params for run in arm.runs),
                number(seconds, 1),
            ]
        )
    mean_of = f"mean {analysis.judgement.metric}"
    columns = ["rank", "arm", "runs", mean_of, "share of the gain (%)", "trainable parameters", "training seconds"]
    origin = "the untrained base" if answers.base is not None else f"rank {min(by_rank)}"
    caption = f"Ranks, over the seeds that all of them completed; the gain is counted from {origin}."
    return Table("ranks", caption, columns, rows, text=("arm",))


def trace_table(analysis: Analysis, column: str, name: str, caption: str) -> Table | None:
    """A column of metrics.csv over the steps of training, each row a mean over its window and over seeds."""
    arms = [arm for arm in analysis.arms if any(run.curve(column)[0] for run in arm.runs)]
    if not arms:
        return None
    last = int(max(run.curve(column)[0][-1] for arm in arms for run in arm.runs if run.curve(column)[0]))
    window = TRACE_STEP * max(1, math.ceil(last / TRACE_STEP / MOST_TRACE_ROWS))
    rows = []
    for end in [*range(window, last, window), last]:
        start = (end - 1) // window * window
        cells = []
        for arm in arms:
            per_run = [_mean_within(run, column, start, end) for run in arm.runs]
            cells.append(number(mean_sd([value for value in per_run if value is not None])[0]))
        rows.append([f"{start + 1} to {end}", *cells])
    return Table(name, caption, ["steps", *(arm.name for arm in arms)], rows)


def _mean_within(run: Run, column: str, start: int, end: int) -> float | None:
    inside = [value for step, value in zip(*run.curve(column), strict=True) if start < step <= end]
    return mean_sd(inside)[0]


def unfinished_table(analysis: Analysis) -> Table | None:
    """Every run that did not complete; none of them is in any mean or ranking."""
    if not analysis.unfinished:
        return None
    rows = [
        [
            run.name,
            run.record.arm or MISSING,
            MISSING if run.pair[0] is None else str(run.pair[0]),
            run.record.stage or MISSING,
            run.status,
            run.error or MISSING,
        ]
        for run in analysis.unfinished
    ]
    columns = ["run", "arm", "seed", "stage", "status", "reason"]
    words = ("run", "arm", "stage", "status", "reason")
    return Table("not_completed", "Runs that did not complete.", columns, rows, text=words, screen=("run",))


def runs_table(analysis: Analysis) -> Table:
    """Every completed run that a mean or an A/A pair rests on."""
    metric = analysis.judgement.metric
    measured = ["test_loss", "val_loss", "train_loss", "test_accuracy", "base_test_accuracy", "forgetting"]
    shown = list(dict.fromkeys([metric, *measured]))
    pairs = [(arm, run) for arm in analysis.arms for run in (*arm.runs, *arm.twins)]
    kept = [name for name in shown if any(run.value(name) is not None for _, run in pairs)]
    rows = [
        [
            run.name,
            arm.name + (" (A/A)" if run in arm.twins else ""),
            str(run.record.seed),
            str(run.record.data_seed),
            *(number(run.value(name)) for name in kept),
            number(run.value("seconds.total"), 1),
        ]
        for arm, run in pairs
    ]
    columns = ["run", "arm", "seed", "data seed", *(name.replace("_", " ") for name in kept), "seconds"]
    caption = (
        "Every completed run at its arm's learning rate; runs.csv has all runs, with every metric and their seconds."
    )
    return Table("runs", caption, columns, rows, text=("arm",), screen=("run", "train loss", "seconds"))
