from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.store.samples import python

from selftaught.errors import InputError
from selftaught.specs import SFT, ModelSpec, Preference, Sampling
from selftaught.store.keys import canonical, stage_key

PARAMS = {"sampling": Sampling(k=8, stop=("\n", "é")), "model": ModelSpec(source="m"), "path": Path("a/b"), "x": None}
GOLDEN = "02324105e4517d0d195440cc"


def test_golden_value() -> None:
    """A changed key makes every stage again: change it only on purpose."""
    assert stage_key("generate", 3, PARAMS, ["p1", "p2"], 7) == GOLDEN


def test_equal_in_another_process_with_another_hash_seed() -> None:
    script = "from tests.store.test_keys import *; print(stage_key('generate', 3, PARAMS, ['p1', 'p2'], 7))"
    out, err = python(script).communicate(timeout=60)
    assert out.strip() == GOLDEN, err


def test_every_part_counts() -> None:
    base = ("f", 1, {"a": 1}, ("p",), 0)
    others = [
        ("g", 1, {"a": 1}, ("p",), 0),
        ("f", 2, {"a": 1}, ("p",), 0),
        ("f", 1, {"a": 2}, ("p",), 0),
        ("f", 1, {"a": 1}, ("q",), 0),
        ("f", 1, {"a": 1}, ("p",), 1),
        ("f", 1, {"a": 1.0}, ("p",), 0),
        ("f", 1, {"a": True}, ("p",), 0),
        ("f", 1, {"a": "1"}, ("p",), 0),
        ("f", 1, [{"a": 1}], ("p",), 0),
    ]
    assert len({stage_key(*base), *(stage_key(*other) for other in others)}) == 10


def test_order_of_a_mapping_does_not_count_and_order_of_parents_does() -> None:
    assert stage_key("f", 1, {"a": 1, "b": 2}, (), 0) == stage_key("f", 1, {"b": 2, "a": 1}, (), 0)
    assert stage_key("f", 1, {}, ("a", "b"), 0) != stage_key("f", 1, {}, ("b", "a"), 0)


def test_tuples_and_lists_and_paths_and_texts_are_one() -> None:
    assert stage_key("f", 1, {"a": (1, 2), "b": Path("x/y")}, (), 0) == stage_key(
        "f", 1, {"a": [1, 2], "b": "x/y"}, [], 0
    )


def test_dataclasses_with_equal_fields_differ() -> None:
    @dataclass(frozen=True)
    class Left:
        x: int = 1

    @dataclass(frozen=True)
    class Right:
        x: int = 1

    assert canonical(Left()) != canonical(Right())
    assert canonical({"objective": SFT()}) != canonical({"objective": Preference()})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": {1, 2}}, ("params['a']", "sorted tuple")),
        ({"a": [0, len]}, ("params['a'][1]", "module:function")),
        ({"a": lambda: 0}, ("module:function",)),
        ({"a": SFT}, ("module:function",)),
        ({1: 2}, ("key 1", "text as keys")),
        ({"a": float("nan")}, ("params['a'] = nan", "finite")),
        ({"s": Sampling(temperature=float("inf"))}, ("params['s'].temperature", "finite")),
        ({"a": object()}, ("params['a']", "dataclass")),
        ({"a": b"x"}, ("bytes",)),
    ],
)
def test_what_cannot_be_a_key_is_named(value: object, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        stage_key("f", 1, value, (), 0)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
