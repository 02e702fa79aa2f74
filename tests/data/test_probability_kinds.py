"""Worked answers against references that share no code with the package: theorems, scipy, numpy, linear programs."""

from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from lab.data.probability import KINDS
from lab.data.probability.arithmetic import equalities, evaluate, verify_equalities
from lab.data.probability_qa import SIDES, pool


def two_states(problem):
    a, b = float(problem.leave), float(problem.come_back)
    return np.linalg.matrix_power([[1 - a, a], [b, 1 - b]], problem.n)[0, 0]


def long_run_average(problem):
    u, v, d, e = (float(x) for x in (problem.up, problem.up_again, problem.down, problem.down_first))
    chain = np.array([[1 - u, u, 0], [d, 1 - d - v, v], [0, e, 1 - e]])
    return np.linalg.matrix_power(chain, 1024)[0] @ [0, 1, 2]  # mixed far beyond float precision


def renewal_limit(problem):
    lifetimes = {1: 0, problem.middle: 1, problem.longest: 2}
    renewals = [1.0]
    for n in range(1, 2000):
        renewals.append(sum(float(problem.weights[i]) * renewals[n - k] for k, i in lifetimes.items() if k <= n))
    return renewals[-1]


def run_of_successes(problem):
    p = float(problem.p)
    return (p**-problem.run - 1) / (1 - p)


def mean_return_time(problem):
    m, size = problem.complete, problem.complete + problem.tail
    adjacency = np.zeros((size, size))
    adjacency[:m, :m] = 1 - np.eye(m)
    for a, b in zip([0, *range(m, size - 1)], range(m, size), strict=True):
        adjacency[a, b] = adjacency[b, a] = 1
    walk = adjacency / adjacency.sum(1, keepdims=True)
    return 1 / np.linalg.matrix_power((walk + np.eye(size)) / 2, 2**14)[0, 0]  # lazy, hence aperiodic


def collector(problem):
    # E[T] = sum over t >= 0 of P(fewer than m types after t draws), from the law of the number of types seen.
    n, m = problem.size, problem.wanted
    seen, total = np.eye(m)[0], 0.0
    for _ in range(3000):
        total += seen.sum()
        seen = seen * np.arange(m) / n + np.r_[0, seen[:-1] * (n - np.arange(m - 1)) / n]
    return total


def sampling_variance(problem):
    return stats.hypergeom(problem.total, problem.special, problem.drawn).var()


def overlapping_sums(problem):
    terms = np.eye(problem.total)  # independent terms of unit variance are orthonormal: correlation is a cosine
    x, y = terms[: problem.n].sum(0), terms[-problem.n :].sum(0)
    return x @ y / np.sqrt((x @ x) * (y @ y))


def power_density(problem):
    density = lambda x: x**problem.exponent  # noqa: E731
    return integrate.quad(density, problem.cut, problem.end)[0] / integrate.quad(density, 0, problem.end)[0]


def worst_case(support, moments, event, sign):
    """max (sign=1) or min (sign=-1) of P(event) over distributions on `support` with given moments, as a program."""
    objective = [-sign * float(event(x)) for x in support]
    equations = [[float(x) ** k for x in support] for k in range(len(moments))]
    return -sign * optimize.linprog(objective, A_eq=equations, b_eq=moments, method="highs").fun


def markov_bound(problem):
    return worst_case(range(3 * problem.level), [1, problem.mean], lambda x: x >= problem.level, 1)


def chebyshev_bound(problem):
    support, d = range(-3 * problem.margin, 3 * problem.margin + 1), problem.margin
    return worst_case(support, [1, 0, problem.variance], lambda x: abs(x) < d, -1)


def one_sided_bound(problem):
    v, d = problem.variance, problem.margin
    support = [Fraction(i, d) for i in range(-4 * v * d, 4 * d * d + 1)]
    return worst_case(support, [1, 0, v], lambda x: x >= d, 1)


def all_three(problem):
    atoms = list(product((0, 1), repeat=3))
    shares = [share / 100 for share in (problem.a, problem.b, problem.c)]
    equations = [[1] * 8, *([atom[i] for atom in atoms] for i in range(3))]
    return optimize.linprog([float(all(a)) for a in atoms], A_eq=equations, b_eq=[1, *shares], method="highs").fun


def ruin(problem):
    p, n = float(problem.p), problem.goal
    chain = np.zeros((n + 1, n + 1))
    chain[0, 0] = chain[n, n] = 1
    for i in range(1, n):
        chain[i, i + 1], chain[i, i - 1] = p, 1 - p
    return np.linalg.matrix_power(chain, 2**12)[problem.start, n]


def both_given_one(problem):
    balls = ["special"] * problem.special + ["plain"] * problem.plain
    given = [pair for pair in combinations(balls, 2) if "special" in pair]
    return given.count(("special", "special")) / len(given)


def diagnostic_test(problem):
    odds = problem.prevalence / (100 - problem.prevalence) * problem.sensitivity / problem.false_alarm
    return odds / (1 + odds)


def which_source(problem):
    weights = np.multiply(problem.shares, problem.rates)
    return weights[0] / weights.sum()


def second_offer(problem):
    rewards = problem.unit * np.arange(1, problem.size + 1)
    return np.maximum(rewards, rewards.mean() - problem.fee).mean()


def three_values(problem):
    return stats.rv_discrete(values=(problem.values, [float(p) for p in problem.weights])).var()


def random_number_of_trials(problem):
    sizes = np.arange(1, problem.size + 1)
    binomials = [stats.binom(n, float(problem.p)) for n in sizes]
    return np.mean([b.moment(2) for b in binomials]) - np.mean([b.mean() for b in binomials]) ** 2


def normal_approximation(problem):
    binomial = stats.binom(problem.n, float(problem.p))
    return (problem.k + 0.5 - binomial.mean()) / binomial.std()


def either_multiple(problem):
    good = set(range(problem.a, problem.top + 1, problem.a)) | set(range(problem.b, problem.top + 1, problem.b))
    return len(good) / problem.top


REFERENCES = {
    "BothGivenOne": both_given_one,
    "FirstGivenEither": lambda x: float(x.p) / float(x.p + x.q - x.p * x.q),
    "DiagnosticTest": diagnostic_test,
    "WhichSource": which_source,
    "OddOneOut": lambda x: 2**x.runs / (2**x.runs + x.size - 1),
    "Ballot": lambda x: (x.a - x.b) / (x.a + x.b),  # Bertrand's theorem
    "ThroughAPoint": lambda x: stats.hypergeom(x.first + x.second, x.first, x.before).pmf(x.first_before),
    "EitherMultiple": either_multiple,
    "Binomial": lambda x: stats.binom(x.n, float(x.p)).pmf(x.k),
    "Hypergeometric": lambda x: stats.hypergeom(x.total, x.special, x.drawn).pmf(x.wanted),
    "PoissonSplit": lambda x: (
        stats.poisson(x.rate).pmf(x.k)
        * stats.poisson(x.other_rate).pmf(x.n - x.k)
        / stats.poisson(x.rate + x.other_rate).pmf(x.n)
    ),
    "PowerDensity": power_density,
    "ColourChanges": lambda x: 2 * x.first * x.second / (x.first + x.second),
    "SecondOffer": second_offer,
    "Collector": collector,
    "ThreeValues": three_values,
    "RandomNumberOfTrials": random_number_of_trials,
    "OverlappingSums": overlapping_sums,
    "SamplingVariance": sampling_variance,
    "TwoStates": two_states,
    "Ruin": ruin,
    "RunOfSuccesses": run_of_successes,
    "ReturnTime": mean_return_time,
    "MarkovBound": markov_bound,
    "ChebyshevBound": chebyshev_bound,
    "OneSidedBound": one_sided_bound,
    "AllThree": all_three,
    "NormalApproximation": normal_approximation,
    "LongRunAverage": long_run_average,
    "RenewalLimit": renewal_limit,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_worked_answer_is_that_of_an_outside_reference(name):
    kind = next(kind for kind in KINDS if kind.__name__ == name)
    for problem in [problem for side in SIDES for problem, _ in pool(kind, side)[:3]]:
        # References are floats; quadrature, linear programs and long matrix powers are good to about 1e-9.
        assert float(problem.solve().answer) == pytest.approx(REFERENCES[name](problem), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_both_methods_agree_over_the_whole_range_of_parameters(kind):
    for problem in list(kind.space())[::7]:
        assert problem.solve().answer == problem.check(), problem


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_worked_answer_displays_equalities_that_are_verified(kind):
    for problem, wording in pool(kind, "train")[:5]:
        assert equalities(problem.write(wording).response) or kind.__name__ == "MarkovBound"


def test_arrangements_are_the_distinct_permutations():
    kind = next(kind for kind in KINDS if kind.__name__ == "Arrangements")
    for sizes in ((3, 2, 2), (4, 2, 2)):
        problem = kind(*sizes)
        assert problem.solve().answer == len(set(permutations("a" * sizes[0] + "b" * sizes[1] + "c" * sizes[2])))


def test_numeric_sides_are_found_and_symbolic_ones_left_out():
    text = "P(A | B) = P(A) / P(B) = (1/2) / (3/4) = 2/3. With n = 5, C(5, 2) = 10 and X <= 2 * 3 = 6; E[X] + 1 = 7."
    assert equalities(text) == [("(1/2) / (3/4)", "2/3"), ("C(5, 2)", "10"), ("2 * 3", "6")]


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2^3^2", 512), ("1/2 * 3/4", Fraction(3, 8)), ("-3/2", Fraction(-3, 2)), ("4! / (2! * 2!)", 6), ("C(4, 2)", 6)],
)
def test_expressions_have_their_exact_value(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize("text", ["so 1/3 + 1/3 = 2/6.", "p = 1/2 = 0.", "C(5, 2) = 11 pairs", "P(X = 2) = 3/6 = 1/3"])
def test_a_false_equality_is_caught(text):
    with pytest.raises(ArithmeticError, match="is false"):
        verify_equalities(text)
