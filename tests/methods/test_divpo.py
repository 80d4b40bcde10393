import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny

from selftaught.engines.fake import FakeGenerator
from selftaught.errors import InputError, NothingToTrainOn
from selftaught.evals import stopping
from selftaught.methods import divpo
from selftaught.methods.divpo import ARMS, METHOD, Config, diversity, objective, reward, round_prompts, selection
from selftaught.methods.method import Outcome
from selftaught.methods.rounds import arm_settings
from selftaught.models.load import model_key
from selftaught.recipes import divpo as recipes
from selftaught.reproductions import divpo as reproduction
from selftaught.runs import run_method
from selftaught.scorers.programmatic import Gated, ProgrammaticReward
from selftaught.scorers.reward_model import RewardModel
from selftaught.select.diverse_pairs import DiversePairs
from selftaught.select.diversity import WINDOW, Custom, Frequency, Judged, Probability, Scored
from selftaught.select.pairs import RewardPairs
from selftaught.specs import SFT, ModelSpec, Phase, Preference, Sampling, Scratch, SeedModel, Training
from selftaught.store.groups import Groups
from selftaught.store.stage import open_stage
from selftaught.tasks import load_task
from selftaught.tasks.task import TaskSpec
from selftaught.train.reference import reference_logps
from selftaught.types import Completion, Demonstration

KEYS = ("first_name", "city", "occupation")
CONFIG = Config(task=TaskSpec(name="personas"), rounds=1)


# --- settings --------------------------------------------------------------------------------------------------------


def rule(**criterion) -> DiversePairs:
    return DiversePairs(seed=3, **criterion)


@pytest.mark.parametrize(
    ("arm", "online", "expected"),
    [
        ("divpo", True, rule(diversity=Probability())),
        ("dpo_offline", False, RewardPairs(scorer="reward", seed=3)),
        ("dpo_online", True, RewardPairs(scorer="reward", seed=3)),
        ("divpo_freq_offline", False, rule(diversity=Frequency(attributes=KEYS, seed=3))),
        ("divpo_freq_online", True, rule(diversity=Frequency(attributes=KEYS, seed=3))),
        ("divpo_prob_offline", False, rule(diversity=Probability())),
        ("divpo_prob_online", True, rule(diversity=Probability())),
        (
            "divpo_judge_online",
            True,
            rule(diversity=Judged(side="most"), rejected_diversity=Judged(side="least")),
        ),
        ("divpo_chosen_only", True, rule(diversity=Probability(), sides="chosen")),
        ("divpo_rejected_only", True, rule(diversity=Probability(), sides="rejected")),
    ],
)
def test_baselines_and_ablations_are_settings_of_one_loop(arm, online, expected):
    settings = arm_settings(CONFIG, arm, ARMS)
    assert settings.online is online
    assert selection(settings, seed=3) == expected
    assert objective(settings) == Preference(beta=0.1)


def test_the_other_arms():
    assert set(ARMS) == {row.values[0] for row in _parametrized()} | {"sft", "seed_t07", "seed_t13"}
    sft = arm_settings(CONFIG, "sft", ARMS)
    assert (objective(sft), sft.online) == (SFT(), False)
    assert [arm_settings(CONFIG, f"seed_t{t}", ARMS).temperature for t in ("07", "13")] == [0.7, 1.3]


def _parametrized():
    (mark,) = test_baselines_and_ablations_are_settings_of_one_loop.pytestmark
    return [pytest.param(*values) for values in mark.args[1]]


def test_every_option_of_the_rule_is_passed_on():
    config = replace(
        CONFIG, rho=0.1, pool="absolute", threshold=2.0, minimum=1.0, allow_same_pool=False, length_normalize=True
    )
    assert selection(config, 0) == DiversePairs(
        diversity=Probability(length_normalize=True),
        rho=0.1,
        pool="absolute",
        threshold=2.0,
        minimum=1.0,
        allow_same_pool=False,
    )
    words = replace(CONFIG, criterion="frequency", scope="subset", transform="log", one_attribute=True)
    assert diversity(words, 5) == Frequency(
        scope="subset", transform="log", attributes=KEYS, one_attribute=True, seed=5
    )
    window = replace(words, scope="window", window=8)
    assert diversity(window, 5) == Scored(scorer=WINDOW)
    assert divpo.frequency(window, 5) == replace(diversity(words, 5), scope="pool")
    custom = replace(CONFIG, criterion="custom", custom="builtins:len")
    assert diversity(custom, 0) == Custom(function="builtins:len")


def test_rewards():
    assert reward(CONFIG) == ProgrammaticReward(task=CONFIG.task)
    named = replace(CONFIG, reward="builtins:len", reward_bias=0.1)
    assert reward(named) == ProgrammaticReward(task=CONFIG.task, function="builtins:len", bias=0.1)
    model = ModelSpec(source="rm")
    scorer = RewardModel(model=model, scorer="reward")
    assert reward(replace(CONFIG, reward_model=model)) == scorer
    assert reward(replace(CONFIG, reward_model=model, gate=True)) == Gated(scorer=scorer, task=CONFIG.task)


def test_a_round_is_sampled_in_parts_online_and_whole_offline():
    config = replace(CONFIG, prompts=10, refreshes=3, rounds=2)
    parts = round_prompts(config, 0, 1)
    assert [len(part) for part in parts] == [3, 3, 4]
    (whole,) = round_prompts(replace(config, online=False), 0, 1)
    assert [p.id for part in parts for p in part] == [p.id for p in whole]
    assert {p.id for p in whole}.isdisjoint(p.id for part in round_prompts(config, 0, 0) for p in part)
    same = replace(config, fresh_prompts=False)
    assert round_prompts(same, 0, 1) == round_prompts(same, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(k=1)}, r"sampling\.k=1, refreshes=1: a pair needs 2 samples"),
        ({"refreshes": 0}, "a pair needs 2 samples, say 16, and a round 1 refresh"),
        ({"rounds": 2}, "say how many with --prompts"),
        ({"criterion": "custom"}, "name your function with both"),
        ({"custom": "a:b"}, "name your function with both"),
        ({"window": 0}, "window=0 holds no prompt"),
        ({"validity_level": 97.0}, "is not a share"),
        ({"arms": ("dpo",)}, "no arm is called 'dpo': known are divpo, "),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


def test_the_reproduction_has_the_baselines():
    arms = {"sft", "dpo_offline", "dpo_online", "divpo_freq_online", "divpo_prob_online", "seed_t07", "seed_t13"}
    assert arms <= set(reproduction.ARMS)


def test_the_plan_counts_every_stage():
    names = [work.name for work in METHOD.plan(replace(recipes.smoke(), arms=("sft", "divpo_judge_online")))]
    assert names[0] == "seed model: evaluation"
    assert "divpo_judge_online 2: judge" in names and "sft 1: reference" not in names
    assert [w.name for w in METHOD.plan(replace(recipes.smoke(), arms=("seed_t07",), rounds=1))][1:] == [
        "seed_t07 1: held-out samples",
        "seed_t07 1: evaluation",
    ]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> tuple[Path, dict]:
    """A smoke run of a few arms: (run directory, summary)."""
    out = tmp_path_factory.mktemp("divpo") / "run"
    arms = ("divpo_freq_offline", "divpo_prob_online", "seed_t13")
    config = replace(recipes.smoke(), arms=arms, refreshes=2, prompts=8, reference="initial", validity_level=None)
    return out, run_method(METHOD, config, out, seed=0, recipe="smoke")


def rows(run: Path, verb: str, arm: str, round: int, number: int = 0) -> list:
    return list(open_stage(tiny.stages_of(run, verb, arm, round)[number]))


def test_pairs_are_the_rarest_valid_over_the_commonest_invalid(run):
    out, _ = run
    task = load_task(recipes.smoke().task)
    pairs = rows(out, "select", "divpo_prob_online", 1) + rows(out, "select", "divpo_prob_online", 1, 1)
    assert pairs
    for pair in pairs:
        assert task.verify(pair.prompt, pair.chosen.text)
        assert task.verify(pair.prompt, pair.rejected.text) is (pair.meta["bad"] == 0)
        assert pair.meta["diversity_chosen"] == pytest.approx(-sum(pair.chosen.logprobs))


def test_online_samples_the_current_policy_and_offline_the_initial_one(run):
    out, _ = run
    initial = rows(out, "generate", "seed_model", 0)[0].model
    online = [rows(out, "generate", "divpo_prob_online", t, n)[0].model for t, n in ((1, 0), (1, 1), (2, 0))]
    assert online[0] == initial and len(set(online)) == 3
    assert [rows(out, "generate", "divpo_freq_offline", t)[0].model for t in (1, 2)] == [initial] * 2


def test_the_reference_stays_the_initial_model(run, cache):
    out, _ = run
    config = recipes.smoke()
    with tiny.open_lab(out.parent / "again") as lab:
        initial = lab.seed_model(config.task, config.seed_model)
    assert model_key(initial) == rows(out, "generate", "seed_model", 0)[0].model
    pairs = rows(out, "select", "divpo_prob_online", 2, 1)
    expected = {s.completion_id: s.value for s in reference_logps(initial, pairs, config.training)}
    used = {s.completion_id: s.value for s in rows(out, "logps", "divpo_prob_online", 2, 1)}
    assert used == pytest.approx(expected, abs=1e-5)


def test_measures(run):
    _, summary = run
    wanted = {"validity", "reward", "win_rate", "entropy", "entropy_city", "unique_share", "max_share"}
    wanted |= {"unique_unigrams", "unigram_entropy", "compression_ratio", "transfer_entropy"}
    for arm, cells in summary["arms"].items():
        assert wanted <= cells.keys()
        assert all(cells[name]["mean"] is not None for name in wanted), arm
    assert summary["arms"]["seed_model"]["win_rate"]["mean"] == 0.5
    hot, base = (summary["arms"][arm]["entropy"]["mean"] for arm in ("seed_t13", "seed_model"))
    assert hot > base


def test_what_a_round_notes(run):
    out, _ = run
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    noted = [e for e in events if e["event"] == "pairs" and e["arm"] == "divpo_prob_online" and e["round"] == 1]
    assert len(noted) == 2, "one for each part of the round"
    for event in noted:
        assert 0 <= event["without"] <= 1 and event["price"] <= 0
        assert event["diversity_chosen"] > event["diversity_rejected"] or event["bad"] > 0


def test_exact_entropies_need_attributes(tmp_path):
    cfg = replace(CONFIG, task=TaskSpec(name="stories"))
    with tiny.open_lab(tmp_path) as lab, pytest.raises(InputError, match="task stories has no attributes to read off"):
        divpo.exact(cfg, lab, ModelSpec(source="m"), None, (), Sampling())


def arm(cfg: Config, name: str, out: Path, monkeypatch: pytest.MonkeyPatch, validity: list[float]) -> Outcome:
    """Run one arm whose held-out validity is as given, and whose training only renames the model."""
    outcome, shares = Outcome(), iter(validity)
    monkeypatch.setattr(divpo, "dev_validity", lambda *_: next(shares))
    monkeypatch.setattr(divpo, "train_round", lambda cfg, lab, initial, model, t: ModelSpec(source=f"m{t + 1}"))
    monkeypatch.setattr(divpo, "measure", lambda cfg, lab, initial, model: ({}, {}))
    with tiny.open_lab(out) as lab:
        divpo.run_arm(arm_settings(cfg, name, ARMS), lab, outcome, name, ModelSpec(source="m0"))
    return outcome


@pytest.mark.parametrize(
    ("stop_rule", "validity", "kept"),
    [("last", [0.9, 0.98, 0.97, 0.5], "m3"), ("first", [0.9, 0.98], "m2"), ("last", [0.9, 0.8, 0.7, 0.6], "m1")],
)
def test_the_stopping_rule_ends_an_arm_and_keeps_an_earlier_model(tmp_path, monkeypatch, stop_rule, validity, kept):
    cfg = replace(recipes.smoke(), rounds=4, validity_level=0.97, stop_rule=stop_rule)
    outcome = arm(cfg, "dpo_online", tmp_path, monkeypatch, validity)
    assert outcome.models["dpo_online"].source == kept
    assert len(outcome.rounds["dpo_online"]) == 4
    assert stopping.is_over(validity, 0.97, stop_rule) or len(validity) == 4


def test_a_round_without_pairs_keeps_the_model_but_the_first_must_have_some(tmp_path, monkeypatch):
    calls = []

    def refuse(cfg, lab, initial, model, t):
        calls.append(t)
        if t != 1:
            return ModelSpec(source=f"m{t + 1}")
        raise NothingToTrainOn("all rewards are equal")

    cfg = replace(recipes.smoke(), rounds=3, validity_level=None)
    monkeypatch.setattr(divpo, "measure", lambda *_: ({}, {}))
    monkeypatch.setattr(divpo, "train_round", refuse)
    with tiny.open_lab(tmp_path) as lab:
        divpo.run_arm(cfg, lab, Outcome(), "dpo_online", ModelSpec(source="m0"))
        assert calls == [0, 1, 2]
        monkeypatch.setattr(
            divpo, "train_round", lambda cfg, lab, initial, model, t: refuse(cfg, lab, initial, model, 1)
        )
        with pytest.raises(NothingToTrainOn, match="all rewards are equal"):
            divpo.run_arm(cfg, lab, Outcome(), "dpo_online", ModelSpec(source="m0"))


def test_a_window_reaches_back_into_earlier_parts_of_a_round(tmp_path, monkeypatch):
    """Three parts of 2, 2 and 1 prompts and a window of 4: as if the five had been one part."""
    cfg = replace(CONFIG, scope="window", window=4, criterion="frequency")
    prompts = load_task(cfg.task).train(5)
    fake = FakeGenerator(lambda prompt, k: json.dumps(dict.fromkeys(KEYS, f"v{k % 2}")))
    with tiny.open_lab(tmp_path) as lab:

        def part(start: int, stop: int) -> Groups:
            texts = [c for row in fake(prompts[start:stop], Sampling(k=3, max_tokens=99)) for c in row]
            return Groups(prompts=prompts[start:stop], completions=(lab.stage("texts", Completion, texts),))

        (whole, _), earlier, found = divpo.windowed(cfg, lab, part(0, 5), ()), (), []
        for bounds in ((0, 2), (2, 4), (4, 5)):
            scored, earlier = divpo.windowed(cfg, lab, part(*bounds), earlier)
            found += [s.value for s in scored.scores[-1]]
        assert found == [s.value for s in whole.scores[-1]]
        assert [len(g) for g in earlier] == [2, 1], "the first part is out of reach"
    assert set(found[-3:]) == {1 / 8, 1 / 4}


def test_a_round_by_the_window(tmp_path):
    config = replace(recipes.smoke(), scope="window", window=6, refreshes=2, prompts=8)
    config = arm_settings(config, "divpo_freq_online", ARMS)
    with tiny.open_lab(tmp_path) as lab, lab.scope(arm="divpo_freq_online", round=1):
        initial = lab.seed_model(config.task, config.seed_model)
        divpo.train_round(config, lab, initial, initial, 0)
    values = {}
    for number in (0, 1):
        values |= {s.completion_id: s.value for s in rows(tmp_path, "window", "divpo_freq_online", 1, number)}
        for pair in rows(tmp_path, "select", "divpo_freq_online", 1, number):
            assert pair.meta["diversity_chosen"] == values[pair.chosen.id]
            assert pair.meta["diversity_rejected"] == values[pair.rejected.id]
    assert len(values) == 8 * config.sampling.k


@pytest.fixture(scope="module")
def keyword_run(tmp_path_factory, cache) -> tuple[Path, dict]:
    """Keyword stories with the judge's criterion and SFT, judged by the model itself, which cannot."""
    out = tmp_path_factory.mktemp("stories") / "run"
    scratch = Scratch(layers=1, width=32, heads=2, context=256, tokenizer="pattern", pattern=recipes.WORD_PATTERN)
    training = Training(lr=1e-2, max_steps=60, batch_size=32)
    config = replace(
        recipes.smoke(),
        task=TaskSpec(
            name="stories", options={"titles": 60, "topics": 3, "words": 6, "stories": 0.5, "off_topic": 0.1}
        ),
        seed_model=SeedModel(scratch=scratch, phases=(Phase(demonstrations=480, training=training),)),
        arms=("sft", "divpo_judge_online"),
        rounds=1,
        prompts=6,
        sampling=Sampling(k=4, max_tokens=12),
        judge_sampling=Sampling(temperature=0.0, max_tokens=4),
        minimum=None,
        validity_level=None,
        test_prompts=2,
        measurement=Sampling(k=8, max_tokens=12),
        generations=None,
        exact=False,
        stories=2,
        story_sampling=Sampling(max_tokens=24),
    )
    return out, run_method(METHOD, config, out, seed=0, recipe="smoke")


def test_a_judge_that_cannot_be_read_gives_way_to_word_frequency(keyword_run):
    out, _ = keyword_run
    scores = rows(out, "judge", "divpo_judge_online", 1)
    assert scores and {s.note for s in scores} == {"word frequency"}
    assert rows(out, "select", "divpo_judge_online", 1)


def test_sft_imitates_one_of_the_best(keyword_run):
    out, _ = keyword_run
    chosen = rows(out, "select", "sft", 1)
    assert all(isinstance(row, Demonstration) for row in chosen)
    rewards = {s.completion_id: s.value for s in rows(out, "score", "sft", 1)}
    samples = rows(out, "generate", "sft", 1)
    for row in chosen:
        assert rewards[row.completion.id] == max(rewards[c.id] for c in samples if c.prompt_id == row.prompt.id)


def test_stories_are_written_by_the_initial_model(keyword_run):
    out, summary = keyword_run
    initial = rows(out, "generate", "seed_model", 0)[0].model
    for name in ("sft", "divpo_judge_online"):
        if "story_unique_unigrams" in summary["arms"][name]:
            assert rows(out, "generate", name, 1, -1)[0].model == initial
    assert any("story_compression_ratio" in cells for cells in summary["arms"].values())
