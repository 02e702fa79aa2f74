"""Conditional probability and the law of total probability."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product
from math import comb
from typing import Self

from lab.data.probability.problem import Problem, Wording, Worked, proper_fractions, reduced


@dataclass(frozen=True)
class BothGivenOne(Problem):
    """Two draws without replacement: both are special, given that at least one is."""

    special: int
    plain: int

    wordings = (
        Wording(
            "A bag holds {special} red and {plain} blue balls. Two are drawn at random without replacement, and at "
            "least one of them is red. Find the probability that both are red.",
            "Let A be the event that both balls are red and B the event that at least one is.",
        ),
        Wording(
            "From a club of {special} women and {plain} men two members are chosen by lot to travel abroad. Given "
            "that the two are not both men, what is the probability that they are both women?",
            "Let A be the event that two women travel and B the event that at least one woman does.",
        ),
        Wording(
            "Of {total} lamps in a box {special} are faulty. An inspector tries two lamps picked at random and "
            "reports that they do not both work. How likely is it that neither of them works?",
            "Let A mean that both lamps tried are faulty, and B that at least one is.",
        ),
        Wording(
            "A drawer contains {special} black and {plain} white socks. In the dark a child takes two of them, and "
            "by daylight sees a black sock among them. With what probability has the child a black pair?",
            "Let A be the event that both socks are black and B the event that at least one is.",
        ),
    )

    @property
    def total(self) -> int:
        return self.special + self.plain

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(special, plain) for special in range(3, 13) for plain in range(3, 13))

    def solve(self) -> Worked:
        pairs, both, none = comb(self.total, 2), comb(self.special, 2), comb(self.plain, 2)
        steps = (
            f"Since A implies B, P(A | B) = P(A) / P(B). Of the C({self.total}, 2) = {pairs} equally likely pairs, "
            f"C({self.special}, 2) = {both} belong to A. All but C({self.plain}, 2) = {none} of them belong to B, "
            f"which makes {pairs} - {none} = {pairs - none}. Hence P(A | B) = {reduced(both, pairs - none)}."
        )
        return Worked(steps, Fraction(both, pairs - none))

    def check(self) -> Fraction:
        draws = list(permutations([1] * self.special + [0] * self.plain, 2))
        return Fraction(sum(a + b == 2 for a, b in draws), sum(a + b >= 1 for a, b in draws))


@dataclass(frozen=True)
class TotalGivenFace(Problem):
    """Two dice: the total is at least `total`, given that at least one of them shows `face`."""

    sides: int
    face: int
    total: int

    wordings = (
        Wording(
            "Two fair dice with faces 1 to {sides} are rolled, and at least one of them shows {face}. What is the "
            "probability that the total is {total} or more?",
            "Record the rolls as an ordered pair; all pairs are equally likely.",
        ),
        Wording(
            "Two spinners stop, independently and uniformly, on a whole number from 1 to {sides}. You are told only "
            "that the number {face} has come up. Find the probability that the sum of the two numbers is at "
            "least {total}.",
            "The pairs (first spin, second spin) are equally likely.",
        ),
        Wording(
            "Each of two players secretly picks a number from 1 to {sides}, all choices being equally likely and "
            "independent. A referee announces that at least one player picked {face}. How likely is it now that "
            "the picks add up to no less than {total}?",
            "Think of the picks as an ordered pair, one of {sides} * {sides} equally likely ones.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        for sides in (4, 6, 8, 10, 12):
            for face in range(1, sides + 1):  # the other number needs 2 to sides - 1 admissible values
                yield from (cls(sides, face, face + other) for other in range(2, sides))

    def solve(self) -> Worked:
        other = self.total - self.face
        values = self.sides - other + 1
        given = 2 * self.sides - 1
        itself = self.face >= other
        good = 2 * values - itself
        counted = (
            f"One of these is {self.face} itself, so they give 2 * {values} - 1 = {good} pairs."
            if itself
            else f"None of these is {self.face}, so they give 2 * {values} = {good} pairs."
        )
        steps = (
            f"A pair contains {self.face} in 2 * {self.sides} - 1 = {given} cases, because ({self.face}, {self.face}) "
            f"must be counted only once. The total reaches {self.total} when the other number is at least "
            f"{self.total} - {self.face} = {other}, which leaves {values} values. {counted} "
            f"The conditional probability is {reduced(good, given)}."
        )
        return Worked(steps, Fraction(good, given))

    def check(self) -> Fraction:
        faces = range(1, self.sides + 1)
        given = [pair for pair in product(faces, faces) if self.face in pair]
        return Fraction(sum(sum(pair) >= self.total for pair in given), len(given))


@dataclass(frozen=True)
class FirstGivenEither(Problem):
    """Two independent events: the first occurred, given that at least one did."""

    p: Fraction
    q: Fraction

    wordings = (
        Wording(
            "Two archers shoot once each at the same target, independently. The first hits it with probability {p}, "
            "the second with probability {q}. The target was hit. What is the probability that the first archer "
            "hit it?",
            "Let A and B be the events that the first and the second archer hit.",
        ),
        Wording(
            "A house has two smoke detectors that react independently: in a fire the one in the hall sounds with "
            "probability {p}, the one in the kitchen with probability {q}. During a fire an alarm was heard. Find "
            "the probability that the hall detector sounded.",
            "Let A be the event that the hall detector sounds and B the event that the kitchen detector does.",
        ),
        Wording(
            "Two proof-readers work independently; a given misprint is noticed by the senior one with probability "
            "{p} and by the junior one with probability {q}. The misprint did not escape them both. How likely is "
            "it that the senior reader noticed it?",
            "Write A for the event that the senior reader notices the misprint, and B for the junior.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        fractions = proper_fractions(7)
        return (cls(p, q) for p in fractions for q in fractions if p != q)

    def solve(self) -> Worked:
        either = 1 - (1 - self.p) * (1 - self.q)
        answer = self.p / either
        steps = (
            f"By independence, P(A or B) = 1 - P(not A) P(not B) = 1 - {1 - self.p} * {1 - self.q} = {either}. "
            f"Since A is contained in (A or B), P(A | A or B) = P(A) / P(A or B) = ({self.p}) / ({either}) = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # A grid of equally likely cells in which A takes the first rows and B the first columns.
        cells = product(range(self.p.denominator), range(self.q.denominator))
        hits = [(row < self.p.numerator, column < self.q.numerator) for row, column in cells]
        return Fraction(sum(a for a, _ in hits), sum(a or b for a, b in hits))


@dataclass(frozen=True)
class AfterATransfer(Problem):
    """One member moves from the first collection to the second, then one is drawn from the second."""

    special: int
    plain: int
    special_second: int
    plain_second: int

    wordings = (
        Wording(
            "Urn I contains {special} red and {plain} blue balls, urn II contains {special_second} red and "
            "{plain_second} blue balls. A ball is taken at random from urn I and put into urn II; then a ball is "
            "drawn at random from urn II. Find the probability that it is red.",
            "Let R be the event that the ball moved is red.",
        ),
        Wording(
            "One class has {special} girls and {plain} boys, a parallel class {special_second} girls and "
            "{plain_second} boys. A pupil chosen by lot changes from the first class to the second. Afterwards a "
            "pupil of the second class is picked at random to speak. What is the probability that a girl speaks?",
            "Let R be the event that the pupil who changes class is a girl.",
        ),
        Wording(
            "Of {total} letters in a tray {special} are urgent; of {total_second} letters in another tray "
            "{special_second} are. A clerk blindly moves one letter from the first tray to the second and then opens "
            "a random letter of the second tray. How likely is it to be an urgent one?",
            "Let R be the event that the letter moved is urgent.",
        ),
    )

    @property
    def total(self) -> int:
        return self.special + self.plain

    @property
    def total_second(self) -> int:
        return self.special_second + self.plain_second

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(*sizes) for sizes in product(range(2, 7), repeat=4))

    def solve(self) -> Worked:
        size = self.total_second + 1
        answer = (
            Fraction(self.special, self.total) * Fraction(self.special_second + 1, size)
            + Fraction(self.plain, self.total) * Fraction(self.special_second, size)
        )  # fmt: skip
        steps = (
            f"Then P(R) = {self.special}/{self.total}. After the move the second draw is made from {size}; it is "
            f"favourable with probability {self.special_second + 1}/{size} if R occurred and with probability "
            f"{self.special_second}/{size} otherwise. By the law of total probability the answer is "
            f"{self.special}/{self.total} * {self.special_second + 1}/{size} + "
            f"{self.plain}/{self.total} * {self.special_second}/{size} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        second = [1] * self.special_second + [0] * self.plain_second
        drawn = [ball for moved in [1] * self.special + [0] * self.plain for ball in (*second, moved)]
        return Fraction(sum(drawn), len(drawn))


KINDS: tuple[type[Problem], ...] = (BothGivenOne, TotalGivenFace, FirstGivenEither, AfterATransfer)
