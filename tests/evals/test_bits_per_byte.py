from math import inf, log, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.evals.bits_per_byte import (
    Cost,
    bits_per_byte,
    cost_of,
    difference,
    excess,
    gather,
    per_document,
    pooled,
    rise,
    rise_difference,
    standard_error,
)
from selftaught.evals.intervals import paired_bootstrap

BIT = log(2)
costs = st.dictionaries(
    st.text(max_size=3), st.builds(Cost, st.floats(0, 1e4), st.integers(1, 1000)), min_size=1, max_size=8
)


def bits(**documents):
    """Costs from (bits, bytes) by document."""
    return {name: Cost(total * BIT, size) for name, (total, size) in documents.items()}


def test_a_byte_model_by_hand():
    """ "aé" is 3 bytes. At probabilities 1/2, 1/4, 1/8: 1 + 2 + 3 = 6 bits over 3 bytes, 2 each."""
    cost = cost_of("aé", [BIT, 2 * BIT, 3 * BIT], per_byte=True)
    assert cost.bytes == 3 and bits_per_byte(cost) == pytest.approx(2.0)


def test_a_token_model_by_hand():
    """The same text as one token at probability 1/64 costs the same 6 bits over the same 3 bytes."""
    cost = cost_of("aé", np.array([6 * BIT]), per_byte=False)
    assert cost.bytes == 3 and bits_per_byte(cost) == pytest.approx(2.0)


@given(st.lists(st.floats(0, 50), max_size=60), st.integers(1, 7))
def test_windows_add_up(nats, length):
    """However a text is cut, its windows cost what it costs."""
    text = "x" * len(nats)
    whole = cost_of(text, nats, per_byte=True)
    parts = [
        ("d", cost_of(text[i : i + length], nats[i : i + length], per_byte=True)) for i in range(0, len(nats), length)
    ]
    found = gather([*parts[::-1], ("d", Cost(0.0, 0))])
    assert found["d"].bytes == whole.bytes and found["d"].nats == pytest.approx(whole.nats)


@pytest.mark.parametrize(
    ("text", "nats", "per_byte", "message"),
    [
        ("ab", [1.0, nan], True, "prediction 1 of 'ab' costs nan nats"),
        ("ab", [inf, 1.0], True, "prediction 0 of 'ab' costs inf"),
        ("ab", [1.0, -0.5], True, "costs -0.5 nats: give -ln p"),
        ("ab", [1.0, 1.0, 1.0], True, "3 predictions for the 2 bytes of 'ab': leave out special ids"),
        ("é", [1.0], True, "1 predictions for the 2 bytes"),
        ("ab", [], False, "0 predictions for the 2 bytes"),
        ("", [1.0], False, "1 predictions for the 0 bytes"),
    ],
)
def test_bad_costs(text, nats, per_byte, message):
    with pytest.raises(InputError, match=message):
        cost_of(text, nats, per_byte=per_byte)


def test_documents_and_pool():
    """2 bits over 1 byte and 3 over 3: 5 bits over 4 bytes; the mean over documents would be 1.5."""
    given_costs = bits(a=(2, 1), b=(3, 3), c=(0, 0))
    assert per_document(given_costs) == {"a": pytest.approx(2.0), "b": pytest.approx(1.0), "c": None}
    assert pooled(given_costs) == pytest.approx(1.25)
    for empty in ({}, bits(a=(0, 0))):
        with pytest.raises(InputError, match="without a byte"):
            pooled(empty)


def test_a_difference_by_hand():
    """Gaps of -1 and 2 bits over 1 and 3 bytes: 1 / 4. Draws give -1 (twice a), 1/4 or 2/3 (twice b), so the interval
    is from -1 to 2/3. One document has no spread.
    """
    ours, theirs = bits(a=(1, 1), b=(5, 3)), bits(b=(3, 3), a=(2, 1))
    interval = difference(ours, theirs)
    assert [interval.estimate, interval.low, interval.high] == pytest.approx([0.25, -1.0, 2 / 3])
    assert (interval.over, interval.n) == ("problems", 2)
    alone = difference(bits(a=(1, 2), e=(0, 0)), bits(a=(2, 2), e=(0, 0)))
    assert [alone.estimate, alone.low, alone.high, alone.n] == pytest.approx([-0.5, -0.5, -0.5, 1])


def test_a_difference_of_equal_documents_is_the_bootstrap_of_their_mean():
    """With documents of one length the ratio is the mean over documents, which `paired_bootstrap` has intervals for."""
    source = np.random.default_rng(5)
    ours, theirs = source.normal(2, 0.3, 80), source.normal(2.1, 0.3, 80)
    found = difference(
        {str(i): Cost(x * BIT * 10, 10) for i, x in enumerate(ours)},
        {str(i): Cost(x * BIT * 10, 10) for i, x in enumerate(theirs)},
        seed=3,
    )
    known = paired_bootstrap(list(ours), list(theirs), seed=3)
    assert [found.estimate, found.low, found.high] == pytest.approx([known.estimate, known.low, known.high])


@given(costs)
def test_a_difference_is_one_of_pooled_bits(ours):
    theirs = {name: Cost(cost.nats / 2 + 1, cost.bytes) for name, cost in ours.items()}
    assert difference(ours, theirs).estimate == pytest.approx(pooled(ours) - pooled(theirs), abs=1e-9)


def test_the_rise_under_noise_by_hand():
    """Two documents of 2 and 6 bytes at 1 bit a byte, 8 bits. AntSpeak makes them 3 and 11 bytes, which cost 5 and 11
    bits: 16 - 8 = 8 bits more over 8 bytes is 1; per own byte 16/14 - 1 = 1/7. Dropping all but 4 bytes, at 2 bits
    each: 8 bits, so 0 more per original byte, and 1 per own byte.
    """
    clean = bits(a=(2, 2), b=(6, 6))
    spaced = rise(bits(a=(5, 3), b=(11, 11)), clean)
    assert (spaced.per_original_byte, spaced.per_own_byte) == pytest.approx((1.0, 1 / 7))
    dropped = rise(bits(a=(2, 1), b=(6, 3)), clean)
    assert (dropped.per_original_byte, dropped.per_own_byte) == pytest.approx((0.0, 1.0))


@given(costs)
def test_what_noise_adds_pools_to_the_rise(clean):
    noised = {name: Cost(cost.nats * 1.5 + 1, cost.bytes + 3) for name, cost in clean.items()}
    added = excess(noised, clean)
    assert pooled(added) == pytest.approx(rise(noised, clean).per_original_byte, abs=1e-9)
    assert {name: cost.bytes for name, cost in added.items()} == {name: cost.bytes for name, cost in clean.items()}


def test_the_standard_error_of_equal_documents_is_that_of_their_mean():
    values = np.random.default_rng(2).normal(2, 0.3, 40)
    found = standard_error({str(i): Cost(x * BIT * 10, 10) for i, x in enumerate(values)})
    assert found == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert np.isnan(standard_error(bits(a=(3, 2))))


def test_the_standard_error_is_that_of_drawing_documents_again():
    source = np.random.default_rng(4)
    sizes = source.integers(20, 400, 300)
    nats = sizes * source.normal(1.5, 0.4, 300) + source.normal(0, 5, 300)
    found = {str(i): Cost(float(n), int(b)) for i, (n, b) in enumerate(zip(nats, sizes, strict=True))}
    rows = source.integers(0, 300, (4000, 300))
    drawn = nats[rows].sum(1) / BIT / sizes[rows].sum(1)
    assert standard_error(found) == pytest.approx(drawn.std(), rel=0.05)


def test_a_difference_of_rises_by_hand():
    """Rises of 1 and 2 bits against 3 and 3 over 2 and 4 bytes: (3 - 6) / 6 = -0.5; draws -2/2, -3/6 and -1/4."""
    clean, other = bits(a=(1, 2), b=(4, 4)), bits(a=(9, 2), b=(2, 4))
    ours = (bits(a=(2, 3), b=(6, 5)), clean)
    baseline = (bits(a=(12, 3), b=(5, 5)), other)
    interval = rise_difference(ours, baseline)
    assert [interval.estimate, interval.low, interval.high] == pytest.approx([-0.5, -1.0, -0.25])
    expected = rise(*ours).per_original_byte - rise(*baseline).per_original_byte
    assert interval.estimate == pytest.approx(expected)


def test_what_does_not_pair():
    a, b, longer = bits(a=(1, 1)), bits(b=(1, 1)), bits(a=(1, 2))
    for call in (difference, rise):
        with pytest.raises(InputError, match="1 and 1 documents do not pair: a is in one only"):
            call(a, b)
    with pytest.raises(InputError, match="document a has 1 and 2 bytes"):
        difference(a, longer)
    with pytest.raises(InputError, match="document a has 1 and 2 bytes"):
        rise_difference((a, a), (longer, a))
    with pytest.raises(InputError, match="do not pair"):
        rise_difference((b, a), (b, a))
    with pytest.raises(InputError, match="without a byte"):
        difference(bits(a=(0, 0)), bits(a=(0, 0)))
