import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.models.blt.conftest import TEXT, random_bytes
from transformers import AutoModel

from selftaught.errors import InputError
from selftaught.functional import patches as p
from selftaught.models.blt import ByteNgrams, count_ngrams

SYMBOLS = 257
HALF_UNIT = 2.0**-20


def ids_of(text: bytes) -> torch.Tensor:
    return torch.tensor(list(text), dtype=torch.int64) + p.OFFSET


def entropy_by_dictionary(texts: list[bytes], context: tuple[int, ...]) -> float:
    """Return the entropy after `context`, symbols oldest first, by Witten and Bell's rule from plain counts."""
    rows = [[0, 0, 0, *(b + 1 for b in text)] for text in texts]
    chances = [1 / SYMBOLS] * SYMBOLS
    for order in range(len(context) + 1):
        suffix = context[len(context) - order :]
        seen = Counter(row[i] for row in rows for i in range(3, len(row)) if tuple(row[i - order : i]) == tuple(suffix))
        if seen:
            total, kinds = sum(seen.values()), len(seen)
            chances = [(seen[v] + kinds * chances[v]) / (total + kinds) for v in range(SYMBOLS)]
    return -sum(c * math.log(c) for c in chances)


def test_no_context_by_hand() -> None:
    """Of "aab": P(a) = (2 + 2/257) / 5, P(b) = (1 + 2/257) / 5, and (2/257) / 5 for each of the 255 others."""
    u = 2 / 257
    chances = [(2 + u) / 5, (1 + u) / 5, *[u / 5] * 255]
    model = count_ngrams([ids_of(b"aab")], context=0)
    expected = -sum(c * math.log(c) for c in chances)
    assert model.entropies(ids_of(b"xyz")[None]).tolist() == [[pytest.approx(expected, abs=1e-6)] * 3]


@pytest.mark.parametrize("context", [1, 2, 3])
def test_agreement_with_plain_counts(context: int) -> None:
    texts = [TEXT, b"a cat, at that", b"", b"x"]
    model = count_ngrams([ids_of(t) for t in texts], context)
    # Seen contexts, contexts seen only in part, unseen bytes, and the beginning.
    probe = b"the rat sat: zq the"
    found = model.entropies(ids_of(probe)[None])[0]
    padded = [0, 0, 0, *(b + 1 for b in probe)]
    for i, value in enumerate(found.tolist()):
        expected = entropy_by_dictionary(texts, tuple(padded[i + 4 - context : i + 4]))
        assert value == pytest.approx(expected, abs=2 * HALF_UNIT)


def test_what_lies_before_a_document_is_no_context(ngrams: ByteNgrams) -> None:
    text = ids_of(b"the catthe cat")[None]
    positions = torch.cat([torch.arange(7), torch.arange(7)])[None]
    found = ngrams.entropies(text, positions)
    assert torch.equal(found[:, :7], found[:, 7:])
    assert not torch.equal(ngrams.entropies(text)[:, 7:], found[:, 7:])


def test_all_ids_have_an_entropy_and_special_ones_are_no_context(ngrams: ByteNgrams) -> None:
    ids = torch.randint(0, p.VOCABULARY, (3, 50), generator=torch.Generator().manual_seed(0))
    found = ngrams.entropies(ids)
    assert found.isfinite().all() and (found > 0).all() and (found <= math.log(SYMBOLS) + 1e-6).all()
    assert ngrams.entropies(torch.tensor([[p.BOS, p.EOS]])).unique().numel() == 1
    assert ngrams.entropies(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0)


def test_rows_and_padding(ngrams: ByteNgrams) -> None:
    ids = random_bytes(2, 20)
    together = ngrams.entropies(ids)
    assert torch.equal(together[1:, :7], ngrams.entropies(ids[1:, :7]))


def test_entropies_are_the_same_in_every_dtype(ngrams: ByteNgrams, tmp_path: Path) -> None:
    ngrams.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        again = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        assert isinstance(again, ByteNgrams)
        assert torch.equal(again.entropies(ids_of(TEXT)[None]), ngrams.entropies(ids_of(TEXT)[None]))


def test_new_counts_replace_the_table(ngrams: ByteNgrams) -> None:
    other = count_ngrams([ids_of(TEXT[::-1])])
    ids = ids_of(b"the cat")[None]
    own = ByteNgrams(other.config)
    own.entropies(ids)
    own.load_state_dict(other.state_dict())
    assert torch.equal(own.entropies(ids), other.entropies(ids))


def test_what_cannot_be_counted() -> None:
    with pytest.raises(InputError, match="0 to 3 bytes"):
        count_ngrams([ids_of(b"ab")], context=4)
    with pytest.raises(InputError, match="no text"):
        count_ngrams([ids_of(b"")])
