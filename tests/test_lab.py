import errno
import importlib
import json
import linecache
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftaught.errors import InputError, NothingToTrainOn, TrainingDiverged
from selftaught.lab import Lab
from selftaught.models.decoding import open_spec
from selftaught.models.load import load_model, model_key
from selftaught.scorers.reward_model import RewardModel
from selftaught.scorers.verifier import Verifier
from selftaught.scorers.votes import Votes
from selftaught.select.pairs import ConsistencyPairs, MajorityDemonstrations
from selftaught.specs import (
    SFT,
    Adaptive,
    BradleyTerry,
    EntropyTemperature,
    Evaluation,
    LatentPreference,
    Lora,
    ModelSpec,
    Preference,
    Resets,
    Sampling,
    SeedModel,
    Training,
)
from selftaught.store.groups import Groups
from selftaught.store.run import RunDirectory
from selftaught.store.stage import Stage, open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.sources import load_function
from selftaught.types import Completion, Demonstration, Pair, Prompt

TASK = load_task(tiny.TASK)
PROMPTS = TASK.train(6)
SAMPLING = Sampling(k=4, temperature=0.7, max_tokens=8)
SETTINGS = Training(lr=1e-3, epochs=2, batch_size=2, schedule="constant")


class Refusing:
    """An executor for what must not run again."""

    def run(self, function, arguments, workdir):
        raise AssertionError(f"{function} runs again")


@pytest.fixture(scope="module")
def model(seed_model: Path) -> ModelSpec:
    return ModelSpec(source=str(seed_model))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with tiny.open_lab(tmp_path / "run") as lab:
        yield lab


@pytest.fixture(scope="module")
def base(model: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Groups:
    """Groups with votes and verdicts, in a run directory of their own."""
    with tiny.open_lab(tmp_path_factory.mktemp("base")) as lab:
        groups = lab.score(lab.generate(model, TASK.train(24), SAMPLING), Votes(task=TASK, k=4))
        return lab.score(groups, Verifier(task=TASK))


def pairs_of(lab: Lab, groups: Groups) -> Stage:
    return lab.select(groups, ConsistencyPairs(k=4, threshold=2), Pair)


def metrics(lab: Lab) -> list[dict]:
    return list(lab.run.read_metrics())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    (file,) = path.glob("*.safetensors")
    return load_file(file)


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- stages ----------------------------------------------------------------------------------------------------------


def test_every_verb_is_read_the_second_time(lab, model):
    def loop() -> ModelSpec:
        groups = lab.score(lab.generate(model, TASK.train(24), SAMPLING), Votes(task=TASK, k=4))
        return lab.train(model, pairs_of(lab, groups), Preference(), SETTINGS)

    trained = loop()
    lab.executor = Refusing()
    with lab.scope(arm="other", round=3):
        assert loop() == trained
    cached = [event["cached"] for event in metrics(lab) if event["event"] == "stage"]
    assert cached == [False] * 6 + [True] * 6


def test_what_a_completion_depends_on_is_in_its_stages_key(lab, model, tmp_path):
    def key(lab=lab, model=model, prompts=PROMPTS[:2], sampling=SAMPLING, **fields) -> str:
        return lab.generate(model, prompts, sampling, **fields).completions[0].key

    other = replace(lab, seed=1)
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}")
    keys = [
        key(),
        key(other),
        key(prompts=PROMPTS[:1]),
        key(sampling=replace(SAMPLING, k=1)),
        key(first_k=1),
        key(model=replace(model, template=str(template))),
    ]
    assert len(set(keys)) == len(keys)
    with tiny.open_lab(tmp_path / "elsewhere") as elsewhere:
        assert key(elsewhere) == keys[0]


def test_samples_are_numbered_and_added_to_those_there_are(lab, model):
    groups = lab.generate(model, PROMPTS, replace(SAMPLING, k=2))
    wider = lab.generate(model, groups, SAMPLING, first_k=2)
    assert [[c.k for c in group.completions] for group in wider] == [[0, 1, 2, 3, 4, 5]] * 6
    assert [group.prompt for group in wider] == PROMPTS
    assert len({c.id for group in wider for c in group.completions}) == 36
    stage = wider.completions[0]
    assert {c.model for c in stage} == {model_key(model)}


def test_prompts_may_be_a_stage_and_groups_in_memory(lab, model):
    stage = lab.table(PROMPTS)
    given = lab.generate(model, stage, SAMPLING)
    assert given.prompts is stage
    assert lab.generate(model, Groups(prompts=PROMPTS), SAMPLING).completions[0].key == given.completions[0].key


def test_rows_are_stored_anew_when_any_field_changes(lab):
    prompt = PROMPTS[0]
    sides = [Completion(prompt_id=prompt.id, k=k, text=str(k)) for k in (0, 1)]
    pair = Pair(prompt=prompt, chosen=sides[0], rejected=sides[1])
    first, again, heavier = (lab.stage("examples", Pair, [row]) for row in (pair, pair, replace(pair, weight=0.5)))
    assert first.key == again.key != heavier.key
    assert [row.weight for row in heavier] == [0.5]


@dataclass(frozen=True)
class Longer:
    """A selection with a parameter and a version."""

    least: int
    version = 1

    def __call__(self, groups, counts: Counter) -> Iterator[Prompt]:
        for group in groups:
            if len(group.prompt.text) >= self.least:
                yield group.prompt
            else:
                counts["too short"] += 1


@dataclass(frozen=True)
class LongerNow(Longer):
    version = 2


def test_a_stage_counts_what_it_leaves_out_and_knows_its_parameters(lab):
    groups = Groups(prompts=lab.table(PROMPTS))
    stage = lab.stage("long", Prompt, Longer(20), groups)
    short = sum(len(prompt.text) < 20 for prompt in PROMPTS)
    assert 0 < short < 6
    assert stage.manifest["facts"]["counts"] == {"too short": short}
    assert len(stage) == 6 - short
    keys = {lab.stage("long", Prompt, rule, groups).key for rule in (Longer(20), Longer(21), LongerNow(20))}
    assert len(keys) == 3 and stage.key in keys
    event = metrics(lab)[1]
    assert (event["verb"], event["rows"], event["counts"]) == ("long", len(stage), {"too short": short})


def test_labels_hold_inside_their_scope_only(lab):
    with pytest.raises(RuntimeError), lab.scope(arm="a", round=2):
        lab.note("x")
        raise RuntimeError
    lab.note("y")
    assert [(e["arm"], e["round"]) for e in metrics(lab)] == [("a", 2), ("", 0)]


def test_warnings_are_errors_where_the_lab_is_strict(lab, capsys):
    lab.warn("nothing to learn")
    assert capsys.readouterr().err == "warning: nothing to learn\n"
    lab.strict = True
    with pytest.raises(InputError, match="nothing to learn"):
        lab.warn("nothing to learn")


# --- nothing to do ---------------------------------------------------------------------------------------------------


def test_no_prompt(lab, model):
    with pytest.raises(InputError, match="there is no prompt to complete: give more data, or a higher --limit"):
        lab.generate(model, [], SAMPLING)


def test_a_prompt_longer_than_the_context_is_named_before_anything_is_sampled(lab, model):
    long = Prompt.from_text("a=" + "1" * 80)
    with pytest.raises(InputError, match=rf"prompt {long.id} has 81 tokens but the model's context is 64: shorten it"):
        lab.generate(model, [*PROMPTS, long], SAMPLING)


def test_no_pair_keeps_every_stage(lab, base):
    with pytest.raises(NothingToTrainOn) as error:
        lab.select(base, NoPair(), Pair)
    assert error.value.exit_code == 3
    assert f"selection kept none of 24 groups (24 x all alike); all stages are kept in {lab.run.path}" == str(
        error.value
    )
    assert len(list((lab.run.path / "stages").glob("select-*/*.parquet"))) == 1


@dataclass(frozen=True)
class NoPair:
    """A rule that keeps nothing."""

    def __call__(self, groups, counts: Counter) -> Iterator[Pair]:
        for _ in groups:
            counts["all alike"] += 1
        yield from ()


def test_no_demonstration(lab, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "1?"}\n')
    with pytest.raises(InputError, match="task user has no demonstrations to train a seed model on: pass --model"):
        lab.seed_model(TaskSpec(name="user", data=str(data)), SeedModel())


def test_no_test_problem(lab, model, tmp_path):
    data = tmp_path / "few.jsonl"
    data.write_text('{"prompt": "1?"}\n')
    task = load_task(TaskSpec(name="user", data=str(data)))
    with pytest.raises(InputError, match="task user has no problem to measure on: give at least 10 rows"):
        lab.evaluate(model, task, Evaluation())


# --- seed models -----------------------------------------------------------------------------------------------------


def test_a_seed_model_is_trained_once_for_all_runs(tiny_run, seed_model, lab):
    lab.executor = Refusing()
    assert lab.seed_model(tiny.TASK, tiny.SEED_MODEL) == ModelSpec(source=str(seed_model))
    assert not any((lab.run.path / "stages").glob("train-*"))


# --- training --------------------------------------------------------------------------------------------------------


def test_a_trained_model_opens_and_its_metrics_are_the_runs(lab, model, base):
    pairs = pairs_of(lab, base)
    with lab.scope(arm="scpo", round=1):
        trained = lab.train(replace(model, template="plain", dtype="float32"), pairs, Preference(), SETTINGS)
    assert trained.dtype == "float32"
    AutoModelForCausalLM.from_pretrained(trained.source)
    assert AutoTokenizer.from_pretrained(trained.source).eos_token == "<eos>"
    steps = [event for event in metrics(lab) if event["event"] == "train"]
    assert [event["step"] for event in steps] == list(range(1, 2 * math.ceil(len(pairs) / 2) + 1))
    assert {(event["arm"], event["round"]) for event in steps} == {("scpo", 1)}
    assert {"loss", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= steps[0].keys()


def test_trainings_on_the_same_pairs_share_their_reference(lab, model, base):
    pairs = pairs_of(lab, base)
    for settings in (SETTINGS, replace(SETTINGS, lr=1e-4, epochs=1.0)):
        lab.train(model, pairs, Preference(), settings)
    lab.train(model, pairs, Preference(), replace(SETTINGS, max_length=60, epochs=1.0))
    used = [event["stage"] for event in metrics(lab) if event["event"] == "stage" and event["verb"] == "logps"]
    assert len(used) == 3 and used[0] == used[1] != used[2]
    kept = {name for pair in pairs for name in (pair.chosen.id, pair.rejected.id)}
    assert {score.completion_id for score in open_stage(lab.run.path / "stages" / used[0])} == kept


def test_the_reference_may_be_another_model(lab, model, base):
    pairs = pairs_of(lab, base)
    trained = lab.train(model, pairs, Preference(), SETTINGS)
    again, drifted = (lab.train(trained, pairs, Preference(), SETTINGS, reference=given) for given in (None, model))
    first, far = (
        json.loads((Path(m.source).parent / "metrics.jsonl").read_text().splitlines()[0]) for m in (again, drifted)
    )
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert far["rewards/margins"] > 1e-3, "what it has learnt since counts"


@pytest.mark.parametrize(("best", "epoch"), [(1, 1), (2, 2), (3, 3)])
def test_the_epoch_is_chosen_where_it_is_best_on_dev(lab, model, base, best, epoch):
    seen: list[ModelSpec] = []

    def dev(spec: ModelSpec) -> float:
        seen.append(spec)
        return 1.0 if len(seen) == best else 0.5

    trained = lab.train(model, pairs_of(lab, base), Preference(), replace(SETTINGS, epochs=3, lr=1e-2), dev=dev)
    assert [Path(spec.source).name for spec in seen] == ["epoch-1", "epoch-2", "epoch-3"]
    assert trained == seen[epoch - 1]
    assert len({model_key(spec) for spec in seen}) == 3
    assert not equal(tensors(Path(seen[0].source)), tensors(Path(seen[2].source)))
    AutoModelForCausalLM.from_pretrained(trained.source)
    assert AutoTokenizer.from_pretrained(trained.source).pad_token == "<pad>"


def test_dev_accuracy_is_greedy_accuracy_on_the_first_dev_problems(lab, model):
    measure = lab.dev_accuracy(TASK, 5, Evaluation(k=8, max_tokens=8))
    value = measure(model)
    (report,) = [event for event in metrics(lab) if event["event"] == "report"]
    assert (report["name"], report["n"], report["mean"]) == ("dev/accuracy", 5, value)


def test_dev_problems_without_answers_choose_nothing(lab, model, tmp_path):
    data = tmp_path / "unanswered.jsonl"
    data.write_text("\n".join(f'{{"prompt": "a={i};a?"}}' for i in range(20)))
    measure = lab.dev_accuracy(load_task(TaskSpec(name="user", data=str(data))), 2, Evaluation(max_tokens=8))
    with pytest.raises(
        InputError, match="no dev problem of task user has an answer to choose by: set --dev_problems 0"
    ):
        measure(model)


def test_an_adapter_is_trained_and_the_next_round_goes_on_from_it(lab, model, base):
    pairs, settings = pairs_of(lab, base), replace(SETTINGS, lora=Lora(rank=2, alpha=4.0), lr=1e-2)
    first = lab.train(model, pairs, Preference(), settings)
    second = lab.train(first, pairs, Preference(), settings)
    assert first.source == second.source == model.source
    assert (Path(first.adapter) / "adapter_config.json").exists() and first.adapter != second.adapter
    one, two = tensors(Path(first.adapter)), tensors(Path(second.adapter))
    assert one.keys() == two.keys() and not equal(one, two)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        logits = [load_model(spec)(ids).logits for spec in (model, first, second)]
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[1], logits[2])
    # One small step from an adapter ends near it; one from the bare model would end near the bare model.
    near = lab.train(first, pairs, Preference(), replace(settings, lr=1e-6, max_steps=1))
    assert all(torch.allclose(tensors(Path(near.adapter))[name], one[name], atol=1e-4) for name in one)
    groups = lab.generate(second, PROMPTS, SAMPLING)
    assert {c.model for c in groups.completions[0]} == {model_key(second)}


def test_training_all_weights_folds_an_adapter_in(lab, model, base):
    pairs = pairs_of(lab, base)
    adapted = lab.train(model, pairs, Preference(), replace(SETTINGS, lora=Lora(rank=2)))
    whole = lab.train(adapted, pairs, Preference(), SETTINGS)
    assert whole.adapter is None and whole.source != model.source
    AutoModelForCausalLM.from_pretrained(whole.source)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_stages(lab, model, base):
    pairs = pairs_of(lab, base)
    with pytest.raises(TrainingDiverged) as error:
        lab.train(model, pairs, Preference(), replace(SETTINGS, lr=1e30, clip=0.0, epochs=20))
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value) and "lr" in str(error.value)
    assert lab.store.get(pairs.key) is not None
    assert not any((lab.run.path / "stages").glob("train-*/.manifest.json"))


def test_a_poisoned_weight_is_found_before_it_is_sampled_from(lab, model, tmp_path):
    directory = tmp_path / "poisoned"
    load_model(model).save_pretrained(directory)
    AutoTokenizer.from_pretrained(model.source).save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not finite"):
        lab.generate(ModelSpec(source=str(directory)), PROMPTS, SAMPLING)


def test_a_training_set_of_another_kind_is_refused(lab, model, base):
    demonstrations = lab.select(base, MajorityDemonstrations(k=4, threshold=1), Demonstration)
    with pytest.raises(InputError, match="holds Demonstration rows: Preference needs Pair rows"):
        lab.train(model, demonstrations, Preference(), SETTINGS)
    assert lab.train(model, demonstrations, SFT(), replace(SETTINGS, max_steps=1))


def test_a_reward_model_is_trained_on_pairs_without_a_reference(lab, model, base):
    pairs = pairs_of(lab, base)
    rewarder = lab.train(model, pairs, BradleyTerry(), SETTINGS)
    assert not [e for e in metrics(lab) if e["event"] == "stage" and e["verb"] == "logps"]
    scores = lab.score(base, RewardModel(model=rewarder)).scores[-1]
    assert len(scores) == sum(len(group.completions) for group in base) and all(s.value is not None for s in scores)
    demonstrations = lab.select(base, MajorityDemonstrations(k=4, threshold=1), Demonstration)
    with pytest.raises(InputError, match="holds Demonstration rows: BradleyTerry needs Pair rows"):
        lab.train(model, demonstrations, BradleyTerry(), SETTINGS)


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_an_evaluation_reports_what_greedy_and_sampled_answers_tell(lab, model):
    reports, values = lab.evaluate(model, TASK, Evaluation(problems=8, k=4, max_tokens=8))
    assert list(reports) == ["accuracy", "accuracy_sc4", "accuracy_samples4", "vote_share", "somers_d"]
    assert {name: len(v) for name, v in values.items()} == dict.fromkeys(list(reports)[:4], 8)
    assert reports["accuracy"].mean == pytest.approx(sum(values["accuracy"].values()) / 8)
    noted = {e["name"]: e["mean"] for e in metrics(lab) if e["event"] == "report"}
    assert noted == pytest.approx({name: report.mean for name, report in reports.items()}, nan_ok=True)
    greedy, _ = lab.evaluate(model, TASK, Evaluation(problems=8, k=1, max_tokens=8))
    assert list(greedy) == ["accuracy"] and greedy["accuracy"] == reports["accuracy"]


# --- the models of a run ---------------------------------------------------------------------------------------------


def test_one_trained_model_is_kept_as_model_and_several_by_arm(tmp_path):
    def made(name: str) -> ModelSpec:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        return ModelSpec(source=str(tmp_path / name))

    seed, first, second = made("seed"), made("first"), made("second")
    adapter = replace(seed, adapter=second.source)
    with RunDirectory(tmp_path / "run") as run:
        lab = Lab(run=run)
        lab.keep_models({"seed_model": seed, "scpo": first})
        lab.keep_models({"seed_model": seed, "scpo": adapter})
        assert (run.path / "model" / "weights").read_text() == "second"
        lab.keep_models({"seed_model": seed, "scpo": first, "lmsi": second})
    assert {p.parent.name: p.read_text() for p in (run.path / "models").glob("*/weights")} == {
        "scpo": "first",
        "lmsi": "second",
    }


def test_a_head_is_kept_without_its_model_and_a_decoding_beside_its_own(tmp_path):
    for name in ("seed", "trained", "head"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    seed = ModelSpec(source=str(tmp_path / "seed"))
    models = {
        "seed_model": seed,
        "fixed": seed,
        "adaptive": replace(seed, decoding=Adaptive(head=str(tmp_path / "head"))),
        "resets": ModelSpec(source=str(tmp_path / "trained"), decoding=Resets(bias=2.0)),
    }
    with RunDirectory(tmp_path / "run") as run:
        Lab(run=run).keep_models(models)
    kept = tmp_path / "run" / "models"
    assert {p.parent.name: p.read_text() for p in kept.glob("*/weights")} == {"adaptive": "head", "resets": "trained"}
    assert open_spec(str(kept / "resets")).decoding == Resets(bias=2.0)
    assert not (kept / "adaptive" / "decoding.json").exists()  # The head's own file would be there.


def test_a_decoding_makes_completions_of_its_own(lab, model, base):
    entropy = replace(model, decoding=EntropyTemperature(base=1.5))
    plain, other, again = (lab.generate(m, PROMPTS, SAMPLING).completions[0] for m in (model, entropy, model))
    assert plain.key == again.key != other.key
    assert all("temperature" in c.latents for c in other)
    with pytest.raises(InputError, match="has no adaptive head to train"):
        lab.train(entropy, pairs_of(lab, base), LatentPreference(), Training(lr=1e-3))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), shutil.Error([("a", "b", "No space left on device")])]
)
def test_a_full_disk_when_the_model_is_copied(error, lab, model, monkeypatch):
    def copytree(source, target):
        raise error

    monkeypatch.setattr(shutil, "copytree", copytree)
    with pytest.raises(InputError, match=r"cannot copy the model to .*model: No space left on device; free some space"):
        lab.keep_models({"scpo": model})


def test_metrics_are_lines_of_json(tiny_run):
    lines = (tiny_run / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["event"] for line in lines} == {"stage", "train", "report", "order", "pairs"}


def test_an_edited_answer_function_makes_new_votes(lab, model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a=1;a?"}\n')
    groups = lab.generate(model, [PROMPTS[0]], SAMPLING)
    answers = []
    for line in ("return None", "return text or 'none'"):
        (tmp_path / "reads_answers.py").write_text(f"def read(text):\n    {line}\n")
        # A new process would import it anew.
        monkeypatch.delitem(sys.modules, "reads_answers", raising=False)
        load_function.cache_clear()
        linecache.clearcache()
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        task = load_task(TaskSpec(name="user", data=str(data), answer="reads_answers:read"))
        answers.append([score.value for score in lab.score(groups, Votes(task=task, k=4)).scores[0]])
    assert answers[0] == [None] * 4
    assert None not in answers[1]
