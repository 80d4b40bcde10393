from math import fsum, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.evals.bits_per_byte import (
    Cost,
    bits_per_byte,
    excess,
    gather,
    mean_costs,
    per_document,
    pooled,
    standard_error,
)

BIT = log(2)
costs = st.dictionaries(
    st.text(max_size=3), st.builds(Cost, st.floats(0, 1e4), st.integers(1, 1000)), min_size=1, max_size=8
)


def bits(**documents):
    """Costs from (bits, bytes) by document."""
    return {name: Cost(total * BIT, size) for name, (total, size) in documents.items()}


def test_a_byte_model_and_a_token_model_by_hand():
    """3 bytes at probabilities 1/2, 1/4, 1/8 cost 1 + 2 + 3 = 6 bits, 2 each; so do they as one token at 1/64."""
    assert bits_per_byte(Cost(6 * BIT, 3)) == bits_per_byte(Cost(-log(1 / 64), 3)) == pytest.approx(2.0)


@given(st.lists(st.floats(0, 50), max_size=60), st.integers(1, 7))
def test_windows_add_up(nats, length):
    """However a text is cut, its windows cost what it costs."""
    parts = [("d", Cost(fsum(part), len(part))) for i in range(0, len(nats), length) if (part := nats[i : i + length])]
    found = gather([*parts[::-1], ("d", Cost(0.0, 0))])
    assert found["d"].bytes == len(nats) and found["d"].nats == pytest.approx(fsum(nats))


def test_documents_and_pool():
    """2 bits over 1 byte and 3 over 3: 5 bits over 4 bytes; the mean over documents would be 1.5."""
    given_costs = bits(a=(2, 1), b=(3, 3), c=(0, 0))
    assert per_document(given_costs) == {"a": pytest.approx(2.0), "b": pytest.approx(1.0), "c": None}
    assert pooled(given_costs) == pytest.approx(1.25)
    for empty in ({}, bits(a=(0, 0))):
        with pytest.raises(InputError, match="without a byte"):
            pooled(empty)


def test_what_noise_adds_by_hand():
    """Two documents of 2 and 6 bytes at 1 bit a byte, 8 bits. AntSpeak makes them 3 and 11 bytes, which cost 5 and 11
    bits: 16 - 8 = 8 bits more over 8 bytes is 1. Dropping all but 4 bytes, at 2 bits each: 8 bits, so 0 more.
    """
    clean = bits(a=(2, 2), b=(6, 6))
    spaced = excess(bits(a=(5, 3), b=(11, 11)), clean)
    assert {name: cost.bytes for name, cost in spaced.items()} == {"a": 2, "b": 6}
    assert [cost.nats for cost in spaced.values()] == pytest.approx([3 * BIT, 5 * BIT])
    assert pooled(spaced) == pytest.approx(1.0)
    dropped = excess(bits(a=(2, 1), b=(5, 2), c=(1, 1)), bits(a=(2, 2), b=(6, 6), c=(0, 0)))
    assert pooled(dropped) == pytest.approx(0.0) and dropped["b"].nats == pytest.approx(-BIT)


@given(costs)
def test_what_noise_adds_is_a_difference_of_bits_over_the_clean_bytes(clean):
    noised = {name: Cost(cost.nats * 1.5 + 1, cost.bytes + 3) for name, cost in clean.items()}
    over_clean = {name: Cost(noised[name].nats, cost.bytes) for name, cost in clean.items()}
    assert pooled(excess(noised, clean)) == pytest.approx(pooled(over_clean) - pooled(clean), abs=1e-9)


def test_the_mean_over_noises():
    drop, repeat = {"a": Cost(1.0, 4), "b": Cost(-2.0, 5)}, {"a": Cost(2.0, 4), "b": Cost(4.0, 5)}
    assert mean_costs([drop, repeat]) == {"a": Cost(1.5, 4), "b": Cost(1.0, 5)}


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


def test_what_does_not_pair():
    with pytest.raises(InputError, match="1 and 1 documents do not pair: a is in one only"):
        excess(bits(a=(1, 1)), bits(b=(1, 1)))
