"""Adaptive Decoding by Latent Preference Optimization (Dhuliawala et al. 2024, arXiv 2411.09661).

A small head on a frozen language model chooses the temperature, once per answer (sequence level) or at every token. It
learns from pairs of the model's own answers, each drawn at temperatures that are kept with it. For rounds 1 .. T:

    1. p = softmax(head(h)), h the last hidden state: of the prompt, or at each position;
    2. N answers per prompt, temperatures drawn from p (uniform in the first round; later mixed with uniform);
    3. score the answers; chosen y^c, tau^c is the best, rejected y^r, tau^r the worst; equal scores are skipped, and at
       the sequence level equal temperatures;
    4. minimise over the head alone, with log P(tau) = log p[tau] or the mean over tokens of log p_t[tau_t],
         separate  - log sigmoid(b log P(tau^c) - b log P(tau^r))
         token     as well, plus log-ratios of the text, which are 0 because the language model is frozen
         latent    - log sigmoid(b r^c - b r^r), r = log sum_k P(y|tau_k) P(tau_k) - log sum_k P(y|tau_k) / K
         nll       - log P(tau^c), the baseline;
    5. at test the most likely temperature is taken (or one is drawn from p).

The baselines are arms on the same prompts: every single choice (`fixed_...`), min-p and entropy-based temperatures at
their best setting, and the best choice for each kind of prompt (`oracle`).

Departures, and choices where the paper is silent (its full text was not at hand; treat every item as a choice):
- what is chosen among is a list of ways to draw a token: temperatures first, top-p, top-k or min-p as well;
- the head: three layers with SiLU, as wide as the model up to 1,024, uniform before training, reading the final norm;
- log P(tau) at the token level is a mean over tokens, not a sum: long answers would dominate (`length_normalize`);
- N, beta, learning rate, rounds and exploration of the paper are unknown: those of the recipes are ours;
- more than one pair of a prompt may be taken (`pairs`, `pairs_per_prompt`): the next best over the next worst;
- a later round trains on its own pairs only, on fresh prompts where there are (`fresh_prompts`);
- the best fixed choice, the oracle and the settings of min-p and entropy are chosen on the test draws themselves, which
  favours them over the head;
- settings of the token level may differ, another task and model included (`token`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from selftaught.errors import InputError
from selftaught.evals.evaluate import summarise
from selftaught.evals.metrics import PerProblem, accuracy
from selftaught.evals.temperatures import (
    ChosenTemperatures,
    FixedTemperature,
    TemperatureOf,
    against_fixed,
    best_by_kind,
    best_of,
    by_place,
    choice_counts,
    heat_rows,
    kept_temperatures,
    kind_of,
    measure_temperatures,
    shares_by_kind,
    traces,
)
from selftaught.evals.thoughts import by_category
from selftaught.methods.method import Claim, Measured, Method, Outcome
from selftaught.methods.rounds import check_arms, run_rounds
from selftaught.plan import Work, evaluation_plan, problem_counts, round_plan
from selftaught.scorers.base import Scorer
from selftaught.scorers.programmatic import SCORER, ProgrammaticReward
from selftaught.scorers.reward_model import RewardModel
from selftaught.scorers.verifier import Verifier
from selftaught.select.latent_pairs import LatentPairs, Level
from selftaught.specs import (
    Adaptive,
    Choice,
    EntropyTemperature,
    Evaluation,
    Head,
    LatentPreference,
    ModelSpec,
    Sampling,
    SeedModel,
    Training,
)
from selftaught.store.groups import Groups
from selftaught.tasks import load_task
from selftaught.tasks.task import Task, TaskSpec
from selftaught.types import Document, Pair, Prompt

if TYPE_CHECKING:
    from selftaught.lab import Lab

Loss = Literal["separate", "token", "latent", "nll"]
Values = dict[str, PerProblem]
"""Metric -> values by prompt."""


def temperatures(*values: float) -> tuple[Choice, ...]:
    """Return the choices that are these temperatures."""
    return tuple(Choice(temperature=value) for value in values)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of Adaptive Decoding. The level is the arm's: `seq_...` one choice an answer, `tok_...` one a token.

    A head of `width` (the model's) chooses among `choices`. `sampling.k` is N, and `explore` the share of uniform draws
    in it. `reward` is "task" or "module:function", called with prompt and text; `reward_model` replaces it. `pairs` is
    the rule of step 3, for up to `pairs_per_prompt` pairs. `evaluation.k` answers per test prompt are drawn at the
    head's choice (`select`), at every fixed one, at the settings `min_p` and at `entropy` ones. A frozen model whose
    greedy accuracy is below `min_accuracy` has not learnt what it is to be decoded for. `heat` answers are kept with
    the temperature of each token. `token` holds what differs at the token level, as in a configuration file.
    """

    task: TaskSpec
    model: ModelSpec | None = None
    seed_model: SeedModel = field(default_factory=SeedModel)
    arms: tuple[str, ...] = ("seq_separate",)
    rounds: int = 1
    prompts: int | None = None
    fresh_prompts: bool = True
    sampling: Sampling = field(default_factory=lambda: Sampling(k=16))
    choices: tuple[Choice, ...] = temperatures(0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    width: int | None = None
    explore: float = 0.2
    reward: str = "task"
    reward_model: ModelSpec | None = None
    pairs: Literal["best_worst", "random", "all"] = "best_worst"
    pairs_per_prompt: int = 1
    loss: Loss = "separate"
    beta: float = 0.1
    length_normalize: bool = True
    training: Training = field(default_factory=lambda: Training(lr=1e-3, epochs=2, batch_size=64))
    select: Literal["argmax", "sample"] = "argmax"
    min_p: tuple[Choice, ...] = ()
    entropy: tuple[EntropyTemperature, ...] = ()
    min_accuracy: float = 0.0
    heat: int = 6
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(k=1))
    token: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_arms(self.arms, dict.fromkeys(known_arms(self)), {}, self.rounds)
        if self.sampling.k < 2 or len(set(self.choices)) < max(2, len(self.choices)):
            raise InputError(
                f"sampling.k={self.sampling.k}, choices={[name_of(c) for c in self.choices]}: a pair needs 2 answers, "
                "and a head 2 choices, each once"
            )
        if self.token.get("rounds", self.rounds) != self.rounds:
            raise InputError(
                f"token.rounds={self.token['rounds']}: both levels have {self.rounds} rounds; set --rounds"
            )
        if self.fresh_prompts and self.prompts is None and self.rounds > 1:
            raise InputError("fresh_prompts takes a part of the prompts in every round; say how many with --prompts")


LEVELS: dict[str, Level] = {"seq": "sequence", "tok": "token"}
HEADS: dict[str, dict] = {
    "separate": {},
    "token": {"loss": "token"},
    "latent": {"loss": "latent"},
    "nll": {"loss": "nll"},
    "separate_sampled": {"select": "sample"},
    "nll_sampled": {"loss": "nll", "select": "sample"},
}
"""The arms that train a head, as changes of a configuration."""


def known_arms(cfg: Config) -> list[str]:
    """Return the names of all arms: at both levels those that train a head, and the baselines."""
    names = []
    for prefix, level in LEVELS.items():
        fixed = [f"fixed_{name_of(choice)}" for choice in at_level(cfg, level).choices]
        names += [f"{prefix}_{arm}" for arm in (*HEADS, *fixed, "min_p", "entropy", "oracle")]
    return names


def name_of(choice: Choice) -> str:
    """Return the name of a choice: its temperature, and its filters where it has some.

    >>> name_of(Choice(temperature=0.3)), name_of(Choice(top_p=0.9))
    ('0.3', '1_p0.9')
    """
    filters = (("p", choice.top_p, 1.0), ("k", choice.top_k, 0), ("min", choice.min_p, 0.0))
    return "_".join([f"{choice.temperature:g}", *(f"{n}{value:g}" for n, value, off in filters if value != off)])


def at_level(cfg: Config, level: Level) -> Config:
    """Return the settings of a level."""
    from selftaught.config import from_dict, to_dict

    if level == "sequence" or not cfg.token:
        return cfg
    return from_dict(Config, to_dict(cfg) | {**cfg.token, "token": {}, "arms": ["tok_separate"]})


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the arms of a level share: settings, the frozen model, test prompts, and what fixed choices are worth.

    `kinds` are by prompt, `fixed` holds by the name of a choice its values by metric and prompt.
    """

    level: Level
    cfg: Config
    task: Task
    model: ModelSpec
    prompts: list[Prompt]
    kinds: dict[str, str]
    fixed: dict[str, Values]


def run(cfg: Config, lab: "Lab") -> Outcome:
    """Measure fixed choices, then train every arm's head on the frozen model, measuring it after each round."""
    outcome, grounds = Outcome(), dict[str, Ground]()
    with lab.scope(arm="seed_model"):
        for prefix in dict.fromkeys(arm[:3] for arm in cfg.arms):
            grounds[prefix] = prepare(at_level(cfg, LEVELS[prefix]), lab, LEVELS[prefix])
        first = next(iter(grounds.values()))
        greedy = Choice(temperature=0.0)
        outcome.add("seed_model", first.model, report(first, lab, values_of(first, lab, first.model, greedy)[0]))
    for arm in cfg.arms:
        ground, what = grounds[arm[:3]], arm[4:]
        if what in HEADS:
            ground = replace(ground, cfg=replace(ground.cfg, **HEADS[what]))
            train, measure = partial(train_round, ground, lab), partial(measure_head, ground, lab)
            run_rounds(lab, outcome, arm, ground.model, cfg.rounds, train, measure)
        else:
            baseline = partial(measure_baseline, ground, lab, what)
            run_rounds(lab, outcome, arm, ground.model, cfg.rounds, keep, baseline)
    return outcome


def prepare(cfg: Config, lab: "Lab", level: Level) -> Ground:
    """Return the frozen model of a level with what every fixed choice is worth, after checking that it can do it."""
    task = load_task(cfg.task)
    model = cfg.model or lab.seed_model(cfg.task, cfg.seed_model)
    prompts = task.test(cfg.evaluation.problems)
    if not prompts:
        raise InputError(f"task {task.name} has no test prompt to measure on: give at least 10 rows")
    kinds = {prompt.id: kind_of(prompt) for prompt in prompts}
    ground = Ground(level=level, cfg=cfg, task=task, model=model, prompts=prompts, kinds=kinds, fixed={})
    check_skill(ground, lab)
    fixed = {name_of(choice): values_of(ground, lab, model, choice)[0] for choice in cfg.choices}
    for kind in dict.fromkeys(kinds.values()):
        means = {name: mean_of(values["reward"], kinds, kind) for name, values in fixed.items()}
        lab.note(f"fixed_{level}_{kind}", **means)
    return replace(ground, fixed=fixed)


def check_skill(ground: Ground, lab: "Lab") -> None:
    """Warn of a frozen model that has not learnt what it is to be decoded for."""
    wanted = ground.cfg.min_accuracy
    if not wanted:
        return
    greedy = lab.generate(ground.model, ground.prompts, evaluation_sampling(ground, Choice(temperature=0.0)))
    skill = summarise("accuracy", accuracy(lab.score(greedy, Verifier(task=ground.task))))
    lab.note(f"skill_{ground.level}", accuracy=skill.mean, n=skill.n)
    if not skill.mean >= wanted:
        lab.warn(
            f"the frozen model answers {skill.mean:.1%} of the test prompts of {ground.task.name} greedily, below "
            f"{wanted:.0%}: no temperature will mend that; train it longer, or lower --min_accuracy"
        )


def train_round(ground: Ground, lab: "Lab", model: ModelSpec, t: int) -> ModelSpec:
    """Turn the head of `model`, in the first round a new one, into the next."""
    cfg = ground.cfg
    head = Head(level=ground.level, choices=cfg.choices, width=cfg.width)
    model = lab.adaptive(model, head) if t == 0 else decoding_by(model, select="argmax", explore=0.0)  # step 1
    start = t * (cfg.prompts or 0) if cfg.fresh_prompts else 0
    prompts = ground.task.train(cfg.prompts, seed=lab.seed, start=start)
    if not prompts:
        raise InputError(f"round {t + 1} has no prompt left: lower --rounds or --prompts, or --fresh_prompts false")
    drawn = replace(cfg.sampling, stop=(*cfg.sampling.stop, *ground.task.stop))
    groups = lab.generate(decoding_by(model, select="sample", explore=cfg.explore), prompts, drawn)  # step 2
    groups = lab.score(groups, reward(cfg))
    rule = LatentPairs(level=ground.level, scorer=SCORER, rule=cfg.pairs, most=cfg.pairs_per_prompt, seed=lab.seed)
    pairs = lab.select(groups, rule, Pair)  # step 3
    lab.note("pairs", **choice_counts(pairs, [name_of(choice) for choice in cfg.choices]))
    objective = LatentPreference(loss=cfg.loss, beta=cfg.beta, length_normalize=cfg.length_normalize)
    return lab.train(model, pairs, objective, cfg.training)  # step 4


def keep(model: ModelSpec, t: int) -> ModelSpec:
    """Return the model of an arm that trains nothing."""
    return model


def decoding_by(model: ModelSpec, **changes: Any) -> ModelSpec:
    """Return the model with the same head, used differently."""
    if not isinstance(model.decoding, Adaptive):
        raise TypeError(f"{model.source} has no head")
    return replace(model, decoding=replace(model.decoding, **changes))


def reward(cfg: Config) -> Scorer:
    """Return the scorer of step 3."""
    if cfg.reward_model is not None:
        return RewardModel(model=cfg.reward_model, scorer=SCORER)
    return ProgrammaticReward(task=cfg.task, function=None if cfg.reward == "task" else cfg.reward)


# --- measures --------------------------------------------------------------------------------------------------------


def values_of(
    ground: Ground, lab: "Lab", model: ModelSpec, choice: Choice, temperature_of: TemperatureOf | None = None
) -> tuple[Values, Groups]:
    """Return reward and temperatures of the answers to each test prompt, and these; by default all are the choice's."""
    groups = lab.score(lab.generate(model, ground.prompts, evaluation_sampling(ground, choice)), reward(ground.cfg))
    found = traces(groups, ground.model, temperature_of or FixedTemperature(temperature=choice.temperature))
    return {"reward": accuracy(groups, SCORER), **measure_temperatures(found)}, groups


def evaluation_sampling(ground: Ground, choice: Choice) -> Sampling:
    """Return the settings of test draws by one choice; of a greedy answer there is one."""
    evaluation = ground.cfg.evaluation
    return Sampling(
        k=1 if choice.temperature == 0 else evaluation.k,
        temperature=choice.temperature,
        top_p=choice.top_p,
        top_k=choice.top_k,
        min_p=choice.min_p,
        max_tokens=evaluation.max_tokens,
        stop=ground.task.stop,
    )


def measure_head(ground: Ground, lab: "Lab", model: ModelSpec) -> Measured:
    """Measure a head as it is used (step 5), noting what it chose for each kind of prompt and where in sentences."""
    cfg, chosen = ground.cfg, ChosenTemperatures(choices=ground.cfg.choices)
    used = decoding_by(model, select=cfg.select, explore=0.0)
    values, groups = values_of(ground, lab, used, Choice(), chosen)
    for kind, shares in shares_by_kind(groups, [name_of(choice) for choice in cfg.choices], ground.kinds).items():
        lab.note(f"chosen_{kind}", **shares)
    if ground.level == "token":
        means = by_place(traces(groups, ground.model, chosen))
        lab.note("places", **{str(place): mean for place, mean in enumerate(means)})
    lab.stage("heat", Document, heat_rows, groups, model=ground.model, choices=cfg.choices, most=cfg.heat)
    return report(ground, lab, values)


def measure_baseline(ground: Ground, lab: "Lab", what: str, model: ModelSpec) -> Measured:
    """Measure a way to decode that is not learnt; of several settings the best on these very draws."""
    cfg = ground.cfg
    if what == "oracle":
        return report(ground, lab, oracle_values(ground))
    if what.startswith("fixed_"):
        return report(ground, lab, ground.fixed[what.removeprefix("fixed_")])
    if what == "min_p":
        found = {name_of(choice): values_of(ground, lab, model, choice)[0] for choice in cfg.min_p}
    else:
        ways = {f"{spec.base:g}_{spec.theta:g}": replace(model, decoding=spec) for spec in cfg.entropy}
        found = {name: values_of(ground, lab, way, Choice(), kept_temperatures)[0] for name, way in ways.items()}
    if not found:
        raise InputError(f"{what}=() names no setting that the arm could try: give one or more")
    for name, values in found.items():
        lab.note(what, **{name: mean_of(values["reward"], ground.kinds)})
    return report(ground, lab, found[best_of({name: values["reward"] for name, values in found.items()}, ground.kinds)])


def oracle_values(ground: Ground) -> Values:
    """Return the values of the best fixed choice for every kind of prompt."""
    names = best_by_kind({name: values["reward"] for name, values in ground.fixed.items()}, ground.kinds)
    metrics = next(iter(ground.fixed.values()))
    return {m: {p: ground.fixed[names[kind]][m].get(p) for p, kind in ground.kinds.items()} for m in metrics}


def report(ground: Ground, lab: "Lab", values: Values) -> Measured:
    """Report values, rewards by kind of prompt too and beside those of fixed choices."""
    rewards, fixed = values["reward"], {name: found["reward"] for name, found in ground.fixed.items()}
    values = values | by_category("reward", rewards, ground.prompts) | against_fixed(rewards, fixed, ground.kinds)
    reports = {name: summarise(name, per_problem) for name, per_problem in values.items()}
    for row in reports.values():
        lab.note_report(row)
    return reports, values


def mean_of(values: PerProblem, kinds: Mapping[str, str], kind: str | None = None) -> float:
    """Return the mean over prompts, of one kind if it is given."""
    return summarise("mean", {p: values.get(p) for p, its_kind in kinds.items() if kind in (None, its_kind)}).mean


def plan(cfg: Config) -> list[Work]:
    """List the work of every arm and round, fixed choices first."""
    works = []
    for prefix in dict.fromkeys(arm[:3] for arm in cfg.arms):
        settings = at_level(cfg, LEVELS[prefix])
        problems, tested = problem_counts(settings.task, settings.prompts, settings.evaluation)
        works.append(evaluation_plan(f"{prefix}: fixed choices", tested * len(settings.choices), settings.evaluation))
        mine = [arm for arm in cfg.arms if arm[:3] == prefix]
        for arm, t in product(mine, range(cfg.rounds if mine else 0)):
            label = f"{arm} {t + 1}"
            if arm[4:] in HEADS:
                made = round_plan(
                    label,
                    problems=problems,
                    samples=settings.sampling.k,
                    tokens=settings.sampling.max_tokens,
                    completions=2 * settings.pairs_per_prompt,
                    training=settings.training,
                )
                works += [work for work in made if not work.name.endswith("reference")]
            works.append(evaluation_plan(label, tested, settings.evaluation))
    return works


METHOD = Method(
    name="adaptive_decoding",
    title="Adaptive Decoding",
    paper="arXiv 2411.09661",
    claim="a head that chooses the temperature by prompt or by token, learnt from pairs, beats every fixed temperature",
    config=Config,
    run=run,
    plan=plan,
    equations={
        "head": "selftaught.models.adaptive_decoder:AdaptiveHead",
        "selection": "selftaught.engines.adaptive:AdaptivePolicy",
        "pairs": "selftaught.select.latent_pairs:LatentPairs",
        "separate": "selftaught.functional.latent_preference:choice_preference",
        "token": "selftaught.functional.latent_preference:joint_preference",
        "latent": "selftaught.functional.latent_preference:latent_ratios",
    },
    claims=(
        Claim(
            text="Sequence level: the head is worth more than the best fixed temperature on the same prompts",
            arm="seq_separate",
            baseline=None,
            metric="over_best_fixed",
        ),
        Claim(
            text="Sequence level: the head is within 2% of the best temperature for each kind of prompt",
            arm="seq_separate",
            baseline=None,
            metric="of_oracle",
            margin=-0.02,
        ),
        Claim(
            text="Precondition: the best temperature for each kind is worth at least 5% more than the best fixed one",
            arm="seq_separate",
            baseline=None,
            metric="oracle_lead",
            margin=0.05,
        ),
        Claim(
            text="Token level: the head is worth more than the best fixed temperature on the same prompts",
            arm="tok_separate",
            baseline=None,
            metric="over_best_fixed",
        ),
        Claim(
            text="Token level: the head chooses lower temperatures where a sentence begins than elsewhere",
            arm="tok_separate",
            baseline=None,
            metric="temperature_gap",
            lower_is_better=True,
        ),
    ),
)
