from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.models.load import tokenizer_fingerprint
from selftaught.models.scratch import train_tokenizer
from selftaught.models.special_tokens import add_to_tokenizer
from selftaught.select.backtracking import BacktrackPairs, BacktrackRows, Cut, clean, clean_rows, words
from selftaught.specs import Scratch
from selftaught.train.batching import separate_rows, tree_row
from selftaught.train.encoding import encode
from selftaught.types import Completion, Demonstration, Message, Pair, Prompt

SAFE, UNSAFE = "I will not.", "Take a knife. Then cut. Then run."
R = "[RESET]"


def pair_of(safe: str = SAFE, unsafe: str = UNSAFE, question: str = "how?") -> Pair:
    prompt = Prompt.from_text(question)
    chosen, rejected = (Completion(prompt_id=prompt.id, k=i, text=t) for i, t in enumerate((safe, unsafe)))
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected)


def flagged(prompt: Prompt, text: str) -> bool:
    return "cut" in text


def demonstration(text: str) -> Demonstration:
    prompt = Prompt.from_text("2+2?")
    return Demonstration(prompt=prompt, completion=Completion(prompt_id=prompt.id, k=0, text=text))


# --- where answers are cut -------------------------------------------------------------------------------------------


def test_words_end_before_the_blank_that_begins_the_next():
    assert [UNSAFE[:end] for end in words(UNSAFE)][:3] == ["Take", "Take a", "Take a knife."]
    assert words("") == words("  \n ") == []
    assert words("s01t02d3", r"[a-z]\d+") == [3, 6, 8]


@given(text=st.text(max_size=30), seed=st.integers(0, 5), rule=st.sampled_from(["uniform", "sentence"]))
def test_a_cut_leaves_a_word_on_both_sides(text, seed, rule):
    place = Cut(rule=rule, seed=seed)(Prompt.from_text("?"), text, flagged=True, name=(1,))
    if isinstance(place, str):
        assert len(text.split()) < 2
    else:
        assert text[:place].strip() and text[place:].strip()


def cuts(cut: Cut, text: str = UNSAFE, flagged: bool = True) -> set[str]:
    places = [cut(Prompt.from_text("?"), text, flagged=flagged, name=(i,)) for i in range(200)]
    return {text[:place] if isinstance(place, int) else place for place in places}


def test_the_rules():
    assert len(cuts(Cut())) == 6
    assert cuts(Cut(rule="sentence")) == {"Take a knife.", "Take a knife. Then cut."}
    assert cuts(Cut(rule="sentence"), "no stop here") == {"no", "no stop"}
    first = Cut(rule="first_flagged", classifier=flagged)
    assert cuts(first) == {"Take a knife. Then cut."}
    assert cuts(replace(first, later=1.0)) == {"Take a knife. Then cut.", "Take a knife. Then cut. Then"}
    assert cuts(first, "Take a knife") == {"no part of the unsafe answer is flagged"}
    assert cuts(first, "one two", flagged=False) == {"one"}


def test_the_share_of_later_cuts():
    cut = Cut(rule="first_flagged", classifier=flagged, later=0.5)
    text = "cut " + "on " * 99
    places = [cut(Prompt.from_text("?"), text, flagged=True, name=(i,)) for i in range(1000)]
    assert 0.45 < sum(place > 3 for place in places) / 1000 < 0.55


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"rule": "anywhere"}, "cut rule 'anywhere': give one of uniform, first_flagged, sentence"),
        ({"rule": "first_flagged"}, "asks a classifier"),
        ({"later": 1.5}, "later=1.5 is not a share"),
        ({"unit": "("}, "is no regular expression"),
    ],
)
def test_cuts_that_mean_nothing(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        Cut(**fields)


# --- supervised rows -------------------------------------------------------------------------------------------------


def test_a_pair_gives_a_plain_row_and_a_reset_row():
    rows = list(BacktrackRows(cut=Cut(rule="first_flagged", classifier=flagged))([pair_of()]))
    assert [(r.completion.text, r.loss_from) for r in rows] == [
        (SAFE, ()),
        ("Take a knife. Then cut.[RESET]I will not.", (23,)),
    ]
    assert [r.meta for r in rows] == [{"kind": "plain"}, {"kind": "reset", "cut": 23}]
    assert {r.parents for r in rows} == {(pair_of().id,)}


@pytest.mark.parametrize(("copies", "share", "resets"), [(2, 0.0, 0), (2, 0.5, 1), (6, 0.5, 3), (3, 1.0, 3)])
def test_as_many_rows_whatever_the_share(copies, share, resets):
    rows = list(BacktrackRows(copies=copies, reset_share=share)([pair_of()]))
    assert len(rows) == copies and sum(R in r.completion.text for r in rows) == resets
    assert len({r.id for r in rows}) == copies, "equal texts are rows of their own"


def test_a_share_that_does_not_come_out_even_is_drawn():
    pairs = [pair_of(question=str(i)) for i in range(400)]
    rows = BacktrackRows(copies=1, reset_share=0.25)(pairs)
    assert 70 < sum(R in r.completion.text for r in rows) < 130


@pytest.mark.parametrize("prefix", [True, False])
def test_some_prefixes_follow_harmless_prompts(prefix):
    """x' prefix(y-) [RESET] y+: the baseline has x y+ in its place, or it would learn to refuse x'."""
    harmless = [demonstration("4")]
    rule = BacktrackRows(copies=2, other_prompts=1.0, prefix=prefix, cut=Cut(rule="sentence"))
    plain, reset, utility = rule([pair_of(unsafe="One. Two.")], harmless)
    assert (plain.prompt.text, plain.completion.text, utility) == ("how?", SAFE, harmless[0])
    expected = ("2+2?", "One.[RESET]" + SAFE, (4,)) if prefix else ("how?", SAFE, ())
    assert (reset.prompt.text, reset.completion.text, reset.loss_from) == expected


def test_the_share_of_other_prompts():
    pairs = [pair_of(question=str(i)) for i in range(400)]
    rows = list(BacktrackRows(other_prompts=0.25)(pairs, [demonstration(str(i)) for i in range(50)]))
    others = [r.prompt.text for r in rows[:800] if r.prompt.text == "2+2?"]
    assert 70 < len(others) < 130
    assert not any(r.prompt.text == "2+2?" for r in BacktrackRows(other_prompts=1.0)(pairs))


def test_copies_are_cut_at_places_of_their_own():
    rows = BacktrackRows(copies=12, reset_share=1.0)([pair_of(unsafe="a b c d e f g h")])
    assert len({r.loss_from for r in rows}) > 3


def test_the_bad_arms():
    cut = Cut(rule="first_flagged", classifier=flagged)
    midway = list(BacktrackRows(token="", cut=cut)([pair_of()]))[1]
    assert (midway.completion.text, midway.loss_from) == ("Take a knife. Then cut.I will not.", (23,))
    unmasked = list(BacktrackRows(mask_prefix=False, cut=cut)([pair_of()]))[1]
    assert (unmasked.completion.text, unmasked.loss_from) == ("Take a knife. Then cut.[RESET]I will not.", ())


def test_rows_do_not_depend_on_their_order():
    pairs = [pair_of(question=str(i)) for i in range(20)]
    rule = BacktrackRows(reset_share=0.3, cut=Cut(seed=4))
    assert {r.id for r in rule(pairs)} == {r.id for r in rule(pairs[::-1])}
    assert {r.id for r in rule(pairs)} != {r.id for r in replace(rule, cut=Cut(seed=5))(pairs)}


def test_what_cannot_be_cut_is_counted():
    dropped = Counter()
    rule = BacktrackRows(cut=Cut(rule="first_flagged", classifier=flagged))
    rows = list(rule([pair_of(unsafe="cut"), pair_of(unsafe="No knife"), pair_of(safe=" ")], (), dropped))
    assert [r.completion.text for r in rows] == [SAFE] * 4
    assert dropped == {
        "an unsafe answer of one word has no place to cut: trained without a reset": 1,
        "no part of the unsafe answer is flagged: trained without a reset": 1,
        "an answer is empty": 1,
    }


@pytest.mark.parametrize("fields", [{"reset_share": 1.1}, {"other_prompts": -0.1}, {"copies": 0}])
def test_rows_that_mean_nothing(fields):
    with pytest.raises(InputError, match="give shares from 0 to 1, and 1 copy or more"):
        BacktrackRows(**fields)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_of_every_kind():
    rule = BacktrackPairs(kinds=("positive", "negative", "useless", "plain"), cut=Cut(rule="sentence"))
    positive, negative, useless, plain = rule([pair_of(safe="No. I will not.", unsafe="One. Two.")])
    assert (positive.chosen.text, positive.rejected.text) == ("One.[RESET]No. I will not.", "One. Two.")
    assert (negative.chosen.text, negative.rejected.text) == ("No. I will not.", "No.[RESET]One. Two.")
    assert (useless.chosen.text, useless.rejected.text) == ("No. I will not.", "No.[RESET]No. I will not.")
    assert (plain.chosen.text, plain.rejected.text) == ("No. I will not.", "One. Two.")
    assert [p.loss_from for p in (positive, negative, useless, plain)] == [(4, 4), (3, 3), (3, 3), ()]
    assert [p.meta["kind"] for p in (positive, negative, useless, plain)] == [
        "positive",
        "negative",
        "useless",
        "plain",
    ]


def test_harmless_pairs_teach_no_resets():
    rows = list(BacktrackPairs()([], [pair_of(safe="four it is", unsafe="five it is")]))
    assert [(r.meta["kind"], R in r.chosen.text) for r in rows] == [("plain", False), ("negative", False)]


def test_as_many_baseline_pairs():
    pairs, harmless = ([pair_of(question=f"{name}{i}") for i in range(3)] for name in "ab")
    ours = list(BacktrackPairs()(pairs, harmless))
    plain = list(BacktrackPairs(kinds=("plain", "plain"))(pairs, harmless))
    assert [p.prompt for p in ours] == [p.prompt for p in plain]
    assert len({p.id for p in ours}) == len({p.id for p in plain}) == 12


def test_pairs_that_cannot_be_cut_are_left_out():
    dropped = Counter()
    rows = list(BacktrackPairs()([pair_of(safe="No", unsafe="Yes"), pair_of(safe="")], (), dropped))
    assert rows == [] and sum(dropped.values()) == 3


# --- the token in the data -------------------------------------------------------------------------------------------


@given(text=st.text(alphabet="[RESET]x", max_size=60))
def test_nothing_is_left_of_the_token(text):
    assert R not in clean(text, R)
    assert clean(text, R) == text or R in text


def test_only_rows_made_here_hold_the_token():
    """A data set cannot teach resets of its own: neither answers nor harmless rows."""
    hostile = pair_of(safe="I [RESET]will not.", unsafe="Take [RE[RESET]SET]a knife. Then cut.")
    dropped = Counter()
    plain, reset, utility = BacktrackRows(copies=2)([hostile], [demonstration("4[RESET]"), demonstration(R)], dropped)
    assert plain.completion.text == SAFE and utility.completion.text == "4"
    assert reset.completion.text.count(R) == 1 and reset.completion.text.index(R) == reset.loss_from[0]
    assert dropped == {"[RESET] taken out": 1, "an answer is empty": 1}
    for row in BacktrackPairs()([hostile]):
        assert (row.chosen.text + row.rejected.text).count(R) == 1


def test_clean_rows_stay_as_they_are():
    row = demonstration("4")
    assert list(clean_rows([row], Counter(), token=R)) == [row]


# --- what the trainer makes of them ----------------------------------------------------------------------------------


def tokenizer_of(kind: str):
    texts = [SAFE, UNSAFE, "how?userassistant"]
    tokenizer = train_tokenizer(Scratch(tokenizer=kind, vocab_size=300), texts)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    add_to_tokenizer(tokenizer, R)
    return tokenizer


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_no_token_of_the_prefix_is_a_target(kind, template):
    tokenizer = tokenizer_of(kind)
    reset = tokenizer.convert_tokens_to_ids(R)
    rows = [r for seed in range(6) for r in BacktrackRows(cut=Cut(seed=seed), reset_share=1.0)([pair_of()])]
    for row, encoded in zip(rows, encode(tokenizer, rows, template, tokenizer_fingerprint(tokenizer)), strict=True):
        ids = encoded.completions[0].tolist()
        first = encoded.first_targets[0]
        assert ids[first] == reset and ids.count(reset) == 1
        assert tokenizer.decode(ids[:first]) == row.completion.text[: row.loss_from[0]]
        assert separate_rows(encoded)[0].targets.tolist() == ids[first:]


def test_no_token_of_a_pairs_prefix_is_a_target():
    tokenizer = tokenizer_of("char")
    rows = list(BacktrackPairs(kinds=("positive", "negative", "useless"))([pair_of()]))
    for row, encoded in zip(rows, encode(tokenizer, rows, "plain", tokenizer_fingerprint(tokenizer)), strict=True):
        begin = row.loss_from[0]
        ends = [tokenizer(c.text[begin:])["input_ids"] for c in (row.chosen, row.rejected)]
        assert tree_row(encoded).targets.tolist() == [i for e in ends for i in (*e, tokenizer.eos_token_id)]


def test_a_user_who_writes_the_token_trains_nothing_else():
    tokenizer = tokenizer_of("char")
    prompt = Prompt(messages=(Message(role="user", content=f"how{R}?"),))
    row = Demonstration(prompt=prompt, completion=Completion(prompt_id=prompt.id, k=0, text=SAFE))
    (encoded,) = encode(tokenizer, [row], "plain", tokenizer_fingerprint(tokenizer))
    assert tokenizer.convert_tokens_to_ids(R) not in encoded.prompt.tolist()
