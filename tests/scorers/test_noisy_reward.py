from selftaught.scorers.noisy_reward import NoisyReward
from selftaught.scorers.verifier import Verifier
from selftaught.tasks.chains import Chains
from selftaught.types import Completion, Group, Prompt

WORLD = Chains()


def groups(prompts):
    for prompt in prompts:
        texts = [f"step {k}\n#### {k % 10}" for k in range(20)]
        completions = tuple(Completion(prompt_id=prompt.id, k=k, text=text) for k, text in enumerate(texts))
        yield Group(prompt=prompt, completions=completions)


def flips(scorer, prompts):
    """Return the share of rewards that differ from the verdict."""
    pairs = zip(scorer(groups(prompts)), Verifier(task=WORLD)(groups(prompts)), strict=True)
    differ = [r.value != v.value for rewards, verdicts in pairs for r, v in zip(rewards, verdicts, strict=True)]
    return sum(differ) / len(differ)


def test_flips_and_more_off_the_distribution():
    known = WORLD.train(100)
    generated = [Prompt.from_text(p.text, meta={"generated": True}) for p in known]
    scorer = NoisyReward(task=WORLD, flip=0.2, flip_off=0.4)
    assert abs(flips(scorer, known) - 0.2) < 0.04
    assert abs(flips(scorer, generated) - 0.4) < 0.05
    assert flips(NoisyReward(task=WORLD, flip=0.0, flip_off=1.0, longest=2), known) == 1.0
    assert flips(NoisyReward(task=WORLD, flip=0.0, flip_off=1.0, longest=9), known) == 0.0


def test_the_same_text_has_the_same_reward():
    prompt = WORLD.train(1)[0]
    completions = tuple(Completion(prompt_id=prompt.id, k=k, text="#### 1", model=f"m{k}") for k in range(8))
    for seed in range(10):
        (scores,) = NoisyReward(task=WORLD, flip=0.5, seed=seed)([Group(prompt=prompt, completions=completions)])
        assert len({s.value for s in scores}) == 1


def test_an_unsound_problem_is_judged_by_chance():
    unsound = [Prompt.from_text(f"a={n};b=c+1;b?", meta={"generated": True}) for n in range(100)]
    scores = [s for row in NoisyReward(task=WORLD)(groups(unsound)) for s in row]
    assert abs(sum(s.value for s in scores) / len(scores) - 0.5) < 0.05
