"""Named distributions: binomial, hypergeometric, Poisson, and a density."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import comb, factorial
from typing import Self

from lab.data.probability.exact import trials
from lab.data.probability.problem import Problem, Wording, Worked, power, proper_fractions


@dataclass(frozen=True)
class Binomial(Problem):
    """Exactly `k` successes in `n` independent trials."""

    n: int
    k: int
    p: Fraction

    wordings = (
        Wording(
            "A seed germinates with probability {p}, independently of all others. {n} seeds are sown. What is the "
            "probability that exactly {k} of them germinate?",
            "The number X of seeds that germinate is binomial with parameters {n} and {p}.",
        ),
        Wording(
            "A player converts each free throw with probability {p}, independently of the others. Find the "
            "probability of exactly {k} conversions in {n} throws.",
            "Let X count the conversions; it is binomially distributed with n = {n} and p = {p}.",
        ),
        Wording(
            "Over a poor line every message gets through with probability {p}, and the fates of the messages are "
            "independent. {n} messages are sent. How likely is it that precisely {k} get through?",
            "Call X the number of messages that get through: a sum of {n} independent indicators of mean {p}.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for n, p in product((3, 4, 5, 6), proper_fractions(5)):
            yield from (cls(n, k, p) for k in range(2, n) if p.denominator**n < 20_000)

    def solve(self) -> Worked:
        n, k, p = self.n, self.k, self.p
        answer = comb(n, k) * p**k * (1 - p) ** (n - k)
        steps = (
            f"The {k} successes can fall on C({n}, {k}) = {comb(n, k)} sets of trials, and each such outcome has "
            f"probability {power(p, k)} * {power(1 - p, n - k)}. Hence "
            f"P(X = {k}) = {comb(n, k)} * {power(p, k)} * {power(1 - p, n - k)} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        return trials(self.n, self.p)[self.k]


@dataclass(frozen=True)
class Hypergeometric(Problem):
    """Exactly `wanted` special members in a sample without replacement."""

    special: int
    plain: int
    drawn: int
    wanted: int

    wordings = (
        Wording(
            "A committee of {drawn} is chosen by lot from {special} women and {plain} men. What is the probability "
            "that it contains exactly {wanted} women?",
            "The number X of women on the committee is hypergeometric.",
        ),
        Wording(
            "A pond holds {total} fish, {special} of which carry a mark. {drawn} fish are caught at random, without "
            "putting any back. Find the probability that exactly {wanted} of them are marked.",
            "Let X be the number of marked fish in the catch.",
        ),
        Wording(
            "Of {total} questions a student has prepared {special}. An examiner draws {drawn} different questions at "
            "random. How likely is it that the student has prepared exactly {wanted} of those drawn?",
            "Write X for the number of prepared questions among those drawn.",
        ),
    )

    @property
    def total(self) -> int:
        return self.special + self.plain

    @classmethod
    def space(cls) -> Iterator[Self]:
        for special, plain, drawn in product(range(4, 9), range(4, 9), (3, 4)):
            yield from (cls(special, plain, drawn, wanted) for wanted in range(2, drawn))

    def solve(self) -> Worked:
        rest = self.drawn - self.wanted
        total, good, other = comb(self.total, self.drawn), comb(self.special, self.wanted), comb(self.plain, rest)
        answer = Fraction(good * other, total)
        steps = (
            f"All C({self.total}, {self.drawn}) = {total} samples are equally likely. A favourable one combines "
            f"{self.wanted} out of {self.special}, in C({self.special}, {self.wanted}) = {good} ways, with {rest} out "
            f"of the other {self.plain}, in C({self.plain}, {rest}) = {other} ways. Hence "
            f"P(X = {self.wanted}) = {good} * {other} / {total} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Draw one by one, keeping the distribution of the number of special members drawn so far.
        state = {0: Fraction(1)}
        for done in range(self.drawn):
            following: dict[int, Fraction] = {}
            for got, probability in state.items():
                hit = Fraction(self.special - got, self.total - done)
                following[got + 1] = following.get(got + 1, Fraction(0)) + probability * hit
                following[got] = following.get(got, Fraction(0)) + probability * (1 - hit)
            state = following
        return state[self.wanted]


@dataclass(frozen=True)
class PoissonSplit(Problem):
    """Two independent Poisson counts, given their sum."""

    rate: int
    other_rate: int
    n: int
    k: int

    wordings = (
        Wording(
            "Lorries and cars cross a bridge as independent Poisson processes, on average {rate} lorries and "
            "{other_rate} cars per minute. In a certain minute {n} vehicles crossed. What is the probability that "
            "exactly {k} of them were lorries?",
            "Let X and Y be the numbers of lorries and of cars in that minute.",
        ),
        Wording(
            "A help desk receives complaints and enquiries, independent Poisson numbers with means {rate} and "
            "{other_rate} per hour. Given that {n} calls came in during one hour, find the probability that {k} of "
            "them were complaints.",
            "Write X for the number of complaints and Y for the number of enquiries.",
        ),
        Wording(
            "The goals of the home team and of the visitors are independent Poisson variables with means {rate} and "
            "{other_rate}. A wild match ended with {n} goals in all. How likely is it that the home team scored "
            "exactly {k}?",
            "Denote the goals of the home team by X and those of the visitors by Y.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for rate, other, n in product(range(2, 7), range(2, 7), range(3, 7)):
            if rate != other and (rate + other) ** n < 20_000:
                yield from (cls(rate, other, n, k) for k in range(2, n))

    def solve(self) -> Worked:
        total, k, rest = self.rate + self.other_rate, self.k, self.n - self.k
        p, q = Fraction(self.rate, total), Fraction(self.other_rate, total)
        answer = comb(self.n, k) * p**k * q**rest
        steps = (
            f"X + Y is Poisson with mean {self.rate} + {self.other_rate} = {total}. In the quotient "
            f"P(X = {k}) P(Y = {rest}) / P(X + Y = {self.n}) the exponentials cancel, and a binomial probability with "
            f"p = {self.rate}/{total} is left: "
            f"C({self.n}, {k}) * {power(p, k)} * {power(q, rest)} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # The joint weights without their common factor exp(-rate - other_rate), normalised over all splits of n.
        def weight(j: int) -> Fraction:
            i = self.n - j
            return Fraction(self.rate**j * self.other_rate**i, factorial(j) * factorial(i))

        return weight(self.k) / sum(weight(j) for j in range(self.n + 1))


@dataclass(frozen=True)
class PowerDensity(Problem):
    """The upper tail of a density proportional to a power on an interval."""

    exponent: int
    end: int
    cut: int

    wordings = (
        Wording(
            "A random variable X has density f(x) = c {monomial} for 0 < x < {end} and f(x) = 0 elsewhere. Determine "
            "P(X > {cut}).",
            "The constant c follows from the total mass.",
        ),
        Wording(
            "The lifetime X of a component, in years, has a density proportional to {monomial} between 0 and {end} "
            "and equal to zero elsewhere. What is the probability that the component lasts longer than {cut} years?",
            "Write the density as c {monomial}; its integral must be one.",
        ),
        Wording(
            "The depth X, in metres, at which a drill breaks lies between 0 and {end}, with a density that grows like "
            "{monomial}. Find the probability that the drill gets deeper than {cut} metres.",
            "Let c {monomial} be the density, with c chosen so that it is one.",
        ),
    )

    @property
    def monomial(self) -> str:
        return "x" if self.exponent == 1 else f"x^{self.exponent}"

    @classmethod
    def space(cls) -> Iterator[Self]:
        for exponent, end in product((1, 2, 3), range(3, 11)):
            yield from (cls(exponent, end, cut) for cut in range(2, end))

    def solve(self) -> Worked:
        k, top = self.exponent + 1, self.end ** (self.exponent + 1)
        answer = 1 - Fraction(self.cut, self.end) ** k
        steps = (
            f"Integrating from 0 to {self.end}, 1 = c {self.end}^{k} / {k}, hence c = {k}/{self.end}^{k} = "
            f"{Fraction(k, top)}. Integrating up to t instead gives P(X <= t) = (t/{self.end})^{k}. "
            f"Therefore P(X > {self.cut}) = 1 - ({self.cut}/{self.end})^{k} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Simpson's rule is exact for polynomials up to the third degree.
        def simpson(low: int, high: int) -> Fraction:
            middle = Fraction(low + high, 2)
            ordinates = low**self.exponent + 4 * middle**self.exponent + high**self.exponent
            return Fraction(high - low, 6) * ordinates

        return simpson(self.cut, self.end) / simpson(0, self.end)


KINDS: tuple[type[Problem], ...] = (Binomial, Hypergeometric, PoissonSplit, PowerDensity)
