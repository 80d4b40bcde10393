import json
import pickle
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.worlds import shared_data

from selftaught.errors import InputError
from selftaught.evals.thoughts import by_category
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.cute import _KINDS, CUTE, LONGEST, TASKS

ROWS = [
    ("spell", ["the"], "t h e"),
    ("spell", ["and"], "a n d"),
    ("spell_inverse_rand", ["w p l"], "wpl"),
    ("contains_char", ["l", "the"], "No"),
    ("contains_word", ["is", "The big boy is mad."], "Yes"),
    ("orth", ["is", "gis", "are"], "gis"),
    ("del_word", ["smiled", "The octopus smiled."], "The octopus."),
    ("swap_char", ["e", "h", "the"], "teh"),
]


@pytest.fixture
def data(tmp_path):
    rows = [{"task": task, "inputs": inputs, "label": label} for task, inputs, label in ROWS]
    (tmp_path / "cute.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def prompt_of(task, category):
    return next(p for p in task.test() if p.meta["category"] == category)


def expected(task, inputs):
    """The answer by rule; None for similarity, and for words, which need to know where words end."""
    kind = task.removesuffix("_rand")
    rules = {
        "spell": lambda word: " ".join(word),
        "spell_inverse": lambda word: word.replace(" ", ""),
        "contains_char": lambda c, word: "Yes" if c in word else "No",
        "ins_char": lambda new, c, word: word.replace(c, c + new),
        "del_char": lambda c, word: word.replace(c, ""),
        "sub_char": lambda c, new, word: word.replace(c, new),
        "swap_char": lambda a, b, word: word.translate(str.maketrans({a: b, b: a})),
    }
    return rules[kind](*inputs) if kind in rules else None


def test_prompts(data):
    task = CUTE(data=data, shots=1)
    prompt = prompt_of(task, "swap_char")
    assert prompt.text == (
        'Question: Write "lantern" with "n" and "e" swapped everywhere.\nAnswer: laetnre\n\n'
        'Question: Write "the" with "e" and "h" swapped everywhere.\nAnswer:'
    )
    assert prompt.gold == "teh" and prompt.meta == {
        "category": "swap_char",
        "level": "char",
        "random": False,
        "inputs": ["e", "h", "the"],
    }
    assert CUTE(data=data).test(1)[0].text.count("Question:") == 5
    told = CUTE(data=data, style="instruct", shots=0).test(1)[0].text
    assert told.startswith('Question: Spell the word "the"') and "Answer:" in told


def test_tasks_come_in_turn_and_can_be_chosen(data):
    """The second spelling comes after the first of every other task."""
    found = [p.meta["category"] for p in CUTE(data=data).test()]
    once = [task for task, *_ in ROWS[1:]]
    assert found == [*once, "spell"]
    chosen = CUTE(data=f"{data}/cute.jsonl", tasks=("spell", "orth")).test()
    assert [p.meta["category"] for p in chosen] == ["spell", "orth", "spell"]
    assert CUTE(data=data).train() == CUTE(data=data).dev() == CUTE(data=data).demonstrations() == []


def test_our_examples_are_right_and_differ():
    for task, kind in _KINDS.items():
        assert len({example[:-1] for example in kind.examples}) == 4
        for *inputs, label in kind.examples:
            assert kind.question.format(*inputs).count('"') >= 2
            assert expected(task, inputs) in (None, label), (task, inputs)
            assert task not in ("orth", "sem") or label in inputs[1:]


@pytest.mark.parametrize(
    ("category", "text", "right"),
    [
        ("spell", " t h e", True),
        ("spell", " t h e\n\nQuestion: Spell the word", True),
        ("spell", '"t  h e".', True),
        ("spell", "**Answer:** t h e", True),
        ("spell", "Answer:\n`t h e`", True),
        ("spell", "the", False),
        ("spell", "T H E", False),
        ("spell", "a n d\nAnswer: t h e", False),
        ("spell_inverse_rand", "“wpl”!", True),
        ("spell_inverse_rand", "w p l", False),
        ("contains_char", "no", True),
        ("contains_char", "No, it does not.", True),
        ("contains_char", "Yes", False),
        ("contains_char", "Yes or No", False),
        ("contains_char", "Nothing", False),
        ("contains_word", "YES!", True),
        ("contains_word", "Yes and no", False),
        ("orth", "'gis'", True),
        ("orth", "gis or are", False),
        ("del_word", '"The octopus."', True),
        ("del_word", "The octopus", False),
        ("swap_char", "teh", True),
        ("swap_char", "the", False),
        ("swap_char", "", False),
        ("swap_char", "Answer:", False),
        ("swap_char", "teh" * LONGEST, False),
    ],
)
def test_verdicts(data, category, text, right):
    task = CUTE(data=data)
    assert task.verify(prompt_of(task, category), text) is right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Let me think.\nAnswer: wrong\nNo: answer: x\n### Answer: t h e", "t h e"),
        ("Sure.\n> **Answer:**\n\n  *t h e*\nBye.", "t h e"),
        ("t h e", "t h e"),
        ("Answer:", None),
        (" \n\t", None),
    ],
)
def test_answers_of_a_chat_model(data, text, answer):
    assert CUTE(data=data, style="instruct").answer(text) == answer


@given(
    st.text(alphabet=st.sampled_from("answer:*\"'“”` \n#>teh.YNo"), max_size=80), st.sampled_from(["plain", "instruct"])
)
def test_hostile_answers(text, style):
    """Whatever comes is read without an error, and reading what was read changes nothing."""
    task = CUTE(data="", style=style)
    answer = task.answer(text)
    assert answer is None or (answer and answer == " ".join(answer.split()))
    if answer is not None:
        assert len(answer) <= len(text)


def test_long_hostile_answers_are_quick(data):
    task = CUTE(data=data, style="instruct")
    for text in ("*" * 300_000, "Answer:" * 50_000, '"' * 300_000, "answer" + " " * 300_000 + "x", "\n" * 300_000):
        assert task.verify(task.test(1)[0], text) is False


def test_no_gold_is_undecided(data):
    task = CUTE(data=data)
    prompt = type(task.test(1)[0]).from_text("?")
    assert task.verify(prompt, "x") is None


def test_accuracy_by_task(data):
    task = CUTE(data=data)
    prompts = task.test()
    values = {p.id: float(task.verify(p, " t h e")) for p in prompts}
    found = by_category("accuracy", values, prompts)
    assert sorted(found["accuracy/spell"].values()) == [0.0, 1.0] and set(found["accuracy/orth"].values()) == {0.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task": "rhyme", "inputs": ["a"], "label": "b"}, "line 9: unknown task 'rhyme'; the tasks are spell, "),
        ({"task": "sem_rand", "inputs": ["a", "b", "c"], "label": "b"}, "unknown task 'sem_rand'"),
        ({"task": "spell", "inputs": ["a", "b"], "label": "b"}, "line 9: 'inputs' = .*; spell takes 1 texts"),
        ({"task": "spell", "inputs": [3], "label": "b"}, "spell takes 1 texts"),
        ({"task": "spell", "inputs": ["a"], "label": " "}, "line 9: 'label' is empty"),
        ({"task": "spell", "inputs": "a", "label": "a"}, "line 9: 'inputs' = 'a' is text"),
    ],
)
def test_a_bad_row_is_named(data, row, message):
    with open(f"{data}/cute.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        CUTE(data=data).test()


def test_bad_dials(data, tmp_path):
    with pytest.raises(InputError, match="shots=5"):
        CUTE(data=data, shots=5)
    with pytest.raises(InputError, match="unknown task 'rhyme'"):
        CUTE(data=data, tasks=("rhyme",))
    with pytest.raises(InputError, match=r"holds no cute\.jsonl"):
        CUTE(data=str(tmp_path / "no")).test()
    with pytest.raises(InputError, match="pass --data DIRECTORY"):
        load_task(TaskSpec(name="cute"))


def test_it_crosses_processes(data):
    task = load_task(TaskSpec(name="cute", data=data, options={"tasks": ["spell"]}))
    assert task == CUTE(data=data, tasks=("spell",)) == pickle.loads(pickle.dumps(task))


def expected_words(task, inputs):
    """The answer to a question on words, for sentences without unusual signs."""

    def replaced(sentence, **new):
        pattern = "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in new)
        text = " ".join(re.sub(pattern, lambda match: new[match[0]], sentence).split())
        return re.sub(r" (?=[.,!?;:])", "", text)

    *words, sentence = inputs
    return {
        "contains_word": lambda: "Yes" if replaced(sentence, **{words[0]: ""}) != replaced(sentence, x="x") else "No",
        "del_word": lambda: replaced(sentence, **{words[0]: ""}),
        "sub_word": lambda: replaced(sentence, **{words[0]: words[1]}),
        "ins_word": lambda: replaced(sentence, **{words[1]: f"{words[1]} {words[0]}"}),
        "swap_word": lambda: replaced(sentence, **{words[0]: words[1], words[1]: words[0]}),
    }[task]()


def test_the_real_questions_on_words():
    """Our wording asks for what the labels are; nine sentences are oddly spaced or encoded."""
    prompts = [p for p in CUTE(data=str(shared_data("cute")), shots=0).test() if p.meta["category"].endswith("_word")]
    odd = [p for p in prompts if expected_words(p.meta["category"], p.meta["inputs"]) != p.gold]
    assert len(prompts) == 5000 and len({p.meta["inputs"][-1] for p in odd}) == 9
    for name in ("del_word", "sub_word", "ins_word", "swap_word", "contains_word"):
        for *inputs, label in _KINDS[name].examples:
            assert expected_words(name, inputs) == label


def test_the_real_file():
    """21 tasks of 1,000; labels are what our questions ask for; every label is right as an answer, in both styles; no
    example of ours is a question of the set.
    """
    data = str(shared_data("cute"))
    task, told = CUTE(data=data, shots=0), CUTE(data=data, style="instruct")
    prompts = task.test()
    assert Counter(p.meta["category"] for p in prompts).most_common()[-1][1] == 1000 and len(prompts) == 21_000
    assert len({p.id for p in prompts}) == 21_000
    assert len({p.meta["category"] for p in prompts[:21]}) == 21
    for prompt in prompts:
        category, inputs = prompt.meta["category"], prompt.meta["inputs"]
        assert expected(category, inputs) in (None, prompt.gold), (category, inputs)
        assert category not in ("orth", "sem") or prompt.gold in inputs[1:]
        assert task.verify(prompt, f" {prompt.gold}\n") is True, prompt.gold
        assert told.verify(prompt, f'Here it is.\nAnswer: "{prompt.gold}"') is True, prompt.gold
        wrong = {"Yes": "No", "No": "Yes"}.get(prompt.gold, f"{prompt.gold}x")
        assert task.verify(prompt, wrong) is False
    asked = {(p.meta["category"], *p.meta["inputs"]) for p in prompts}
    assert not asked & {(name, *example[:-1]) for name in TASKS for example in _KINDS[name].examples}
