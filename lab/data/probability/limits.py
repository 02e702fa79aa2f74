"""Limit theorems: the law of large numbers, the central limit theorem, the ergodic and the renewal theorem."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, count, product
from math import comb, isqrt
from typing import Self

from lab.data.probability.exact import stationary
from lab.data.probability.problem import Problem, Wording, Worked, power, proper_fractions


@dataclass(frozen=True)
class SampleSize(Problem):
    """The least sample for which Chebyshev's inequality proves a given accuracy of the mean."""

    variance: int
    accuracy: Fraction
    risk: Fraction

    wordings = (
        Wording(
            "Independent measurements of a length have the true value as their mean, and variance {variance}. For "
            "what least number n of measurements does Chebyshev's inequality guarantee that their average misses the "
            "true value by {accuracy} or more with probability at most {risk}?",
            "The average M of n measurements has variance {variance}/n.",
        ),
        Wording(
            "A pollster averages n independent answers, each of variance {variance}. Using Chebyshev's inequality, "
            "find the smallest n for which the average is off its expectation by at least {accuracy} with probability "
            "no more than {risk}.",
            "Independence makes {variance}/n the variance of the average M.",
        ),
        Wording(
            "In the weak law of large numbers let the summands be independent with common mean and variance "
            "{variance}. From which n on does Chebyshev's inequality bound by {risk} the probability that the mean of "
            "the first n summands deviates from its expectation by {accuracy} or more?",
            "Denote the mean of the first n summands by M; its variance is {variance}/n.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        accuracies = [Fraction(*pair) for pair in ((1, 2), (1, 3), (2, 3), (1, 4), (3, 4), (1, 5), (2, 5))]
        for variance, accuracy, risk in product(range(2, 10), accuracies, (4, 5, 10, 12, 16, 20)):
            if variance * risk / accuracy**2 <= 3000:
                yield cls(variance, accuracy, Fraction(1, risk))

    def solve(self) -> Worked:
        v, e = self.variance, self.accuracy
        bound = v / (e**2 * self.risk)
        n = -(-bound // 1)
        steps = (
            f"By Chebyshev's inequality a deviation of {e} or more has probability at most Var(M) / {power(e, 2)}, "
            f"that is {v} / (n * {power(e, 2)}). This does not exceed {self.risk} as soon as n is at least "
            f"{v} / ({power(e, 2)} * {self.risk}) = {bound}, and the least such n is {n}."
        )
        return Worked(steps, Fraction(n))

    def check(self) -> Fraction:
        return Fraction(next(n for n in count(1) if Fraction(self.variance, n) <= self.risk * self.accuracy**2))


@dataclass(frozen=True)
class NormalApproximation(Problem):
    """The argument of the normal distribution function that approximates a binomial one."""

    n: int
    p: Fraction
    k: int

    wordings = (
        Wording(
            "A coin that shows heads with probability {p} is tossed {n} times. By the central limit theorem with "
            "continuity correction, the probability of at most {k} heads is about Phi(z), where Phi is the standard "
            "normal distribution function. Find z.",
            "Let X be the number of heads.",
        ),
        Wording(
            "Each of {n} guests orders fish with probability {p}, independently. The kitchen has {k} portions of it. "
            "Approximate the probability that they suffice by Phi(z), the standard normal distribution function, "
            "with a continuity correction of one half. Which z must be used?",
            "Write X for the number of guests who order fish.",
        ),
        Wording(
            "X is binomial with parameters {n} and {p}. De Moivre and Laplace approximate P(X <= {k}) by the standard "
            "normal distribution function at a point z. Compute z, correcting for continuity.",
            "Standardise X.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for p, sigma in product(proper_fractions(5), range(2, 11)):
            n = sigma**2 / (p * (1 - p))
            if n.denominator == (n * p).denominator == 1 and n <= 400:
                yield from (cls(int(n), p, int(n * p) + k) for k in range(-sigma, 2 * sigma + 1) if k)

    def solve(self) -> Worked:
        mean, variance = self.n * self.p, self.n * self.p * (1 - self.p)
        sigma = _root(variance)
        assert sigma is not None  # `space` admits perfect squares only
        answer = (self.k + Fraction(1, 2) - mean) / sigma
        steps = (
            f"It has mean {self.n} * {self.p} = {mean} and variance {self.n} * {self.p} * {1 - self.p} = {variance} = "
            f"{sigma}^2. X takes whole values, so X <= {self.k} is the same event as X <= {self.k} + 1/2. Subtracting "
            f"the mean and dividing by the standard deviation, z = ({self.k} + 1/2 - {mean}) / {sigma} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Mean and variance summed over the exact distribution; its masses as whole numbers over a common denominator.
        success, whole = self.p.numerator, self.p.denominator
        masses = [comb(self.n, x) * success**x * (whole - success) ** (self.n - x) for x in range(self.n + 1)]
        first, second = (Fraction(sum(x**i * mass for x, mass in enumerate(masses)), whole**self.n) for i in (1, 2))
        sigma = _root(second - first**2)
        if sigma is None:
            raise ArithmeticError(f"the standard deviation of {self} is irrational")
        return (Fraction(2 * self.k + 1, 2) - first) / sigma


@dataclass(frozen=True)
class LongRunAverage(Problem):
    """The limit of the average state of a chain on 0, 1, 2 that moves by single steps."""

    up: Fraction
    up_again: Fraction
    down: Fraction
    down_first: Fraction

    wordings = (
        Wording(
            "The number of broken machines in a workshop with two machines is a Markov chain. From hour to hour it "
            "goes from 0 to 1 with probability {up}, from 1 to 2 with probability {up_again}, from 1 to 0 with "
            "probability {down} and from 2 to 1 with probability {down_first}; otherwise it stays as it is. To what "
            "value does the average number of broken machines over n hours converge as n grows?",
            "Let pi be the stationary distribution of the number of broken machines.",
        ),
        Wording(
            "Nobody, one or two taxis wait at a rank. Minute by minute the number rises from 0 to 1 with probability "
            "{up} and from 1 to 2 with probability {up_again}; it falls from 2 to 1 with probability {down_first} and "
            "from 1 to 0 with probability {down}; else it is unchanged, and the past does not matter. Find the "
            "almost sure limit of the time average of the number of taxis.",
            "This is an irreducible Markov chain; call its stationary distribution pi.",
        ),
        Wording(
            "A reservoir is at level 0, 1 or 2. Independently of earlier weeks, level 0 is followed by 1 with "
            "probability {up}; level 1 by 2 with probability {up_again} and by 0 with probability {down}; level 2 by "
            "1 with probability {down_first}; in all other cases the level remains the same. What is the long-run "
            "average of the level?",
            "Write pi for the stationary distribution of the level.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        rates = [Fraction(1, n) for n in (2, 3, 4, 5)]
        return (cls(*chosen) for chosen in product(rates, repeat=4))

    def solve(self) -> Worked:
        one = self.up / self.down
        two = one * self.up_again / self.down_first
        answer = (one + 2 * two) / (1 + one + two)
        steps = (
            f"Up and down moves between neighbours balance: pi_0 * {self.up} = pi_1 * {self.down} and "
            f"pi_1 * {self.up_again} = pi_2 * {self.down_first}. So pi_0, pi_1 and pi_2 are in proportion to 1, "
            f"({self.up}) / ({self.down}) = {one} and {one} * ({self.up_again}) / ({self.down_first}) = {two}. By the "
            f"ergodic theorem the average converges to the stationary mean, "
            f"({one} + 2 * {two}) / (1 + {one} + {two}) = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        chain: list[list[Fraction | int]] = [
            [1 - self.up, self.up, 0],
            [self.down, 1 - self.down - self.up_again, self.up_again],
            [0, self.down_first, 1 - self.down_first],
        ]
        _, one, two = stationary(chain)
        return one + 2 * two


@dataclass(frozen=True)
class RenewalLimit(Problem):
    """The limiting probability of a renewal, for whole-numbered lifetimes one of which is 1."""

    middle: int
    longest: int
    weights: tuple[Fraction, Fraction, Fraction]

    wordings = (
        Wording(
            "A lamp lasts 1, {middle} or {longest} days, with probabilities {weights[0]}, {weights[1]} and "
            "{weights[2]}, and is replaced by a new one when it fails; lifetimes are independent. To what limit does "
            "the probability of a replacement on day n tend as n grows?",
            "Let L be the lifetime of a lamp.",
        ),
        Wording(
            "A child hops along an endless row of flagstones. Each hop covers 1, {middle} or {longest} stones, with "
            "probabilities {weights[0]}, {weights[1]} and {weights[2]}, independently of the others. Find the limit, "
            "for n to infinity, of the probability that the child steps on stone n.",
            "The landing places are renewals; call the length of a hop L.",
        ),
        Wording(
            "Independently from one order to the next, a shop orders flour again after 1 day with probability "
            "{weights[0]}, after {middle} days with probability {weights[1]} and after {longest} days with "
            "probability {weights[2]}. What is the limiting probability that a far-away day is one on which flour is "
            "ordered?",
            "Write L for the time between two orders, in days.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        shares = ((2, 1, 1, 4), (1, 2, 1, 4), (3, 2, 1, 6), (1, 3, 2, 6), (1, 2, 2, 5), (3, 1, 1, 5), (2, 3, 5, 10))
        for (a, b, c, whole), (middle, longest) in product(shares, combinations(range(2, 8), 2)):
            yield cls(middle, longest, (Fraction(a, whole), Fraction(b, whole), Fraction(c, whole)))

    def solve(self) -> Worked:
        a, b, c = self.weights
        mean = a + b * self.middle + c * self.longest
        steps = (
            f"Its mean is E[L] = {a} * 1 + {b} * {self.middle} + {c} * {self.longest} = {mean}. As L can be 1, the "
            f"renewals are aperiodic, and the renewal theorem says that the probability tends to 1 / E[L] = "
            f"1 / ({mean}) = {1 / mean}."
        )
        return Worked(steps, 1 / mean)

    def check(self) -> Fraction:
        # The stationary probability of age 0 in the chain of the current age.
        masses = dict(zip((1, self.middle, self.longest), self.weights, strict=True))
        chain = [[Fraction(0)] * self.longest for _ in range(self.longest)]
        for age in range(self.longest):
            alive = sum((mass for life, mass in masses.items() if life > age), Fraction(0))
            ends = masses.get(age + 1, Fraction(0)) / alive
            chain[age][0] += ends
            if age + 1 < self.longest:
                chain[age][age + 1] += 1 - ends
        return stationary(chain)[0]


def _root(square: Fraction) -> Fraction | None:
    root = Fraction(isqrt(square.numerator), isqrt(square.denominator))
    return root if root**2 == square else None


KINDS: tuple[type[Problem], ...] = (SampleSize, NormalApproximation, LongRunAverage, RenewalLimit)
