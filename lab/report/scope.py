"""Scope of a report: the conditions its numbers were measured under, and the limits of what they show."""

from collections.abc import Iterable

from lab.report.analysis import Analysis
from lab.report.arms import ran_in_blocks
from lab.report.document import MISSING, number, span
from lab.report.run import Run


def conditions(analysis: Analysis) -> list[str]:
    """Base, data, budget and device, as every run recorded them; what differs is listed, not averaged."""
    runs = [run for arm in analysis.arms for run in (*arm.runs, *arm.twins)]
    judgement = analysis.judgement
    better = "higher" if judgement.higher_is_better else "lower"
    within = "no equivalence margin" if judgement.margin is None else f"equivalence margin ±{number(judgement.margin)}"
    declared = "declared before the runs" if judgement.declared else "not declared before the runs"
    lines = [f"Judged by {judgement.metric.replace('_', ' ')} ({better} is better), {within}, {declared}."]
    if not runs:
        return [*lines, "No run has completed."]
    twins = {run.record.seed for arm in analysis.arms for run in arm.twins}
    seeds = sorted({run.record.seed for run in runs if run.record.seed is not None} - twins)
    again = f"; the baseline again on {', '.join(map(str, sorted(twins, key=str)))}" if twins else ""
    sides = ("train", "val", "test")
    sizes = _distinct("/".join(str(run.record.data.get(f"{side}_examples", MISSING)) for side in sides) for run in runs)
    names = _distinct(str(run.record.data.get("name") or MISSING) for run in runs)
    hashes = _distinct(str(run.record.data.get("sha256"))[:12] for run in runs)
    models = _distinct(str(run.record.model.get("name_or_path") or MISSING) for run in runs)
    steps = _distinct(number(run.value("steps"), 0) for run in runs)
    labels = [run.record.labelled_tokens for run in runs]
    labelled = "" if None in labels else f", {span(labels)} of them labelled"  # older records do not say
    devices = _distinct(str(run.record.environment.get("device") or MISSING) for run in runs)
    stored = all(run.record.model.get("stored_sha256") for run in runs)
    origins = {origin["said"] for run in runs if (origin := run.record.model.get("origin"))}
    held = "" if stored else " (of some runs as held in their precision, on which this hash depends)"
    return [
        *lines,
        f"Base: {models}, weights {_distinct(run.base[:12] for run in runs)}{held}"
        + "".join(f"; {said}" for said in sorted(origins))
        + ".",
        f"Data: {names}, sha256 {hashes}; {sizes} training/validation/test examples.",
        f"Budget: {steps} optimizer steps, {span(run.record.tokens for run in runs)} tokens{labelled}.",
        f"Device: {devices}.",
        f"Precision: {precisions(analysis)}.",
        f"Seeds: {', '.join(map(str, seeds))}{again}.",
    ]


def precisions(analysis: Analysis) -> str:
    """The precision of every run in words: one where they agree, else whose runs ran in which."""
    arms: dict[str, dict[str, list[Run]]] = {}
    for arm in analysis.arms:
        for run in (*arm.runs, *arm.twins):
            arms.setdefault(run.precision or "not recorded", {}).setdefault(arm.name, []).append(run)
    if len(arms) == 1:
        (precision, own), *_ = arms.items()
        return f"{precision}, in all {sum(map(len, own.values()))} runs"
    return "; ".join(
        f"{precision} for " + ", ".join(f"{name} (seeds {_seeds(runs)})" for name, runs in own.items())
        for precision, own in arms.items()
    )


def _seeds(runs: Iterable[Run]) -> str:
    return ", ".join(sorted({str(run.record.seed) for run in runs}, key=lambda seed: (len(seed), seed)))


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _on_validation(metric: str) -> bool:
    return metric.startswith(("val", "best_val"))


def _texts(analysis: Analysis) -> str:
    """The texts that the judged metric is taken on; empty for one that is taken on none, such as seconds."""
    metric, runs = analysis.judgement.metric, [run for arm in analysis.arms for run in arm.runs]
    sides = {side: span(run.record.data.get(f"{side}_examples") for run in runs) for side in ("val", "test")}
    validation, retention = f"the validation set ({sides['val']} examples)", "the retention texts"
    if _on_validation(metric):
        return validation
    if metric.startswith(("test", "base_test")):
        return f"the test set ({sides['test']} examples)"
    if metric == "equal_loss_forgetting":
        return f"{retention} and {validation}, whose loss says where they are read"
    return retention if metric in ("forgetting", "retention_loss") else ""


def _chosen_by_it(analysis: Analysis) -> list[str]:
    """That the judged metric chose the learning rates too, where it did; nothing where no rate was chosen."""
    metric, study = analysis.judgement.metric, analysis.study.declared
    by = study.selection_metric if study else "val_loss"
    if not any(arm.chosen_on for arm in analysis.arms):
        return []
    if _on_validation(metric) and _on_validation(by):
        return ["The judged metric is a validation loss, on which the learning rates were chosen too: it flatters all."]
    if metric == by:
        return ["The learning rates were chosen by the judged measure, on the same texts: it flatters all."]
    return []


def limits(analysis: Analysis) -> list[str]:
    """Limits: the reasons for which a careful reader should not generalise."""
    judgement, arms = analysis.judgement, analysis.arms
    lines = [
        "One base, one data set and one budget: another base, task or length of training may order the arms otherwise."
    ]
    n = max((row.statistics.pairs for row in analysis.contrasts), default=0)
    if n:
        lines.append(
            f"{n} pairs: the t intervals take the differences to be roughly normal, which so few cannot check."
        )
        texts = _texts(analysis)
        if texts:
            lines.append(
                f"Intervals are conditional on {texts}: they hold what seeds vary, not what another draw of examples "
                "would. Where seeds vary little, as on planted data, the examples are the larger part."
            )
    lines += _chosen_by_it(analysis)
    on = {arm.chosen_on for arm in arms}
    looked = [row.looked for row in analysis.contrasts if row.looked is not None]
    if looked:
        lines.append(
            "The estimate of a contrast that stopped early is biased away from zero, by 1 to 4 % of an effect of one "
            "to three standard deviations; nothing is corrected."
        )
        if n < 8:
            lines.append(
                "Below eight seeds no test that does without a distribution could say any of this (2⁻⁶ > 0.05 / 4)."
            )
        if any(not each.at_best for each in looked):
            lines.append(
                'Where a sentence says "at the rates tried", another learning rate may change it: the search was not '
                "fine enough for the difference, found its best at an edge, or was not made."
            )
    elif "tune" in on and analysis.study.declared:
        seeds = ", ".join(map(str, analysis.study.declared.tune_seeds))
        lines.append(
            f"Learning rates were chosen from a grid, on tuning seed {seeds}, which no verdict uses. How far an arm's "
            "best rate lies from that grid was not measured, and a verdict may change on the way: an eighth of a "
            "decade was enough once."
        )
    if "verdict" in on:
        lines.append(
            "Learning rates were chosen on the validation side of the same seeds that are judged: the means flatter "
            "the arms that tried more of them, and no verdict rests on them."
        )
    if analysis.arms and on <= {""}:
        lines.append("One learning rate per arm was run: an arm that wants another one is judged below its best.")
    if ran_in_blocks(arms):
        lines.append(
            "Arms ran one after another: seconds, and losses at equal time, also compare what else the machine did."
        )
    edge = [arm.name for arm in arms if arm.at_edge]
    if edge:
        lines.append(
            f"The chosen learning rate is at the edge of those tried for {', '.join(edge)}: the optimum may be beyond."
        )
    if analysis.aa is None and analysis.contrasts and not looked:
        lines.append("No A/A pair was run, so that the pairing of runs was not checked.")
    budgets = {arm.runs[0].record.trainable_params for arm in arms if arm.runs}
    if len(budgets) > 1:
        lines.append("The arms do not train the same number of parameters; a difference may be one of capacity.")
    if len({run.precision for arm in arms for run in (*arm.runs, *arm.twins)}) > 1:
        lines.append(f"The runs used different precisions: {precisions(analysis)}.")
    if not judgement.declared:
        lines.append("Baseline, contrasts and margin were not declared before the runs, so this is exploration.")
    return lines
