import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.text.json_records import first_block, parse_keywords, parse_record, stated_values

KEYS = ("first_name", "city")


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("", None),
        ("no brace", None),
        ("{", None),
        ('{"a": "}"', None),
        ('x {"a": {"b": 1}} {"c": 2}', '{"a": {"b": 1}}'),
        ('{"a": "\\"}"}', '{"a": "\\"}"}'),
        ("}{}", "{}"),
    ],
)
def test_the_first_balanced_block(text, block):
    assert first_block(text) == block


@pytest.mark.parametrize(
    "text",
    [
        '{"first_name": "Ada", "city": " OSLO "}',
        'Here it is:\n```json\n{"city": "Oslo", "first_name": "ADA"}\n```',
    ],
)
def test_a_sound_record_in_any_order_and_case(text):
    assert parse_record(text, KEYS) == {"first_name": "ada", "city": "oslo"}
    assert list(parse_record(text, KEYS)) == list(KEYS)


@pytest.mark.parametrize(
    "text",
    [
        '{"first_name": "Ada"}',
        '{"first_name": "Ada", "city": "Oslo", "age": "9"}',
        '{"first_name": "Ada", "first_name": "Bo", "city": "Oslo"}',
        '{"first_name": "Ada", "city": "Oslo"',
        '{"first_name": "Ada", "city": 3}',
        '{"first_name": "Ada", "city": ""}',
        '{"first_name": "Ada", "city": null}',
        '{"first_name": "Ada", "city": {"name": "Oslo"}}',
        "{'first_name': 'Ada', 'city': 'Oslo'}",
        "{" * 5000 + "}" * 5000,
        '{"first_name": ' + "[" * 4000 + "}",
    ],
)
def test_what_is_no_record(text):
    assert parse_record(text, KEYS) is None


@given(st.text(max_size=300))
def test_hostile_text_is_read_or_refused(text):
    record = parse_record(text, KEYS)
    assert record is None or list(record) == list(KEYS)
    assert isinstance(stated_values(text, KEYS), list)
    words = parse_keywords(text)
    assert words is None or len(set(words)) == 5


@given(st.dictionaries(st.sampled_from(["first_name", "city", "job"]), st.none() | st.text() | st.integers()))
def test_json_is_a_record_where_it_has_the_keys_and_says_something(values):
    sound = values.keys() == set(KEYS) and all(isinstance(v, str) and v.strip() for v in values.values())
    assert (parse_record("so: " + json.dumps(values), KEYS) is not None) == sound


def test_values_of_broken_records():
    assert stated_values('{"first_name": "Ada", "city": "Os', KEYS) == [("first_name", "ada"), ("city", "os")]
    assert stated_values('{"city": "Oslo", "city": "Rome"}', KEYS) == [("city", "oslo"), ("city", "rome")]


@pytest.mark.parametrize(
    "text",
    ["a, b, c, d, e", "1. A\n2. B\n3. C\n4. D\n5. E", "- a\n* b\n\n(3) c\n4) d\ne", '"a", "b", "c", "d", "e".'],
)
def test_five_keywords(text):
    assert parse_keywords(text) == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    "text", ["", "a, b, c, d", "a, b, c, d, e, f", "a, b, c, d, D", "a, b, c, d, old house", "a b c d e"]
)
def test_what_is_no_list_of_five_words(text):
    assert parse_keywords(text) is None
