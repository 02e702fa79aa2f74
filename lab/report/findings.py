"""Findings of a study in the words of a referee: effect, interval, seeds, conditions, and what it cannot show."""

from collections.abc import Sequence

from lab.report import accuracy, aims, criteria, forgetting, looks_tables, ranks, scope, switching_tables, tables
from lab.report.analysis import Analysis, best_run, frontier_arms, ranking
from lab.report.document import Block, Bullets, Figure, Heading, Paragraph, Table, counted, number
from lab.report.sentences import aa_paragraph, sentence


def report(analysis: Analysis, figures: Sequence[Figure], not_drawn: Sequence[str]) -> list[Block]:
    """The whole report, in the order a reader needs it; raises ValueError for a figure of no section."""
    study, declared = analysis.study, analysis.study.declared
    blocks: list[Block] = [Heading(f"{study.name}: {declared.question}" if declared else study.name, 1)]
    blocks += [Paragraph(line) for line in headline(analysis)]
    blocks += [Bullets([sentence(row) for row in analysis.contrasts])] if analysis.contrasts else []
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
        "Conditions": ([Bullets(scope.conditions(analysis))], []),
        "Contrasts": ([tables.contrasts_table(analysis)], [tables.information_table(analysis)]),
        "What was to be reached": ([Bullets(aims.in_words(analysis))] if analysis.aims else [], []),
        "Switching": (switching_tables.words(analysis), switching_tables.tables(analysis)),
        "Learning rates": ([looks_tables.tuning_table(analysis)], []),
        "The baseline against itself": ([Paragraph(aa_paragraph(analysis))], []),
        "Rank": ([*rank_words, tables.ranks_table(analysis)], []),
        "Arms": (arms, []),
        "Criteria": ([criteria.criteria_table(analysis)], []),
        "Forgetting at equal loss": forgetting.section(analysis),
        "Accuracy": ([accuracy.accuracy_table(analysis)], [accuracy.evaluations_table(analysis)]),
        "Training": ([], traces),
        "Everything else that was measured": ([tables.described_table(analysis)], []),
        "Runs that did not complete, and what is missing": (gaps(analysis), []),
        "What this cannot show": ([Bullets(scope.limits(analysis))], []),
        "Every run": ([tables.runs_table(analysis)] if analysis.arms else [], []),
    }


def headline(analysis: Analysis) -> list[str]:
    """One paragraph that says how many contrasts ended how, and another for what replaced a declaration."""
    rows, judgement = analysis.contrasts, analysis.judgement
    counts = ", ".join(f"{count} {status}" for status, count in analysis.counts.items()) or "none"
    runs = len(analysis.study.runs)
    lines = [f"{counted(runs, 'run')} {'was' if runs == 1 else 'were'} read: {counts}."]
    if rows:
        words = {
            "a_better": "better", "b_better": "worse", "equivalent": "equivalent",
            "inconclusive": "undecided", "withheld": "without a verdict",
        }  # fmt: skip
        ends = {word: sum(row.verdict == verdict for row in rows) for verdict, word in words.items()}
        verdicts = ", ".join(f"{count} {word}" for word, count in ends.items() if count)
        against = f"Against {judgement.baseline}, of {len(rows)} judged arms"
        lines[0] += f" {f'Of {len(rows)} contrasts' if judgement.pairs else against}: {verdicts}."
    else:
        lines[0] += " Nothing is judged: the study has no contrast with a baseline."
    return lines + [note[0].upper() + note[1:] + "." for note in judgement.notes]


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
    seeds = {len(arm.values(analysis.judgement.metric)) for arm, _ in order}
    if len(seeds) > 1:
        lines.append(
            "Arms took different numbers of seeds: their means are not over the same ones, the differences are."
        )
    lost = [each for arm in analysis.arms if (each := arm.lost(analysis.judgement.metric))]
    lines += [f"A mean is that of the seeds an arm kept: {'; '.join(lost)}."] if lost else []
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
