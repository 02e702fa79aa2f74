"""Expectation: indicators, waiting times, and a decision."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Self

from lab.data.probability.exact import hitting_times, mean
from lab.data.probability.problem import Problem, Wording, Worked


@dataclass(frozen=True)
class ColourChanges(Problem):
    """Expected number of unlike neighbours in a random row of two sorts."""

    first: int
    second: int

    wordings = (
        Wording(
            "{first} red and {second} blue books are put on a shelf in random order. What is the expected number of "
            "places where a red and a blue book stand side by side?",
            "Number the places on the shelf, and let I_j indicate that books j and j + 1 differ in colour.",
        ),
        Wording(
            "{first} girls and {second} boys queue up in a random order. Find the mean number of pairs of neighbours "
            "in the queue that consist of a girl and a boy.",
            "For each j let I_j be the indicator of the event that children j and j + 1 form such a pair.",
        ),
        Wording(
            "From a shuffled pack of {first} red and {second} black cards all cards are turned over in turn, and a "
            "bell rings whenever a card differs in colour from the one before it. How often does the bell ring on "
            "average?",
            "Let I_j be 1 if the bell rings between cards j and j + 1, and 0 otherwise.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(a, b) for a in range(3, 13) for b in range(2, a + 1))

    def solve(self) -> Worked:
        a, b, n = self.first, self.second, self.first + self.second
        each = Fraction(2 * a * b, n * (n - 1))
        steps = (
            f"There are {n - 1} such j, and for each of them E[I_j] = {a}/{n} * {b}/{n - 1} + {b}/{n} * {a}/{n - 1} = "
            f"{each}. Expectation is linear, even though the I_j are dependent, so the expected number is "
            f"{n - 1} * {each} = {(n - 1) * each}."
        )
        return Worked(steps, (n - 1) * each)

    def check(self) -> Fraction:
        # Rows built from the left: how many there are, and their changes in all, by contents and last colour.
        rows, changes = defaultdict(int, {(1, 0, 0): 1, (0, 1, 1): 1}), defaultdict[tuple[int, int, int], int](int)
        for a, b in product(range(self.first + 1), range(self.second + 1)):
            if a + b > 1:
                for last, before in ((0, (a - 1, b)), (1, (a, b - 1))):
                    same, other = (*before, last), (*before, 1 - last)
                    rows[a, b, last] = rows[same] + rows[other]
                    changes[a, b, last] = changes[same] + changes[other] + rows[other]
        ends = [(self.first, self.second, last) for last in (0, 1)]
        return Fraction(sum(changes[end] for end in ends), sum(rows[end] for end in ends))


@dataclass(frozen=True)
class DistinctValues(Problem):
    """Expected number of different values among `n` independent uniform choices of `size` values."""

    size: int
    n: int

    wordings = (
        Wording(
            "A fair die with faces 1 to {size} is rolled {n} times. What is the expected number of different faces "
            "that come up?",
            "Let I_j indicate that face j comes up at least once.",
        ),
        Wording(
            "{n} people enter a lift on the ground floor. Each of them, independently, wants to go to one of the "
            "{size} upper floors, all equally likely. Find the mean number of floors at which the lift stops.",
            "Write I_j for the indicator of a stop at floor j.",
        ),
        Wording(
            "{n} letters are dropped into {size} pigeon-holes, each into one chosen uniformly at random and without "
            "regard to the others. How many pigeon-holes contain a letter, on average?",
            "Set I_j = 1 if pigeon-hole j contains a letter, and I_j zero otherwise.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(size, n) for n, top in ((2, 10), (3, 20), (4, 13), (5, 10)) for size in range(3, top + 1))

    def solve(self) -> Worked:
        missed = Fraction(self.size - 1, self.size) ** self.n
        answer = self.size * (1 - missed)
        steps = (
            f"The {self.n} choices all miss j with probability ({self.size - 1}/{self.size})^{self.n} = {missed}, so "
            f"E[I_j] = 1 - {missed} = {1 - missed}. The number in question is the sum of the {self.size} indicators, "
            f"and by linearity its expectation is {self.size} * {1 - missed} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        seen = {0: Fraction(1)}  # distribution of the number of different values so far
        for _ in range(self.n):
            following: dict[int, Fraction] = {}
            for k, probability in seen.items():
                new = Fraction(self.size - k, self.size)
                following[k + 1] = following.get(k + 1, Fraction(0)) + probability * new
                following[k] = following.get(k, Fraction(0)) + probability * (1 - new)
            seen = following
        return mean(seen)


@dataclass(frozen=True)
class SecondOffer(Problem):
    """Best expected gain when a uniform offer may be exchanged, for a fee, for a second and final one."""

    size: int
    unit: int
    fee: int

    wordings = (
        Wording(
            "You roll a fair die with faces 1 to {size} and may take {unit} euros per pip. Instead you may pay {fee} "
            "euros and roll once more, and must then take {unit} euros per pip of the second roll. What is your "
            "expected net gain if you decide in the best way?",
            "Compare the first roll x with the value v of rolling again.",
        ),
        Wording(
            "A wheel of fortune stops at 1, 2, ..., {size} with equal probabilities, and the number is worth {unit} "
            "points each. A player may reject the first result; this costs {fee} points, and the result of a second "
            "spin then counts instead. Find the largest expected score.",
            "Let v be the expected score after a rejection, and x the number at which the first spin stops.",
        ),
        Wording(
            "A collector is offered {unit} x crowns for a stamp, where x is uniform on 1, 2, ..., {size}. Refusing "
            "costs {fee} crowns in fees and leads to a second offer, independent and of the same distribution, which "
            "must be accepted. How much does the collector earn on average under an optimal strategy?",
            "Denote by v the value of refusing the first offer.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for size, unit, fee in product((4, 5, 6, 8, 9, 10), (2, 3, 4, 5, 6), (2, 3, 4, 5)):
            if unit < unit * (size + 1) / 2 - fee:  # else the second chance is never taken
                yield cls(size, unit, fee)

    def solve(self) -> Worked:
        n, unit = self.size, self.unit
        again = Fraction(unit * (n + 1), 2) - self.fee
        least = -(again // -unit)  # ceiling: the least first result that is worth keeping
        kept = n - least + 1
        average = Fraction(unit * (least + n), 2)
        answer = Fraction(least - 1, n) * again + Fraction(kept, n) * average
        steps = (
            f"The second result is worth {unit} * ({n} + 1)/2 on average, so v = {unit} * ({n} + 1)/2 - {self.fee} = "
            f"{again}. It is best to keep x if {unit} x >= {again}, that is, for x >= {least}. This happens with "
            f"probability {kept}/{n}, and what is kept is then worth {unit} * ({least} + {n})/2 = {average} on "
            f"average. The expected gain is {least - 1}/{n} * {again} + {kept}/{n} * {average} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Every one of the 2^size strategies (a set of first results to keep) over all pairs of results.
        n = self.size
        replaced = sum(self.unit * y - self.fee for y in range(1, n + 1))
        best = max(
            sum(n * self.unit * x if strategy >> (x - 1) & 1 else replaced for x in range(1, n + 1))
            for strategy in range(2**n)
        )
        return Fraction(best, n * n)


@dataclass(frozen=True)
class Collector(Problem):
    """Expected number of draws until `wanted` of `size` types have been seen."""

    size: int
    wanted: int

    wordings = (
        Wording(
            "Every packet of tea contains one of {size} pictures, each equally likely. How many packets must one buy, "
            "on average, until one owns {wanted} different pictures?",
            "Suppose that j different pictures are already there.",
        ),
        Wording(
            "A fair die with {size} faces is rolled until {wanted} different faces have appeared. Find the expected "
            "number of rolls.",
            "Consider the moment at which j different faces have appeared.",
        ),
        Wording(
            "A radio station plays songs drawn independently and uniformly from a list of {size}. What is the mean "
            "number of songs played until a listener has heard {wanted} different ones?",
            "Assume that the listener has heard j different songs so far.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(size, wanted) for size in range(3, 16) for wanted in range(3, min(size, 6) + 1))

    def solve(self) -> Worked:
        n = self.size
        answer = sum((Fraction(n, n - j) for j in range(self.wanted)), Fraction(0))
        terms = " + ".join(f"{n}/{n - j}" for j in range(self.wanted))
        steps = (
            f"The next draw brings a new one with probability ({n} - j)/{n}, so the wait for it is geometric with mean "
            f"{n}/({n} - j). Adding these means for j = 0, ..., {self.wanted - 1} gives {terms} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        n, m = self.size, self.wanted
        rows = [[Fraction(0)] * (m + 1) for _ in range(m + 1)]
        for j in range(m):
            rows[j][j], rows[j][j + 1] = Fraction(j, n), Fraction(n - j, n)
        return hitting_times(rows, target=m)[0]


KINDS: tuple[type[Problem], ...] = (ColourChanges, DistinctValues, SecondOffer, Collector)
