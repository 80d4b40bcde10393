import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from tests import tiny
from tests.worlds import shared_data

from selftaught.engines.fake import FakeGenerator
from selftaught.judging import compare, judge, judge_file
from selftaught.lab import Lab
from selftaught.scorers.judges import Judge
from selftaught.select.thought_pairs import ThoughtPairs
from selftaught.specs import ModelSpec, Sampling
from selftaught.store.groups import Groups
from selftaught.store.stage import open_stage
from selftaught.tasks.thought_chains import ANSWER, THINK, ThoughtChains
from selftaught.text.thoughts import ask
from selftaught.types import Completion, Pair

WORLD = ThoughtChains()
MODEL = ModelSpec(source="judge")


class Scripted(Lab):
    """A lab in which a scripted model answers."""

    def generate(self, model, prompts, sampling, *, first_k=0):
        table = self.table(prompts)
        rows = FakeGenerator(self.script, table.key)(list(table), sampling)
        return Groups(prompts=table, completions=(self.stage("generate", Completion, list(chain.from_iterable(rows))),))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with tiny.open_lab(tmp_path / "run") as plain:
        lab = Scripted(run=plain.run, seed=plain.seed)
        lab.script = prefer_the_longer
        yield lab


def prefer_the_longer(prompt, k):
    """Judge by length: compare two, or rate one; an empty question is answered with nonsense."""
    if "# Response A" in prompt.text:
        first = prompt.text.partition("# Response A\n")[2].partition("\n\n# Response B")[0]
        second = prompt.text.partition("# Response B\n")[2].partition("\n\n# Your")[0]
        return "[[A]]" if len(first) > len(second) else "[[B]]" if len(second) > len(first) else "hm"
    return f"[[{len(prompt.text.partition('# Response')[2].partition('# Your')[0].strip())}]]"


def groups_of(lab: Lab, texts, form=THINK, problems=2) -> Groups:
    prompts = [ask(form, problem) for problem in WORLD.test(problems)]
    rows = [
        Completion(prompt_id=p.id, k=k, text=text, model=f"m{form.name}{k}")
        for p in prompts
        for k, text in enumerate(texts)
    ]
    return Groups(prompts=lab.table(prompts), completions=(lab.stage("given", Completion, rows),))


def test_a_pointwise_model(lab):
    groups = judge(
        lab, groups_of(lab, ["thought#1", "#22", "no"]), Judge(model=MODEL, rubric="helpfulness"), form=THINK
    )
    for group in groups:
        assert [s.value for s in group.scores] == [1.0, 2.0, None]
        assert {s.scorer for s in group.scores} == {"judge/helpfulness"}
    (stage,) = groups.scores
    assert stage.manifest["facts"]["counts"] == {"unscored: no response: no response marker": 2}


def test_a_pairwise_model_and_pairs_from_its_verdicts(lab):
    by = Judge(model=MODEL, rubric="better")
    groups = judge(lab, groups_of(lab, ["a#1", "long thought#22", "no", "#333"]), by, form=THINK)
    for group in groups:
        assert len(group.verdicts) == 6 and {v.winner for v in group.verdicts} == {"first", "second"}
    read = {row.id: row.text for row in open_stage(next(lab.run.path.glob("stages/generate-*")))}
    assert all(read[v.judge_completion_id] in ("[[A]]", "[[B]]") for group in groups for v in group.verdicts)
    pairs = lab.select(groups, ThoughtPairs(form=THINK, scorer=by.name, pairwise=True, rho=0.0), Pair)
    assert {(p.chosen.text, p.rejected.text) for p in pairs} == {("#333", "a#1")}


def test_judging_twice_keeps_both(lab):
    groups = groups_of(lab, ["#1", "#22"])
    once = judge(lab, groups, Judge(model=MODEL, rubric="better"), form=THINK)
    twice = judge(lab, once, Judge(pairwise=True), task=WORLD, form=THINK)
    twice = judge(lab, twice, Judge(), task=WORLD, form=THINK)
    for group in twice:
        assert [v.scorer for v in group.verdicts] == ["judge/better"] * 2 + ["judge/task"] * 2
        assert len(group.scores) == 2


def test_programs_need_no_model(lab):
    gold = [p.gold for p in WORLD.test(2)]
    groups = judge(lab, groups_of(lab, [f"#{n}" for n in range(10)]), Judge(), task=WORLD, form=THINK)
    assert [[s.value for s in g.scores].index(1.0) for g in groups] == [int(g) for g in gold]
    pairs = judge(lab, groups, Judge(pairwise=True), task=WORLD, form=THINK, pairs=((0, 1),))
    assert {len(g.verdicts) for g in pairs} == {2}


@pytest.mark.parametrize("rubric", ["helpfulness", "better"])
def test_nothing_to_judge(lab, rubric):
    groups = judge(lab, groups_of(lab, ["no", "none"]), Judge(model=MODEL, rubric=rubric), form=THINK)
    for group in groups:
        assert not group.verdicts and all(s.value is None for s in group.scores)


def test_the_verdicts_of_a_judge_that_writes_nonsense_are_unread(tmp_path, seed_model):
    """A real model, of one layer, which knows nothing of rubrics."""
    with tiny.open_lab(tmp_path / "run") as lab:
        by = Judge(
            model=ModelSpec(source=str(seed_model)), rubric=_short(tmp_path), sampling=Sampling(k=2, max_tokens=3)
        )
        groups = judge(lab, groups_of(lab, ["#1", "#2"], problems=1), by, form=THINK)
        (group,) = groups
        assert [v.winner for v in group.verdicts] == [None] * 4 and all(v.note for v in group.verdicts)
        assert sum(groups.verdicts[0].manifest["facts"]["counts"].values()) == 4


def _short(directory: Path) -> str:
    file = directory / "short.txt"
    file.write_text("verdict: (never)\n{question};{first};{second}")
    return str(file)


def test_our_responses_against_a_baseline(lab):
    ours, theirs = groups_of(lab, ["deep thought#22"]), groups_of(lab, ["#1"], form=ANSWER)
    problems = WORLD.test(2)
    by = Judge(model=MODEL, rubric="better")
    assert compare(lab, problems, (theirs, ANSWER), (ours, THINK), by) == {p.id: 1.0 for p in problems}
    assert compare(lab, problems, (ours, THINK), (theirs, ANSWER), by) == {p.id: 0.0 for p in problems}
    lost = groups_of(lab, ["deep thought"])
    assert compare(lab, problems, (theirs, ANSWER), (lost, THINK), by) == {p.id: None for p in problems}


# --- a file of comparisons -------------------------------------------------------------------------------------------


def test_a_file(lab, tmp_path):
    rows = [
        {"input": "q1", "output_1": "short", "output_2": "quite long", "label": 2, "subset": "s"},
        {"input": "q2", "output_1": "short", "output_2": "quite long", "label": 1, "subset": "t"},
        {"input": "q3", "output_1": "same", "output_2": "size", "label": 1, "subset": "t"},
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged, reports = judge_file(lab, data, Judge(model=MODEL, rubric="better"))
    assert len(judged) == 3
    assert (reports["accuracy"].mean, reports["accuracy"].n, reports["accuracy"].unscored) == (0.5, 2, 1)
    assert reports["flip_rate"].mean == 0.0 and reports["unparsed"].mean == pytest.approx(1 / 3)
    assert reports["accuracy/s"].mean == 1.0 and reports["accuracy/t"].mean == 0.0
    noted = {e["name"] for e in lab.run.read_metrics() if e["event"] == "report"}
    assert noted == set(reports)


def longer(prompt, first, second):
    return "first" if len(first) > len(second) else "second" if len(first) < len(second) else "tie"


def test_llmbar_with_a_program(tmp_path):
    """A judge that prefers the longer output is below chance where LLMBar's adversarial outputs are longer."""
    data = shared_data("llmbar") / "llmbar.jsonl"
    with tiny.open_lab(tmp_path / "run") as lab:
        _, reports = judge_file(lab, data, Judge(function=f"{__name__}:longer", pairwise=True))
    assert reports["accuracy"].n == 986 and reports["flip_rate"].mean == 0.0 and reports["unparsed"].mean == 0.0
    assert reports["accuracy/LLMBar/Adversarial/GPTInst"].mean < 0.5
