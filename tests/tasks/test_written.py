from collections import Counter

from selftaught.tasks.list_ops import ListOps
from selftaught.tasks.written import CleanUp, ask_for_prompts
from selftaught.types import Completion, Group, Prompt

WORLD = ListOps()


def wrote(*texts, finish="stop"):
    prompt = Prompt.from_text("write")
    rows = [Completion(prompt_id=prompt.id, k=k, text=text, finish=finish) for k, text in enumerate(texts)]
    return Group(prompt=prompt, completions=tuple(rows))


def tagged(*texts):
    return wrote(*(f" <task>{text}</task> 9. <ta" for text in texts), finish="length")


def test_tasks_between_tags_are_cleaned_up():
    known = [Prompt.from_text("Tell me how to bake a good apple pie at home today")]
    group = tagged(
        "Name three rivers of Europe.",
        "Tell me how to bake a good cherry pie at home today",
        "tell me how to bake a good APPLE pie at home today",
        "Draw a horse.",
        "Name three rivers of Europe.",
    )
    dropped = Counter()
    clean_up = CleanUp(task=WORLD, form="tags")
    found = list(clean_up([group, wrote("no tags")], known, dropped))
    assert [p.text for p in found] == ["Name three rivers of Europe."]
    assert found[0].parents == (group.completions[0].id,) and found[0].meta == {"generated": True}
    assert dropped == {
        "near duplicate": 1,
        "exact duplicate": 2,
        "asks for more than text": 1,
        "no prompt, or a held-out one": 1,
    }


def test_the_tasks_own_form_needs_a_whole_completion():
    dropped = Counter()
    clean_up = CleanUp(task=WORLD, form="task", near_duplicate=None, keywords=())
    groups = [wrote("sort: c a b", "sort c", "sort: c a b"), wrote("reverse: a b", finish="length")]
    assert [p.text for p in clean_up(groups, [], dropped)] == ["sort: c a b", "sort c"]
    assert dropped == {"exact duplicate": 1, "no prompt, or a held-out one": 1}


def test_held_out_prompts_are_refused_between_tags_too():
    held = WORLD.test(1)[0].text
    assert list(CleanUp(task=WORLD, form="tags", near_duplicate=None)([tagged(held)], [])) == []


def test_what_is_asked():
    known = WORLD.train(20)
    tags = ask_for_prompts(WORLD, known, 3, form="tags", shots=8, seed=1)
    assert len(tags) == 3 and all("1. <task>" in p.text for p in tags)
    assert tags == ask_for_prompts(WORLD, known, 3, form="tags", shots=8, seed=1)
    assert tags != ask_for_prompts(WORLD, known, 3, form="tags", shots=8, seed=2)
    own = ask_for_prompts(WORLD, known, 3, form="task", shots=8, seed=1)
    assert own == WORLD.problem_prompts(known, 3, seed=1)
