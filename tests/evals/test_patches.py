import math
from dataclasses import replace

import pytest
import torch

from selftaught.errors import InputError
from selftaught.evals.bits_per_byte import Cost
from selftaught.evals.flops import blt_sizes_of
from selftaught.evals.patches import (
    Patched,
    changed,
    length_histogram,
    mean_lengths,
    patch_facts,
    patched,
    patched_by_domain,
    patched_by_place,
    patched_text,
    trade_off,
)
from selftaught.functional.flops import blt_flops_per_byte
from selftaught.models.blt import BltConfig, ByteNgrams, ByteNgramsConfig, count_ngrams
from selftaught.models.blt.patchers import entropies, find_starts
from selftaught.types import Document

ENTROPY = BltConfig(patching="entropy", patching_threshold=0.5)


def document(*lengths: int, domain: str = "a", letter: str = "x") -> Document:
    """A text of that many bytes per patch, as they are stored: the begin symbol is a patch of its own."""
    return Document(text=letter * sum(lengths), meta={"domain": domain}, patch_lengths=(1, *lengths))


def ids_of(text: bytes) -> list[int]:
    return [1, *(b + 4 for b in text)]


@pytest.fixture(scope="module")
def model() -> ByteNgrams:
    """After "a" comes "b" or "c", equally often; after "b" and "c" nearly always "a"."""
    return count_ngrams([torch.tensor(ids_of(b"abacab" * 50))], context=1)


def test_the_begin_symbol_is_no_patch_of_the_text():
    """Three patches of 2, 1 and 3 bytes: the stored lengths are 1, 2, 1, 3, and their mean is not the text's."""
    assert patched([document(2, 1, 3)]) == Patched(bytes=6, patches=3)
    assert length_histogram([document(2, 1, 3), document(2, 2)]) == {1: 1, 2: 3, 3: 1}
    assert list(length_histogram([document(9, 1)])) == [1, 9]


def test_means_are_bytes_over_patches_not_means_of_means():
    """8 bytes in one patch and 2 in two: 10 / 3, not (8 + 1) / 2."""
    assert patched([document(8), document(1, 1)]).mean_length == pytest.approx(10 / 3)


def test_domains_are_counted_apart():
    documents = [document(4, domain="prose"), document(1, 1, domain="code"), document(2, 4, domain="prose")]
    found = patched_by_domain([*documents, Document(text="abc", patch_lengths=(1, 3))])
    assert found == {"prose": Patched(10, 3), "code": Patched(2, 2), "": Patched(3, 1)}
    assert mean_lengths(found) == {"prose": pytest.approx(10 / 3), "code": 1.0, "": 3.0}


def test_the_bytes_of_a_text_are_those_of_its_utf8():
    two = Document(text="né", patch_lengths=(1, 1, 2))
    assert patched([two]) == Patched(3, 2)


@pytest.mark.parametrize("lengths", [(), (1, 2), (1, 3, 1), (3,)])
def test_lengths_that_are_not_those_of_the_text_are_an_error(lengths):
    with pytest.raises(InputError, match=r"has 3 bytes and stored patches of \d+: patch it by a rule first"):
        patched([Document(text="abc", patch_lengths=lengths)])


def test_a_text_without_bytes_has_no_patches():
    empty = Document(text="", patch_lengths=(1,))
    assert patched([empty]) == Patched(0, 0) and patched([empty]).mean_length is None
    assert length_histogram([empty]) == {} and patched_by_place([empty], 4) == {}


def test_places_by_hand():
    """Patches of 1, 3 and 4 bytes begin at 0, 1 and 4; a patch of 5 bytes at 0, and its fifth byte is at place 4."""
    assert patched_by_place([document(1, 3, 4)], 4) == {0: Patched(4, 2), 4: Patched(4, 1)}
    assert patched_by_place([document(1, 3, 4), document(5)], 4) == {0: Patched(8, 3), 4: Patched(5, 1)}
    long = patched_by_place([document(1, 9)], 4)
    assert long == {0: Patched(4, 2), 4: Patched(4, 0), 8: Patched(2, 0)}
    assert mean_lengths(long) == {"0": 2.0, "4": None, "8": None}


def test_places_hold_all_bytes_and_patches():
    documents = [document(3, 1, 4, 1, 5), document(9, 2, 6), document(5)]
    for width in (1, 2, 3, 7, 100):
        found = patched_by_place(documents, width).values()
        assert (sum(p.bytes for p in found), sum(p.patches for p in found)) == (36, 9)


def test_places_without_a_width_are_an_error():
    with pytest.raises(InputError, match="places of 0 bytes"):
        patched_by_place([document(1)], 0)


def test_facts_are_what_json_holds():
    facts = patch_facts([document(2, 2), document(4, domain="b")], width=2)
    assert facts == {
        "patch_length": pytest.approx(8 / 3),
        "lengths": {"2": 2, "4": 1},
        "domains": {"a": 2.0, "b": 4.0},
        "drift": {"0": 2.0, "2": 4.0},
    }


def test_a_trade_off_is_of_the_documents_own_patches():
    config = BltConfig(hidden_size=8, num_attention_heads=2, global_attention_heads=2, patching="space")
    documents = [document(2, 2, letter="k"), document(4, letter="m")]
    costs = {d.id: Cost(nats, 4) for d, nats in zip(documents, (4 * math.log(2), 8 * math.log(2)), strict=True)}
    found = trade_off(changed(config, patching_threshold=0.7), documents, costs, 4)
    assert (found.threshold, found.patch_length, found.bits_per_byte) == (0.7, pytest.approx(8 / 3), pytest.approx(1.5))
    parts = blt_flops_per_byte(blt_sizes_of(config), 4, 8 / 3)
    assert found.flops_per_byte == pytest.approx(sum(parts.values()))
    longer = trade_off(config, [replace(d, patch_lengths=(1, 4)) for d in documents], costs, 4)
    assert longer.flops_per_byte < found.flops_per_byte


def test_a_changed_configuration_is_checked_and_keeps_the_rest():
    entropy = ByteNgramsConfig(context=2)
    config = BltConfig(patching="monotonic", entropy_config=entropy, ngram_sizes=[3])
    other = changed(config, patching_threshold=0.25)
    assert (other.patching, other.patching_threshold, other.ngram_sizes) == ("monotonic", 0.25, [3])
    assert config.patching_threshold != 0.25 and other.entropy_config.context == 2
    with pytest.raises(InputError, match="patching='never'"):
        changed(config, patching="never")


def test_entropies_are_of_the_bytes_they_stand_over(model):
    """s_i is the entropy of byte i + 1: over "b" and "c" stands what was unsure after "a"."""
    text = patched_text(ids_of(b"abac"), {"entropy": ENTROPY}, model)
    assert text.items == list(b"abac") and text.threshold == 0.5
    scores = entropies(model, torch.tensor([ids_of(b"abac")]))[0]
    assert text.entropies == scores[:4].tolist()
    assert text.entropies[1] == text.entropies[3] > 0.5 > text.entropies[2]


def test_patches_begin_after_scores_over_the_threshold(model):
    """The rule of the paper's data: starts at 0 and 1, and start[i + 1] = s_i > theta. "b" and "c" begin patches."""
    text = patched_text(ids_of(b"abaca"), {"entropy": ENTROPY, "byte": BltConfig(patching="byte")}, model)
    assert text.schemes == {"entropy": [1, 2, 2], "byte": [1] * 5}
    scores = entropies(model, torch.tensor([ids_of(b"abaca")]))[0].tolist()
    starts = [True, True, *(s > 0.5 for s in scores[1:])]
    assert find_starts(ENTROPY, model, torch.tensor([ids_of(b"abaca")]))[0].tolist() == starts
    begins = [sum(text.schemes["entropy"][:i]) for i in range(3)]
    assert begins == [i for i, begun in enumerate(starts[1:-1]) if begun]


def test_the_patches_of_every_rule_are_those_of_the_text(model):
    rules = ("entropy", "monotonic", "both", "space", "stride", "byte", "top_k")
    for data in (b"", b"a", b"\xff\x00\xc3", b"ab ac\nab" * 9):
        text = patched_text(ids_of(data), {rule: changed(ENTROPY, patching=rule) for rule in rules}, model)
        assert all(sum(lengths) == len(data) and 0 not in lengths for lengths in text.schemes.values())
        assert len(text.entropies) == len(data) and all(map(math.isfinite, text.entropies))


def test_the_byte_after_the_text_does_not_compete_for_patches(model):
    """Under "top_k" patches are as many as the text's bytes make: 17 and the begin symbol at 4 each are 5 with it."""
    config = changed(ENTROPY, patching="top_k", patch_size=4.0)
    found = patched_text(ids_of(b"ab ac ab bc ab ca"), {"top_k": config}, model).schemes["top_k"]
    stored = find_starts(config, model, torch.tensor([ids_of(b"ab ac ab bc ab ca")[:-1]]))
    assert len(found) == int(stored.sum()) - 1 == 3


def test_a_rule_without_entropies_has_no_threshold(model):
    space = {"space": BltConfig(patching="space")}
    assert patched_text(ids_of(b"a b"), space, model).threshold is None
    text = patched_text(ids_of(b"a b"), space | {"bpe": [3]}, None)
    assert (text.entropies, text.schemes) == ([], {"space": [2, 1], "bpe": [3]})
    assert patched_text(ids_of(b"ab"), {"bpe": [2]}, model).schemes == {"bpe": [2]}


def test_special_ids_inside_a_text_are_named(model):
    text = patched_text([*ids_of(b"a"), 2, 1, *ids_of(b"b")[1:]], {"byte": BltConfig(patching="byte")}, model)
    assert text.items == [97, "<eos>", "<bos>", 98]


def test_entropies_are_of_the_context_that_the_rule_keeps():
    """After a newline and "b" comes "c", after "b" alone "c" or "d": the reset one cannot tell the two apart."""
    model = count_ngrams([torch.tensor(ids_of(b"\nbcabd" * 50))], context=2)
    reset = changed(ENTROPY, entropy_resets_at_newline=True)
    kept, without = (patched_text(ids_of(b"\nbc"), {"entropy": rule}, model) for rule in (ENTROPY, reset))
    assert kept.entropies[:2] == without.entropies[:2]
    assert kept.entropies[2] < 0.5 < without.entropies[2]
