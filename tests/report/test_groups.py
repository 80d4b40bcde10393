from selftaught.report.groups import LONGEST_TEXT, describe_group, sample
from selftaught.types import Completion, Demonstration, Feedback, Group, Message, Pair, Prompt, Score


def group(name: str, answers: list[str | None] = ()) -> Group:
    prompt = Prompt.from_text(name, gold="7")
    completions = tuple(Completion(prompt_id=prompt.id, k=i, text=f"#### {a}") for i, a in enumerate(answers))
    scores = tuple(
        Score(
            completion_id=c.id, scorer="votes", value=None if a is None else float(answers.count(a)), note=a or "none"
        )
        for c, a in zip(completions, answers, strict=True)
    )
    return Group(prompt=prompt, completions=completions, scores=scores)


def test_sample_takes_half_dropped_in_order():
    groups = [group(str(i)) for i in range(20)]
    kept = {g.id for g in groups[::2]}
    assert [g.prompt.text for g in sample(groups, kept, 6)] == ["0", "1", "2", "3", "4", "5"]


def test_sample_fills_up_with_the_other_kind():
    groups = [group(str(i)) for i in range(10)]
    all_kept = {g.id for g in groups}
    assert len(sample(groups, all_kept, 4)) == 4
    assert len(sample(groups, set(), 4)) == 4
    assert [g.prompt.text for g in sample(groups, {groups[9].id}, 4)] == ["0", "1", "2", "9"]
    assert len(sample(groups, all_kept, 50)) == 10
    assert sample(groups, all_kept, 0) == []


def test_tally_counts_each_answer_once_most_voted_first():
    described = describe_group(group("p", ["3", "7", "7", None]), (), "scpo, round 1")
    assert described["tally"] == [{"answer": "7", "votes": 2.0}, {"answer": "3", "votes": 1.0}]
    assert described["completions"][3]["answer"] is None
    assert not described["kept"] and described["weight"] is None


def test_roles_of_every_kind_of_example():
    g = group("p", ["1", "2"])
    first, second = g.completions
    examples = [
        Pair(prompt=g.prompt, chosen=first, rejected=second, weight=0.5),
        Demonstration(prompt=g.prompt, completion=second),
        Feedback(prompt=g.prompt, completion=first, label=False),
    ]
    roles = [c["roles"] for c in describe_group(g, examples, "s")["completions"]]
    assert roles == [["chosen", "bad"], ["rejected", "chosen"]]


def test_other_scores_and_unscored_ones_are_shown():
    g = group("p", ["1"])
    extra = (
        Score(completion_id=g.completions[0].id, scorer="verifier", value=1.0),
        Score(completion_id=g.completions[0].id, scorer="reward", value=None, note="too long"),
        Score(completion_id=g.completions[0].id, scorer="steps", value=1.0, span=(0, 2)),
    )
    described = describe_group(Group(prompt=g.prompt, completions=g.completions, scores=g.scores + extra), (), "s")
    assert described["completions"][0]["scores"] == [
        {"scorer": "verifier", "value": 1.0, "note": ""},
        {"scorer": "reward", "value": None, "note": "too long"},
    ]


def test_long_texts_are_cut_and_turns_kept():
    prompt = Prompt(messages=(Message(role="system", content="s"), Message(role="user", content="u")))
    completion = Completion(prompt_id=prompt.id, k=0, text="x" * (LONGEST_TEXT + 5))
    described = describe_group(Group(prompt=prompt, completions=(completion,)), (), "s")
    assert described["completions"][0]["text"].endswith("[…5 more characters]")
    assert [m["role"] for m in described["prompt"]] == ["system", "user"]
