"""Attack on a weight's principal directions: when gradients press on them beyond chance, and when they let go again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lab.errors import UsageError
from lab.ledger import Row
from lab.spectral.chance import Side, z_score
from lab.svd_policy import Clause, Decision, Reach, State, clause
from lab.svd_policy.limits import Kept, Limited

Watched = Literal["gradient", "momentum"]
Protected = Literal["core", "left", "right", "bilateral"]
ATTACK = "attack"
SKETCHED = 2.0  # by which a sketched concentration is taken higher: its error is up to a half of it, to both sides


@dataclass(frozen=True, kw_only=True)
class Guarding(Limited):
    """The settings of a guard, and its decision: guard on an attack that lasts, release after a calm that lasts.

    An attack is told from what the optimizer is fed, not from what it applies, which a guard has already projected.
    """

    watch: Watched  # the matrix whose energy on the directions is watched
    side: Protected  # what is protected, and watched
    strength: float  # share of the update's protected part that is taken off
    attack_z: float  # standard deviations above chance from which it is an attack
    attack_lift: float  # times chance, likewise
    attack_patience: int  # ticks in a row
    calm_z: float  # below it there is none
    calm_patience: int | None  # ticks in a row before the release; None: a guard stays
    cooldown_ticks: int  # of the layer after a release, without a guard

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("watch", ("gradient", "momentum")),
            ("side", ("core", "left", "right", "bilateral")),
        )
        for name, values in allowed:
            if (value := getattr(self, name)) not in values:
                raise UsageError(f"svd_policy.{name}={value!r} is none of {', '.join(values)}.")
        if not 0 < self.strength <= 1:
            raise UsageError(
                f"svd_policy.strength={self.strength} is no share of the update; give one above 0, at most 1."
            )
        if self.calm_z >= self.attack_z:
            raise UsageError(
                f"svd_policy.calm_z={self.calm_z} is not below attack_z={self.attack_z}, so a guard would be released "
                f"while it is attacked; lower calm_z, to half of attack_z or less."
            )
        check_counts(self, attack_patience=1, calm_patience=1, cooldown_ticks=0, warmup_steps=0)
        if self.thresholds in (None, "quantile") and self.attack_z <= 0:
            raise UsageError(
                f"svd_policy.attack_z={self.attack_z} is not above 0, and calm_z keeps its share of it where "
                f"thresholds are not fixed; give attack_z and calm_z as 3 and 1, say."
            )

    @property
    def learned(self) -> Mapping[str, Kept]:
        """Both measures of an attack."""
        return {"attack_z": "at_most", "attack_lift": "at_most"}

    @property
    def targeted(self) -> tuple[str, str]:
        """How many times chance an attack is."""
        return "attack_lift", ATTACK

    def bounded(self, limits: Mapping[str, float]) -> Mapping[str, float]:
        """An attack is at least what chance is, and a standard deviation above it; calm keeps its share of that."""
        if not {"attack_z", "attack_lift"} <= set(limits):
            return limits
        z, lift = max(limits["attack_z"], 1.0), max(limits["attack_lift"], 1.0)
        return {**limits, "attack_z": z, "attack_lift": lift, "calm_z": self.calm_z / self.attack_z * z}

    def guard_clauses(self, row: Row) -> tuple[Clause, Clause, Clause]:
        """Attack by z-score and by lift, and calm."""
        side = self.watched_side
        share, level = row.fraction(self.watch, side, self.k), row.chance(side, self.k)
        z = row.z(self.watch, side, self.k)
        lift = None if share is None or level == 0 else share / level
        return (
            clause("attack_z", ">=", z, self.attack_z, 0.0),
            clause("attack_lift", ">=", lift, self.attack_lift, 1.0),
            clause("calm_z", "<", z, self.calm_z, 0.0),
        )

    @property
    def watched_side(self) -> Side:
        """The energy fraction that is watched: what touches the directions on either side, for `bilateral`."""
        return "either" if self.side == "bilateral" else self.side

    def guard_decision(self, row: Row, state: State) -> tuple[Decision | None, State]:
        """The decision on a guard of a layer that trains in full; None where another rule may decide."""
        clauses = self.guard_clauses(row)
        attack = clauses[0].holds and clauses[1].holds
        wait = state.get("guard_wait", 0)
        if row.mode == "guard":
            calm = state.get("calm", 0) + 1 if clauses[2].holds else 0
            if self.calm_patience is not None and calm >= self.calm_patience:
                after = {**state, "calm": 0, "attacked": 0, "guard_wait": self.cooldown_ticks}
                return Decision("full", "release", None, clauses, "calm"), after
            return Decision("guard", "none", None, clauses, "guarding"), {**state, "calm": calm, "attacked": 0}
        if wait:
            return None, {**state, "guard_wait": wait - 1, "attacked": 0}
        attacked = state.get("attacked", 0) + 1 if attack else 0
        after = {**state, "attacked": attacked, "calm": 0, "guard_wait": 0}
        if attacked >= self.attack_patience:
            return Decision("guard", "guard", None, clauses, ATTACK), {**after, "attacked": 0}
        return (Decision("full", "none", None, clauses, "under_attack") if attack else None), after

    def guard_reach(self, row: Row) -> tuple[Reach, ...]:
        """Whether the clauses can hold: all of a gradient's energy on the directions is the most there can be."""
        if row.directions < self.k:
            return ()
        side = self.watched_side
        level, shares = row.chance(side, self.k), row.shares(self.watch)
        most = 1 / level
        needs = (
            f"{min(1.0, self.attack_lift * level):.2%} of the {self.watch}'s energy in the {side}; chance {level:.2%}"
        )
        reaches = [Reach("attack_lift", ">=", self.attack_lift, most, most >= self.attack_lift, needs)]
        if shares is not None and shares.total:
            top = z_score(side, 1.0, self.k, row.shape, shares.concentration)
            holds = top is not None and top >= self.attack_z
            reaches.insert(0, Reach("attack_z", ">=", self.attack_z, top, holds, f"{self.attack_z:g} sd above chance"))
        else:
            reaches.insert(0, Reach("attack_z", ">=", self.attack_z, None, True, f"a {self.watch} to watch"))
        return tuple(reaches)

    def null_limits(self, row: Row, false_alarm: float) -> Mapping[str, float]:
        """The z-score and the lift that a matrix unrelated to W exceeds with at most about this probability.

        As in `lab.spectral.tail.quantile`; empty where chance has no spread.
        """
        from lab.spectral.tail import quantile  # scipy, a third of a second, needed nowhere else

        shares, side = row.shares(self.watch), self.watched_side
        if shares is None or not shares.total or self.k > row.directions:
            return {}
        concentration = min(1.0, shares.concentration * (SKETCHED if shares.sketched else 1.0))
        share = quantile(side, false_alarm, self.k, row.shape, concentration)
        z = None if share is None else z_score(side, share, self.k, row.shape, shares.concentration)
        if share is None or z is None:
            return {}
        return {"attack_z": z, "attack_lift": share / row.chance(side, self.k)}


def check_counts(policy: Any, **least: int) -> None:
    """Raises UsageError for a setting that is no whole number of at least so many; None is left to the policy."""
    for name, smallest in least.items():
        value = getattr(policy, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < smallest):
            raise UsageError(f"svd_policy.{name}={value!r} must be a whole number of at least {smallest}.")
