"""Every equality of numbers that a text displays, evaluated exactly."""

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

# Alternatives in order: a binomial coefficient, then what is symbolic (a call such as P(A | B), a bracket, a word),
# then the numeric alphabet. Whatever matches none of them (commas, full stops, bars) ends a run as a symbol does.
TOKEN = re.compile(
    r"(?P<binomial>C\(\d+, \d+\))"
    r"|(?P<symbol>[A-Za-z_]\w*(?:\((?:[^()]|\([^()]*\))*\))?|\[[^\]]*\])"
    r"|(?P<numeric>\d+!?|[-+*/^()= ])"
)
OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, exponent: base ** int(exponent),
}


def equalities(text: str) -> list[tuple[str, str]]:
    """Neighbouring purely numeric sides of the equations in a text: `P = 2/6 = 1/3` holds the one pair (2/6, 1/3)."""
    pairs = []
    for run in _numeric_runs(text.replace("<=", "≤").replace(">=", "≥")):
        sides = [side.strip() for side in run.split("=")]
        if sides[0].startswith(("+", "-", "*", "/", "^")):
            sides[0] = ""  # the tail of a symbolic side, such as `E[X] + 2 = 5`
        pairs += [(a, b) for a, b in pairwise(sides) if _parses(a) and _parses(b)]
    return pairs


def verify_equalities(text: str) -> None:
    """Raises ArithmeticError at the first displayed equality of numbers that is false."""
    for left, right in equalities(text):
        if evaluate(left) != evaluate(right):
            raise ArithmeticError(f"{left} = {right} is false: {evaluate(left)} is not {evaluate(right)}, in: {text}")


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression in whole numbers, + - * / ^ ! and C(n, k)."""
    return _value(_parse(expression))


def _numeric_runs(text: str) -> list[str]:
    runs = [""]
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match and match.lastgroup != "symbol":
            runs[-1] += match.group()
        else:
            runs.append("")
        position = match.end() if match else position + 1
    return runs


def _parse(expression: str) -> ast.expr:
    python = re.sub(r"(\d+)!", r"factorial(\1)", expression).replace("^", "**")
    return ast.parse(python, mode="eval").body


def _parses(expression: str) -> bool:
    try:
        _parse(expression)
    except SyntaxError:  # half an expression: its other half is symbolic
        return False
    return True


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id="C"), args=[n, k]):
            return Fraction(math.comb(int(_value(n)), int(_value(k))))
        case ast.Call(func=ast.Name(id="factorial"), args=[n]):
            return Fraction(math.factorial(int(_value(n))))
    raise ArithmeticError(f"{ast.unparse(node)} is no arithmetic on whole numbers")
