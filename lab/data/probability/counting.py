"""Counting: arrangements, inclusion and exclusion, lattice paths, reflection."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, combinations_with_replacement, product
from math import comb, factorial, lcm
from typing import Self

from lab.data.probability.problem import Problem, Wording, Worked, reduced


@dataclass(frozen=True)
class Arrangements(Problem):
    """Distinct orders of objects of three sorts."""

    first: int
    second: int
    third: int

    wordings = (
        Wording(
            "In how many distinguishable orders can {first} red, {second} white and {third} green flags be hung in a "
            "row, if flags of one colour look alike?",
            "Number the flags for a moment, so that all are different.",
        ),
        Wording(
            "A signal is a sequence that uses the letter A exactly {first} times, B exactly {second} times and C "
            "exactly {third} times, and no other letter. How many different signals are there?",
            "Pretend at first that equal letters carry labels and can be told apart.",
        ),
        Wording(
            "A runner plans {total} days of training: {first} days on the track, {second} in the woods and {third} "
            "on the beach. Days of one sort count as the same. Find the number of different plans.",
            "Suppose first that every day's course were unique.",
        ),
    )

    @property
    def total(self) -> int:
        return self.first + self.second + self.third

    @classmethod
    def space(cls) -> Iterator[Self]:
        sizes = combinations_with_replacement(range(7, 1, -1), 3)  # the order of the sorts plays no part
        return (cls(*chosen) for chosen in sizes if sum(chosen) <= 16)

    def solve(self) -> Worked:
        sizes = (self.first, self.second, self.third)
        answer = factorial(self.total)
        for size in sizes:
            answer //= factorial(size)
        steps = (
            f"There would be {self.total}! = {factorial(self.total)} orders. Each order that can really be seen arises "
            f"{' * '.join(f'{size}!' for size in sizes)} times among them, since the objects of each sort may be "
            f"permuted among themselves unnoticed. "
            f"Hence the number is {self.total}! / ({' * '.join(f'{size}!' for size in sizes)}) = {answer}."
        )
        return Worked(steps, Fraction(answer))

    def check(self) -> Fraction:
        @cache
        def words(a: int, b: int, c: int) -> int:
            if min(a, b, c) < 0:
                return 0
            return 1 if a + b + c == 0 else words(a - 1, b, c) + words(a, b - 1, c) + words(a, b, c - 1)

        return Fraction(words(self.first, self.second, self.third))


@dataclass(frozen=True)
class EitherMultiple(Problem):
    """A random number of 1, ..., `top` is a multiple of one of two numbers."""

    top: int
    a: int
    b: int

    wordings = (
        Wording(
            "A whole number is chosen uniformly from 1 to {top}. What is the probability that it is divisible by {a} "
            "or by {b} (or by both)?",
            "Count the favourable numbers.",
        ),
        Wording(
            "Raffle tickets are numbered from 1 to {top}. Every ticket whose number is a multiple of {a} wins a book, "
            "and every ticket whose number is a multiple of {b} wins a record. Find the probability that a ticket "
            "bought at random wins anything.",
            "The two sets of winning numbers overlap.",
        ),
        Wording(
            "The {top} stones along a road are numbered 1, 2, 3 and so on. Benches stand at the stones {a}, {twice_a} "
            "and so on, fountains at the stones {b}, {twice_b} and so on. A hiker rests at a stone picked at random. "
            "How likely is the hiker to find a bench or a fountain there?",
            "The stones with a bench are the multiples of {a}, those with a fountain the multiples of {b}.",
        ),
    )

    @property
    def twice_a(self) -> int:
        return 2 * self.a

    @property
    def twice_b(self) -> int:
        return 2 * self.b

    @classmethod
    def space(cls) -> Iterator[Self]:
        for top, a, b in product((60, 80, 90, 100, 120, 140, 150, 180, 200), range(4, 10), range(5, 13)):
            if a < b and b % a and top // lcm(a, b) >= 2:
                yield cls(top, a, b)

    def solve(self) -> Worked:
        both = lcm(self.a, self.b)
        of_a, of_b, of_both = (self.top // step for step in (self.a, self.b, both))
        good = of_a + of_b - of_both
        steps = (
            f"Up to {self.top} there are {of_a} multiples of {self.a} and {of_b} multiples of {self.b}. The {of_both} "
            f"multiples of lcm({self.a}, {self.b}) = {both} have been counted twice. By inclusion and exclusion "
            f"{of_a} + {of_b} - {of_both} = {good} numbers are favourable, and the probability is "
            f"{reduced(good, self.top)}."
        )
        return Worked(steps, Fraction(good, self.top))

    def check(self) -> Fraction:
        return Fraction(sum(n % self.a == 0 or n % self.b == 0 for n in range(1, self.top + 1)), self.top)


@dataclass(frozen=True)
class ThroughAPoint(Problem):
    """A random order of two sorts of step passes through a given intermediate score."""

    first: int
    second: int
    first_before: int
    second_before: int

    wordings = (
        Wording(
            "A walker goes from the street corner (0, 0) to the corner ({first}, {second}) by a shortest route, all "
            "shortest routes along the grid being equally likely. Find the probability that the route passes the "
            "corner ({first_before}, {second_before}).",
            "With X for a step east and Y for a step north, a route is a word of {first} letters X and {second} of Y.",
        ),
        Wording(
            "A row of {first} white and {second} black beads is threaded in random order, all orders being equally "
            "likely. What is the probability that exactly {first_before} of the first {before} beads are white?",
            "Write X for a white bead and Y for a black one; a row is a word of {first} letters X and {second} of Y.",
        ),
        Wording(
            "A match ended after {first} games won by the home side and {second} won by the guests. If all orders in "
            "which these games can have been won are equally likely, how likely is it that the score was "
            "{first_before} : {second_before} (home side first) after {before} games?",
            "Write down an X for every game that the home side wins and a Y for every other game.",
        ),
    )

    @property
    def before(self) -> int:
        return self.first_before + self.second_before

    @classmethod
    def space(cls) -> Iterator[Self]:
        for first, second in combinations(range(7, 2, -1), 2):
            yield from (cls(first, second, x, y) for x, y in product(range(2, first), range(1, second)) if x != y)

    def solve(self) -> Worked:
        n, after, first_after = self.first + self.second, self.first + self.second - self.before, self.first
        first_after -= self.first_before
        total, head, tail = comb(n, self.first), comb(self.before, self.first_before), comb(after, first_after)
        answer = Fraction(head * tail, total)
        steps = (
            f"There are C({n}, {self.first}) = {total} such words, all equally likely. A favourable one begins "
            f"with {self.before} letters, {self.first_before} of them X: "
            f"C({self.before}, {self.first_before}) = {head} beginnings. Each can be continued in "
            f"C({after}, {first_after}) = {tail} ways. The probability is {head} * {tail} / {total} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        # Paths counted step by step, once freely and once through the point only.
        def paths(x: int, y: int, x_end: int, y_end: int) -> int:
            ways = {(x, y): 1}
            for point in product(range(x, x_end + 1), range(y, y_end + 1)):
                i, j = point
                ways[point] = ways.get(point, 0) + ways.get((i - 1, j), 0) + ways.get((i, j - 1), 0)
            return ways[x_end, y_end]

        end, point = (self.first, self.second), (self.first_before, self.second_before)
        return Fraction(paths(0, 0, *point) * paths(*point, *end), paths(0, 0, *end))


@dataclass(frozen=True)
class Ballot(Problem):
    """The winner of a vote is strictly ahead throughout the count (Bertrand's ballot theorem)."""

    a: int
    b: int

    wordings = (
        Wording(
            "In an election candidate A receives {a} votes and candidate B receives {b}. The votes are counted in "
            "random order. What is the probability that A is strictly ahead throughout the count?",
            "Write the count as a word of {a} letters A and {b} letters B.",
        ),
        Wording(
            "A gambler starts with nothing, and in the course of an evening wins one coin in {a} games and loses one "
            "coin in {b} games, all orders being equally likely (debts are allowed). Find the probability that the "
            "balance is positive after every game.",
            "Write A for a game won and B for a game lost, so that the evening is a word in these letters.",
        ),
        Wording(
            "A shuffled pack of {a} red and {b} black cards is turned over card by card. How likely is it that, from "
            "the first card to the last, more red cards than black ones have always been seen?",
            "Let A stand for a red and B for a black card; the pack is a word in A and B.",
        ),
    )

    @classmethod
    def space(cls) -> Iterator[Self]:
        return (cls(a, b) for a in range(4, 13) for b in range(2, a))

    def solve(self) -> Worked:
        n, a = self.a + self.b, self.a
        total, begin_a, begin_b = comb(n, a), comb(n - 1, a - 1), comb(n - 1, a)
        answer = Fraction(begin_a - begin_b, total)
        steps = (
            f"All C({n}, {a}) = {total} words are equally likely. A good word begins with A, as do "
            f"C({n - 1}, {a - 1}) = {begin_a} words. Those among them that are not good reach a tie; exchanging A and "
            f"B up to the first tie turns them, one to one, into the words that begin with B, of which there are "
            f"C({n - 1}, {a}) = {begin_b}. So {begin_a} - {begin_b} = {begin_a - begin_b} words are good, and the "
            f"probability is {begin_a - begin_b}/{total} = {answer}."
        )
        return Worked(steps, answer)

    def check(self) -> Fraction:
        ways = {(0, 0): 1}  # counts that have kept A ahead so far
        for x, y in product(range(self.a + 1), range(self.b + 1)):
            if x > y:
                ways[x, y] = ways.get((x - 1, y), 0) + ways.get((x, y - 1), 0)
        return Fraction(ways[self.a, self.b], comb(self.a + self.b, self.a))


KINDS: tuple[type[Problem], ...] = (Arrangements, EitherMultiple, ThroughAPoint, Ballot)
