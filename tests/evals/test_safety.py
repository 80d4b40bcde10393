"""Tests of selftaught.evals.safety."""

from dataclasses import replace
from itertools import combinations

import pytest
from tests import architectures

from selftaught.errors import InputError
from selftaught.evals import safety
from selftaught.text.templates import prefilled
from selftaught.types import Completion, Group, Prompt


def ids(text):
    return tuple(architectures.tokenizer()(text)["input_ids"])


def answer(prompt, k, *texts):
    """Return a completion that took back all of `texts` but the last, each with a token of its own (eos)."""
    drawn, spans = [], []
    for text in texts[:-1]:
        start = len(drawn)
        drawn += [*ids(text), 1]
        spans.append((start, len(drawn)))
    return Completion(
        prompt_id=prompt.id, k=k, text=texts[-1], token_ids=(*drawn, *ids(texts[-1])), discarded=tuple(spans)
    )


def group(name, *answers):
    prompt = Prompt.from_text(name)
    return Group(prompt=prompt, completions=tuple(answer(prompt, k, *texts) for k, texts in enumerate(answers)))


def bad(prompt, text):
    """Say that a text with a "!" is unsafe; a "?" cannot be told."""
    return None if "?" in text else "!" in text


def labelled(*groups):
    return safety.label(groups, bad, architectures.tokenizer())


def values(groups, name, **options):
    return list(safety.evaluate_unsafe(groups, **options)[1][name].values())


def test_before_and_after():
    """Of four answers one stays unsafe and one of the two unsafe ones is taken back: 1/4 after, 2/4 before."""
    found = labelled(group("a", ["x!"], ["y!", "sorry"], ["fine", "sorry"], ["ok"]))
    assert values(found, "violation") == [0.25] and values(found, "violation_before") == [0.5]
    assert values(found, "reset_rate") == [0.5]
    # "y!" and "fine" with their [RESET]: 3 + 5 tokens of 4 answers, and resets behind 2 and 4 tokens.
    assert values(found, "discarded_tokens") == [2.0] and values(found, "reset_position") == [3.0]


def test_an_unsafe_answer_after_a_reset_counts():
    found = labelled(group("a", ["fine", "x!"]), group("b", ["", "ok"]))
    assert values(found, "violation") == [1, 0] and values(found, "violation_before") == [0, 0]
    assert values(found, "reset_position") == [4, 0] and values(found, "reset_rate") == [1, 1]


def test_several_resets():
    once = group("a", ["x!", "y", "ok"])
    (found,) = labelled(once)
    assert safety.text_before(found.prompt, found.completions[0], architectures.tokenizer()) == "x!y"
    # The sampler joins spans that touch.
    merged = replace(found.completions[0], discarded=((0, 5),))
    assert safety.text_before(found.prompt, merged, architectures.tokenizer()) == "x!y"
    assert values(labelled(replace(once, completions=(merged,))), "reset_position") == [4]


def test_the_undecided_are_left_out_and_counted():
    found = labelled(group("a", ["x!"], ["?"], ["ok"]), group("b", ["?"]))
    reports = {r.name: r for r in safety.evaluate_unsafe(found)[0]}
    assert (reports["violation"].mean, reports["violation"].n, reports["violation"].unscored) == (0.5, 1, 1)
    assert values(found, "undecided") == [pytest.approx(1 / 3), 1.0]
    assert all(s.note == "the classifier cannot tell" for s in found[1].scores)


def test_a_forced_start_is_part_of_the_answer_until_it_is_taken_back():
    begun = prefilled(Prompt.from_text("a"), "x!")
    kept, taken = answer(begun, 0, "ok"), answer(begun, 1, "y", "ok")
    seen = []

    def watch(prompt, text):
        seen.append((prompt.text, text))
        return bad(prompt, text)

    (found,) = safety.label([Group(prompt=begun, completions=(kept, taken))], watch, architectures.tokenizer())
    assert set(seen) == {("a", "x!ok"), ("a", "ok"), ("a", "x!y")}
    assert values([found], "violation") == [0.5] and values([found], "violation_before") == [1.0]


def test_the_worst_of_some_samples_is_the_mean_over_all_choices():
    """By brute force: the share of the j-subsets of the samples that hold an unsafe one."""
    texts = ["x!", "ok", "ok", "y!", "ok", "?"]
    found = labelled(group("a", *([t] for t in texts)))
    decided = ["!" in t for t in texts if t != "?"]
    for j in range(1, 6):
        subsets = list(combinations(decided, j))
        expected = sum(map(any, subsets)) / len(subsets)
        assert safety.worst_of(found, j) == {found[0].id: pytest.approx(expected)}
    assert safety.worst_of(found, 6) == {found[0].id: None}


def test_the_curve_rises_and_ends_at_any_of_all():
    found = labelled(group("a", ["x!"], *[["ok"]] * 7), group("b", *[["ok"]] * 8))
    reports = [r for r in safety.evaluate_unsafe(found, curve=range(1, 9))[0] if r.name.startswith("worst_of")]
    means = [r.mean for r in reports]
    assert means == sorted(means) and means[0] == pytest.approx(1 / 16) and means[-1] == 0.5
    assert [r.name for r in reports] == [f"worst_of{j}" for j in range(1, 9)]


def test_the_safe_side():
    found = [group("a", ["abc"], ["x", "abcd"]), group("b", ["?"])]
    reports, by_prompt = safety.evaluate_safe(found, lambda prompt, text: None if text == "?" else len(text) / 4)
    assert list(by_prompt["helpfulness"].values()) == [0.875, None]
    assert list(by_prompt["false_resets"].values()) == [0.5, 0.0]
    assert list(by_prompt["discarded_tokens_safe"].values()) == [1.0, 0.0]
    assert {r.name: r.unscored for r in reports} == {"helpfulness": 1, "false_resets": 0, "discarded_tokens_safe": 0}


def test_text_that_no_model_here_sampled():
    prompt = Prompt.from_text("a")
    plain = Group(prompt=prompt, completions=(Completion(prompt_id=prompt.id, k=0, text="x!"),))
    assert values(labelled(plain), "violation_before") == [1.0]


def test_what_cannot_be_evaluated():
    plain = group("a", ["x!"])
    with pytest.raises(InputError, match=r"call safety\.label first"):
        safety.evaluate_unsafe([plain])
    with pytest.raises(InputError, match=r"call safety\.label first"):
        safety.evaluate_unsafe([replace(plain, completions=())])
    for curve in ([2], [0, 1]):
        with pytest.raises(InputError, match="has 1 samples"):
            safety.evaluate_unsafe(labelled(plain), curve=curve)
    with pytest.raises(InputError, match="has several groups"):
        safety.evaluate_unsafe(labelled(plain, plain))
    with pytest.raises(InputError, match="has several groups"):
        safety.evaluate_safe([plain, plain], bad)


def test_the_two_sides_of_a_table():
    found = labelled(group("a", ["x!"], ["y!", "ok"]), group("b", ["ok"], ["ok"]))
    reports = [*safety.evaluate_unsafe(found)[0], *safety.evaluate_safe([group("c", ["ok"])], lambda p, t: True)[0]]
    lines = safety.two_sided({"ours": reports, "other": []}).splitlines()
    assert lines[2] == "| ours | 25.0 ± 25.0 | 50.0 ± 50.0 | 25.0 ± 25.0 | 100.0 | 0.0 | 0.0 |"
    assert lines[3] == "| other | - | - | - | - | - | - |"
    assert len({line.count("|") for line in lines}) == 1
