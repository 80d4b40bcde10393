from collections import Counter

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selftaught.evals.temperatures import (
    ChosenTemperatures,
    FixedTemperature,
    Trace,
    against_fixed,
    best_by_kind,
    best_of,
    by_place,
    choice_counts,
    heat_rows,
    kept_temperatures,
    kind_of,
    measure_temperatures,
    places,
    shares_by_kind,
    traces,
)
from selftaught.models.blt.tokenization import ByteTokenizer
from selftaught.specs import Choice, ModelSpec
from selftaught.types import Completion, Group, Pair, Prompt

FIXED = {"0": {"p": 1.0, "q": 0.2}, "1": {"p": 0.0, "q": 0.6}}
KINDS = {"p": "sums", "q": "lists"}
CHOICES = (Choice(temperature=0.0), Choice(temperature=0.5), Choice(temperature=1.0))
WORDS = ("<pad>", "<eos>", "<unk>", " abe", " bo", " di", ".")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSpec:
    """A directory with nothing but a tokenizer."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+|\."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<eos>", "<unk>"])
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.save_pretrained(path)
    return ModelSpec(source=str(path))


def answer(prompt: Prompt, words: str, *choices: float, k: int = 0) -> Completion:
    """Return a completion of the words of `WORDS` at these places, ended by the end-of-turn token."""
    ids = (*(int(w) for w in words), 1)
    text = "".join(WORDS[i] for i in ids[:-1])
    return Completion(prompt_id=prompt.id, k=k, text=text, token_ids=ids, latents={"choice": choices})


def groups_of(*completions: tuple[Prompt, Completion]) -> list[Group]:
    return [Group(prompt=prompt, completions=(completion,)) for prompt, completion in completions]


def test_the_best_fixed_way_and_the_best_of_each_kind():
    assert best_of(FIXED, KINDS) == "0"  # means 0.6 and 0.3
    assert best_by_kind(FIXED, KINDS) == {"sums": "0", "lists": "1"}
    assert best_of({"a": {"p": None}, "b": {"p": -1.0}}, ["p"]) == "b"


def test_against_fixed_by_hand():
    """The best has 1 and 0.2 (0.6), the oracle 1 and 0.6 (0.8). With 1 and 0.4: +0.1; 0.7 / 0.8 - 1; 0.8 / 0.6 - 1."""
    found = against_fixed({"p": 1.0, "q": 0.4}, FIXED, KINDS)
    means = {name: sum(values.values()) / 2 for name, values in found.items()}
    assert means == pytest.approx({"over_best_fixed": 0.1, "of_oracle": -0.125, "oracle_lead": 1 / 3})


def test_what_cannot_be_compared_has_no_value():
    found = against_fixed({"p": None, "q": 0.2}, {"0": {"p": 1.0, "q": 0.2}}, KINDS)
    assert found["over_best_fixed"] == {"p": None, "q": 0.0}
    losing = against_fixed({"p": -1.0, "q": -1.0}, {"0": {"p": -2.0, "q": -2.0}}, KINDS)
    assert losing["over_best_fixed"] == {"p": 1.0, "q": 1.0}
    assert losing["of_oracle"] == losing["oracle_lead"] == {"p": None, "q": None}


def test_kinds():
    assert kind_of(Prompt.from_text("x")) == "all"
    assert kind_of(Prompt.from_text("x", meta={"category": 3})) == "3"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        (["a", "b", "."], [0, 1, 2]),
        (["abe", ".", "bo", "?", "!", "di"], [0, 1, 0, 1, 2, 0]),
        ([" ", "abe", "\n", " ", "bo"], [1, 0, 1, 2, 0]),  # blanks begin nothing
        (["Yes.", " No. ", " 3", ".5"], [0, 0, 0, 1]),
        (["(", "abe"], [1, 0]),
    ],
)
def test_places_in_sentences(tokens, expected):
    assert places(tokens) == expected


def test_traces_of_chosen_fixed_and_kept_temperatures(model):
    """` abe bo. di` and the end: the end-of-turn token has a temperature and is no part of a sentence."""
    prompt = Prompt.from_text("p")
    completion = answer(prompt, "3465", 0, 2, 2, 1, 2)
    (group,) = groups_of((prompt, completion))
    (trace,) = traces([group], model, ChosenTemperatures(choices=CHOICES))[prompt.id]
    assert trace == Trace(tokens=(" abe", " bo", ".", " di"), temperatures=(0.0, 1.0, 1.0, 0.5), places=(0, 1, 2, 0))
    (fixed,) = traces([group], model, FixedTemperature(temperature=0.7))[prompt.id]
    assert fixed.temperatures == (0.7,) * 4
    one = Completion(prompt_id=prompt.id, k=0, text="", token_ids=(1,), latents={"temperature": (0.3,)})
    assert traces(groups_of((prompt, one)), model, kept_temperatures)[prompt.id][0].tokens == ()


def test_a_character_of_several_tokens_begins_a_sentence_with_the_first(tmp_path):
    ByteTokenizer().save_pretrained(tmp_path)
    prompt, text = Prompt.from_text("p"), "Été. Où"
    ids = tuple(ByteTokenizer()(text, add_special_tokens=False)["input_ids"])
    one = Completion(prompt_id=prompt.id, k=0, text=text, token_ids=(*ids, 2), latents={})
    (trace,) = traces(groups_of((prompt, one)), ModelSpec(source=str(tmp_path)), FixedTemperature(temperature=0.7))[
        prompt.id
    ]
    assert trace.tokens == ("É", "", "t", "é", "", ".", " ", "O", "ù", "")
    assert trace.places == (0, 1, 2, 3, 4, 5, 6, 0, 1, 2)


def test_a_choice_for_the_whole_answer_is_that_of_every_token(model):
    prompt = Prompt.from_text("p")
    found = traces(groups_of((prompt, answer(prompt, "3465", 2))), model, ChosenTemperatures(choices=CHOICES))
    assert found[prompt.id][0].temperatures == (1.0,) * 4


def test_temperatures_by_hand():
    """Starts 0 and 0.5, elsewhere 1 and 1: means 0.625, 0.25, 1, and a difference of -0.75."""
    trace = Trace(tokens=("a", "b", ".", "c"), temperatures=(0.0, 1.0, 1.0, 0.5), places=(0, 1, 2, 0))
    values = {name: found["p"] for name, found in measure_temperatures({"p": [trace]}).items()}
    assert values == {
        "temperature": 0.625,
        "temperature_starts": 0.25,
        "temperature_elsewhere": 1.0,
        "temperature_gap": -0.75,
    }
    assert by_place({"p": [trace]}) == [0.25, 1.0, 1.0] and by_place({"p": [trace]}, most=1) == [0.25]


def test_an_empty_answer_has_no_temperature():
    empty = Trace(tokens=(), temperatures=(), places=())
    assert {v["p"] for v in measure_temperatures({"p": [empty]}).values()} == {None}
    assert by_place({"p": [empty]}) == []


def test_how_often_each_choice_was_made():
    prompt, other = Prompt.from_text("p", meta={"category": "a"}), Prompt.from_text("q", meta={"category": "b"})
    first, second = answer(prompt, "346", 0, 2, 2, 2), answer(prompt, "3", 1, 2, k=1)
    pairs = [Pair(prompt=prompt, chosen=first, rejected=second)]
    assert choice_counts(pairs, ("0", "0.5", "1")) == {
        "chosen 0": 1, "chosen 0.5": 0, "chosen 1": 3, "rejected 0": 0, "rejected 0.5": 1, "rejected 1": 1
    }  # fmt: skip
    groups = groups_of((prompt, first), (other, answer(other, "3", 1, 1)))
    shares = shares_by_kind(groups, ("0", "0.5", "1"), {prompt.id: "a", other.id: "b"})
    assert shares == {"a": {"0": 0.25, "0.5": 0.0, "1": 0.75}, "b": {"0": 0.0, "0.5": 1.0, "1": 0.0}}


def test_heat_rows_take_kinds_in_turn(model):
    prompts = [Prompt.from_text(f"p{i}", meta={"category": "ab"[i // 3]}) for i in range(6)]
    groups = groups_of(*((prompt, answer(prompt, "34", 0, 1, 2)) for prompt in prompts))
    rows = list(heat_rows(groups, Counter(), model=model, choices=CHOICES, most=4))
    assert [row.meta["prompt"] for row in rows] == ["p0", "p3", "p1", "p4"]
    assert rows[0].meta == {"kind": "a", "prompt": "p0", "tokens": [" abe", " bo"], "temperatures": [0.0, 0.5]}
    assert rows[0].parents == (groups[0].completions[0].id,)
    assert len(list(heat_rows(groups, Counter(), model=model, choices=CHOICES, most=99))) == 6
