"""Methods (methods.md): the protocol as a paper would state it, the versions it ran with, and what to cite."""

import re
from collections.abc import Iterable
from pathlib import Path

from lab.record.study import Study
from lab.report.analysis import Analysis
from lab.report.document import in_markdown, number, span
from lab.report.knee import SHARE
from lab.report.run import Run
from lab.report.statistics import AA_LEVEL, FEWEST_PAIRS, LEVEL

# What a run chose -> what it owes to whom; a choice without an entry is the lab's own or nobody's.
CITED = {
    "init": {
        "pissa": "meng2024pissa",
        "milora": "wang2024milora",
        "lora_ga": "wang2024loraga",
        "lora_one": "zhang2025loraone",
        "olora": "buyukakyuz2024olora",
        "eva": "paischer2024eva",
        "corda": "yang2024corda",
        "corda_kpm": "yang2024corda",
        "gora": "he2025gora",
        "loftq": "li2023loftq",
        "init_b": "hayou2024init",
    },
    "rank_strategy": {"eva": "paischer2024eva", "gora": "he2025gora", "adalora": "zhang2023adalora"},
    "data": {"alpaca": "taori2023alpaca"},
    "optim": {"adamw": "loshchilov2019adamw"},
}
ALWAYS = ("holm1979", "schuirmann1987", "wilcoxon1945", "efron1979")


def methods(analysis: Analysis) -> str:
    """The content of methods.md, in Markdown."""
    runs = [run for arm in analysis.arms for run in (*arm.runs, *arm.twins)]
    parts = ["# Methods", in_markdown(" ".join(protocol(analysis))), "## Versions", *versions(runs), "## References"]
    return "\n\n".join([*parts, "```bibtex\n" + references(citations(analysis)) + "\n```"]) + "\n"


def protocol(analysis: Analysis) -> list[str]:
    """The protocol in sentences that hold for this study as it was run."""
    study, judgement = analysis.study.declared, analysis.judgement
    metric = judgement.metric.replace("_", " ")
    sentences = ["The runs are those of a plain multirun; arms are the settings in which they differ."]
    if study:
        sentences = _with_looks(study) if study.procedure > 1 else _on_a_grid(study)
    if judgement.baseline and judgement.contrasts:
        by_looks = any(row.looked for row in analysis.contrasts) or (study is not None and study.horizon is not None)
        test = "" if by_looks else f", with a paired t test and its {100 * (1 - LEVEL):.0f} % interval"
        compared = [" with ".join(judgement.pair(contrast)) for contrast in judgement.contrasts]
        who = f"Arms were compared with {judgement.baseline}"
        who = f"Compared were {', '.join(compared)}" if judgement.pairs else who
        sentences.append(
            f"{who} by {metric}, paired by seed{test}; p values of "
            f"{len(judgement.contrasts)} contrasts were adjusted by Holm's procedure, those of differences and of "
            "equivalences each as one family."
        )
        if judgement.margin is not None:
            rule = f" ({study.margin})" if study and isinstance(study.margin, str) else ""
            sentences.append(
                f"Equivalence was tested by two one-sided tests (TOST) against "
                f"a margin of ±{number(judgement.margin)}{rule}"
                + (" declared before the runs" if judgement.declared else ", which was not declared before the runs")
                + " and takes precedence over a difference."
            )
        aa = "" if by_looks else f" an A/A difference at p < {AA_LEVEL},"
        sentences.append(
            f"Fewer than {FEWEST_PAIRS} pairs,{aa} a learning rate chosen on the "
            "judged seeds, or a diverged seed of an arm that would be called better or equivalent withhold a verdict."
            + ("" if by_looks else " Bootstrap intervals and Wilcoxon's test are given as information.")
        )
    sentences.append("Runs that diverged or failed are counted and listed, and enter no mean, test or ranking.")
    if analysis.ranks:
        sentences.append(
            f"The knee is the smallest rank whose mean has brought {100 * SHARE:.0f} % of the gain to the best rank; "
            f"its interval resamples seeds, of which it needs {FEWEST_PAIRS}."
        )
    return sentences


def _with_looks(study: Study) -> list[str]:
    """Procedure 2: rates refined, seeds one at a time."""
    sentences = []
    tuned = {arm: grid for arm, grid in study.learning_rates.items() if len(grid) > 1}
    if tuned and not study.refine:
        sentences.append(
            f"The learning rates ({study.rate}) of {len(tuned)} of {len(study.arms)} arms are the best of "
            f"{span(len(grid) for grid in tuned.values())} by {study.selection_metric.replace('_', ' ')} on seed "
            f"{', '.join(map(str, study.tune_seeds))}, which no verdict uses; nothing was refined, so that a verdict "
            "holds at the rates tried."
        )
    elif tuned:
        sentences.append(
            f"Learning rates were chosen by {study.selection_metric.replace('_', ' ')} on seed "
            f"{', '.join(map(str, study.tune_seeds))}, which no verdict uses: half decades, extended while the best "
            "was at an edge, of the baseline, and three round its best for every other arm; then a quarter of a decade "
            "on either side of each arm's best, an eighth where the regret stated exceeded the margin. The vertex of "
            "the parabola through the last three was used, and beside a cliff that of the flat side."
        )
    if study.horizon is None:
        return [*sentences, f"Every arm was run on seeds {', '.join(map(str, study.seeds))}, too few for a verdict."]
    sentences.append(
        f"Seeds were added one at a time and looked at after each from the fourth, up to {study.budget} of a declared "
        f"horizon of {study.horizon}; a seed draws the initialisation and the data order. P* and Q* are the chances "
        "that so small a paired-t or TOST p turns up at any look, by simulation of the null, and hold for any stop. "
        "The interval is the repeated one. A decided contrast got no further seed; a difference was followed until it "
        "was clear of what the loser's tuning may have cost, and a quarter of the winner's was taken from the margin."
    )
    if study.twin_seeds:
        sentences.append("The baseline went through tuning and verdict once more, on seeds of its own (A/A).")
    return sentences


def _on_a_grid(study: Study) -> list[str]:
    """Procedure 1: the best of a grid, a fixed number of seeds."""
    sentences = []
    tuned = {arm: grid for arm, grid in study.learning_rates.items() if len(grid) > 1}
    if tuned:
        sentences.append(
            f"{len(tuned)} of {len(study.arms)} arms were tuned over "
            f"{span(len(grid) for grid in tuned.values())} learning rates, extended by half a decade while the "
            f"best was at an edge, on seed {', '.join(map(str, study.tune_seeds))}, which no verdict uses; a rate "
            f"was chosen by {study.selection_metric.replace('_', ' ')}."
        )
    if len(study.rungs) > 1:
        sentences.append(
            f"The worse half of an arm's rates was stopped at steps {', '.join(map(str, study.rungs[:-1]))} "
            "(successive halving)."
        )
    sentences.append(
        f"Every arm was run on seeds {', '.join(map(str, study.seeds))}; a seed draws the initialisation and the "
        "data order, and the baseline was run again on the same data orders with other seeds (A/A)."
    )
    return sentences


def versions(runs: Iterable[Run]) -> list[str]:
    """Everything the runs recorded of their environment; several values where they differ."""
    environment: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.record.environment.items():
            environment.setdefault(key, {})[str(value)] = None
    lines = [f"- {in_markdown(key)}: {in_markdown(', '.join(values))}" for key, values in environment.items()]
    return ["\n".join(lines) if lines else "No run has completed."]


def citations(analysis: Analysis) -> list[str]:
    """Keys of references.bib for what this study really used."""
    runs = analysis.study.runs
    keys = ["hu2022lora"] if any(run.record.ranks for run in runs) else []
    for run in runs:
        for group, owed in CITED.items():
            choice = run.record.choices.get(group)
            keys += [owed[choice]] if choice in owed else []
        adapter = run.record.config.get("adapter")
        keys += ["liu2024dora"] if isinstance(adapter, dict) and adapter.get("use_dora") else []
        keys += ["kalajdzievski2023rslora"] if run.record.config.get("scaling") == "rslora" else []
    if analysis.study.declared and len(analysis.study.declared.rungs) > 1:
        keys.append("jamieson2016halving")
    return list(dict.fromkeys([*keys, *ALWAYS]))


def references(keys: Iterable[str]) -> str:
    """The BibTeX entries of these keys, as they stand in references.bib."""
    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8")
    entries = {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in text.strip().split("\n\n")}  # type: ignore[index]
    return "\n\n".join(entries[key].strip() for key in keys)
