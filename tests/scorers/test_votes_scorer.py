import pickle

from hypothesis import given
from hypothesis import strategies as st

from selftaught.scorers.votes import Votes
from selftaught.select.votes import read_ballot
from selftaught.tasks import TaskSpec
from selftaught.tasks.chains import Chains
from selftaught.types import Completion, Group, Prompt

SPEC = TaskSpec(name="chains")


def group(answers):
    prompt = Prompt.from_text("a=1;b=a+1;b?")
    texts = ["no answer" if a is None else f"b=1+1=2\n#### {a}" for a in answers]
    completions = tuple(Completion(prompt_id=prompt.id, k=k, text=text, model=f"{k}") for k, text in enumerate(texts))
    return Group(prompt=prompt, completions=completions)


def test_worked_example():
    """Of 4 base samples two say 2 (one as 2.0), one 3, one nothing; the hot ones get 2, 0 and no votes."""
    (scores,) = Votes(task=SPEC, k=4)([group(["2", "3", None, "2.0", "2", "9", None])])
    assert [(s.value, s.note) for s in scores] == [
        (2.0, "2"),
        (1.0, "3"),
        (None, "no answer could be read"),
        (2.0, "2"),
        (2.0, "2"),
        (0.0, "9"),
        (None, "no answer could be read"),
    ]
    assert {s.scorer for s in scores} == {"votes"}


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=4, max_size=8))
def test_scores_are_what_selection_reads(answers):
    unscored = group(answers)
    (scores,) = Votes(task=Chains(), k=4)([unscored])
    ballot = read_ballot(Group(prompt=unscored.prompt, completions=unscored.completions, scores=tuple(scores)), k=4)
    assert ballot.counts == {a: answers[:4].count(a) for a in set(answers[:4]) - {None}}
    assert all(0 <= votes <= 4 for votes in ballot.votes.values())


def test_it_crosses_processes():
    scorer = Votes(task=SPEC, k=4)
    assert pickle.loads(pickle.dumps(scorer)) == scorer
