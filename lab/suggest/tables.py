"""Tables and sentences of advice on the console."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.suggest.rank import LICENCE, SHARE, Curve

AGREES = 0.01  # of the gain: what the whole change, rebuilt, may differ from what the run recorded


def show_curve(curve: Curve) -> None:
    """A row per rank, the knee, and what the advice is worth."""
    table = Table(title=Text(f"{curve.run}: its adapter cut to smaller ranks"))
    for heading in ("rank", "validation loss", "gain kept", "energy kept", "trainable parameters", "adapter"):
        table.add_column(heading, justify="right")
    table.add_row("base", f"{curve.base_loss:.4f}", "0.0 %", "0.0 %", "0", "")
    for point in curve.points:
        table.add_row(
            str(point.rank) + (" *" if point.rank == curve.knee else ""),
            f"{point.loss:.4f}",
            "" if point.kept is None else f"{100 * point.kept:.1f} %",
            f"{100 * point.energy:.1f} %",
            f"{point.parameters:,}",
            f"{point.bytes / 1e6:.2f} MB",
        )
    console = Console(highlight=False)
    console.print(table)
    for sentence in sentences(curve):
        console.print(sentence, soft_wrap=True, markup=False)


def sentences(curve: Curve) -> list[str]:
    """What the curve says, and what it does not."""
    whole = curve.points[-1]
    if curve.knee is None:
        said = [f"no gain to keep: the run's loss on {curve.examples} validation examples is no lower than its base's"]
    else:
        knee = next(point for point in curve.points if point.rank == curve.knee)
        said = [
            f"* rank {knee.rank} is the smallest of these that keeps {100 * SHARE:.0f} % of the gain, {curve.gain:.4f} "
            f"nats per token on {curve.examples} validation examples, with {knee.parameters / whole.parameters:.1%} of "
            "the parameters of the whole change"
        ]
        if knee is whole:
            said.append("it is the whole change, so a wider run may gain more")
        best = min(curve.points, key=lambda point: point.loss)
        if best.kept is not None and best.kept > 2 - SHARE:
            said.append(
                f"rank {best.rank} alone gains more than the whole change ({best.kept:.0%} of it): the others "
                "cost validation loss, as in a run that has learned little, or too much; train on, or judge by more "
                "examples (evaluate.max_examples), before a rank is taken from this"
            )
    if curve.doubled:
        said.append("the initial pair was taken away from the base, so the change has up to twice the trained rank")
    if curve.recorded_loss is not None and abs(whole.loss - curve.recorded_loss) > AGREES * abs(curve.gain):
        said.append(
            f"the whole change gives {whole.loss:.4f} here, and the run recorded {curve.recorded_loss:.4f}: "
            "it computed in another precision or on another device"
        )
    return [*said, LICENCE]
