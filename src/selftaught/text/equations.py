"""Equations of numbers in running text, and whether they hold."""

import re
from collections.abc import Iterator
from fractions import Fraction

_OPERATION = r"[-+*/\u00d7\u00f7\u2212]"
# Lengths are bounded: text is a model's, and thousands of digits would make exact arithmetic slow.
_OPERAND = r"\$?\d[\d,]{0,30}(?:\.\d{1,20})?%?"
_EQUATION = re.compile(
    rf"(?<![\w.,)\]%*/+-])(-?{_OPERAND}(?:\s?{_OPERATION}\s?{_OPERAND}){{1,20}})\s?=\s?(-?{_OPERAND})(?![\w/])"
)
_TERM = re.compile(rf"({_OPERATION})?\s?({_OPERAND})")
_SIGNS = {"\u00d7": "*", "\u00f7": "/", "\u2212": "-"}


def equations(text: str) -> Iterator[bool]:
    """Yield for every `a op b ... = c` of plain numbers whether it holds, c being exact or rounded as it is written.

    Multiplication and division go first. Equations with units, names or brackets are passed over, and so is one with a
    division by zero.

    >>> list(equations("So 2 + 3 * 4 = 14 apples, 10/3 = 3.33 and 5 - 1 = 3."))
    [True, True, False]
    """
    for match in _EQUATION.finditer(text):
        left, right = match.groups()
        value = _evaluate(left)
        if value is not None:
            stated = _number(right)
            decimals = len(right.rstrip("%").partition(".")[2]) + 2 * right.endswith("%")
            yield abs(value - stated) * 2 * 10**decimals <= (1 if decimals else 0)


def _evaluate(text: str) -> Fraction | None:
    total, product = Fraction(0), Fraction(0)
    for operation, number in _TERM.findall(text):
        value, sign = _number(number), _SIGNS.get(operation, operation)
        if sign == "*":
            product *= value
        elif sign == "/":
            if not value:
                return None
            product /= value
        else:
            total, product = total + product, -value if sign == "-" else value
    return total + product


def _number(text: str) -> Fraction:
    value = Fraction(text.replace("$", "").replace(",", "").rstrip("%"))
    return value / 100 if text.endswith("%") else value
