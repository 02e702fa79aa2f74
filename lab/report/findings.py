"""Findings of a study in the words of a referee: effect, interval, seeds, conditions, and what it cannot show."""

from collections.abc import Iterable, Sequence

from lab.report import ranks, tables
from lab.report.analysis import Analysis, best_run, frontier_arms, ranking
from lab.report.arms import ran_in_blocks
from lab.report.comparison import Comparison, units
from lab.report.document import MISSING, Block, Bullets, Figure, Heading, Paragraph, Table, number, p_text, signed, span
from lab.report.statistics import AA_LEVEL, MOST_SEEDS


def report(analysis: Analysis, figures: Sequence[Figure], not_drawn: Sequence[str]) -> list[Block]:
    """The whole report, in the order a reader needs it; raises ValueError for a figure of no section."""
    study, declared = analysis.study, analysis.study.declared
    blocks: list[Block] = [Heading(f"{study.name}: {declared.question}" if declared else study.name, 1)]
    blocks += [Paragraph(line) for line in headline(analysis)]
    blocks += [Bullets([sentence(row, analysis) for row in analysis.contrasts])] if analysis.contrasts else []
    sections = _sections(analysis)
    for figure in figures:
        if figure.section not in sections:
            raise ValueError(f"{figure.name} is for the section {figure.section!r}; there are {', '.join(sections)}.")
    for title, (before, after) in sections.items():
        shown = [figure for figure in figures if figure.section == title]
        content = [block for block in (*before, *shown, *after) if block is not None]
        blocks += [Heading(title), *content] if content else []
    blocks += [Paragraph("Not drawn: " + "; ".join(not_drawn) + ".")] if not_drawn else []
    return blocks


def _sections(analysis: Analysis) -> dict[str, tuple[Sequence[Block | None], Sequence[Block | None]]]:
    """Heading of each section -> what stands in it before its figures, and what after."""
    rank_words = [Bullets(ranks.in_words(analysis.ranks, analysis.contrasts))] if analysis.ranks else []
    arms: list[Block] = [*map(Paragraph, standings(analysis)), tables.arms_table(analysis)] if analysis.arms else []
    loss = "Training loss (nats per token), mean over the window and over seeds."
    norm = "Gradient norm before clipping, mean over the window and over seeds."
    traces = [
        tables.trace_table(analysis, "train_loss", "trace_loss", loss),
        tables.trace_table(analysis, "grad_norm", "trace_grad_norm", norm),
    ]
    return {
        "Conditions": ([Bullets(conditions(analysis))], []),
        "Contrasts": ([tables.contrasts_table(analysis)], [tables.information_table(analysis)]),
        "Noise floor": ([Paragraph(noise_floor(analysis))], []),
        "Rank": ([*rank_words, tables.ranks_table(analysis)], []),
        "Arms": (arms, []),
        "Training": ([], traces),
        "Everything else that was measured": ([tables.described_table(analysis)], []),
        "Runs that did not complete, and what is missing": (gaps(analysis), []),
        "What this cannot show": ([Bullets(limits(analysis))], []),
        "Every run": ([tables.runs_table(analysis)] if analysis.arms else [], []),
    }


def headline(analysis: Analysis) -> list[str]:
    """One paragraph that says how many contrasts ended how, and another for what replaced a declaration."""
    rows, judgement = analysis.contrasts, analysis.judgement
    counts = ", ".join(f"{count} {status}" for status, count in analysis.counts.items()) or "none"
    lines = [f"{len(analysis.study.runs)} runs were read: {counts}."]
    if rows:
        words = {
            "a_better": "better", "b_better": "worse", "equivalent": "equivalent",
            "inconclusive": "undecided", "withheld": "without a verdict",
        }  # fmt: skip
        ends = {word: sum(row.verdict == verdict for row in rows) for verdict, word in words.items()}
        verdicts = ", ".join(f"{count} {word}" for word, count in ends.items() if count)
        lines[0] += f" Against {judgement.baseline}, of {len(rows)} judged arms: {verdicts}."
    else:
        lines[0] += " Nothing is judged: the study has no contrast with a baseline."
    return lines + [note[0].upper() + note[1:] + "." for note in judgement.notes]


def sentence(row: Comparison, analysis: Analysis) -> str:
    """One contrast as a referee would put it; what a finer grid of rates would change has not been measured."""
    s, name = row.statistics, row.metric.replace("_", " ")
    if s.mean is None:
        return f"{row.arm_a} vs {row.arm_b}: no verdict; {row.reason}."
    interval = f"; 95 % interval {signed(s.ci_low)} to {signed(s.ci_high)}" if s.ci_low is not None else ""
    effect = f"{name} differs by {signed(s.mean)} {units(row.metric)}".rstrip() + f" (a − b{interval}; {s.pairs} pairs)"
    match row.verdict:
        case "a_better" | "b_better":
            word = "better" if row.verdict == "a_better" else "worse"
            what = f"{row.arm_a} is {word} than {row.arm_b} at the rates tried"
            end = f"{what}: {effect}; Holm-adjusted p {_equals(row.p_adjusted)}."
        case "equivalent":
            what = f"{row.arm_a} is equivalent to {row.arm_b} within ±{number(s.margin)} at the rates tried"
            end = f"{what}: {effect}; Holm-adjusted TOST p {_equals(row.p_equivalence_adjusted)}."
        case "inconclusive":
            needed = f"about {row.seeds_to_decide} seeds" if row.seeds_to_decide else f"more than {MOST_SEEDS} seeds"
            end = (
                f"{row.arm_a} vs {row.arm_b} is undecided: {effect}; {row.reason}. "
                f"If these are the true mean and spread, {needed} would decide it."
            )
        case _:
            end = f"{row.arm_a} vs {row.arm_b}: no verdict, since {row.reason}; {effect}."
    return end + (f" Without a partner and left out: {', '.join(row.dropped)}." if row.dropped else "")


def _equals(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


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
    precisions = _distinct(str(run.record.environment.get("precision") or MISSING) for run in runs)
    return [
        *lines,
        f"Base: {models}, weights {_distinct(run.base[:12] for run in runs)}.",
        f"Data: {names}, sha256 {hashes}; {sizes} training/validation/test examples.",
        f"Budget: {steps} optimizer steps, {span(run.record.tokens for run in runs)} tokens{labelled}.",
        f"Device: {devices}; precision {precisions}.",
        f"Seeds: {', '.join(map(str, seeds))}{again}.",
    ]


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def noise_floor(analysis: Analysis) -> str:
    """Noise floor in words: how far the baseline lies from itself, and whether that lets anything be judged."""
    aa = analysis.aa
    if aa is None:
        return (
            "Not measured: no two completed runs of the baseline share a data order and differ in the seed. "
            "Differences are read against their own interval alone."
        )
    s = aa.statistics
    spread = f"standard deviation {number(s.sd)}, " if s.sd is not None else ""
    end = ""
    if s.p_value is not None:
        quiet = s.p_value >= AA_LEVEL
        end = f" A/A p {_equals(s.p_value)}, which withholds {'no verdict' if quiet else 'every verdict'}."
    return (
        f"{s.pairs} pairs of runs of {aa.arm_a} that share the data order and differ only in the seed differ in "
        f"{aa.metric.replace('_', ' ')} by {signed(s.mean)} on average ({spread}largest "
        f"{number(max(map(abs, aa.differences)))}). That is what this study cannot resolve in a single pair.{end}"
    )


def standings(analysis: Analysis) -> list[str]:
    """Best mean and best run, each named as what it is; an order of means is no verdict."""
    order, best = ranking(analysis), best_run(analysis.arms, analysis.judgement)
    if not order or best is None:
        return ["No arm has a completed run with the primary metric, so nothing is ranked."]
    metric = analysis.judgement.metric.replace("_", " ")
    run, value, arm = best
    listed = ", ".join(f"{each.name} {number(mean)}" for each, mean in order)
    lines = [
        f"Best mean {metric}: {order[0][0].name} ({number(order[0][1])}). Best single run: {run.name} of {arm.name} "
        f"({number(value)}); one run is no evidence. Order of the means, which is no verdict: {listed}."
    ]
    counts = {each.runs[0].record.trainable_params for each, _ in order}
    if len(counts) > 1:
        frontier = ", ".join(frontier_arms(analysis))
        lines.append(f"No arm with as few trainable parameters has a better mean than: {frontier}.")
    return lines


def gaps(analysis: Analysis) -> list[Block]:
    """Gaps: runs that did not complete, jobs that were never run, and files that could not be read."""
    blocks: list[Block] = []
    study = analysis.study
    unfinished = tables.unfinished_table(analysis)
    blocks.append(
        unfinished or Paragraph("Every run that was started completed." if study.runs else "No run was found.")
    )
    if study.missing:
        blocks += [Paragraph(f"{len(study.missing)} declared verdict jobs have no run yet:"), Bullets(study.missing)]
    if study.problems:
        lines = [f"{problem.path.name}: {problem.reason}" for problem in study.problems]
        blocks += [Paragraph(f"{len(study.problems)} things could not be read and were left out:"), Bullets(lines)]
    return blocks


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
    if judgement.metric.startswith("val"):
        lines.append(
            "The judged metric is a validation loss, on which the learning rates were chosen too: it flatters all."
        )
    on = {arm.chosen_on for arm in arms}
    if "tune" in on and analysis.study.declared:
        seeds = ", ".join(map(str, analysis.study.declared.tune_seeds))
        lines.append(
            f"Learning rates were chosen from a grid, on tuning seed {seeds}, which no verdict uses. How far an arm's "
            "best rate lies from that grid was not measured, and a verdict may change on the way: an eighth of a "
            "decade was enough once."
        )
    if "verdict" in on:
        lines.append("Learning rates were chosen on the validation side of the same seeds that are judged.")
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
    if analysis.aa is None and analysis.contrasts:
        lines.append("No A/A pair was run, so the noise floor is not measured.")
    budgets = {arm.runs[0].record.trainable_params for arm in arms if arm.runs}
    if len(budgets) > 1:
        lines.append("The arms do not train the same number of parameters; a difference may be one of capacity.")
    dtypes = {run.record.model.get("dtype") for arm in arms for run in arm.runs}
    if len(dtypes) > 1:
        lines.append(f"The runs used different precisions: {', '.join(map(str, dtypes))}.")
    if not judgement.declared:
        lines.append("Baseline, contrasts and margin were not declared before the runs, so this is exploration.")
    return lines


def console(analysis: Analysis) -> list[Table]:
    """The tables worth a terminal: the contrasts, and the arms with fewer columns."""
    contrasts = tables.contrasts_table(analysis)
    shown = [contrasts] if contrasts else []
    if analysis.arms:
        arms = tables.arms_table(analysis)
        keep = [i for i, column in enumerate(arms.columns) if column not in ("role", "perplexity", "best run")]
        rows = [[row[i] for i in keep] for row in arms.rows]
        shown.append(Table("", arms.caption, [arms.columns[i] for i in keep], rows))
    return shown
