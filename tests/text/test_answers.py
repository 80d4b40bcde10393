import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.worlds import shared_data

from selftaught.text.answers import (
    MAX_DIGITS,
    boxed,
    canonical,
    canonical_number,
    compare_keys,
    final_answer,
    is_number_key,
    last_number,
    marked_number,
)

SAME = [
    ("1/2", "0.5", ".5", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", "$\\frac{1}{2}$", "½", " 1 / 2 ", "0.50"),
    ("1/2", "50/100", "+0.5", "0.5 cups", "1/2 cup", r"\tfrac{5}{10}", "0.5%"),
    ("1000", "1,000", "$1000", "1000 dollars", "$1,000.00", "US$1000", "1000 USD", "USD 1000", "1 000", r"1\,000"),
    ("1000", "1{,}000", "1000 €", "Rs. 1,000", "1000."),
    ("1000", "1e3", r"10 \times 10^2", "1 thousand", "1,000 km/h", "1000 miles per hour", r"\boxed{1000}", "**1000**"),
    ("0", "-0", "0.0", "0/5", "+0", "-0.00 dollars", "−0"),
    ("3", "3.0", "3.", "x = 3", "(3)", "3 apples", "٣", "３", "3.00%", r"3\%", "3°", r"3^\circ", "3 cm²"),
    ("3", r"3 \text{ cm}^2", r"3\text{ apples}", r"\(3\)", r"\left(3\right)", "#3"),
    ("-5", "- 5", "−5", "–5", "-$5", "$-5", "-5.0", r"-\frac{10}{2}", "-5 degrees"),
    ("7/2", "3 1/2", "3½", r"3\frac{1}{2}", "3 and 1/2", "3.5", "٣٫٥"),
    ("1500000", "1.5 million", "1,500,000", "15,00,000", "1.5 million people"),
    ("yes", "Yes", "YES.", " yes "),
    ("new york", "New  York.", r"\text{New York}"),
    ("x+1", "x + 1", "$x+1$"),
]


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
def test_equal_answers_share_a_key(forms):
    assert {form: canonical(form) for form in forms} == dict.fromkeys(forms, forms[0])


@pytest.mark.parametrize(
    "text",
    [
        *("5x", "5 m", "2 pi", r"2\pi", "1,2", "1,00", "(1, 2)", "1:30", "1/0", "9**9**9", "5 and 6", "2-3", "1.2.3"),
        *("5²", "--5", "1e999", "9" * (MAX_DIGITS + 1), "seven", "5 squared", "5 or more", ""),
    ],
)
def test_not_a_number(text):
    assert canonical_number(text) is None


def test_decimals_are_exact_and_tuples_are_not_lists():
    assert len({canonical(a) for a in ("0.33", "1/3", "(1,2)", "1,2", "12", "1 2")}) == 6


@pytest.mark.parametrize("text", ["", "   ", "--", "$", "...", r"\text{}", "x" * 401])
def test_nothing_left_is_none(text):
    assert canonical(text) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("so 24.\n#### 72", "72"),
        ("#### 3\nno, wait\n#### 4", "4"),
        ("#### 3\n####", "3"),
        ("####\n72", "72"),
        ("####72", "72"),
        ("#### $1,072.50 in all", "2145/2"),
        ("#### 48+24=72", "72"),
        ("#### x = 5 apples", "5"),
        ("#### **72**", "72"),
        ("#### 72 (that is 48+24)", "72"),
        ("#### Step 3: add", None),
        ("#### 9**9**9", None),
        ("#### 48+24", None),
        ("72", None),
        ("### 72", None),
        ("", None),
    ],
)
def test_marked_number(text, key):
    assert marked_number(text) == key


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {3} and \boxed{4", "3"),
        (r"{ \fbox{5}", "5"),
        (r"\boxed{\boxed{6}}", r"\boxed{6}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", None),
        ("}} boxed{7}", None),
    ],
)
def test_boxed(text, content):
    assert boxed(text) == content


def test_last_number_only_where_asked():
    assert final_answer("That makes 5-3 = 2 dozen, or 1,024.") is None
    assert final_answer("That makes 5-3 = 2 dozen, or 1,024.", fallback=True) == "1024"
    assert last_number("5-3") == "3"
    assert last_number("it fell by -3.5 million") == "-3500000"
    assert last_number("none") is None


def test_final_answer_prefers_the_box():
    assert final_answer("#### 5 \\boxed{6}") == "6"
    assert final_answer("#### 5") == "5"


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        *(("1/2", "1/2", True), ("1/2", "1/3", False), ("7", "seven", False), ("paris", "london", False)),
        *(("7", None, False), ("x+1", "1+x", None), ("7", "x", None), (None, "7", None), ("a", "b", None)),
    ],
)
def test_compare_keys(gold, answer, equal):
    assert compare_keys(gold, answer) is equal


@given(st.text(max_size=200) | st.text(alphabet="0123456789.,/-+$%\\{}[]() \n#×eboxdfrac½²−٣", max_size=200))
def test_any_text_is_read_without_an_error(text):
    for read in (marked_number, last_number, canonical_number):
        key = read(text)
        assert key is None or is_number_key(key)
    assert boxed(text) != ""
    for key in (canonical(text), final_answer(text, fallback=True)):
        assert key is None or key == key.strip() != ""


@given(st.fractions(max_denominator=10**6))
def test_a_number_key_is_its_own_key(value):
    assert canonical(str(value)) == str(value)
    assert marked_number(f"steps\n#### {value} apples") == str(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_decimal_forms_agree(value):
    key = str(Fraction(value))
    assert canonical(str(value)) == key
    assert canonical(f"{value:,}") == key
    assert canonical(f"${value:,} dollars.") == key


@given(st.integers(-(10**12), 10**12), st.sampled_from(["٠١٢٣٤٥٦٧٨٩", "０１２３４５６７８９", "०१२३४५६७८९"]))
def test_digits_of_other_scripts(value, digits):
    written = str(value).translate(str.maketrans("0123456789", digits)).replace("-", "−")
    assert canonical(written) == str(value)


HOSTILE = [
    "####",
    "\\boxed{",
    "{",
    "1",
    "1,",
    "\\frac{",
    " ",
    "1 ",
    "#### 1 ",
    "9**",
    "((1)/(",
    "-",
    "\\",
    "1.",
    "\\text{",
]
HOSTILE += ["٣", "½", "\\boxed{1}", "}", "²", "$", "\n", "\x00", "a b ", "1e1"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_texts_of_a_million_characters(piece):
    """Anything worse than linear would not end here: a quadratic pass over 10^6 characters takes hours."""
    text = piece * (10**6 // len(piece))
    assert len(canonical(text) or "") == 0
    final_answer(text, fallback=True)
    final_answer(f"#### {text}", fallback=True)
    canonical(text[:400])


def test_every_answer_of_gsm8k():
    for split in ("train", "test"):
        with open(shared_data("gsm8k") / f"{split}.jsonl", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                answer = json.loads(line)["answer"]
                written = answer.rsplit("####", 1)[1].strip().replace(",", "")
                assert marked_number(answer) == str(Fraction(written)), (split, number)
