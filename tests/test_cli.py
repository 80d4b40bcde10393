import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests import tiny
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from selftaught import cli
from selftaught.config import to_dict
from selftaught.tasks import load_task
from selftaught.types import Completion, Demonstration

ROOT = Path(__file__).parents[1]
SHORT = ["--sampling.k", "4", "--sampling.max_tokens", "8", "--evaluation.k", "4", "--evaluation.max_tokens", "8"]
QUICK = [*SHORT, "--rounds", "1", "--dev_problems", "0", "--training.epochs", "1", "--tau", "0.25"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of the tiny world as a user's own file."""
    file = tmp_path_factory.mktemp("data") / "problems.jsonl"
    problems = load_task(tiny.TASK).train(60)
    file.write_text("\n".join(json.dumps({"prompt": p.text, "answer": str(i % 3)}) for i, p in enumerate(problems)))
    return file


def updates(out: Path) -> list[dict]:
    """Return the metrics of every update of a training below `out`."""
    (file,) = out.glob("stages/train-*/files/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command, expects an exit code, and returns the one line that says why."""

    def run(code: int, *arguments: object) -> str:
        assert cli.main([str(argument) for argument in arguments]) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        line = said.splitlines()[-1]
        assert line.startswith("selftaught: ")
        return line.removeprefix("selftaught: ")

    return run


def succeeds(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


# --- without a model -------------------------------------------------------------------------------------------------


def test_what_needs_no_model_imports_no_torch():
    """`list`, `--help` and `--fields` answer at once only if nothing heavy is loaded."""
    code = (
        "import sys\n"
        "from selftaught import cli\n"
        "commands = 'list run resume show reproduce generate score select train evaluate judge patches env'.split()\n"
        "others = [['list'], ['--help'], ['--version'], ['run', 'scpo', '--fields']]\n"
        "for argv in [*others, *([command, '--help'] for command in commands)]:\n"
        "    try:\n"
        "        assert cli.main(argv) == 0\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'datasets', 'scipy', 'peft', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src", check=False)
    assert done.returncode == 0, done.stderr
    assert "Self-Consistency Preference Optimization (arXiv 2411.04109)" in done.stdout
    assert "selftaught run scpo" in done.stdout
    assert "--training.lr" in done.stdout
    assert done.stdout.count("example: selftaught ") >= 12


def test_fields_are_those_of_the_recipe_with_every_option_applied(capsys):
    succeeds(
        "run", "scpo", "--recipe", "paper", "--fields", "--training.lr", "1e-4", "--arms", "scpo,lmsi", "--limit", "7"
    )
    listed = {line.split()[0]: line[36:].strip() for line in capsys.readouterr().out.splitlines()}
    assert listed["--training.lr"] == "0.0001" and listed["--sampling.k"] == "8"
    assert listed["--arms"] == "('scpo', 'lmsi')" and listed["--task.limit"] == "7"


@pytest.mark.parametrize(
    ("arguments", "recipe", "task", "model"),
    [
        ([], "small", "chains", None),
        (["--recipe", "smoke"], "smoke", "chains", None),
        (["--model", "m"], "own", "gsm8k", "m"),
        (["--data", "d.jsonl"], "own", "user", None),
        (["--model", "m", "--task", "gsm8k", "--data", "d"], "own", "gsm8k", "m"),
    ],
)
def test_what_a_command_line_means(arguments, recipe, task, model):
    parsed, overrides = cli._parser().parse_known_args(["run", "scpo", *arguments])
    parsed.overrides = overrides
    _, name, config = cli.runs._configure(parsed)
    assert (name, config.task.name) == (recipe, task)
    assert (config.model.source if config.model else None) == model


def test_the_configuration_of_another_run_is_a_configuration(tiny_run):
    parsed, overrides = cli._parser().parse_known_args(["run", "scpo", "--config", str(tiny_run / "config.yaml")])
    parsed.overrides = [*overrides, "--rounds", "3"]
    assert cli.runs._configure(parsed)[1:] == ("config", tiny.config(arms=("lmsi", "scpo"), rounds=3))


def test_a_plan_of_your_own_data_counts_it(data, seed_model, capsys):
    succeeds("run", "scpo", "--model", seed_model, "--data", data, "--limit", "20", "--dry-run", *QUICK)
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["scpo 1: samples"][3] == "80"
    assert lines["seed model: evaluation"][3] == str(5 * 6)


def test_a_plan_without_a_model_counts_the_training_of_one(capsys):
    succeeds("run", "scpo", "--recipe", "smoke", "--dry-run")
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    # 8 updates of 64 demonstrations, each of 128 + 64 tokens.
    assert [lines[f"seed model: phase {n}"][4:6] for n in (1, 2)] == [["512", "0.1M"]] * 2


def test_a_plan_of_a_model_that_is_not_here_assumes_a_size(capsys):
    succeeds("run", "scpo", "--recipe", "paper", "--dry-run", "--processes", "8")
    said = capsys.readouterr()
    assert "8,030M parameters on 8 x H100 80 GB" in said.out and "hours" in said.out
    assert "assuming 8.03e+09 parameters" in said.err


def test_a_reproduction_runs_the_seeds_it_is_asked_for(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("selftaught.reproductions.reproduce", lambda name, **k: asked.append((name, list(k["seeds"]))))
    monkeypatch.setattr("selftaught.report.text.format_table", str)
    succeeds("reproduce", "scpo", "--seeds", 3, "--first_seed", 15)
    succeeds("reproduce", "scpo")
    assert asked == [("scpo", [15, 16, 17]), ("scpo", [0, 1, 2, 3, 4])]


def test_versions_and_the_cache(cache, capsys):
    succeeds("env", "--cache")
    assert capsys.readouterr().out.strip() == str(cache)
    succeeds("env")
    assert {"torch", "transformers", "selftaught", "cache"} <= {
        line.split()[0] for line in capsys.readouterr().out.splitlines()
    }


# --- bad input: nothing is computed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run scop", "no method is called 'scop': did you mean 'scpo'?"),
        ("run scpo --recipe tiny", "scpo has no recipe 'tiny': choose one of paper, own, small, gsm8k, smoke"),
        ("run scpo --arms scop", "no arm is called 'scop': known are scpo, "),
        ("run scpo --task chain", "unknown task 'chain': give one of chains, constrained_text, "),
        ("run scpo --trainig.lr 1", "unknown key 'trainig': did you mean 'training'?"),
        ("run scpo --training.lr fast", "could not convert string to float: 'fast' at training.lr"),
        ("run scpo --training.lr", "--training.lr needs a value"),
        ("run scpo --sampling.k 1", "sampling.k=1: one sample has nothing to agree with; give 2 or more, say 8"),
        ("run scpo --tau 4", "tau=(4.0,): give a share of the k votes for each round"),
        ("run scpo --limit 0", "--limit 0: give 1 or more"),
        ("run scpo --processes 0", "--processes 0: give 1 or more"),
        ("run scpo --template chat", "--template needs --model: the model trained from scratch uses plain text"),
        ("run scpo --recipe smoke --config x.yaml", "--recipe and --config exclude each other"),
        ("run scpo --config x.yaml", "x.yaml: No such file or directory: pass --config an existing YAML file"),
        ("run scpo --data none.jsonl", "none.jsonl does not exist"),
        ("run scpo --data . --model ./none", ". holds no train.jsonl"),
        ("run scpo --task chains --data x", "task chains has its own data: drop --data"),
        ("list --long", "unknown option '--long': see selftaught list --help"),
        ("resume .", ". is not a run: it has no config.yaml"),
        ("resume none", "none does not exist: give the --out of a run, or of selftaught generate"),
        ("show none", "none does not exist"),
        ("score none --scorer votes", "none does not exist"),
        ("score . --scorer votes", "holds no completions: make them with selftaught generate --out"),
        ("reproduce scop", "no method is called 'scop'"),
        ("reproduce scpo --seeds 2", "2 seed(s) give no interval over seeds: pass --seeds 3 or more"),
        ("reproduce scpo --recipe huge", "scpo has no reproduction 'huge': choose one of small"),
        ("score . --scorer votes --task chains", "holds no completions: make them with selftaught generate --out"),
        ("select . --rule consistency --k 4", "'threshold' is missing"),
        ("select . --rule consistency --k 1 --threshold 1", "k=1: votes need at least 2 samples per prompt"),
        ("select . --rule gold", "holds no completions"),
        ("select nowhere --rule gold", "nowhere does not exist"),
        ("evaluate --model ./none --task chains", "model directory ./none does not exist"),
        ("generate none.jsonl --model m --out out", "none.jsonl does not exist"),
        ("train none.jsonl --model m --objective dpo --out out", "none.jsonl does not exist"),
    ],
)
def test_a_command_that_cannot_be_run(arguments, message, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(2, *arguments.split())


def test_an_unknown_key_of_a_file(fails, tmp_path):
    values = to_dict(tiny.config())
    values["sampling"]["temprature"] = 1.0
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    assert fails(2, "run", "scpo", "--config", file) == "unknown key 'sampling.temprature': did you mean 'temperature'?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows; give a file with at least one"),
        ('{"prompt": "1?"}\n{"prompt": \n', ", line 2"),
        ('{"prompt": "1?"}\n[1]\n', ", line 2"),
        ('{"prompt": "1?"}\n{"question": "2?"}\n', ", line 2: neither 'prompt' nor 'messages' is there"),
        ('{"prompt": "1?"}\n{"prompt": 2}\n', ", line 2"),
        ('{"messages": [{"role": "me", "content": "1?"}]}\n', ", line 1: messages[0] has the role 'me'"),
        ('{"prompt": "1?", "answer": "1"}\n', "has no problem to measure on: give at least 10 rows"),
    ],
)
def test_data_that_cannot_be_used_names_the_line(content, message, seed_model, fails, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text(content)
    said = fails(2, "run", "scpo", "--model", seed_model, "--data", file, "--out", tmp_path / "run")
    assert message in said
    assert "task user" in said or str(file) in said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--answer", "nowhere:read"], "importing nowhere failed: ModuleNotFoundError"),
        (["--answer", "json"], "'json' names no function: write module:function"),
        (["--verifier", "json:nothing"], "json has no function 'nothing'"),
        (["--template", "chat"], "has no chat template: pass --template plain or --template FILE.jinja"),
        (["--template", "chatt"], "template 'chatt' is neither 'plain', 'chat' nor a readable file"),
    ],
)
def test_options_that_name_what_is_not_there(option, message, data, seed_model, fails, tmp_path):
    out = tmp_path / "run"
    assert message in fails(2, "run", "scpo", "--model", seed_model, "--data", data, "--out", out, *QUICK, *option)


def test_a_model_that_is_not_there(data, fails, tmp_path):
    said = fails(2, "run", "scpo", "--model", "./nowhere", "--data", data, "--out", tmp_path / "run", *QUICK)
    assert said.startswith("model directory ./nowhere does not exist: pass a directory that holds config.json")


def test_a_place_that_is_no_directory(data, fails):
    assert str(data) in fails(2, "run", "scpo", "--recipe", "smoke", "--out", data)


def test_a_prompt_longer_than_the_context(seed_model, fails, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "a=" + "1" * (60 + i)}) for i in range(20)))
    said = fails(2, "run", "scpo", "--model", seed_model, "--data", file, "--out", tmp_path / "run", *QUICK)
    assert "tokens but the model's context is 64: shorten it" in said


# --- bad input: what was computed is kept ----------------------------------------------------------------------------


def kept(out: Path) -> set[str]:
    return {path.parent.name.split("-")[0] for path in out.glob("stages/*/.manifest.json")}


def test_answers_that_never_parse(seed_model, data, fails, tmp_path, monkeypatch):
    (tmp_path / "never_reads.py").write_text("def read(text):\n    return None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["run", "scpo", "--model", seed_model, "--data", data, "--out", "run", *QUICK]
    said = fails(3, *command, "--answer", "never_reads:read")
    assert "48 of 48 prompts: no answer could be read" in said and "--answer" in said
    assert {"prompts", "generate", "score"} <= kept(tmp_path / "run")


def test_no_pairs(seed_model, data, fails, tmp_path):
    out = tmp_path / "run"
    command = ["run", "scpo", "--model", seed_model, "--data", data, "--out", out, *QUICK]
    said = fails(3, *command, "--sampling.temperature", "0")
    assert "selection kept none of 48 groups (" in said and "all answers agree" in said and str(out) in said
    assert {"prompts", "generate", "score", "select"} <= kept(out)
    # What was sampled for nothing is read when another threshold is tried in another directory or the run is resumed.
    assert "selection kept none" in fails(3, "resume", out)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite(seed_model, data, fails, tmp_path):
    out = tmp_path / "run"
    command = ["run", "scpo", "--model", seed_model, "--data", data, "--out", out, *QUICK, "--training.epochs", "9"]
    said = fails(1, *command, "--training.lr", "1e30", "--training.clip", "0")
    assert "lr" in said
    assert {"generate", "score", "select"} <= kept(out) and "train" not in kept(out)


def test_a_poisoned_weight(seed_model, data, fails, tmp_path):
    model = Path(shutil.copytree(seed_model, tmp_path / "poisoned"))
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    said = fails(2, "run", "scpo", "--model", model, "--data", data, "--out", tmp_path / "run", *QUICK)
    assert "not finite" in said


# --- what must work --------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_pad_token(seed_model, data, tmp_path):
    model = Path(shutil.copytree(seed_model, tmp_path / "without-pad"))
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": None}))
    out = tmp_path / "run"
    succeeds("run", "scpo", "--model", model, "--data", data, "--out", out, *QUICK)
    AutoModelForCausalLM.from_pretrained(out / "model")


def test_the_verbs_alone(seed_model, data, tmp_path, capsys):
    samples, tuned = tmp_path / "samples", tmp_path / "tuned"
    succeeds(
        "generate", data, "--model", seed_model, "--out", samples, "--limit", "20", "--k", "4", "--max_tokens", "8"
    )
    assert "20 prompts x 4 completions: " in capsys.readouterr().out
    succeeds("score", samples, "--scorer", "votes", "--data", data)
    succeeds("score", samples, "--scorer", "verifier", "--data", data)
    assert "80 scores, " in capsys.readouterr().out
    succeeds("select", samples, "--rule", "consistency", "--k", "4", "--threshold", "1")
    assert " kept: " in capsys.readouterr().out
    settings = ["--training.max_steps", "2", "--training.lr", "1e-4"]
    succeeds(
        "train",
        samples,
        "--model",
        seed_model,
        "--objective",
        "dpo",
        "--out",
        tuned,
        *settings,
        "--objective.beta",
        "0.2",
    )
    AutoModelForCausalLM.from_pretrained(tuned / "model")
    evaluation = ["--data", data, "--out", tmp_path / "evaluation", "--k", "2", "--max_tokens", "8", "--problems", "4"]
    succeeds("evaluate", "--model", tuned / "model", *evaluation)
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()][-5:] == [
        "accuracy", "accuracy_sc2", "accuracy_samples2", "vote_share", "somers_d"
    ]  # fmt: skip
    succeeds("show", samples)
    assert (samples / "report.html").exists()


@pytest.mark.parametrize("rule", ["majority", "gold"])
def test_other_rules_and_objectives(rule, seed_model, data, tmp_path):
    samples = tmp_path / "samples"
    succeeds("generate", data, "--model", seed_model, "--out", samples, "--k", "4", "--max_tokens", "8")
    succeeds("score", samples, "--scorer", "votes", "--data", data)
    succeeds("score", samples, "--scorer", "verifier", "--data", data)
    settings = [["--k", "4", "--threshold", "2"], []][rule == "gold"]
    succeeds("select", samples, "--rule", rule, *settings)
    objective, loss = {"majority": ("sft", "nll_loss"), "gold": ("ipo", "preference_loss")}[rule]
    steps = ["--training.max_steps", "1"]
    succeeds("train", samples, "--model", seed_model, "--objective", objective, "--out", tmp_path / "tuned", *steps)
    (update,) = updates(tmp_path / "tuned")
    assert math.isfinite(update["loss"]) and loss in update


def test_pairs_in_a_file_are_filtered_and_trained_on(seed_model, fails, tmp_path, capsys):
    file, kept = tmp_path / "pairs.jsonl", tmp_path / "kept"
    rows = [{"prompt": f"a={i};a?", "chosen": f"#### {i}", "rejected": "#### " + "0" * (i + 1)} for i in range(8)]
    file.write_text("\n".join(map(json.dumps, rows)))
    # Rejected texts of 6 to 13 characters: the upper half is kept.
    succeeds("select", file, "--rule", "rip", "--out", kept, "--quantiles", '{"rejected_length": 0.5}')
    assert "4 kept: " in capsys.readouterr().out
    steps = ["--training.max_steps", "1"]
    succeeds("train", kept, "--model", seed_model, "--objective", "dpo", "--out", tmp_path / "tuned", *steps)
    assert "--rule rip alone" in fails(2, "select", file, "--rule", "gold")
    assert "is kept" in fails(3, "select", file, "--rule", "rip", "--bounds", '{"rejected_length": 1000}')


def test_a_reward_model_is_trained_on_pairs(seed_model, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"a={i};a?", "chosen": f"#### {i}", "rejected": f"#### {9 - i}"} for i in range(5)]
    file.write_text("\n".join(map(json.dumps, rows)))
    steps = ["--training.max_steps", "2"]
    succeeds("train", file, "--model", seed_model, "--objective", "reward", "--out", tmp_path / "rewarder", *steps)
    assert "trained on 5 examples" in capsys.readouterr().out
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "rewarder" / "model").config.num_labels == 1


def test_a_model_is_pretrained_on_texts(seed_model, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"a={i};a?"}) for i in range(5)))
    succeeds("train", file, "--model", seed_model, "--objective", "sft", "--out", tmp_path / "out")
    shown = capsys.readouterr()
    assert "trained on 5 examples" in shown.out and "5 documents, every token of their text a target" in shown.err


@pytest.mark.parametrize("objective", ["kto", "step_kto"])
def test_training_on_labels(objective, seed_model, tmp_path):
    rows = [{"prompt": f"a={i};a?", "completion": f"#### {i % 3}", "label": i % 2 == 0} for i in range(6)]
    if objective == "step_kto":
        rows = [{"prompt": r["prompt"], "completions": ["#### ", "1"], "labels": [True, r["label"]]} for r in rows]
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    steps = ["--training.max_steps", "2"]
    succeeds("train", file, "--model", seed_model, "--objective", objective, "--out", tmp_path / "tuned", *steps)
    losses = [update["loss"] for update in updates(tmp_path / "tuned")]
    untrained = {"kto": 0.5, "step_kto": 1.0}[objective]
    assert len(losses) == 2 and losses[0] == pytest.approx(untrained, abs=1e-3) and losses[1] < losses[0]
    AutoModelForCausalLM.from_pretrained(tmp_path / "tuned" / "model")


def test_a_judge_is_measured_in_both_orders(seed_model, fails, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a=1;a?", "chosen": "#### 1", "rejected": "#### 2"}\n')
    rubric = tmp_path / "short.yaml"
    rubric.write_text(
        'name: short\nkind: pairwise\ninstruction: "{question}{first}{second}"\n'
        "verdict: '#### (\\d)'\nlabels: ['1', '2']\n"
    )
    command = ["judge", file, "--model", seed_model, "--out", tmp_path / "judged", "--max_tokens", "4"]
    succeeds(*command, "--rubric", rubric)
    said = capsys.readouterr().out
    assert {"accuracy", "flip_rate"} <= {
        line.split()[0] for line in said.splitlines() if line
    } and "1 comparisons" in said
    rubric.write_text("name: short\nkind: pairwise\ninstruction: x\nverdict: ''\n")
    assert "has no parser" in fails(2, *command, "--rubric", rubric)


def test_training_on_the_wrong_kind_of_examples(seed_model, fails, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a=1;a?", "chosen": "#### 1", "rejected": "#### 2"}\n{"prompt": "a=1;a?"}\n')
    command = ["train", file, "--model", seed_model, "--out", tmp_path / "tuned", "--objective"]
    assert "pairs.jsonl, line 2" in fails(2, *command, "dpo")
    assert "pairs.jsonl, line 1" in fails(2, *command, "sft")


def test_a_run_is_shown_finished_or_not(tiny_run, tmp_path, capsys):
    succeeds("show", tiny_run)
    said = capsys.readouterr().out
    assert "scpo, smoke, seed 0" in said and "accuracy" in said
    assert said.splitlines()[-1] == f"report: {tiny_run / 'report.html'}"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tiny_run, unfinished)
    (unfinished / "summary.json").unlink()
    succeeds("show", unfinished)


def test_a_finished_run_is_repeated_from_its_configuration(tiny_run, capsys):
    succeeds("resume", tiny_run)
    said = capsys.readouterr().out
    assert (
        "Claims" in said and f"model:  {tiny_run / 'models'}" in said and f"report: {tiny_run / 'report.html'}" in said
    )


def test_rows_of_a_users_file_are_a_stage_like_any_other(seed_model, tmp_path):
    file = tmp_path / "demonstrations.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"a={i};a?", "completion": f"#### {i}"}) for i in range(3)))
    out = tmp_path / "tuned"
    steps = ["--training.max_steps", "1"]
    succeeds("train", file, "--model", seed_model, "--objective", "sft", "--out", out, *steps)
    from selftaught.store.stage import open_stage

    (stage,) = out.glob("stages/examples-*")
    rows = list(open_stage(stage))
    assert all(isinstance(row, Demonstration) and isinstance(row.completion, Completion) for row in rows)
    assert [row.completion.text for row in rows] == ["#### 0", "#### 1", "#### 2"]
