import pytest
import torch

from selftaught.functional.byte_hash import PRIME, next_ngram_hashes, ngram_hashes

SIZES = (3, 4, 5, 6, 7, 8)


def wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def test_a_hash_by_hand() -> None:
    """With a = 10, RollPoly(1, 2, 3) = 1 + 20 + 300 = 321; at the first byte the two missing ones are 0: 100."""
    assert ngram_hashes(torch.tensor([[1, 2, 3]]), (3,), prime=10)[0, :, 0].tolist() == [100, 210, 321]


def test_agreement_with_exact_integers() -> None:
    ids = torch.randint(0, 260, (2, 40), generator=torch.Generator().manual_seed(0))
    hashes = ngram_hashes(ids, SIZES)
    for row in range(2):
        padded = [0] * 7 + ids[row].tolist()
        for i in range(40):
            for column, n in enumerate(SIZES):
                gram = padded[i + 8 - n : i + 8]
                assert hashes[row, i, column] == wrapped(sum(x * PRIME**j for j, x in enumerate(gram)))


def test_one_byte_more_gives_the_last_column() -> None:
    ids = torch.randint(0, 260, (3, 12), generator=torch.Generator().manual_seed(1))
    whole = ngram_hashes(ids, SIZES)
    for n in range(1, 13):
        assert torch.equal(next_ngram_hashes(ids[:, :n], SIZES), whole[:, n - 1])
        assert torch.equal(next_ngram_hashes(ids[:, max(0, n - 8) : n], SIZES), whole[:, n - 1])


def test_a_document_is_hashed_as_if_alone() -> None:
    ids = torch.randint(4, 260, (1, 20), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    together = ngram_hashes(ids, SIZES, positions)
    assert torch.equal(together[:, 9:], ngram_hashes(ids[:, 9:], SIZES))
    assert not torch.equal(together[:, 9:], ngram_hashes(ids, SIZES)[:, 9:])


def test_no_byte() -> None:
    assert ngram_hashes(torch.zeros(2, 0, dtype=torch.int64), SIZES).shape == (2, 0, 6)


@pytest.mark.parametrize("sizes", [(), (0, 3), (4, 3), (3, 3)])
def test_sizes_must_ascend(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="n-gram sizes"):
        ngram_hashes(torch.zeros(1, 2, dtype=torch.int64), sizes)
