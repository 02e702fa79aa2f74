"""Tables of what the whole procedure errs.     python -m lab.verdict [--studies N]

Three simulated truths a row: four nulls, four arms at the edge of the margin, four effects of two standard deviations.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from lab.verdict.choice import Scale
from lab.verdict.family import Rules
from lab.verdict.simulate import Procedure, World, simulate

CURVATURES = (1.0, 2.6, 6.0, 13.0)  # measured: 2.6 to 6 about the optimum, more towards the cliff
HEADS = (
    *("false, unqualified", "false, any", "false equivalence", "found, unqualified", "found, any", "equal found equal"),
    *("within stated", "regret", "stated", "jobs"),
)

Rows = Mapping[str, tuple[World, Procedure]]
PLAIN = Procedure()
CURVES: Rows = {
    f"{'cliff' if steeper > 1 else 'parabola'}, κ {curvature:g}, noise {noise:g}": (
        World(curvature=curvature, steeper=steeper, noise=noise),
        PLAIN,
    )
    for steeper in (5.0, 1.0)
    for curvature in CURVATURES
    for noise in (0.01, 0.02)
} | {
    f"diverges {cliff:g} right, κ {curvature:g}": (World(curvature=curvature, steeper=1.0, cliff=cliff), PLAIN)
    for curvature, cliff in ((2.6, 0.1), (6.0, 0.2))
}
SHAPES: Rows = {f"{shape} differences": (World(shape=shape), PLAIN) for shape in ("normal", "t3", "unequal")}
FRONTIER: Rows = {
    f"κ {curvature:g}: {name}": (World(curvature=curvature), procedure)
    for curvature in (2.6, 6.0)
    for name, procedure in {
        "best half decade": Procedure(half_decades=True, until_clear=False),
        "quarter decade": Procedure(scale=Scale()),
        "+ eighth where it pays": PLAIN,
        "… stop at any difference": Procedure(until_clear=False),
        "… clear of both regrets": Procedure(both=True),
        "… equivalence as tuned": Procedure(rules=Rules(allowance=0)),
        "+ second tuning seed": Procedure(seeds=2),
        "+ budget of 20 seeds": Procedure(seeds=2, rules=Rules(budget=20)),
    }.items()
}
# In a planted study margin, spread and noise are a tenth of the others; the scale of what is flat goes with them.
PLANTED: Rows = {
    f"planted_lr, κ {curvature:g}": (
        World(curvature=curvature, steeper=5.0, shift=math.log10(2), sd=0.0013, noise=0.0005, margin=0.0043),
        Procedure(scale=Scale(flat=0.03, lost=0.015, tolerance=0.0043)),
    )
    for curvature in (0.1, 0.3, 0.9)
}
TABLES = {"Curves": CURVES, "Shapes of the differences": SHAPES, "Jobs against error": FRONTIER, "Planted": PLANTED}


def row(world: World, procedure: Procedure, studies: int) -> list[str]:
    """The cells of HEADS."""
    edge, effect = world.margin, 2 * world.sd
    null = simulate(world, procedure, studies)
    at_edge = simulate(replace(world, effects=(edge, -edge, edge, -edge)), procedure, studies)
    real = simulate(replace(world, effects=(effect, -effect, effect, -effect)), procedure, studies)
    shares = (
        *(null.false_unqualified, null.false_difference, at_edge.false_equivalence),
        *(real.found_unqualified, real.found, null.equivalent, null.honest),
    )
    losses = (null.regret, null.stated)
    jobs = f"{null.tuning_jobs:.0f} + {null.verdict_jobs:.0f}, {real.verdict_jobs:.0f}"
    return [*(f"{share:.3f}" for share in shares), *(f"{loss:.4f}" for loss in losses), jobs]


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(prog="python -m lab.verdict", description=__doc__)
    parser.add_argument("--studies", type=int, default=4000, help="simulated per truth and row")
    studies = parser.parse_args().studies
    console = Console(width=None)
    for title, rows in TABLES.items():
        table = Table("", *HEADS, title=f"{title} ({studies} studies a cell)")
        for name, (world, procedure) in rows.items():
            table.add_row(name, *row(world, procedure, studies))
        console.print(table)


if __name__ == "__main__":
    main()
