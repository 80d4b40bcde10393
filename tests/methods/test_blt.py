import json
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from tests import tiny
from transformers import AutoModelForCausalLM

from selftaught import recipes
from selftaught.errors import InputError
from selftaught.functional.patches import BY_ENTROPY
from selftaught.methods.blt import (
    ARMS,
    METHOD,
    WITHOUT_ENTROPIES,
    entropy_model,
    forward_flops,
    patches,
    read,
    tokens,
)
from selftaught.recipes.blt import RECIPES
from selftaught.reproductions import get
from selftaught.runs import run_method
from selftaught.specs import EntropyModel, ModelSpec, Training
from selftaught.store.manifest import read_manifest
from selftaught.store.stage import open_stage
from selftaught.tasks.task import TaskSpec
from selftaught.text import noise

SMALL, SMOKE = recipes.get("blt", "small"), recipes.get("blt", "smoke")


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("entropies",)}, "no arm is called 'entropies'"),
        ({"arm_lr": {"bytes": 1e-3}}, "no arm is called 'bytes'"),
        ({"task": TaskSpec(name="gsm8k")}, "task gsm8k: BLT reads texts, which take --data FILE"),
        ({"task": TaskSpec(name="text", options={"source": "a"})}, "no source"),
        ({"noises": ("drops",)}, "unknown noise 'drops'"),
        ({"light_share": 1.5}, "light_share=1.5 is no share of the characters"),
        ({"window_bytes": 1024}, "blt.max_position_embeddings=1024: a begin symbol and a window of window_bytes=1024"),
        ({"training": Training(max_length=512)}, "training.max_length=512: a begin symbol and a window"),
        (
            {"entropy_model": EntropyModel(kind="transformer", training=Training(max_length=9))},
            "entropy_model.training.max_length=9: a begin symbol",
        ),
        ({"blt": replace(SMALL.blt, patching="space")}, "blt.patching='space': arms name the rule"),
        ({"swept": "entropies"}, "swept='entropies': patch_sizes needs an arm with a threshold"),
        ({"patch_sizes": (3.0, 1.0)}, "give mean lengths of more than 1 byte"),
        ({"patch_sizes": (float("nan"),)}, "give mean lengths of more than 1 byte"),
        ({"swept": "space"}, "swept='space': patch_sizes needs an arm with a threshold"),
        ({"swept": "bpe"}, "swept='bpe': patch_sizes needs an arm with a threshold"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **changes)


def test_the_plan_counts_bytes():
    twice = replace(SMALL.training, max_steps=None, epochs=2)
    config = replace(SMALL, arms=("space", "bpe"), train_bytes=5130, training=twice)
    works = {work.name: work for work in METHOD.plan(config)}
    assert works["space: training"].rows == 11 * 2
    assert works["bpe: noise"].tokens == 8 * SMALL.test_bytes
    assert "entropy model" not in works and "space: sweep" not in works
    assert works["space: bits per byte"].tokens == SMALL.test_bytes
    capped = replace(SMALL, training=replace(SMALL.training, max_steps=3, batch_size=7))
    spec = EntropyModel(kind="transformer", training=Training(max_steps=5, batch_size=2))
    spaces = replace(capped, entropy_model=spec, arms=("space", "bpe"))
    assert "entropy model" not in {work.name for work in METHOD.plan(spaces)}
    works = {work.name: work for work in METHOD.plan(replace(capped, entropy_model=spec, noises=()))}
    assert (works["entropy: training"].rows, works["entropy: training"].passes) == (21, 6)
    assert (works["entropy model"].rows, works["entropy model"].tokens) == (10, 10 * 512)
    assert works["entropy: sweep"].tokens == 4 * SMALL.test_bytes and "entropy: noise" not in works


def test_the_measured_arms():
    for name, recipe in (("small", SMALL), ("corpus", recipes.get("blt", "corpus"))):
        measured = get("blt").recipes[name]
        assert measured.arms == ("entropy", "space", "stride", "no_hash", "bpe")
        assert replace(measured, arms=recipe.arms) == recipe
        assert recipe.blt == SMALL.blt and recipe.arm_lr.keys() <= set(measured.arms)
    assert {claim.baseline for claim in METHOD.claims} == {"stride", "no_hash", "bpe"}
    assert all(claim.lower_is_better and not claim.margin for claim in METHOD.claims)


def test_equal_flops_on_the_package_s_text(tmp_path):
    """The arms that are compared cost the same within 2% per byte of the training text; spaces cost no more."""
    with tiny.open_lab(tmp_path) as lab:
        texts = read(replace(SMALL, noises=(), test_bytes=1000), lab)
        entropy = entropy_model(SMALL, lab, texts)
        starts = {arm: patches(SMALL, lab, arm, texts, entropy) for arm in ("entropy", "no_hash", "stride", "space")}
        flops = {arm: start.flops for arm, start in starts.items()} | {"bpe": tokens(SMALL, lab, texts).flops}
    assert flops["no_hash"] == flops["entropy"]
    assert flops["stride"] == pytest.approx(flops["entropy"], rel=0.02)
    assert flops["bpe"] == pytest.approx(flops["entropy"], rel=0.02)
    assert 0.95 * flops["entropy"] < flops["space"] <= flops["entropy"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_model_reads_whole_windows(name, tmp_path):
    """Training leaves out what is longer than a model's context, without an error."""
    config = recipes.get("blt", name)
    texts = [{"text": "x" * config.window_bytes, "title": "a"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "test.jsonl").write_text(json.dumps(texts[0]))
    spec = replace(config.entropy_model, kind="transformer", layers=1, width=8, heads=2, training=None)
    config = replace(config, task=TaskSpec(name="user", data=str(tmp_path)), entropy_model=spec, noises=())
    with tiny.open_lab(tmp_path / "run") as lab:
        entropy = entropy_model(config, lab, read(config, lab))
    longest = AutoModelForCausalLM.from_pretrained(entropy).config.max_position_embeddings
    assert config.window_bytes < min(longest, config.blt.max_position_embeddings)


def test_equal_flops_of_the_reported_arms():
    file = Path(__file__).parents[2] / "reproductions" / "results" / "blt.json"
    flops = {arm: cells["flops_per_byte"]["mean"] for arm, cells in json.loads(file.read_text())["arms"].items()}
    assert flops.pop("space") <= flops["entropy"]
    assert all(value == pytest.approx(flops["entropy"], rel=0.02) for value in flops.values())


# --- texts -----------------------------------------------------------------------------------------------------------


def test_drawn_noises_are_measured_twice():
    config = replace(SMALL, noises=("antspeak", "repeat"), light_share=0.05)
    paper = {"antspeak": ("antspeak", None), "repeat": ("repeat", 0.2)}
    assert config.noise_shares == paper | {"light_repeat": ("repeat", 0.05)}
    assert replace(config, light_share=0.0).noise_shares == paper


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    """Return the smoke recipe run on a text of its own: directory, summary."""
    root = tmp_path_factory.mktemp("blt")
    for split, count in (("train", 40), ("test", 4)):
        rows = [{"text": f"The {i}th ant näher to the {i + 3}rd hill. " * 3, "title": str(i)} for i in range(count)]
        rows += [{"text": "-", "title": "short"}] * (split == "test")
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = replace(SMOKE, task=TaskSpec(name="user", data=str(root)))
    return root / "run", run_method(METHOD, config, root / "run", seed=0, recipe="smoke")


def test_bits_per_byte_are_those_of_the_trained_model(run):
    """All nats over all bytes, of windows that are read one by one with the patches their model finds itself."""
    out, summary = run
    model = AutoModelForCausalLM.from_pretrained(out / "models" / "space").eval()
    windows = list(open_stage(tiny.stages_of(out, "windows", "seed_model", 0)[0]))
    test = [w for path in tiny.stages_of(out, "patches", "space", 1)[1:2] for w in open_stage(path)]
    assert {len(w.text.encode()) <= 64 for w in (*windows, *test)} == {True}
    nats = size = 0.0
    for window in test:
        ids = torch.tensor([[1, *(b + 4 for b in window.text.encode())]])
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1]).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        size += ids.shape[1] - 1
    assert summary["arms"]["space"]["bits_per_byte"]["mean"] == pytest.approx(nats / log(2) / size, rel=1e-5)
    assert summary["arms"]["space"]["bits_per_byte"]["n"] == 5


def test_claims_of_one_run_are_over_all_bytes(run):
    """As the arms' bits per byte are, so that the difference is one of what is reported."""
    arms, claims = run[1]["arms"], run[1]["claims"]
    assert {claim["metric"] for claim in claims} > {"bits_per_byte", "rise_light"}
    for claim in claims:
        ours, baseline = (arms[claim[arm]][claim["metric"]]["mean"] for arm in ("arm", "baseline"))
        assert claim["difference"] == pytest.approx(ours - baseline, abs=1e-9)


def test_arms_without_entropies_need_no_model_of_them(run, tmp_path):
    """The model is neither trained for them alone nor, beside other arms, a part of theirs."""
    by_rule = {arm: changes.get("patching", "entropy") for arm, changes in ARMS.items() if arm != "bpe"}
    assert WITHOUT_ENTROPIES - {"bpe"} == {arm for arm, rule in by_rule.items() if rule not in BY_ENTROPY}
    spec = EntropyModel(kind="transformer", layers=1, width=8, heads=2, training=Training(max_steps=1))
    with tiny.open_lab(tmp_path / "run") as lab:
        METHOD.run(replace(SMOKE, arms=("space",), noises=(), entropy_model=spec), lab)
    assert not tiny.stages_of(tmp_path / "run", "train", "seed_model", 0)
    kept = {arm: AutoModelForCausalLM.from_pretrained(run[0] / "models" / arm).model for arm in ("space", "entropy")}
    assert kept["space"].entropy_model is None and kept["entropy"].entropy_model is not None

    out, summary = run
    for arm in summary["arms"]:
        cells = {name: cell["mean"] for name, cell in summary["arms"][arm].items()}
        kinds = ("drop", "random_case", "repeat")
        rises = {f"rise{light}{noise}" for light in ("", "_light") for noise in ("", *(f"_{kind}" for kind in kinds))}
        assert cells.keys() == {"bits_per_byte", "patch_length", "flops_per_byte", "rise_drop_and_case"} | rises
        for mean in ("rise", "rise_light"):
            assert cells[mean] == pytest.approx(sum(cells[f"{mean}_{kind}"] for kind in kinds) / 3)
        assert cells["rise_drop"] == cells["rise_light_drop"]
        both = (cells["rise_light_drop"] + cells["rise_light_random_case"]) / 2
        assert cells["rise_drop_and_case"] == pytest.approx(both)
    stages = {arm: tiny.stages_of(out, "patches", arm, 1) for arm in ("entropy", "space", "stride", "no_hash")}
    texts = {arm: [[d.text for d in open_stage(path)] for path in paths[:4]] for arm, paths in stages.items()}
    assert len(texts["entropy"]) == 4 and all(found == texts["entropy"] for found in texts.values())
    lengths = {arm: [d.patch_lengths for d in open_stage(paths[0])] for arm, paths in stages.items()}
    assert lengths["entropy"] == lengths["no_hash"] != lengths["stride"]
    assert all(sum(d) == len(t.encode()) + 1 for d, t in zip(lengths["space"], texts["space"][0], strict=True))


def test_a_noise_that_leaves_nothing_costs_nothing(tmp_path, monkeypatch):
    """A document of one byte may vanish: its rise is what it cost before, below 0."""
    monkeypatch.setitem(noise._DRAWN, "drop", lambda text, seed, share: text[1:])
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text(json.dumps({"text": "An ant. " * 40}))
    (rows / "test.jsonl").write_text('{"text": "A"}\n{"text": "Ant"}')
    config = replace(SMOKE, arms=("space",), noises=("drop",), task=TaskSpec(name="text", data=str(rows)))
    with tiny.open_lab(tmp_path / "run") as lab:
        values = METHOD.run(config, lab).values["space"]
    (gone,) = [d for d, value in values["bits_per_byte"].items() if values["rise_drop"][d] == -value]
    assert "rise_drop_and_case" not in values
    assert len(values["rise"]) == 2 and values["rise_drop"][gone] < 0


def test_noise_that_leaves_nothing_of_any_text_costs_nothing(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text(json.dumps({"text": "An ant. " * 40}))
    (rows / "test.jsonl").write_text('{"text": "A"}')
    task = TaskSpec(name="text", data=str(rows))
    config = replace(SMOKE, arms=("space",), noises=("drop",), light_share=1.0, task=task)
    with tiny.open_lab(tmp_path / "run") as lab:
        reports = METHOD.run(config, lab).rounds["space"][0]
    assert reports["rise_light_drop"].mean == -reports["bits_per_byte"].mean


def test_tokens_are_counted_and_not_the_characters_they_share(tmp_path):
    """Under a tokenizer of bytes alone, "é" is two tokens, which are one patch: 1 byte per token in both splits."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for split in ("train", "test"):
        (rows / f"{split}.jsonl").write_text(json.dumps({"text": "é" * 40}), encoding="utf-8")
    bytes_alone = replace(SMOKE.seed_model, scratch=replace(SMOKE.seed_model.scratch, vocab_size=258))
    config = replace(SMOKE, task=TaskSpec(name="text", data=str(rows)), seed_model=bytes_alone, noises=())
    with tiny.open_lab(tmp_path / "run") as lab:
        start = tokens(config, lab, read(config, lab))
    assert start.patch_length == 1.0
    assert start.flops == forward_flops(start.model, config.window_bytes, 1.0)


def test_every_rule_of_patches_is_an_arm(tmp_path):
    """Those that read ahead too, for comparison: of tokens, and of a count of the highest entropies."""
    config = replace(SMOKE, arms=("both", "top_k", "bpe_patches"), noises=(), patch_sizes=(), train_bytes=2000)
    with tiny.open_lab(tmp_path) as lab:
        found = {arm: rounds[0] for arm, rounds in METHOD.run(config, lab).rounds.items()}
        texts = read(config, lab)
        of_tokens = tokens(config, lab, texts)
    assert all(reports["bits_per_byte"].mean > 0 for reports in found.values())
    assert found["top_k"]["patch_length"].mean == pytest.approx(config.blt.patch_size, rel=0.25)
    assert found["bpe_patches"]["patch_length"].mean == pytest.approx(of_tokens.patch_length, rel=0.02)


def test_the_sweep_is_calibrated_before_the_model_is_trained(tmp_path):
    config = replace(SMOKE, arms=("entropy",), noises=(), patch_sizes=(63.0,), train_bytes=2000)
    with tiny.open_lab(tmp_path) as lab, pytest.raises(InputError, match=r"patch_size=63\.0"):
        METHOD.run(config, lab)
    assert "train" not in tiny.verbs_of(tmp_path, "entropy", 1)


def test_the_sweep_is_one_model_at_other_thresholds(run):
    out, _ = run
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (swept,) = [event for event in events if event["event"] == "sweep"]
    (trained,) = [e for e in events if e["event"] == "patches" and e["arm"] == "entropy"]
    assert swept["arm"] == "entropy" and len(swept["points"]) == 1
    point = swept["points"][0]
    assert point["patch_length"] < trained["patch_length"]
    model = ModelSpec(source=str(out / "models" / "entropy"))
    assert point["flops_per_byte"] == forward_flops(model, SMOKE.window_bytes, point["patch_length"])
    (shown,) = [event for event in events if event["event"] == "patched_text"]
    assert list(shown["schemes"]) == ["entropy", "space", "stride"]
    calibrated = {e["arm"]: e for e in events if e["event"] == "calibrated"}
    assert point["threshold"] < calibrated["entropy"]["threshold"] == calibrated["no_hash"]["threshold"]
    assert calibrated["space"]["threshold"] is None


def test_an_arm_has_its_learning_rate(run, tmp_path):
    config = replace(
        SMOKE,
        arms=("stride", "byte"),
        arm_lr={"byte": 0.5},
        noises=(),
        train_bytes=500,
        training=replace(SMOKE.training, max_steps=1),
    )
    with tiny.open_lab(tmp_path) as lab:
        outcome = METHOD.run(config, lab)
    rates = [
        read_manifest(tiny.stages_of(tmp_path, "train", arm, 1)[0])["params"]["settings"]["lr"] for arm in config.arms
    ]
    assert rates == [SMOKE.training.lr, 0.5]
    assert "rise" not in outcome.rounds["byte"][0] and outcome.rounds["byte"][0]["patch_length"].mean == 1.0


def test_a_transformer_as_entropy_model(tmp_path):
    training = Training(lr=1e-2, batch_size=4, max_steps=3)
    spec = EntropyModel(kind="transformer", layers=1, width=16, heads=2, window=8, training=training)
    config = replace(SMOKE, arms=("entropy",), entropy_model=spec, noises=(), patch_sizes=(), train_bytes=2000)
    with tiny.open_lab(tmp_path) as lab:
        reports = METHOD.run(config, lab).rounds["entropy"][0]
    assert tiny.verbs_of(tmp_path, "seed_model", 0)[-2:] == ["entropy_model", "train"]
    assert 1 < reports["patch_length"].mean < 64


def test_the_global_transformer_of_a_token_model(tmp_path, seed_model):
    """The layers of a Llama of width 32 are 2 slots of 16, before they are trained on."""
    config = replace(SMOKE, arms=("stride",), model=ModelSpec(source=str(seed_model)), noises=(), patch_sizes=())
    with tiny.open_lab(tmp_path) as lab:
        METHOD.run(config, lab)
    (built,) = tiny.stages_of(tmp_path, "blt", "stride", 1)
    ours = AutoModelForCausalLM.from_pretrained(built / "files").model.global_stack
    theirs = AutoModelForCausalLM.from_pretrained(seed_model).model.layers
    assert len(ours.layers) == len(theirs)
    assert torch.equal(ours.layers[0].attention.q.weight, theirs[0].self_attn.q_proj.weight)
