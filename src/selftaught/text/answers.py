r"""Final answers in completions, and the key under which equal answers share a vote.

Extraction: the number after the last `####` (GSM8K), the content of the last balanced `\boxed{...}` (MATH) and, only
where a caller asks for it, the last number of the text. Every function takes any string, never raises on one and runs
in time linear in its length.

What `canonical` does to an answer, in this order:

1. Unicode: every decimal digit becomes ASCII, every dash "-", "½" is "1/2", "²" is "^2"; lower case.
2. LaTeX: `\frac{a}{b}` and `\frac12` become (a)/(b); `\text{}`, `\boxed{}`, `\left`, spacing commands, `$` fall away.
3. A leading "x =", wrapping parentheses and final punctuation fall away.
4. Numbers: currency signs and codes, "%", "°" and up to four words of units are dropped, never converted: "50%" is 50
   and "5 cents" is 5. The words thousand, million, billion and trillion multiply. Commas and spaces inside a number
   must separate thousands ("1,000", "1 000", "12,34,567"): "1,2" is no number. The key is the reduced fraction, so
   that "0.5", "1/2" and `\frac12` share "1/2", "3.0" is "3" and "-0" is "0". Decimals are exact: 0.33 is not 1/3.
5. Anything else gets a text key, with spaces kept between two words or two numbers only. One letter after a number
   may be a variable and is kept: "5x" and "5 m" are text.
"""

import re
import unicodedata
from fractions import Fraction

MAX_ANSWER = 400
"""Characters beyond which a string is taken for prose, not for an answer."""
MAX_DIGITS = 60
"""Digits, or decimal exponent, beyond which a number is taken for noise. Bounds the cost of exact arithmetic."""
TAIL = 2000
"""Characters at the end of a text that `last_number` searches."""
_MARKERS_TRIED = 8

_CHARACTERS = dict.fromkeys("‐‑‒–—―−﹣－", "-") | {"٫": ".", "٬": ",", "×": "*", "·": "*"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_FRACTION_COMMAND = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_WRAPPER = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm)?|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|quad|[;: ()\[\]$%])|[`\"~$€£¥₹%]"
    r"|\b(?:usd|eur|gbp|cad|aud|inr|rs\.?)(?=\s*\d)|\bus(?=\$)"
)
_DEGREES = re.compile(r"°|\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\\degree")
_TIMES = re.compile(r"\\times|\\cdot")
_VARIABLE = re.compile(r"\\?[a-z]\s*=\s*")
_MEANINGLESS_SPACE = re.compile(r"(?<![^\W_]) | (?![^\W_])|(?<=\d) (?=[^\W\d_])|(?<=[^\W\d_]) (?=\d)")

_N = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_MIXED = re.compile(r"(\d+)\s*(?:\sand\s|\s|(?=\())\s*\(?(\d+)\)?\s*/\s*\(?(\d+)\)?")
_RATIO = re.compile(rf"\(?(-?{_N})\)?\s*/\s*\(?(-?{_N})\)?")
_POWER = re.compile(rf"({_N})(?:e([+-]?\d+)|\s*[*x]\s*10\s*\^\s*[({{]?(-?\d+)[)}}]?)")
_PLAIN = re.compile(rf"({_N})")
_FOUND = re.compile(rf"(?:(?<![\w)])-\s*)?{_N}(?:e[+-]?\d+)?(?:\s*/\s*{_N})?(?:\s+(?:thousand|[mbtr]+illion)\b)?")

_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NOT_UNITS = frozenset(("pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "mod", "infinity", "squared", "cubed"))
_NOT_UNITS |= {"and", "or", "to", "plus", "minus", "times", "over", "half"}
_UNITS = re.compile(r"[^\W\d_]+(?:[\s/.'-]+[^\W\d_]+){0,3}(?:\s*\^?[23])?")
_OPERATOR = re.compile(r"\s*[-+*/^]\s*[*(\d]")
_LETTERS = re.compile(r"[^\W\d_]+")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def marked_number(text: str, marker: str = "####") -> str | None:
    """Return the key of the number that follows the last `marker` with a number right behind it, None without one.

    >>> marked_number("48/2 = 24 clips in May.\\n#### $1,072.00 dollars")
    '1072'
    >>> marked_number("#### Step 3: add") is None
    True
    """
    end = len(text)
    for _ in range(_MARKERS_TRIED):
        start = text.rfind(marker, 0, end)
        if start < 0:
            return None
        line = text[start + len(marker) : start + len(marker) + MAX_ANSWER // 2].lstrip(" \t\n:").partition("\n")[0]
        key = canonical_number(line) or _leading_number(line)
        if key is not None:
            return key
        end = start
    return None


def boxed(text: str) -> str | None:
    r"""Return the content of the last balanced `\boxed{...}`, an outer one rather than those inside it, else None.

    >>> boxed(r"so \boxed{1} or rather \boxed{\frac{1}{2}} and \boxed{3")
    '\\frac{1}{2}'
    """
    opened: list[int] = []
    found = None
    for token in _BRACES.finditer(text):
        if len(token.group()) > len(r"\{"):
            opened.append(token.end())
        elif token.group() == "{":
            opened.append(-1)
        elif token.group() == "}" and opened:
            start = opened.pop()
            if start >= 0:
                found = (start, token.start())
    return text[slice(*found)].strip() or None if found else None


def last_number(text: str) -> str | None:
    """Return the key of the last number in the final `TAIL` characters of `text`, None without one.

    >>> last_number("He has 3 left, so it costs -$1,200.50 in all.")
    '-2401/2'
    """
    for found in reversed(list(_FOUND.finditer(_plain(text[-TAIL:])))):
        key = canonical_number(found.group())
        if key is not None:
            return key
    return None


def final_answer(text: str, fallback: bool = False) -> str | None:
    r"""Return the key of the last `\boxed{}`, else of the number behind the last `####`, None without one.

    `fallback` takes the last number of the text where neither is there.
    """
    content = boxed(text)
    key = canonical(content) if content is not None else marked_number(text)
    return last_number(text) if key is None and fallback else key


def canonical(answer: str) -> str | None:
    r"""Return the vote key of an answer, None where nothing is left of it (see the module's steps 1 to 5).

    >>> [canonical(a) for a in ("0.5", r"\frac{1}{2}", "1,000 dollars", "New  York.", "x + 1", "")]
    ['1/2', '1/2', '1000', 'new york', 'x+1', None]
    """
    number = canonical_number(answer)
    if number is not None:
        return number
    if len(answer) > MAX_ANSWER:
        return None
    text = _MEANINGLESS_SPACE.sub("", " ".join(_bare(_plain(answer)).split()))
    return text if any(map(str.isalnum, text)) else None


def canonical_number(answer: str) -> str | None:
    """Return the reduced fraction that `answer` states as "p" or "p/q", None where it states no single number.

    >>> [canonical_number(a) for a in ("-0", "3.0", "1 1/2", "1.5 million people", "5x", "1/0", "9" * 99)]
    ['0', '3', '3/2', '1500000', None, None, None]
    """
    if len(answer) > MAX_ANSWER:
        return None
    text = _bare(_plain(answer))
    negative = text.startswith("-")
    value = _value(text.lstrip("+-" if text[:2] not in ("--", "++", "+-", "-+") else "").lstrip())
    return None if value is None else str(-value if negative else value)


def is_number_key(key: str) -> bool:
    """Say whether a key of `canonical` is a number rather than text."""
    return key.replace("/", "", 1).removeprefix("-").isdecimal()


def compare_keys(gold: str | None, answer: str | None) -> bool | None:
    """Compare two vote keys: equal, different, or None where only mathematics could tell.

    Two numbers, or a number and words, differ for certain; so do two phrases of nothing but letters.

    >>> [compare_keys("1/2", "1/2"), compare_keys("1/2", "1/3"), compare_keys("x+1", "1+x"), compare_keys("7", None)]
    [True, False, None, False]
    """
    if gold is None:
        return None
    if answer is None or gold == answer:
        return answer is not None
    plain = [is_number_key(key) or (key.replace(" ", "").isalpha() and len(key) > 1) for key in (gold, answer)]
    return False if all(plain) else None


def _leading_number(line: str) -> str | None:
    """Return the number a line begins with, on the right-hand side of an equation, unless arithmetic follows it."""
    line = _bare(_plain(line).rpartition("=")[2])
    found = _FOUND.match(line)
    return canonical_number(found.group()) if found and not _OPERATOR.match(line, found.end()) else None


def _value(text: str) -> Fraction | None:
    """Read an unsigned number with its unit: mixed before ratio before power of ten before decimal."""
    for pattern in (_MIXED, _RATIO, _POWER, _PLAIN):
        found = pattern.match(text)
        if not found:
            continue
        scale = _multiplier(text[found.end() :])
        parts = [part.replace(",", "").replace(" ", "") for part in found.groups() if part]
        if scale is None or any(len(part) > MAX_DIGITS for part in parts):
            continue
        if pattern is _MIXED and int(parts[2]):
            return scale * (int(parts[0]) + Fraction(int(parts[1]), int(parts[2])))
        if pattern is _RATIO and Fraction(parts[1]):
            return scale * Fraction(parts[0]) / Fraction(parts[1])
        if pattern is _POWER and abs(int(parts[1])) <= MAX_DIGITS:
            return scale * Fraction(parts[0]) * Fraction(10) ** int(parts[1])
        if pattern is _PLAIN:
            return scale * Fraction(parts[0])
    return None


def _multiplier(tail: str) -> int | None:
    """Return what the words behind a number multiply it by: 1 for a unit, None where they are no unit."""
    tail = tail.strip(" \t.,;:!")
    if not tail:
        return 1
    if not _UNITS.fullmatch(tail):
        return None
    words = _LETTERS.findall(tail)
    if _NOT_UNITS.intersection(words) or (len(words[0]) == 1 and words[0].isascii()):
        return None
    return _SCALES.get(words[0], 1)


def _bare(text: str) -> str:
    text = _VARIABLE.sub("", text.strip(), count=1) if _VARIABLE.match(text.strip()) else text
    text = text.rstrip(" \t\n.,;:!'*#").lstrip(" \t\n,;:!'*#")
    wrapped = text[:1] == "(" and text[-1:] == ")" and not set("(),").intersection(text[1:-1])
    return text[1:-1].strip() if wrapped else text


def _plain(text: str) -> str:
    """Rewrite Unicode and LaTeX forms of a short text as lower-case ASCII arithmetic where there is one."""
    if not text.isascii():
        text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run.group().translate(_SUPERSCRIPTS), text)
        text = unicodedata.normalize("NFKC", "".join(map(_character, text)))
    text = text.lower().replace("{,}", ",")
    if "\\" in text:
        text = _latex(text)
    return _DROPPED.sub(" ", _DEGREES.sub(" ", text))


def _latex(text: str) -> str:
    text = _TIMES.sub("*", text.replace("\\,", "").replace("\\!", ""))
    for _ in range(8):
        text, fractions = _FRACTION_COMMAND.subn(lambda m: f"({m[1] or m[2] or ''})/({m[3] or m[4] or ''})", text)
        text, wrappers = _WRAPPER.subn(r" \1 ", text)
        if not fractions + wrappers:
            break
    return text


def _character(char: str) -> str:
    if char < "\x80":
        return char
    if char in _CHARACTERS:
        return _CHARACTERS[char]
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    if unicodedata.decomposition(char).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", char).replace("\u2044", "/")
    return char
