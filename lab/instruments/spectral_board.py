"""The dashboard of an observed run: a question a page, its limits and chance levels drawn in."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from lab.layer import Target, evenly_spaced
from lab.ledger import Row
from lab.svd_policy.decisions import Decided
from lab.svd_policy.observing import Observing
from lab.svd_policy.switching import Switching

MEASURES: dict[str, Callable[[Row], float | None]] = {
    "angle": lambda row: row.angle(row.k),  # radians, since the last tick
    "angle_since_start": lambda row: row.angle(row.k, "first"),
    "overlap": lambda row: row.overlap(row.k),
    "rotation": lambda row: row.rotation,  # radians per step
    "gradient_left": lambda row: row.fraction("gradient", "left", row.k),
    "gradient_right": lambda row: row.fraction("gradient", "right", row.k),
    "gradient_z": lambda row: row.z("gradient", "either", row.k),
    "momentum_left": lambda row: row.fraction("momentum", "left", row.k),
    "update_left": lambda row: row.fraction("update", "left", row.k),
    "update_z": lambda row: row.z("update", "either", row.k),
    "tail_error": lambda row: row.tail_error(row.k) if row.directions else None,
    "stable_rank": lambda row: row.stable_rank,
    "entropy_rank": lambda row: row.entropy_rank,
    "spikes": lambda row: row.spikes,  # of W − W₀
    "intruders": lambda row: row.intruders,
}
PAGES: dict[str, tuple[str, ...]] = {
    "angle": ("angle", "angle_since_start", "overlap", "rotation"),
    "energy against chance": (
        *("gradient_left", "gradient_right", "gradient_z", "momentum_left", "update_left", "update_z"),
    ),
    "tail error": ("tail_error",),
    "effective rank": ("stable_rank", "entropy_rank", "spikes", "intruders"),
}
CHANCE = {"gradient_left": "left", "gradient_right": "right", "momentum_left": "left", "update_left": "left"}
# The page of a clause; one that is not ours has a page with its fellows.
PAGE_OF_CLAUSE = {
    "angle_stable": "angle",
    "principal_danger": "energy against chance",
    "minor_safe": "energy against chance",
    "reconstruction_safe": "tail error",
}
OTHER, COST, SWITCHES = "limits", "cost", "switches"
WHAT_SWITCHED = {  # tags of lab.editors.switch_board
    "layers by form": ["Multiline", ["switch/layers_.+"]],
    "parameters that train": ["Multiline", ["switch/trainable_params"]],
}
FIGURES_AT = tuple(2 * 4**i for i in range(2, 12))  # ticks; figures cost as much as thirty, so ever further apart
SAYS = {  # of the measures drawn as heat maps
    "angle": "largest angle since the last tick (rad)",
    "gradient_z": "gradient's energy in the k directions: standard deviations above chance",
    "update_z": "applied update's energy in the k directions: standard deviations above chance",
    "tail_error": "tail error after k directions",
    "stable_rank": "stable rank",
}
Point = tuple[int, str, float | None]  # step, layer, value


class SpectralBoard:
    """Scalars at every tick, figures at ticks ever further apart, and the layout of the custom-scalars page."""

    def __init__(self, loggers: Sequence[Any], targets: Sequence[Target], policy: Observing) -> None:
        self.loggers, self.policy = list(loggers), policy
        self.targets = {target.name: target for target in targets}
        self.chosen = evenly_spaced(list(self.targets), policy.log_layers)
        experiments: list[Any] = [getattr(logger, "experiment", None) for logger in loggers]
        self.writers = [experiment for experiment in experiments if hasattr(experiment, "add_figure")]
        self.history: dict[str, list[Point]] = {name: [] for name in SAYS}  # what the heat maps show
        self.spectra: list[Row] = []  # whole ones of the chosen layers
        self.clauses: dict[str, None] = {}
        self.figure_seconds = 0.0  # of this start of the run
        self.ticks, self.last, self.drawn = 0, -1, -1  # ticks seen; steps of the last tick and of the last figures

    def remember(self, rows: Sequence[Row]) -> None:
        """Rows of a tick, this one's or an earlier one's of a resumed run."""
        if not self.writers:
            return
        for name, points in self.history.items():
            points += [(row.step, row.layer, MEASURES[name](row)) for row in rows]
        self.spectra += [row for row in rows if row.whole and row.directions and row.layer in self.chosen]

    def tick(self, step: int, rows: Sequence[Row], made: Iterable[Decided], cost: Mapping[str, float]) -> None:
        """Log a tick's rows and the decisions made on them."""
        values = {f"spectral_cost/{name}": value for name, value in cost.items()}
        for name, measure in MEASURES.items():
            by_layer = {row.layer: float(value) for row in rows if (value := measure(row)) is not None}
            values |= {f"spectral/{name}/{layer}": by_layer[layer] for layer in self.chosen if layer in by_layer}
            values |= self._by_role(name, by_layer)
        for name, side in CHANCE.items():
            for row in rows:
                shape = f"{row.shape[0]}x{row.shape[1]}"
                values[f"spectral_chance/{name}/{shape}"] = row.chance(side, row.k)  # type: ignore[arg-type]
        known = len(self.clauses)
        values |= self._by_clause(made)
        for logger in self.loggers:
            logger.log_metrics(values, step=step)
        if self.ticks == 0 or len(self.clauses) > known:
            for writer in self.writers:
                writer.add_custom_scalars(self.layout())
        self.ticks, self.last = self.ticks + 1, step
        if self.ticks in FIGURES_AT:
            self.draw(step)

    def _by_role(self, name: str, by_layer: Mapping[str, float]) -> dict[str, float]:
        values: dict[str, float] = {}
        for role in sorted({target.role for target in self.targets.values()}):
            held = [value for layer, value in by_layer.items() if self.targets[layer].role == role]
            if held:
                tag = f"spectral_role/{name}/{role}"
                values |= {f"{tag}_median": median(held), f"{tag}_min": min(held), f"{tag}_max": max(held)}
        return values

    def _by_clause(self, made: Iterable[Decided]) -> dict[str, float]:
        """Each chosen layer's values, and the limit; the lowest and the highest where layers have their own."""
        values: dict[str, float] = {}
        limits: dict[str, list[float]] = {}
        for row in made:
            for clause in row["clauses"]:
                self.clauses[clause["name"]] = None
                limits.setdefault(clause["name"], []).append(clause["limit"])
                if row["layer"] in self.chosen and clause["value"] is not None:
                    values[f"spectral_limit/{clause['name']}/{row['layer']}"] = clause["value"]
        for name, held in limits.items():
            ends = {"limit": min(held)} if min(held) == max(held) else {"limit_min": min(held), "limit_max": max(held)}
            values |= {f"spectral_limit/{name}/{end}": limit for end, limit in ends.items()}
        return values

    def layout(self) -> dict[str, dict[str, list[Any]]]:
        """The custom-scalars page: a category per question, its clauses with their limits first."""
        pages: dict[str, dict[str, list[Any]]] = {page: {} for page in (SWITCHES, *PAGES, OTHER)}
        if isinstance(self.policy, Switching):
            pages[SWITCHES] = dict(WHAT_SWITCHED)
        for clause in self.clauses:
            page = pages[PAGE_OF_CLAUSE.get(clause, OTHER)]
            page[f"{clause} and its limit"] = ["Multiline", [f"spectral_limit/{clause}/.+"]]
        roles = sorted({target.role for target in self.targets.values()})
        for page_name, measures in PAGES.items():
            for name in measures:
                tags = [f"spectral/{name}/.+"]
                if name in CHANCE:
                    tags.append(f"spectral_chance/{name}/.+")
                also = " and chance" if name in CHANCE else ""
                pages[page_name][f"{name}{also}, by layer"] = ["Multiline", tags]
            for role in roles:
                tag = f"spectral_role/{measures[0]}/{role}"
                margin = [f"{tag}_median", f"{tag}_min", f"{tag}_max"]
                pages[page_name][f"{measures[0]}, {role}: median, least and most"] = ["Margin", margin]
        pages[COST] = {
            "seconds a tick": ["Multiline", ["spectral_cost/tick_seconds"]],
            "share of training time so far": ["Multiline", ["spectral_cost/analysis_share"]],
            "memory on top of the training state, share": ["Multiline", ["spectral_cost/memory_share"]],
        }
        return {page: charts for page, charts in pages.items() if charts}

    def draw(self, step: int) -> None:
        """Heat maps over layers and time, and the chosen layers' spectra, of all ticks so far."""
        if not self.writers or step == self.drawn:
            return
        began = time.perf_counter()
        from lab.instruments.spectral_figure import heat_map, spectra  # with matplotlib, which only a dashboard needs

        self.drawn = step
        figures = {"spectra": spectra(self.spectra, self.chosen)}
        for name, says in SAYS.items():
            figures[f"heat_map/{name}"] = heat_map(says, self.history[name], list(self.targets))
        for name, figure in figures.items():
            if figure is not None:
                for writer in self.writers:
                    writer.add_figure(f"spectral/{name}", figure, step)
        self.figure_seconds += time.perf_counter() - began
