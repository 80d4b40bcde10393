import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.text.equations import equations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48/2 = <<48/2=24>>24", [True]),
        ("2+3*4=14, 20 - 2 * 3 = 14, 8/4/2=1", [True, True, True]),
        ("7*5=30", [False]),
        ("$1,200 * 2 = $2,400 and 50% * 80 = 40", [True, True]),
        ("10/3 = 3.33 but 10/3 = 3", [True, False]),
        ("1/3=33%", [True]),
        ("-3 + 5 = 2 and 6 \u00d7 2 = 12", [True, True]),
        ("4 apples + 3 = 7, x + 1 = 2, (2+3)*2 = 10, 10 = 2*5, 5/0=3, 3.", []),
        ("2+2=4x and f(1)+2=3", []),
    ],
)
def test_equations(text, expected):
    assert list(equations(text)) == expected


@given(st.text(alphabet="0123456789.,$%+-*/= ()x", max_size=80))
def test_any_text(text):
    assert set(equations(text)) <= {True, False}


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from("+-*"))
def test_whole_numbers(a, b, operation):
    value = {"+": a + b, "-": a - b, "*": a * b}[operation]
    assert list(equations(f"{a} {operation} {b} = {value}; {a}{operation}{b}={value + 1}")) == [True, False]


def test_long_runs_take_no_time():
    for text in ("1" * 50_000 + "+1=2", "1+" * 20_000 + "1=3", "1 " * 20_000, "$" * 50_000):
        assert len(list(equations(text))) <= 1
