import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftaught.functional import patches as p

# Every rule as a function of ids and entropies [B, N] and lengths [B].
RULES = {
    "entropy": lambda ids, s, n: p.threshold_starts(s, 1.5),
    "monotonic": lambda ids, s, n: p.monotonic_starts(s, 0.4),
    "both": lambda ids, s, n: p.combined_starts(s, 1.2, 0.2),
    "space": lambda ids, s, n: p.space_starts(ids),
    "stride": lambda ids, s, n: p.stride_starts(places_of(ids), 3),
    "byte": lambda ids, s, n: p.byte_starts(ids),
    "top_k": lambda ids, s, n: p.top_k_starts(s, 3.0, n),
}


def places_of(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


def text_ids(text: str) -> torch.Tensor:
    return torch.tensor([[b + p.OFFSET for b in text.encode()]])


def pieces(text: str, starts: torch.Tensor) -> list[str]:
    data, begins = text.encode(), starts[0, :-1].nonzero().flatten().tolist()
    return [data[a:b].decode(errors="replace") for a, b in zip(begins, [*begins[1:], None], strict=True)]


def random_rows(rows: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, p.VOCABULARY, (rows, n), generator=g), 3 * torch.rand(rows, n, generator=g)


def test_ids_of_bytes() -> None:
    assert p.byte_ids(b"").tolist() == [1]
    assert p.byte_ids(bytes([0, 97, 255])).tolist() == [1, 4, 101, 259]


def test_a_threshold_by_hand() -> None:
    """s = 9, 1, 2, 0.5, 2.5 over theta 1.5 at bytes 0, 2 and 4, so that bytes 1, 3 and 5 (to come) begin patches."""
    starts = p.threshold_starts(torch.tensor([[9.0, 1.0, 2.0, 0.5, 2.5]]), 1.5)
    assert starts.tolist() == [[True, True, False, True, False, True]]
    assert p.patch_lengths(starts).tolist() == [[1, 2, 2, 1]]
    assert p.patch_ids(starts).tolist() == [[0, 1, 1, 2, 2]]
    assert p.complete_patches(starts).tolist() == [[0, 0, 1, 1, 2]]


def test_rises_by_hand() -> None:
    """s rises by 2 at byte 1, by 1 at byte 3, by 3 at byte 4; only the last is over 1.5 with s over 3."""
    s = torch.tensor([[0.0, 2.0, 0.0, 1.0, 4.0]])
    assert p.monotonic_starts(s, 1.5).tolist() == [[True, True, True, False, False, True]]
    assert p.combined_starts(s, 3.0, 1.5).tolist() == [[True, True, False, False, False, True]]
    # The first byte has no byte before it to rise from, and a threshold that all are over is still an equal share.
    assert p.monotonic_starts(s, -10.0).all()


def test_the_entropy_rules_agree_with_a_loop() -> None:
    _, s = random_rows(1, 200)
    values = s[0].tolist()
    for rule, holds in {
        "entropy": lambda i: values[i] > 1.5,
        "monotonic": lambda i: values[i] - values[i - 1] > 0.4,
        "both": lambda i: values[i] > 1.2 and values[i] - values[i - 1] > 0.2,
    }.items():
        expected = [True, True] + [holds(i) for i in range(1, 200)]
        assert RULES[rule](None, s, None)[0].tolist() == expected, rule


def test_space_like_bytes() -> None:
    text = "Hello,  big wörld 42 "
    # 'ö' begins with a byte above 0xBF, which is space-like, and its second byte is a continuation, which is not.
    assert pieces(text, p.space_starts(text_ids(text))) == ["H", "ello,", "  big ", "w\ufffd", "\ufffdrld ", "42 "]
    # A special id is space-like: it ends a word.
    assert p.space_starts(torch.tensor([[101, 102, p.EOS, 103]])).tolist() == [[True, True, False, True, False]]


def test_stride_and_byte() -> None:
    ids = torch.zeros(1, 8, dtype=torch.int64)
    assert p.patch_lengths(p.stride_starts(places_of(ids), 3)).tolist() == [[1, 3, 3, 2]]
    two = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    assert p.stride_starts(two, 3)[0].nonzero().flatten().tolist() == [0, 1, 4, 6]
    assert p.patch_lengths(p.byte_starts(ids)).tolist() == [[1] * 9]
    with pytest.raises(ValueError, match="stride is 0"):
        p.stride_starts(places_of(ids), 0)


def test_top_k_takes_the_highest_entropies() -> None:
    """10 bytes at 2.5 per patch are 4 patches: bytes 0 and 1, and those after the two highest entropies but s_0."""
    s = torch.tensor([[9.0, 1.0, 5.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 1.0]])
    assert p.top_k_starts(s, 2.5)[0].nonzero().flatten().tolist() == [0, 1, 3, 6]
    with pytest.raises(ValueError, match="patch_size is"):
        p.top_k_starts(s, 0.5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("extras", [False, True])
def test_which_rules_are_incremental(rule: str, extras: bool) -> None:
    """f(x[:i]) = f(x)[:i] for every prefix, documents and a limit on lengths included, if and only if it says so."""
    ids, s = random_rows(1, 60)
    ids[0, [20, 21, 40]] = torch.tensor([p.EOS, p.BOS, p.EOS])

    def boundaries(n: int) -> list[bool]:
        starts = RULES[rule](ids[:, :n], s[:, :n], None)
        if extras:
            closes = (ids[:, :n] == p.EOS) | p.document_begins(ids[:, :n])
            starts = p.split_patches(p.close_patches(starts, closes), 5)
        return starts[0].tolist()

    whole = boundaries(60)
    same = [boundaries(n) == whole[: n + 1] for n in range(61)]
    assert all(same) == p.INCREMENTAL[rule]


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_different_length_equal_single_rows(rule: str) -> None:
    ids, s = random_rows(5, 30)
    lengths = torch.tensor([30, 1, 17, 0, 2])
    starts = RULES[rule](ids, s, lengths)
    found, numbers = p.patch_lengths(starts, lengths), p.patch_ids(starts, lengths)
    assert found.sum(1).tolist() == [n + 1 for n in lengths.tolist()]
    for row, n in enumerate(lengths.tolist()):
        alone = RULES[rule](ids[row : row + 1, :n], s[row : row + 1, :n], None)
        assert torch.equal(starts[row : row + 1, : n + 1], alone)
        expected = p.patch_lengths(alone)[0].tolist()
        assert found[row].tolist() == expected + [0] * (found.shape[1] - len(expected))
        assert numbers[row].tolist() == p.patch_ids(alone)[0].tolist() + [-1] * (30 - n)


@pytest.mark.parametrize("rule", RULES)
def test_no_byte_and_one_byte(rule: str) -> None:
    for n, lengths in ((0, [1]), (1, [1, 1])):
        ids, s = random_rows(2, n)
        starts = RULES[rule](ids, s, None)
        assert starts.tolist() == [[True] * (n + 1)] * 2
        assert p.patch_lengths(starts).tolist() == [lengths] * 2
        assert p.patch_ids(starts).shape == p.complete_patches(starts).shape == (2, n)


def test_all_boundaries_and_none() -> None:
    _, s = random_rows(1, 10)
    assert p.patch_lengths(p.threshold_starts(s, -1.0)).tolist() == [[1] * 11]
    assert p.patch_lengths(p.threshold_starts(s, 99.0)).tolist() == [[1, 10]]


def test_long_patches_are_split() -> None:
    starts = p.explicit_starts(torch.tensor([[1, 7, 3, 1]]), 11)
    assert p.patch_lengths(p.split_patches(starts, 3)).tolist() == [[1, 3, 3, 1, 3, 1]]
    assert torch.equal(p.split_patches(starts, 20), starts)
    assert p.split_patches(starts, 1).all()


@given(st.lists(st.integers(1, 9), min_size=0, max_size=12), st.integers(1, 9))
def test_lengths_and_starts_are_inverse(lengths: list[int], last: int) -> None:
    given_lengths = torch.tensor([[1, *lengths, last]])
    n = int(given_lengths.sum()) - 1
    starts = p.explicit_starts(torch.nn.functional.pad(given_lengths, (0, 3)), n)
    # Byte 1 begins a patch too, so what follows the first one must be there.
    assert p.patch_lengths(starts).tolist() == given_lengths.tolist()


def test_explicit_lengths_may_leave_the_next_byte_open() -> None:
    closed, going_on = p.explicit_starts(torch.tensor([[1, 2, 1]]), 3), p.explicit_starts(torch.tensor([[1, 2, 0]]), 3)
    assert closed.tolist() == [[True, True, False, True]] and going_on.tolist() == [[True, True, False, False]]
    # A first patch of several bytes is split after byte 0.
    assert p.patch_lengths(p.explicit_starts(torch.tensor([[4]]), 4)).tolist() == [[1, 4]]


def test_places_in_documents() -> None:
    """A document begins where BOS follows EOS; an EOS alone (the end of a turn) and a BOS alone begin none."""
    ids = torch.tensor([[p.BOS, 9, p.EOS, p.BOS, 9, 9, p.BOS, p.EOS, 9]])
    assert p.positions_since(p.document_begins(ids)).tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5]]


def test_entropies_of_logits() -> None:
    """Uniform over 260 is ln 260; a certain byte 0; two equal ones ln 2, with the others at minus infinity."""
    logits = torch.full((3, 260), -torch.inf)
    logits[0], logits[1, 7], logits[2, :2] = 0.0, 0.0, 3.0
    expected = torch.tensor([math.log(260), 0.0, math.log(2)])
    torch.testing.assert_close(p.next_byte_entropies(logits), expected, rtol=0, atol=1e-6)
    wide = torch.randn(4, 260, dtype=torch.float64)
    independent = torch.distributions.Categorical(logits=wide).entropy().float()
    torch.testing.assert_close(p.next_byte_entropies(wide), independent)


def test_a_threshold_is_the_midpoint_of_neighbours_by_hand() -> None:
    """Of 1..10 five are to lie above: 6..10, so that the threshold is 5.5. Of 1, 1, 1, 4 only one can be told apart."""
    assert p.calibrate_threshold(torch.arange(1.0, 11.0), 2.0) == 5.5
    assert p.calibrate_threshold(torch.tensor([1.0, 1.0, 4.0, 1.0]), 2.0) == 2.5


def test_rounding_does_not_move_a_calibrated_boundary() -> None:
    _, s = random_rows(1, 20_000)
    threshold = p.calibrate_threshold(s, 4.5)
    starts = p.threshold_starts(s, threshold)
    assert abs(20_001 / float(starts[:, :-1].sum()) - 4.5) < 0.05
    distance = (s - threshold).abs().min()
    for noise in (-0.9 * distance, 0.9 * distance):
        assert torch.equal(p.threshold_starts(s + noise, threshold), starts)
    # The gap taken is the widest of those that give about this many patches, not just any.
    ordered = s.flatten().sort(descending=True).values
    near = ordered[4445 - 40 : 4445 + 40]
    assert 2 * distance >= (near[:-1] - near[1:]).max() * 0.99


@pytest.mark.parametrize(
    ("scores", "length", "message"),
    [
        ([1.0, 1.0], 2.0, "different scores: 1"),
        ([], 2.0, "different scores: 0"),
        ([1.0, math.nan], 2.0, "1 scores are not finite"),
        ([1.0, 2.0], 1.0, "mean_patch_length is 1.0"),
        ([1.0, 2.0], math.nan, "mean_patch_length is nan"),
    ],
)
def test_what_cannot_be_calibrated(scores: list[float], length: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        p.calibrate_threshold(torch.tensor(scores), length)
