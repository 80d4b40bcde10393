import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import architectures
from tests.train import samples

from selftaught.errors import InputError
from selftaught.train.batching import (
    Batcher,
    collate,
    make_items,
    micro_batches,
    separate_rows,
    shares,
    tree_row,
    with_reference,
)
from selftaught.train.encoding import Encoded, encode
from selftaught.types import Completion, Demonstration, Pair, Prompt

EXAMPLE = Encoded(
    id="e",
    weight=1.0,
    prompt=np.array([10, 11]),
    completions=(np.array([20, 21, 1]), np.array([30, 1])),
    completion_ids=("a", "b"),
    finished=(True, True),
    retokenised=0,
)


def test_a_tree_row_by_hand():
    """The row is 10 11 | 20 21 | 30; both completions' first tokens are predicted from token 1, the prompt's last."""
    row = tree_row(EXAMPLE)
    assert row.tokens.tolist() == [10, 11, 20, 21, 30]
    assert row.positions.tolist() == [0, 1, 2, 3, 2]
    assert row.segments.tolist() == [0, 0, 1, 1, 2]
    assert row.sources.tolist() == [1, 2, 3, 1, 4]
    assert row.targets.tolist() == [20, 21, 1, 30, 1]
    assert row.owner.tolist() == [0, 0, 0, 1, 1]
    assert row.parts == (2, 2, 1)


def test_separate_rows_by_hand():
    first, second = separate_rows(EXAMPLE)
    assert first.tokens.tolist() == [10, 11, 20, 21]
    assert (first.sources.tolist(), first.targets.tolist(), first.owner.tolist()) == ([1, 2, 3], [20, 21, 1], [0, 0, 0])
    assert second.tokens.tolist() == [10, 11, 30]
    assert (second.sources.tolist(), second.targets.tolist(), second.owner.tolist()) == ([1, 2], [30, 1], [1, 1])


def test_rows_with_context_by_hand():
    """Of 20 21 1 the first two are context, of 30 1 the first: all are still read, and only the ends are predicted."""
    masked = dataclasses.replace(EXAMPLE, context=(2, 1))
    row, whole = tree_row(masked), tree_row(EXAMPLE)
    assert (row.sources.tolist(), row.targets.tolist(), row.owner.tolist()) == ([3, 4], [1, 1], [0, 1])
    for name in ("tokens", "positions", "segments"):
        assert getattr(row, name).tolist() == getattr(whole, name).tolist()
    assert row.parts == whole.parts
    first, second = separate_rows(masked)
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([10, 11, 20, 21], [10, 11, 30])
    assert (first.sources.tolist(), first.targets.tolist(), first.owner.tolist()) == ([3], [1], [0])
    assert (second.sources.tolist(), second.targets.tolist(), second.owner.tolist()) == ([2], [1], [1])
    for tree in (True, False):
        batch = collate(make_items([masked, EXAMPLE], tree=tree), packed=tree, pad_id=0)
        assert batch.lengths.tolist() == [1, 1, 3, 2] and batch.target_count == 7


@pytest.mark.parametrize(("tree", "packed"), [(True, True), (False, True), (False, False)])
def test_context_takes_away_targets_and_nothing_else(tree, packed):
    pairs = samples.pairs(6)
    whole, masked = (
        collate(make_items(samples.encoded(rows), tree=tree), packed=packed, pad_id=0)
        for rows in (pairs, samples.with_context(pairs))
    )
    assert all(torch.equal(masked.inputs[name], tensor) for name, tensor in whole.inputs.items())
    assert 12 <= masked.target_count < whole.target_count
    for owner, example in enumerate(e for row in samples.encoded(samples.with_context(pairs)) for e in row.context):
        kept, before = masked.owner == owner, whole.owner == owner
        assert torch.equal(masked.targets[kept], whole.targets[before][example:])
        assert torch.equal(masked.sources[kept], whole.sources[before][example:])
        assert masked.lengths[owner] == kept.sum() == whole.lengths[owner] - example


def test_packed_and_padded_batches_hold_the_same_targets():
    examples = samples.encoded(samples.pairs(5))
    packed = collate(make_items(examples, tree=True), packed=True, pad_id=0)
    padded = collate(make_items(examples, tree=False), packed=False, pad_id=0)
    assert packed.owner.unique().tolist() == list(range(10))
    for owner in range(10):
        assert torch.equal(packed.targets[packed.owner == owner], padded.targets[padded.owner == owner])
    assert torch.equal(packed.lengths, padded.lengths)
    assert packed.inputs["input_ids"].numel() < padded.inputs["attention_mask"].sum()


def test_sources_point_at_the_token_before_the_target():
    examples = samples.encoded(samples.pairs(4))
    for tree, packed in ((True, True), (False, True), (False, False)):
        made = collate(make_items(examples, tree=tree), packed=packed, pad_id=0)
        read = made.inputs["input_ids"].flatten()[made.sources]
        before = [token for e in examples for c in e.completions for token in (e.prompt[-1], *c[:-1])]
        order = np.argsort(made.owner.numpy(), kind="stable")
        assert read.numpy()[order].tolist() == before


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=20),
    st.integers(1, 100),
    st.booleans(),
)
def test_micro_batches_keep_every_item_within_the_budget(sizes, budget, packed):
    examples = [
        dataclasses.replace(EXAMPLE, id=str(i), prompt=np.arange(p), completions=(np.arange(c),), completion_ids=("x",))
        for i, (p, c) in enumerate(sizes)
    ]
    items = make_items(examples, tree=True)
    parts = micro_batches(items, budget, packed)
    assert sorted(i.example.id for part in parts for i in part) == sorted(i.example.id for i in items)
    for part in parts:
        cost = sum(i.tokens for i in part) if packed else len(part) * max(i.width for i in part)
        assert cost <= budget or len(part) == 1


def test_the_order_of_items_does_not_matter():
    items = make_items(samples.encoded(samples.pairs(9)), tree=True)
    forwards, backwards = micro_batches(items, 60, True), micro_batches(items[::-1], 60, True)
    assert [[i.example.id for i in part] for part in forwards] == [[i.example.id for i in part] for part in backwards]


def test_shares_are_a_partition_of_close_loads():
    items = make_items(samples.encoded(samples.pairs(20)), tree=True)
    hands = shares(items, 3)
    assert sorted(i.example.id for hand in hands for i in hand) == sorted(i.example.id for i in items)
    loads = [sum(i.tokens for i in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(i.tokens for i in items)


def test_ranks_that_must_keep_step_make_equally_many_passes():
    items = make_items(samples.encoded(samples.pairs(3)), tree=True)
    budget = max(i.tokens for i in items)
    batchers = [
        Batcher(packed=True, pad_id=0, device=torch.device("cpu"), rank=rank, world=4, in_step=True)
        for rank in range(4)
    ]
    passes = [len(b.split(items, budget)) + b.idle_passes(items, budget) for b in batchers]
    assert len(set(passes)) == 1
    assert dataclasses.replace(batchers[3], in_step=False).idle_passes(items, budget) == 0


def test_sampled_ids_are_kept_and_text_is_counted():
    prompt = Prompt.from_text("ab")
    sampled = Completion(prompt_id=prompt.id, k=0, text="c", token_ids=(5, 1), tokenizer="mine")
    foreign = dataclasses.replace(sampled, tokenizer="other")
    for completion, again in ((sampled, 0), (foreign, 1)):
        (one,) = encode(
            architectures.tokenizer(), [Demonstration(prompt=prompt, completion=completion)], "plain", "mine"
        )
        assert (one.completions[0].tolist(), one.retokenised) == ([5, 1], again)


def test_empty_prompts_and_completions_are_named():
    prompt = Prompt.from_text("")
    row = Demonstration(prompt=prompt, completion=Completion(prompt_id=prompt.id, k=0, text="a"))
    with pytest.raises(InputError, match=f"{row.id}: its prompt has no token"):
        encode(architectures.tokenizer(), [row], "plain", "")
    prompt = Prompt.from_text("a")
    empty = Completion(prompt_id=prompt.id, k=0, text="", token_ids=(), finish="length")
    row = Demonstration(prompt=prompt, completion=empty)
    with pytest.raises(InputError, match=f"completion {empty.id} has no token"):
        encode(architectures.tokenizer(), [row], "plain", "")


def masked(text: str, loss_from: tuple[int, ...], **fields) -> Demonstration:
    prompt = Prompt.from_text("ab")
    completion = Completion(prompt_id=prompt.id, k=0, text=text, tokenizer="mine", **fields)
    return Demonstration(prompt=prompt, completion=completion, loss_from=loss_from)


def encode_one(row: Demonstration | Pair) -> Encoded:
    (made,) = encode(architectures.tokenizer(), [row], "plain", "mine")
    return made


def test_context_in_characters_is_context_in_tokens():
    """ "é" and "🎈" are one token each, an unknown one; "thought" given as its seven sampled letters stays as it is."""
    for begin in range(5):
        assert encode_one(masked("aé🎈b", (begin,))).first_targets == (begin,)
    made = encode_one(masked("aé🎈b", (4,)))
    assert made.completions[0][4:].tolist() == [1] and made.target_spans == ((4, 4),)
    assert encode_one(masked("aé🎈b", (0,))).context == ()
    sampled = encode_one(masked("ab", (1,), token_ids=(3, 4, 1)))
    assert (sampled.first_targets, sampled.retokenised, sampled.target_spans) == ((1,), 0, ((1, 2),))


def test_each_completion_has_a_name_of_its_own_for_each_mask():
    (pair,) = samples.pairs(1, completion=(4, 8))
    whole, one, other = (encode_one(dataclasses.replace(pair, loss_from=mask, id="")) for mask in ((), (2, 0), (3, 1)))
    chosen, rejected = pair.chosen.id, pair.rejected.id
    length = len(pair.chosen.text)
    assert whole.completion_keys == (chosen, rejected)
    assert one.completion_keys == (f"{chosen}[2:{length}]", rejected)
    assert not {*other.completion_keys} & {*whole.completion_keys, *one.completion_keys}
    with pytest.raises(InputError, match=rf"completion {chosen}\[2:{length}\] has no reference log-prob"):
        with_reference(make_items([one], tree=True)[0], {chosen: -1.0, rejected: -2.0})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (masked("abc", (4,)), r"loss_from=4 of completion \w+ lies outside of its 3 characters: mend or empty"),
        (masked("abc", (-1,)), r"loss_from=-1 of completion \w+ lies outside"),
        (masked("abc", (1, 1)), r"loss_from=\(1, 1\) must have 1 numbers, one for each completion"),
        (masked("abc", (1,), token_ids=(9, 9, 1)), r"loss_from=1 of completion \w+ has no place in its tokens"),
        (masked("abc", (3,), token_ids=(3, 4, 5), finish="length"), r"loss_from=3 of completion \w+ leaves no target"),
    ],
)
def test_context_that_makes_no_sense_is_named(row, message):
    with pytest.raises(InputError, match=f"^example {row.id}: {message}") as error:
        encode_one(row)
    assert "\n" not in str(error.value)


def test_a_missing_reference_is_named():
    (item,) = make_items([EXAMPLE], tree=True)
    assert with_reference(item, {"a": -1.0, "b": -2.0}).reference == (-1.0, -2.0)
    with pytest.raises(InputError, match="example e: completion b has no reference"):
        with_reference(item, {"a": -1.0})
