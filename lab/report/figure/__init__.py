"""The figures of a study; each drawing returns None where the study has nothing to draw there."""

from collections.abc import Callable

from matplotlib import rc_context
from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.figure import style
from lab.report.figure.curves import learning_rates, loss_curves
from lab.report.figure.effects import effect_sizes, rank_comparison
from lab.report.figure.heatmap import rank_heatmap
from lab.report.figure.tradeoffs import forgetting_gain, frontier

Drawing = Callable[[Analysis], Figure | None]

# name -> how to draw it, and what its caption says
FIGURES: dict[str, tuple[Drawing, str]] = {
    "effect_sizes": (
        effect_sizes,
        "Difference of each arm from the baseline, paired by seed. Thick: the 90 % interval, which TOST compares with "
        "the margin; thin: 95 %.",
    ),
    "loss_curves": (loss_curves, "Loss over optimizer steps: mean over seeds, band one standard deviation."),
    "rank_comparison": (rank_comparison, "Loss against rank: every seed, the mean, and the knee with its interval."),
    "frontier": (
        frontier,
        "Trainable parameters against the primary metric; arms within 1 % of one count stand side by side.",
    ),
    "learning_rates": (
        learning_rates,
        "The selection metric at every learning rate tried; the chosen one is ringed.",
    ),
    "rank_heatmap": (rank_heatmap, "Rank of every adapted module, read back from the live model."),
    "forgetting_gain": (
        forgetting_gain,
        "Gain on the task against loss on the retention text. Small: runs; large: their mean.",
    ),
}


def draw(name: str, analysis: Analysis) -> Figure | None:
    """One figure in the house style, whatever the caller's own settings are."""
    with rc_context(style.RC):
        return FIGURES[name][0](analysis)
