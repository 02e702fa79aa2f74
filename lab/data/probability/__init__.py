"""The kinds of probability problems, a file per topic."""

from lab.data.probability import (
    bayes,
    conditional,
    counting,
    distributions,
    expectation,
    inequalities,
    limits,
    markov,
    variance,
)
from lab.data.probability.problem import Problem

TOPICS = (conditional, bayes, counting, distributions, expectation, variance, markov, inequalities, limits)
KINDS: tuple[type[Problem], ...] = tuple(kind for topic in TOPICS for kind in topic.KINDS)
