"""Bayes' theorem: from the probability of the evidence to the probability of its cause."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product
from typing import Self

from lab.data.probability.problem import Problem, Wording, Worked, power, proper_fractions


@dataclass(frozen=True)
class DiagnosticTest(Problem):
    """An imperfect test comes out positive; all parameters in per cent."""

    prevalence: int
    sensitivity: int
    false_alarm: int

    wordings = (
        Wording(
            "A disease affects {prevalence}% of a population. A test detects it in {sensitivity}% of the ill, but "
            "also comes out positive for {false_alarm}% of the healthy. A person chosen at random tests positive. "
            "What is the probability that this person is ill?",
            "Let D be the event that the person is ill and T the event that the test is positive.",
        ),
        Wording(
            "Of all messages that reach a mailbox, {prevalence}% are fraudulent. A filter marks {sensitivity}% of "
            "the fraudulent ones and, by mistake, {false_alarm}% of the honest ones. The latest message has been "
            "marked. Find the probability that it is fraudulent.",
            "Write D for a fraudulent message and T for a marked one.",
        ),
        Wording(
            "In a collection of old coins {prevalence}% are forgeries. An expert recognises a forgery as such in "
            "{sensitivity}% of cases, and takes a genuine coin for a forgery in {false_alarm}% of cases. The expert "
            "rejects a randomly chosen coin as forged. How likely is it that the coin really is a forgery?",
            "Let D be the event that the coin is forged and T the event that the expert rejects it.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (
            cls(*rates) for rates in product((1, 2, 3, 4, 5, 8, 10, 15, 20), (70, 75, 80, 85, 90, 95), (1, 2, 4, 5, 10))
        )

    def solve(self) -> Worked:
        d, t, f = (Fraction(percent, 100) for percent in (self.prevalence, self.sensitivity, self.false_alarm))
        positive = d * t + (1 - d) * f
        steps = (
            f"Then P(D) = {d}, P(T | D) = {t} and P(T | not D) = {f}. By the law of total probability "
            f"P(T) = {d} * {t} + {1 - d} * {f} = {positive}. Bayes' theorem gives "
            f"P(D | T) = P(D) P(T | D) / P(T) = ({d} * {t}) / ({positive}) = {d * t / positive}."
        )
        return Worked(steps, d * t / positive)

    def check(self) -> Fraction:
        # Head count in a population of a million, where every group is a whole number.
        ill = 1_000_000 * self.prevalence // 100
        healthy = 1_000_000 - ill
        detected, alarmed = ill // 100 * self.sensitivity, healthy // 100 * self.false_alarm
        return Fraction(detected, detected + alarmed)


@dataclass(frozen=True)
class WhichSource(Problem):
    """A defective item comes from one of three sources; shares and defect rates in per cent."""

    shares: tuple[int, int, int]
    rates: tuple[int, int, int]

    wordings = (
        Wording(
            "Machines 1, 2 and 3 make {shares[0]}%, {shares[1]}% and {shares[2]}% of a factory's bolts. Of their "
            "output {rates[0]}%, {rates[1]}% and {rates[2]}%, respectively, is defective. A bolt taken at random "
            "is defective. Find the probability that machine 1 made it.",
            "Let M be the event that machine 1 made the bolt and D the event that it is defective.",
        ),
        Wording(
            "A nursery buys {shares[0]}% of its seeds from a grower in the north, {shares[1]}% from one in the "
            "south and {shares[2]}% from one abroad; {rates[0]}%, {rates[1]}% and {rates[2]}% of these seeds fail. "
            "A seed has failed. What is the probability that it came from the north?",
            "Let M mean that the seed came from the north, and D that it fails.",
        ),
        Wording(
            "Three couriers deliver a shop's parcels: the red one {shares[0]}% of them, the blue one {shares[1]}% "
            "and the green one {shares[2]}%. They are late with {rates[0]}%, {rates[1]}% and {rates[2]}% of their "
            "parcels. A customer complains of a late parcel. How likely is it that the red courier carried it?",
            "Write M for the event that the red courier has the parcel and D for a late delivery.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for shares in ((50, 30, 20), (20, 50, 30), (40, 35, 25), (25, 40, 35), (60, 25, 15), (15, 60, 25)):
            for a, b, c in permutations(range(1, 6), 3):
                yield cls(shares, (a, b, c))

    def solve(self) -> Worked:
        shares = [Fraction(share, 100) for share in self.shares]
        rates = [Fraction(rate, 100) for rate in self.rates]
        joint = [share * rate for share, rate in zip(shares, rates, strict=True)]
        shown = [f"{share} * {rate}" for share, rate in zip(shares, rates, strict=True)]
        answer = joint[0] / sum(joint)
        steps = (
            f"The law of total probability weights each rate by its share: P(D) = {' + '.join(shown)} = {sum(joint)}. "
            f"Bayes' theorem gives P(M | D) = P(M) P(D | M) / P(D) = ({shown[0]}) / ({sum(joint)}) = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Go through 10 000 items one by one: `share` hundreds from each source, `rate` bad ones in every hundred.
        bad = [
            source
            for source, (share, rate) in enumerate(zip(self.shares, self.rates, strict=True))
            for _, item in product(range(share), range(100))
            if item < rate
        ]
        return Fraction(bad.count(0), len(bad))


@dataclass(frozen=True)
class OddOneOut(Problem):
    """One of `size` sources always succeeds, the others half of the time; it has succeeded `runs` times."""

    size: int
    runs: int

    wordings = (
        Wording(
            "A bag contains {size} coins, all fair but one, which has heads on both sides. A coin is picked at random "
            "and tossed {runs} times; it shows heads every time. What is the probability that it is the two-headed "
            "coin?",
            "Let F be the event that the two-headed coin was picked and H the event that all tosses show heads.",
        ),
        Wording(
            "Exactly one of {size} contestants knows every answer of a quiz; the others guess 'true' or 'false' at "
            "random, independently for each question. A contestant chosen by lot gets the first {runs} questions "
            "right. Find the probability that this is the one who knows.",
            "Let F mean that the knowing contestant was chosen, and H that the answers are all right.",
        ),
        Wording(
            "One of {size} boxes that look alike holds winning tickets only; in each of the others every second "
            "ticket wins. From a box chosen at random a ticket is drawn and put back, {runs} times in all, and each "
            "draw wins. How likely is it that the box holds no losing ticket?",
            "Write F for the choice of the box without losing tickets and H for a win in every draw.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(size, runs) for size in range(3, 21) for runs in range(2, 7))

    def solve(self) -> Worked:
        prior, chance = Fraction(1, self.size), Fraction(1, 2**self.runs)
        evidence = prior + (1 - prior) * chance
        steps = (
            f"P(H | F) = 1, while P(H | not F) = (1/2)^{self.runs} = {chance}. By the law of total probability "
            f"P(H) = {prior} * 1 + {1 - prior} * {chance} = {evidence}. Bayes' theorem gives "
            f"P(F | H) = P(F) P(H | F) / P(H) = ({prior}) / ({evidence}) = {prior / evidence}."
        )
        return Worked(steps, prior / evidence)

    def check(self) -> Fraction:
        belief = Fraction(1, self.size)  # updated after every single success, instead of once for all of them
        for _ in range(self.runs):
            belief = belief / (belief + (1 - belief) / 2)
        return belief


@dataclass(frozen=True)
class NextSuccess(Problem):
    """Success probability p or q with equal chances; the next success after `runs` successes in a row."""

    p: Fraction
    q: Fraction
    runs: int

    wordings = (
        Wording(
            "One of two coins is chosen at random. One shows heads with probability {p}, the other with probability "
            "{q}. The chosen coin is tossed {runs} times and shows heads only. What is the probability of heads in "
            "the next toss?",
            "Let H_n be the event that the first n tosses all show heads.",
        ),
        Wording(
            "A machine has been set up well or badly, with equal chances. Set up well, it makes a part within "
            "tolerance with probability {p}; set up badly, with probability {q}; parts are independent given the "
            "set-up. The first {runs} parts are within tolerance. Find the probability that the next one is, too.",
            "Let H_n mean that the first n parts are within tolerance.",
        ),
        Wording(
            "Two pens of hens look alike. In one pen an egg is brown with probability {p}, in the other with "
            "probability {q}, independently of all others. A farmer picks a pen by the flip of a fair coin and takes "
            "{runs} eggs from it; all are brown. How likely is the next egg from that pen to be brown?",
            "Write H_n for the event that the first n eggs are brown.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        fractions = proper_fractions(5)
        return (cls(p, q, runs) for p in fractions for q in fractions if p > q for runs in (2, 3))

    def solve(self) -> Worked:
        half, n = Fraction(1, 2), self.runs
        seen, more = (half * self.p**k + half * self.q**k for k in (n, n + 1))
        shown = [f"1/2 * {power(self.p, k)} + 1/2 * {power(self.q, k)}" for k in (n, n + 1)]
        steps = (
            f"Averaging over the two equally likely cases, P(H_{n}) = {shown[0]} = {seen} and "
            f"P(H_{n + 1}) = {shown[1]} = {more}. As H_{n + 1} implies H_{n}, the probability sought is "
            f"P(H_{n + 1} | H_{n}) = P(H_{n + 1}) / P(H_{n}) = ({more}) / ({seen}) = {more / seen}."
        )
        return Worked(steps, more / seen)

    def check(self) -> Fraction:
        belief = Fraction(1, 2)  # that the probability is p, updated success by success
        for _ in range(self.runs):
            belief = belief * self.p / (belief * self.p + (1 - belief) * self.q)
        return belief * self.p + (1 - belief) * self.q


KINDS: tuple[type[Problem], ...] = (DiagnosticTest, WhichSource, OddOneOut, NextSuccess)
