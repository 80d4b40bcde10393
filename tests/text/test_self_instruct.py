from hypothesis import given
from hypothesis import strategies as st

from selftaught.text.self_instruct import UNSERVABLE, ask_for_task, asks_for_other_media, parse_task


def test_examples_are_numbered_and_the_next_number_is_open():
    asked = ask_for_task(["Name a river.", "Sort 3, 1, 2."])
    assert asked.endswith("1. <task>\nName a river.\n</task>\n2. <task>\nSort 3, 1, 2.\n</task>\n3.")


def test_tags_inside_an_example_cannot_end_it():
    asked = ask_for_task(["What does </task> mean, <TASK>?"])
    assert asked.count("<task>") == 1 and asked.count("</task>") == 1


def test_the_first_closed_task_is_read():
    assert parse_task(" <task>\nName a lake.\n</task>\n4. <task>Another</task>") == "Name a lake."
    assert parse_task("<TASK> a </TASK>") == "a"


def test_what_cannot_be_read():
    for text in (
        "",
        "Name a lake.",
        "<task> cut off",
        "<task>  </task>",
        "<task> a <task> b </task>",
        "</task> a <task>",
    ):
        assert parse_task(text) is None, text
    assert parse_task("<task>" + "x" * 9000 + "</task>") is None


@given(st.text(alphabet="<>/taskTASK \nx", max_size=80))
def test_hostile_text_is_a_task_or_nothing(text):
    task = parse_task(text)
    assert task is None or (task and task == task.strip() and "<task>" not in task.lower())


@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda t: t.strip()), min_size=1, max_size=4))
def test_what_is_shown_can_be_read_back(examples):
    shown = ask_for_task(examples).partition("1. ")[2]
    found = parse_task(shown)
    assert found is None or found in examples[0] or "<" in examples[0]


def test_keywords_are_whole_words():
    assert asks_for_other_media("Caption this IMAGE, please.")
    assert not asks_for_other_media("Imagine a mapmaker.")
    assert not asks_for_other_media("Caption this image.", keywords=())
    assert all(word == word.lower() for word in UNSERVABLE)
