"""What small structured answers say: a JSON record with known keys, a list of keywords.

Both readers are strict where the reward depends on them (DivPO, arXiv 2501.18101, section 4: a persona counts only as
JSON with exactly its keys, a keyword list only with exactly its number of words) and never raise on a model's text.
"""

import json
import re
from collections.abc import Sequence

_LONGEST = 10_000
_MARK = re.compile(r"\A(?:\(?\d{1,3}[.):]|[-*\u2022])(?:\s+|\Z)")
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"


def first_block(text: str) -> str | None:
    """Return the first balanced `{...}` of `text`, None where there is none. Braces inside JSON strings do not count.

    >>> first_block('Sure: {"a": "}"} and {}')
    '{"a": "}"}'
    """
    start = text.find("{")
    depth, inside, skip = 0, False, False
    for i in range(start, min(len(text), start + _LONGEST)) if start >= 0 else ():
        character = text[i]
        if skip:
            skip = False
        elif inside:
            skip, inside = character == "\\", character != '"'
        elif character == '"':
            inside = True
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start : i + 1]
    return None


def parse_record(text: str, keys: Sequence[str]) -> dict[str, str] | None:
    """Return the values of the first brace block by key, case-folded and stripped, in the order of `keys`.

    None unless it is JSON, with each of `keys` exactly once and no other, and every value a string that says something.

    >>> parse_record('{"city": " Oslo ", "name": "Ada"}', ("name", "city"))
    {'name': 'ada', 'city': 'oslo'}
    >>> parse_record('{"name": "Ada", "name": "Ada", "city": "Oslo"}', ("name", "city")) is None
    True
    """
    block = first_block(text)
    try:
        # As pairs, for a dict would hide a key that is there twice.
        pairs = json.loads(block, object_pairs_hook=list) if block else None
    except (ValueError, RecursionError):
        return None
    if pairs is None or sorted(key for key, _ in pairs) != sorted(keys):
        return None
    values = {key: " ".join(value.split()).casefold() if isinstance(value, str) else "" for key, value in pairs}
    return {key: values[key] for key in keys} if all(values.values()) else None


def stated_values(text: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return every (key, value) that `text` states as `"key": "value"`, sound JSON or not, values case-folded.

    >>> stated_values('{"name": "Ada", "city": "Oslo"', ("name", "city"))
    [('name', 'ada'), ('city', 'oslo')]
    """
    found = re.findall(rf'"({"|".join(map(re.escape, keys))})"\s*:\s*"([^"]*)"?', text[:_LONGEST])
    return [(key, " ".join(value.split()).casefold()) for key, value in found]


def parse_keywords(text: str, count: int = 5) -> tuple[str, ...] | None:
    """Return the words of a list with commas or line breaks, case-folded, numbering and quotes taken off.

    None unless there are exactly `count`, each a single word and none twice.

    >>> parse_keywords("1. Lamp\\n2. harbour\\n3. 'fog'\\n4. keeper\\n5. storm.")
    ('lamp', 'harbour', 'fog', 'keeper', 'storm')
    >>> parse_keywords("lamp, lamp, fog, keeper, storm") is None
    True
    """
    pieces = [_MARK.sub("", piece.strip()) for piece in re.split(r"[,\n]", text[:_LONGEST])]
    words = [piece.strip().strip(_QUOTES + ".;").strip().casefold() for piece in pieces]
    words = [word for word in words if word]
    sound = len(words) == count == len(set(words)) and not any(len(word.split()) > 1 for word in words)
    return tuple(words) if sound else None
