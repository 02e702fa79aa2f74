"""Decision of a study, for machines: what is recommended, and what its numbers license anyone to say."""

from typing import Any

from lab.record import strict
from lab.report import scope
from lab.report.analysis import Analysis
from lab.report.comparison import Comparison
from lab.report.sentences import scope_of_rates, sentence

BETTER = ("a_better", "b_better")
DECIDED = (*BETTER, "equivalent")
WORDS = {"a_better": "better than", "b_better": "worse than", "equivalent": "equivalent to"}


def decision(analysis: Analysis) -> dict[str, Any]:
    """The content of decision.json in plain, strict types."""
    contrasts = analysis.contrasts
    arms, why = recommended(analysis)
    decided = [row for row in contrasts if row.verdict in DECIDED]
    return strict(
        {
            "schema": 1,
            "study": analysis.study.name,
            "question": analysis.study.declared.question if analysis.study.declared else None,
            "recommended": arms,
            "because": why,
            "learning_rates": {arm.name: arm.learning_rate for arm in analysis.arms if arm.name in arms},
            "licence": {
                "may_be_said": [sentence(row) for row in decided],
                "may_not_be_said": [_forbidden(row) for row in contrasts if row not in decided]
                + [f"that {row.arm_a} is {WORDS[row.verdict]} {row.arm_b} at any learning rate" for row in decided]
                + [f"that this holds elsewhere: {line}" for line in scope.limits(analysis)[:1]],
                "conditions": scope.conditions(analysis),
            },
            "contrasts": [
                {
                    "arm": row.arm_a,
                    "against": row.arm_b,
                    "verdict": row.verdict,
                    "rates": scope_of_rates(row) if row.verdict in DECIDED else None,
                    "mean_difference": row.statistics.mean,
                    "ci_low": row.statistics.ci_low,
                    "ci_high": row.statistics.ci_high,
                    "ci_level": row.ci_level,
                }
                for row in contrasts
            ],
        }
    )


def recommended(analysis: Analysis) -> tuple[list[str], str]:
    """The arms that the verdicts recommend, and why; none where nothing was judged."""
    if analysis.ranks is not None:
        rank = analysis.ranks.recommended
        return ([] if rank is None else [analysis.ranks.ranks[rank]]), analysis.ranks.recommendation
    baseline, rows = analysis.judgement.baseline, analysis.contrasts
    if baseline is None or not any(row.verdict in DECIDED for row in rows):
        return [], "no contrast was decided"
    pairs = analysis.judgement.pairs.values()
    own = [row for row in rows if baseline in (row.arm_a, row.arm_b) or (row.arm_a, row.arm_b) not in pairs]
    if not own:
        return [], f"no contrast is with {baseline}"
    if not any(row.verdict in DECIDED for row in own):
        return [], f"no contrast with {baseline} was decided"
    better = [
        row.arm_b if row.arm_a == baseline else row.arm_a
        for row in own
        if row.verdict == ("b_better" if row.arm_a == baseline else "a_better")
    ]
    beaten = {row.arm_a if row.verdict == "b_better" else row.arm_b for row in rows if row.verdict in BETTER}
    if better and beaten.issuperset(better):
        return [], f"what was found better than {baseline} was found worse than another arm"
    better = [arm for arm in better if arm not in beaten]
    if not better:
        return [baseline], f"no judged arm was found better than {baseline}"
    if len(better) == 1:
        return better, f"{better[0]} alone was found better than {baseline}"
    return better, f"each was found better than {baseline}; which of them is best was not tested"


def _forbidden(row: Comparison) -> str:
    return f"that {row.arm_a} differs from {row.arm_b}, or does not: {row.reason}"
