"""Variance, covariance and correlation."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from math import comb
from typing import Self

from lab.data.probability.exact import Pmf, trials, variance
from lab.data.probability.problem import Problem, Wording, Worked, power, proper_fractions


@dataclass(frozen=True)
class ThreeValues(Problem):
    """Variance of a variable that takes three values."""

    values: tuple[int, int, int]
    weights: tuple[Fraction, Fraction, Fraction]

    wordings = (
        Wording(
            "A random variable X takes the values {values[0]}, {values[1]} and {values[2]} with probabilities "
            "{weights[0]}, {weights[1]} and {weights[2]}. Compute its variance.",
            "Find the first two moments.",
        ),
        Wording(
            "A customer of a bakery buys {values[0]}, {values[1]} or {values[2]} loaves, with probabilities "
            "{weights[0]}, {weights[1]} and {weights[2]} respectively. What is the variance of the number of loaves "
            "sold to one customer?",
            "Let X be the number of loaves.",
        ),
        Wording(
            "Of all tickets in a tombola, a share of {weights[0]} pays {values[0]} euros, a share of {weights[1]} "
            "pays {values[1]} euros and the remaining share of {weights[2]} pays {values[2]} euros. Determine the "
            "variance of the prize of a random ticket.",
            "Call the prize X.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        shares = ((2, 1, 1, 4), (1, 2, 1, 4), (3, 2, 1, 6), (1, 3, 2, 6), (1, 2, 2, 5), (3, 1, 1, 5), (2, 3, 5, 10))
        for (a, b, c, whole), values in product(shares, combinations(range(2, 10), 3)):
            yield cls(values, (Fraction(a, whole), Fraction(b, whole), Fraction(c, whole)))

    def solve(self) -> Worked:
        pairs = list(zip(self.values, self.weights, strict=True))
        first, second = (sum((p * x**k for x, p in pairs), Fraction(0)) for k in (1, 2))
        shown = [" + ".join(f"{p} * {power(x, k)}" for x, p in pairs) for k in (1, 2)]
        answer = second - first**2
        steps = (
            f"E[X] = {shown[0]} = {first} and E[X^2] = {shown[1]} = {second}. Hence "
            f"Var(X) = E[X^2] - E[X]^2 = {second} - {power(first, 2)} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Half the expected squared difference of two independent copies.
        cells = product(zip(self.values, self.weights, strict=True), repeat=2)
        return sum((p * q * (x - y) ** 2 for (x, p), (y, q) in cells), Fraction(0)) / 2


@dataclass(frozen=True)
class RandomNumberOfTrials(Problem):
    """Variance of the successes in a number of trials that is itself uniform on 1, ..., `size`."""

    size: int
    p: Fraction

    wordings = (
        Wording(
            "A fair die with faces 1 to {size} is rolled. A coin that shows heads with probability {p} is then tossed "
            "as many times as the die says. Find the variance of the number of heads.",
            "Let N be the roll and X the number of heads.",
        ),
        Wording(
            "The number of visitors to a stall is uniform on 1, 2, ..., {size}. Each visitor, independently of "
            "everything else, buys something with probability {p}. What is the variance of the number of buyers?",
            "Write N for the number of visitors and X for the number of those who buy.",
        ),
        Wording(
            "A manuscript has N errors, where N takes each of the values 1 to {size} with equal probability. A "
            "proof-reader detects every single error with probability {p}, independently. How large is the variance "
            "of the number of errors detected?",
            "Let X count the errors that are detected.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(size, p) for size in range(4, 13) for p in proper_fractions(6))

    def solve(self) -> Worked:
        n, p = self.size, self.p
        mean, spread = Fraction(n + 1, 2), Fraction(n * n - 1, 12)
        answer = p * (1 - p) * mean + p**2 * spread
        steps = (
            f"Being uniform, N has mean ({n} + 1)/2 = {mean} and variance ({n}^2 - 1)/12 = {spread}. Given N, X is "
            f"binomial with mean {p} N and variance {p} * {1 - p} N. The law of total variance gives "
            f"Var(X) = E[Var(X | N)] + Var(E[X | N]) = {p} * {1 - p} * {mean} + {power(p, 2)} * {spread} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        mixture: dict[int, Fraction] = {}
        for n in range(1, self.size + 1):
            for x, probability in trials(n, self.p).items():
                mixture[x] = mixture.get(x, Fraction(0)) + probability / self.size
        return variance(mixture)


@dataclass(frozen=True)
class OverlappingSums(Problem):
    """Correlation of the first `n` and the last `n` terms' sums among fewer than 2 n independent terms."""

    n: int
    total: int

    wordings = (
        Wording(
            "A fair coin is tossed {total} times. X is the number of heads in the first {n} tosses and Y the number "
            "of heads in the last {n}. Find the correlation of X and Y.",
            "Split X = U + V and Y = V + W, where V counts the heads in the tosses common to both.",
        ),
        Wording(
            "The daily rainfalls of {total} successive days are independent with the same positive variance. What is "
            "the correlation coefficient between the rainfall of the first {n} days and that of the last {n} days?",
            "Let X and Y be the two amounts; X = U + V and Y = V + W, where V is the rain of the days in both periods.",
        ),
        Wording(
            "{total} independent measurements of equal variance are made. One laboratory adds up the first {n} "
            "of them, another the last {n}. How strongly are the two sums correlated (give the coefficient)?",
            "Write the sums as X = U + V and Y = V + W, with V the sum of the measurements used by both.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(n, total) for n in range(3, 13) for total in range(n + 1, 2 * n - 1))

    def solve(self) -> Worked:
        shared = 2 * self.n - self.total
        answer = Fraction(shared, self.n)
        steps = (
            f"V has 2 * {self.n} - {self.total} = {shared} terms. Let s be the variance of a single term. As U, V and "
            f"W are independent, Cov(X, Y) = Var(V) = {shared} s, while Var(X) = Var(Y) = {self.n} s. The correlation "
            f"is Cov(X, Y) / sqrt(Var(X) Var(Y)) = {shared} s / ({self.n} s) = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # For coin tosses, from the joint distribution of the three independent parts.
        half, own, shared = Fraction(1, 2), self.total - self.n, 2 * self.n - self.total
        alone, common, whole = trials(own, half), trials(shared, half), trials(self.n, half)
        outcomes = product(alone.items(), common.items(), alone.items())
        centre = Fraction(self.n, 2)
        covariance = sum((p * q * r * (u + v - centre) * (v + w - centre) for (u, p), (v, q), (w, r) in outcomes), half)
        return (covariance - half) / variance(whole)


@dataclass(frozen=True)
class SamplingVariance(Problem):
    """Variance of the number of special members in a sample without replacement."""

    special: int
    total: int
    drawn: int

    wordings = (
        Wording(
            "An urn contains {total} balls, {special} of them red. {drawn} balls are drawn without replacement. What "
            "is the variance of the number of red balls drawn?",
            "Let I_j indicate that draw j yields a red ball, and let X be the sum of these indicators.",
        ),
        Wording(
            "In a village of {total} households {special} own a car. {drawn} different households are selected at "
            "random for a survey. Find the variance of the number of car owners among them.",
            "Write X for that number: a sum of indicators I_j, one for each household selected.",
        ),
        Wording(
            "A teacher has marked {special} of {total} essays. A parent takes {drawn} essays at random from the pile, "
            "all at once. Compute the variance of the number of marked essays among those taken.",
            "Count the marked essays by X, the sum of indicators I_j over the essays taken, in any order.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for total, drawn in product((6, 8, 9, 10, 12, 15, 16, 20), range(3, 6)):
            yield from (cls(special, total, drawn) for special in range(2, total - 1, 2))

    def solve(self) -> Worked:
        k, n, m = self.special, self.total, self.drawn
        p = Fraction(k, n)
        single, pair = p * (1 - p), p * Fraction(k - 1, n - 1) - p**2
        answer = m * single + m * (m - 1) * pair
        steps = (
            f"By symmetry P(I_j = 1) = {k}/{n} for each j, so Var(I_j) = {k}/{n} * {n - k}/{n} = {single}. For i "
            f"different from j, Cov(I_i, I_j) = {k}/{n} * {k - 1}/{n - 1} - ({k}/{n})^2 = {pair}. There are {m} "
            f"variances and {m} * {m - 1} = {m * (m - 1)} ordered pairs, hence "
            f"Var(X) = {m} * {single} + {m * (m - 1)} * ({pair}) = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        k, n, m = self.special, self.total, self.drawn
        pmf: Pmf = {x: Fraction(comb(k, x) * comb(n - k, m - x), comb(n, m)) for x in range(m + 1)}
        return variance(pmf)


KINDS: tuple[type[Problem], ...] = (ThreeValues, RandomNumberOfTrials, OverlappingSums, SamplingVariance)
