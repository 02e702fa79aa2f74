"""Markov chains: a few steps, ruin, runs, and the return to a vertex."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from math import comb
from typing import Self

from lab.data.probability.exact import hitting_times, solve_linear
from lab.data.probability.problem import Problem, Wording, Worked, power, proper_fractions, reduced


@dataclass(frozen=True)
class TwoStates(Problem):
    """Probability of being back in the first of two states after `n` steps."""

    leave: Fraction
    come_back: Fraction
    n: int

    wordings = (
        Wording(
            "A dry day is followed by a wet one with probability {leave}, a wet day by a dry one with probability "
            "{come_back}, whatever the weather was before. Today is dry. What is the probability that it is dry "
            "{n} days from now?",
            "Let p_t be the probability that it is dry after t days.",
        ),
        Wording(
            "A lift works or is out of order. From one hour to the next a working lift breaks down with probability "
            "{leave}, and a broken one is repaired with probability {come_back}, independently of the past. The lift "
            "works now. Find the probability that it works {n} hours later.",
            "Write p_t for the probability that the lift works after t hours.",
        ),
        Wording(
            "After each lecture a student changes seats as follows: from the front row to the back row with "
            "probability {leave}, from the back to the front with probability {come_back}, as a Markov chain. The "
            "first lecture finds the student in front. How likely is the student to sit in front {n} lectures later?",
            "Denote by p_t the probability of sitting in front t lectures later.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for leave, back, n in product(proper_fractions(5), proper_fractions(5), (2, 3, 4)):
            if leave + back != 1 and (leave.denominator * back.denominator) ** n < 10_000:
                yield cls(leave, back, n)

    def solve(self) -> Worked:
        stay, back = 1 - self.leave, self.come_back
        p, shown = stay, [f"p_1 = {stay}"]
        for t in range(2, self.n + 1):
            following = p * stay + (1 - p) * back
            shown.append(f"p_{t} = {p} * {stay} + {1 - p} * {back} = {following}")
            p = following
        steps = (
            f"Conditioning on the state at time t gives p_(t+1) = p_t * {stay} + (1 - p_t) * {back}, with p_0 = 1. "
            f"Therefore {', '.join(shown)}."
        )
        return Worked(steps, p)

    def check(self) -> Fraction:
        # The sum over all paths of n steps that end in the first state (0).
        step = {(0, 0): 1 - self.leave, (0, 1): self.leave, (1, 0): self.come_back, (1, 1): 1 - self.come_back}
        total = Fraction(0)
        for between in product((0, 1), repeat=self.n - 1):
            path = Fraction(1)
            for move in pairwise((0, *between, 0)):
                path *= step[move]
            total += path
        return total


@dataclass(frozen=True)
class Ruin(Problem):
    """A biased walk reaches `goal` before 0."""

    start: int
    goal: int
    p: Fraction

    wordings = (
        Wording(
            "A gambler owns {start} coins and bets one coin per game, winning each game with probability {p} "
            "independently. The gambler stops at {goal} coins or when ruined. What is the probability of reaching "
            "{goal} coins?",
            "Let h_j be the probability of success from a fortune of j coins.",
        ),
        Wording(
            "A frog sits on step {start} of a stair with steps 0, 1, ..., {goal}. Every jump takes it one step up "
            "with probability {p} and otherwise one step down, independently. Find the probability that it reaches "
            "step {goal} before step 0.",
            "For a frog on step j, let h_j be the probability of reaching the top first.",
        ),
        Wording(
            "In a contest of independent rounds the score moves one point towards the challenger with probability "
            "{p}, else one point towards the champion. The challenger wins at {goal} points and loses at 0; the "
            "score starts at {start}. How likely is the challenger to win?",
            "Write h_j for the challenger's chance at score j.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        odds = [Fraction(*pair) for pair in ((1, 3), (2, 3), (2, 5), (3, 5), (1, 4), (3, 4))]
        return (cls(start, goal, p) for goal in range(4, 8) for start in range(2, goal) for p in odds)

    def solve(self) -> Worked:
        ratio = (1 - self.p) / self.p
        up, whole = 1 - ratio**self.start, 1 - ratio**self.goal
        steps = (
            f"Conditioning on the next move, h_j = {self.p} h_(j+1) + {1 - self.p} h_(j-1), so each increment "
            f"h_(j+1) - h_j is r = ({1 - self.p}) / ({self.p}) = {ratio} times the one before it. As h_0 = 0 and "
            f"h_{self.goal} is one, summing the geometric series gives "
            f"h_{self.start} = (1 - r^{self.start}) / (1 - r^{self.goal}) = "
            f"(1 - {power(ratio, self.start)}) / (1 - {power(ratio, self.goal)}) = {up / whole}."
        )
        return Worked(steps, up / whole)

    def check(self) -> Fraction:
        inner = range(1, self.goal)
        step = {1: self.p, -1: 1 - self.p}
        system = [[(1 if i == j else 0) - step.get(j - i, Fraction(0)) for j in inner] for i in inner]
        return solve_linear(system, [self.p if i == self.goal - 1 else 0 for i in inner])[self.start - 1]


@dataclass(frozen=True)
class RunOfSuccesses(Problem):
    """Expected number of trials until `run` successes in a row."""

    run: int
    p: Fraction

    wordings = (
        Wording(
            "A coin shows heads with probability {p}. How many tosses does it take, on average, until {run} heads "
            "have come up in a row?",
            "Let e_j be the expected number of tosses until the first run of j heads.",
        ),
        Wording(
            "An archer hits the gold with probability {p}, independently at each shot, and practises until {run} "
            "successive shots have hit it. Find the expected number of shots.",
            "Write e_j for the mean number of shots until j successive ones have hit.",
        ),
        Wording(
            "A server counts as healthy again after {run} consecutive successful probes. If probes succeed "
            "independently with probability {p}, what is the mean number of probes needed?",
            "Denote by e_j the mean number of probes until j consecutive ones have succeeded.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(run, p) for run in (2, 3, 4) for p in proper_fractions(7))

    def solve(self) -> Worked:
        expected, shown = Fraction(0), []
        for j in range(1, self.run + 1):
            shown.append(f"e_{j} = ({expected} + 1) / ({self.p}) = {(expected + 1) / self.p}")
            expected = (expected + 1) / self.p
        steps = (
            f"After a run of j - 1, one more trial either completes the run of j or, with probability {1 - self.p}, "
            f"sends us back to the start: e_j = e_(j-1) + 1 + {1 - self.p} e_j. Solving for e_j, "
            f"e_j = (e_(j-1) + 1) / ({self.p}), and e_0 = 0. Therefore {', '.join(shown)}."
        )
        return Worked(steps, expected)

    def check(self) -> Fraction:
        # The chain of the current run's length, absorbed at `run`.
        rows = [[Fraction(0)] * (self.run + 1) for _ in range(self.run + 1)]
        for length in range(self.run):
            rows[length][0] += 1 - self.p
            rows[length][length + 1] += self.p
        return hitting_times(rows, target=self.run)[0]


@dataclass(frozen=True)
class ReturnTime(Problem):
    """Mean return time of a random walk to the junction of a complete graph and a path."""

    complete: int
    tail: int

    wordings = (
        Wording(
            "A mouse lives in {complete} rooms, any two of which are joined by a door; from room 1 another door leads "
            "to a row of {tail} further rooms, each joined to the next. Every minute the mouse takes a door of its "
            "room, chosen uniformly. It is in room 1. What is the mean time, in minutes, until it is there again?",
            "The mouse performs a random walk on the graph of rooms and doors.",
        ),
        Wording(
            "A web site has {complete} main pages, each linked to every other one, and {tail} archive pages in a "
            "chain that starts at main page 1; all links go both ways. A visitor follows uniformly chosen links, "
            "beginning on main page 1. Find the expected number of clicks until the visitor is back on it.",
            "The visitor walks at random on the graph whose edges are the links.",
        ),
        Wording(
            "{complete} computers are wired pairwise, and a line of {tail} relays, each wired to the next, starts "
            "at computer 1. A message at computer 1 is passed on along a random wire, and so on from station to "
            "station, all wires of a station being equally likely. After how many steps on average is it first back at "
            "computer 1?",
            "Stations and wires form a connected graph, on which the message walks at random.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(complete, tail) for complete in range(3, 10) for tail in range(2, 9))

    def solve(self) -> Worked:
        m = self.complete
        edges = comb(m, 2) + self.tail
        steps = (
            f"Its stationary probabilities are proportional to the degrees, with sum twice the number of edges, "
            f"and the mean return time to a vertex is the reciprocal of its probability. There are "
            f"C({m}, 2) + {self.tail} = {edges} edges. The starting vertex has degree ({m} - 1) + 1 = {m}, so that its "
            f"stationary probability is {m} / (2 * {edges}) = {Fraction(m, 2 * edges)}, and the mean return time is "
            f"{reduced(2 * edges, m)}."
        )
        return Worked(steps, Fraction(2 * edges, m))

    def check(self) -> Fraction:
        # First-step analysis on the graph itself: one step, then the hitting time of vertex 0.
        m, size = self.complete, self.complete + self.tail
        tail = [0, *range(m, size)]
        edges = {(i, j) for i in range(m) for j in range(i)} | {(j, i) for i, j in pairwise(tail)}
        neighbours = [[j for j in range(size) if (i, j) in edges or (j, i) in edges] for i in range(size)]
        walk = [[Fraction(j in near, len(near)) for j in range(size)] for near in neighbours]
        times = hitting_times(walk, target=0)
        return 1 + sum((times[j] for j in neighbours[0]), Fraction(0)) / len(neighbours[0])


KINDS: tuple[type[Problem], ...] = (TwoStates, Ruin, RunOfSuccesses, ReturnTime)
