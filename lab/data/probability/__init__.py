"""The kinds of probability problems, a file per topic."""

from lab.data.probability import conditional
from lab.data.probability.problem import Problem

TOPICS = (conditional,)
KINDS: tuple[type[Problem], ...] = tuple(kind for topic in TOPICS for kind in topic.KINDS)
