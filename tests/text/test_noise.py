import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.text.noise import MOST_TIMES, NOISES, SHARES, drop, noised, random_case, repeat
from selftaught.types import content_id

LONG = "The quick brown fox jumps over the lazy dog. " * 500
texts = st.text(max_size=60)


@pytest.mark.parametrize(
    ("noise", "text", "expected"),
    [
        ("antspeak", "Hello world", "H E L L O   W O R L D"),
        ("antspeak", "aé😀", "A É 😀"),
        ("upper_case", "naïve Straße 5", "NAÏVE STRASSE 5"),
        ("drop", "The quick brown fox", "he quick brown fox"),
        ("random_case", "The quick brown fox", "tHE quIcK brOwN fOx"),
        ("repeat", "The quick brown fox", "The quickkkk    broooown    foox"),
    ],
)
def test_golden(noise, text, expected):
    """By rule, or, where there are draws, as drawn once: a change of these lines changes published results."""
    assert noised(text, noise, 7) == expected


@pytest.mark.parametrize("noise", NOISES)
def test_every_noise_is_a_function_of_text_and_seed(noise):
    assert noised("", noise, 3) == ""
    assert noised(LONG, noise, 3) == noised(LONG, noise, 3)
    drawn = noise not in ("antspeak", "upper_case")
    assert (noised(LONG, noise, 3) != noised(LONG, noise, 4)) is drawn


def test_shares():
    """Within five standard errors of the shares over 22,500 characters."""
    n = len(LONG)

    def near(found, share):
        return abs(found / n - share) < 5 * (share * (1 - share) / n) ** 0.5

    dropped, repeated = SHARES["drop"], SHARES["repeat"]
    assert near(n - len(drop(LONG)), dropped)
    changed = random_case("a" * n)
    assert near(changed.count("A"), 0.5) and set(changed) == {"a", "A"}
    letters = [chr(0x4E00 + i) for i in range(n)]
    times = Counter(Counter(repeat("".join(letters))).values())
    assert set(times) == {1, 2, 3, 4} and MOST_TIMES == 4
    assert near(times[1], 1 - repeated) and all(near(times[k], repeated / 3) for k in (2, 3, 4))


def test_shares_of_one_s_own():
    """Within five standard errors over 22,500 characters; of those drawn for their case half were lower already."""
    n = len(LONG)

    def near(found, share):
        return abs(found / n - share) < 5 * (share * (1 - share) / n) ** 0.5

    assert near(n - len(noised(LONG, "drop", share=0.02)), 0.02)
    assert near(noised("a" * n, "random_case", share=0.02).count("A"), 0.01)
    assert near(noised("A" * n, "random_case", share=0.02).count("a"), 0.01)
    letters = "".join(chr(0x4E00 + i) for i in range(n))
    assert near(sum(c > 1 for c in Counter(noised(letters, "repeat", share=0.02)).values()), 0.02)


@pytest.mark.parametrize("noise", SHARES)
def test_nothing_is_drawn_at_share_0_and_the_paper_s_is_the_default(noise):
    assert noised(LONG, noise, 3, 0.0) == LONG
    assert noised(LONG, noise, 3, SHARES[noise]) == noised(LONG, noise, 3)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_one(share):
    with pytest.raises(InputError, match=r"drop: share=.* is no share of the characters; give 0 to 1"):
        noised("a", "drop", share=share)


def test_what_is_not_drawn_has_no_share():
    with pytest.raises(InputError, match=r"antspeak changes all characters, not share=0\.5: leave it out"):
        noised("a", "antspeak", share=0.5)


def test_documents_get_noise_of_their_own():
    """The same characters in two texts meet different draws."""
    first, second = (random_case(LONG + end)[: len(LONG)] for end in "ab")
    assert first != second


@given(texts, st.integers())
def test_dropping_leaves_a_subsequence(text, seed):
    rest = iter(text)
    assert all(c in rest for c in drop(text, seed))


@given(texts, st.integers())
def test_repeating_keeps_the_order_and_the_text(text, seed):
    """Every character stands one to four times where it stood."""
    noisy = repeat(text, seed)
    reachable = {0}
    for c in text:
        reachable = {at + k for at in reachable for k in range(1, MOST_TIMES + 1) if noisy[at : at + k] == c * k}
    assert len(noisy) in reachable


@given(texts, st.integers())
def test_a_draw_per_character(text, seed):
    """Worked from the documented rule: the draws of a source that noise, seed and text fix."""

    def draws(noise):
        source = random.Random(int(content_id("noise", noise, seed, text), 16))
        return [source.random() for _ in text]

    assert drop(text, seed) == "".join(c for c, u in zip(text, draws("drop"), strict=True) if u >= 0.1)
    cases = zip(text, draws("random_case"), strict=True)
    assert random_case(text, seed) == "".join(c.upper() if u < 0.5 else c.lower() for c, u in cases)


@given(texts, st.sampled_from(sorted(NOISES)), st.integers())
def test_text_that_can_be_encoded_stays_so(text, noise, seed):
    noised(text.encode(errors="ignore").decode(), noise, seed).encode()


@given(texts)
def test_nothing_but_spaces_is_added_by_antspeak(text):
    assert noised(text, "antspeak")[::2] == noised(text, "upper_case")
    assert set(noised(text, "antspeak")[1::2]) <= {" "}


def test_unknown_noise():
    with pytest.raises(InputError, match="unknown noise 'shout': give one of antspeak, drop, "):
        noised("a", "shout")
