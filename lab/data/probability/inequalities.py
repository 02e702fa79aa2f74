"""Best bounds from little knowledge: Markov, Chebyshev, Cantelli, Bonferroni.

A bound is checked by searching for the worst case: an explicit distribution that attains it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations_with_replacement, product
from typing import Self

from lab.data.probability.problem import Problem, Wording, Worked, reduced


@dataclass(frozen=True)
class MarkovBound(Problem):
    """Largest probability of a high value, given the mean of a non-negative variable."""

    mean: int
    level: int

    wordings = (
        Wording(
            "Patients of a clinic wait {mean} minutes on average; nothing else is known about the waiting time. What "
            "is the best upper bound for the probability that a patient waits {level} minutes or longer?",
            "Let X >= 0 be the waiting time.",
        ),
        Wording(
            "A non-negative random variable X has expectation {mean}. Find the smallest number that is certain to be "
            "at least as large as P(X >= {level}), whatever the distribution of X.",
            "Compare X with an indicator.",
        ),
        Wording(
            "The households of a town own {mean} books on average. Without further information, at most what share "
            "of the households can own {level} books or more?",
            "Let X be the number of books of a household picked at random; it is never negative.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(mean, level) for mean in range(3, 21) for level in range(mean + 2, mean + 14))

    def solve(self) -> Worked:
        m, a = self.mean, self.level
        steps = (
            f"If I indicates the event X >= {a}, then {a} I <= X. Taking expectations gives "
            f"{a} P(X >= {a}) <= E[X] = {m}. Equality holds if X takes the values 0 and {a} only. The best bound is "
            f"therefore {reduced(m, a)}."
        )
        return Worked(steps, Fraction(m, a))

    def check(self) -> Fraction:
        # Among distributions of given mean the extreme ones have two values, low < mean < high.
        highs = range(self.level, 2 * self.level + 1)
        return max(Fraction(self.mean - low, high - low) for low in range(self.mean) for high in highs)


@dataclass(frozen=True)
class ChebyshevBound(Problem):
    """Least probability of a symmetric interval around the mean, given the variance."""

    mean: int
    variance: int
    margin: int

    wordings = (
        Wording(
            "A machine fills bags whose weight has mean {mean} grams and variance {variance}. Without any assumption "
            "on the distribution, what is the best lower bound for the probability that a bag weighs more than {low} "
            "and less than {high} grams?",
            "Let X be the weight in grams.",
        ),
        Wording(
            "A random variable X has expectation {mean} and variance {variance}. Find the largest number that "
            "P({low} < X < {high}) is certain not to fall short of.",
            "The interval is symmetric about the mean.",
        ),
        Wording(
            "The marks X in an examination average {mean}, with variance {variance}. What share of the candidates, at "
            "the very least, must have marks strictly between {low} and {high}?",
            "Pick a candidate at random, so that shares become probabilities.",
        ),
    )

    @property
    def low(self) -> int:
        return self.mean - self.margin

    @property
    def high(self) -> int:
        return self.mean + self.margin

    @classmethod
    def space(cls) -> Iterator[Self]:
        for variance, margin in product(range(2, 16), range(3, 9)):
            if variance < margin**2:  # the mean plays no part in the answer, so each pair comes with one mean only
                yield cls(40 + 10 * ((variance + margin) % 5), variance, margin)

    def solve(self) -> Worked:
        v, d = self.variance, self.margin
        outside = Fraction(v, d * d)
        steps = (
            f"X lies outside when |X - {self.mean}| >= {d}. Then (X - {self.mean})^2 is at least {d}^2 = {d * d}, so "
            f"by Chebyshev's inequality this has probability at most Var(X) / {d}^2 = {reduced(v, d * d)}. Equality is "
            f"possible, with X restricted to {self.low}, {self.mean} and {self.high}. The best lower bound is "
            f"1 - {outside} = {1 - outside}."
        )
        return Worked(steps, 1 - outside)

    def check(self) -> Fraction:
        # Distributions on mean - x, mean, mean + y with the given mean and variance; worst mass inside the interval.
        v, d = self.variance, self.margin
        inside: list[Fraction] = []
        for x, y in product(range(1, 2 * d + 1), repeat=2):
            below, above = Fraction(v, x * (x + y)), Fraction(v, y * (x + y))
            if below + above <= 1:
                inside.append(1 - below * (x >= d) - above * (y >= d))
        return min(inside)


@dataclass(frozen=True)
class OneSidedBound(Problem):
    """Largest probability of exceeding the mean by a margin, given the variance (Cantelli)."""

    mean: int
    variance: int
    margin: int

    wordings = (
        Wording(
            "A river's yearly peak level has mean {mean} decimetres and variance {variance}. Knowing nothing more, "
            "give the best upper bound for the probability of a peak of {high} decimetres or above.",
            "Let Y be the peak level minus {mean}.",
        ),
        Wording(
            "Let X be a random variable of mean {mean} and variance {variance}. How large can P(X >= {high}) be at "
            "most?",
            "Centre the variable: put Y = X - {mean}.",
        ),
        Wording(
            "The noon temperature in a desert has expectation {mean} degrees and variance {variance}; its "
            "distribution is unknown. What is the sharp upper bound for the probability of {high} degrees or more at "
            "noon?",
            "Write Y for the deviation of the temperature from {mean}.",
        ),
    )

    @property
    def high(self) -> int:
        return self.mean + self.margin

    @classmethod
    def space(cls) -> Iterator[Self]:
        pairs = product(range(2, 16), range(2, 8))  # the mean plays no part in the answer: one for each pair
        return (cls(20 + 5 * ((variance + margin) % 6), variance, margin) for variance, margin in pairs)

    def solve(self) -> Worked:
        v, d = self.variance, self.margin
        answer = Fraction(v, v + d * d)
        steps = (
            f"Y has mean 0 and variance {v}. For every t >= 0, P(Y >= {d}) <= E[(Y + t)^2] / ({d} + t)^2 = "
            f"({v} + t^2) / ({d} + t)^2. The right-hand side is least at t = {reduced(v, d)}, where it equals "
            f"{v} / ({v} + {d}^2). A variable Y with the two values {d} and {Fraction(-v, d)} attains this value, so "
            f"that the best bound is {v} / ({v} + {d}^2) = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Two-valued variables of mean 0 and the given variance, with upper value y >= margin.
        chances: list[Fraction] = []
        for y in range(self.margin, 3 * self.margin + 1):
            x = -Fraction(self.variance, y)
            p = -x / (y - x)  # mean 0
            if p * y**2 + (1 - p) * x**2 != self.variance:
                raise ArithmeticError(f"the extremal distribution with values {x} and {y} has another variance")
            chances.append(p)
        return max(chances)


@dataclass(frozen=True)
class AllThree(Problem):
    """Least probability that three events occur together, given their probabilities in per cent (Bonferroni)."""

    a: int
    b: int
    c: int

    wordings = (
        Wording(
            "Of the visitors to a city {a}% see the cathedral, {b}% the castle and {c}% the harbour. How small can the "
            "probability be that a random visitor sees all three?",
            "Let A, B and C be the events that the visitor sees the cathedral, the castle and the harbour.",
        ),
        Wording(
            "A device works if its three parts do. They are in order with probabilities {a}%, {b}% and {c}%, and "
            "nothing is known about their dependence. Which probability of working can be guaranteed?",
            "Write A, B and C for the events that the single parts are in order.",
        ),
        Wording(
            "In a survey {a}% of all people asked own a bicycle, {b}% a telephone and {c}% a radio. Determine the "
            "least possible share of people who own every one of these things.",
            "For a person picked at random, let A, B and C be the events of owning a bicycle, a telephone, a radio.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        shares = combinations_with_replacement(range(95, 45, -5), 3)  # the order of the events plays no part
        return (cls(*chosen) for chosen in shares if 205 <= sum(chosen) <= 270)

    def solve(self) -> Worked:
        missing = [Fraction(100 - share, 100) for share in (self.a, self.b, self.c)]
        total = sum(missing, Fraction(0))
        steps = (
            f"At least one of them fails to occur with probability at most P(not A) + P(not B) + P(not C) = "
            f"{missing[0]} + {missing[1]} + {missing[2]} = {total}, with equality if the three complements are "
            f"disjoint. That can be arranged, because this sum is below one. Hence the least probability of A and B "
            f"and C is 1 - {total} = {1 - total}."
        )
        return Worked(steps, 1 - total)

    def check(self) -> Fraction:
        # Lay the complements one after the other round a circle of 100 equally likely points; count what is left.
        missed: set[int] = set()
        start = 0
        for share in (self.a, self.b, self.c):
            missed |= {(start + i) % 100 for i in range(100 - share)}
            start += 100 - share
        return Fraction(100 - len(missed), 100)


KINDS: tuple[type[Problem], ...] = (MarkovBound, ChebyshevBound, OneSidedBound, AllThree)
