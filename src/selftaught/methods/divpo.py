"""Diverse Preference Optimization (Lanchantin et al. 2025, arXiv 2501.18101).

Preference training makes a model say the same few things. DivPO keeps the loss and chooses other pairs: of the good
responses the most diverse one is chosen, of the bad ones the least diverse is rejected (Section 3):

    1. sample y_1 .. y_N ~ pi(. | x) for every prompt x, at temperature 1;
    2. s_i = r(x, y_i);
    3. Y_c = responses within rho of the highest reward, Y_r = those within rho of the lowest;
    4. y_c = argmax_{Y_c} D, y_r = argmin_{Y_r} D, where D says how unlike the others a response is: -log pi(y | x),
       the rarity of its words among the samples, or a judge's choice;
    5. minimise  - log sigmoid(beta [log pi/pi_ref (y_c) - log pi/pi_ref (y_r)]),  pi_ref = the initial model.

Offline, pairs are made of the initial model's samples; online, of the current policy's. The baselines are settings of
the same loop (`ARMS`): best over worst is DPO, the best response alone is SFT, no training at all is the initial model
at some temperature.

Departures, and choices where the paper is silent or was not at hand in full text:
- online is many short rounds: sample from the policy, select, make some updates, sample again; the optimizer starts
  afresh each time. Offline arms get as many prompts, samples and updates, from the initial model's samples;
- rho is read as a share of the distance between the extreme rewards (`pool` range); as a quantile or as an absolute
  threshold it is an option. A response in both pools is a good one;
- where all responses are good, the least diverse of them is rejected (`allow_same_pool`); below the reward `minimum`
  nothing is chosen;
- word frequency is counted over all samples of the prompt (or of the last prompts, `scope` window), for JSON over
  attribute values, and averaged;
- the reference stays the initial model (`reference`); an NLL term is an option (`nll_alpha`), off as in the paper;
- a prompt whose responses have equal rewards makes no pair for DPO; other ties are broken at random;
- one stopping rule for all arms, on the validity of held-out samples alone (`validity_level`, `stop_rule`);
- samples per prompt, learning rate, batch, updates and beta of the paper are unverified: the defaults are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise, product
from typing import TYPE_CHECKING, Any, Literal

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.evals.diversity import (
    measure_attributes,
    measure_marginals,
    measure_quality,
    measure_words,
    selection_facts,
)
from selftaught.evals.evaluate import summarise
from selftaught.evals.metrics import accuracy
from selftaught.evals.stopping import is_over, kept_round
from selftaught.methods.method import Claim, Measured, Method, Outcome
from selftaught.methods.rounds import arm_settings, check_arms
from selftaught.plan import PROMPT_TOKENS, Work, round_plan
from selftaught.scorers.base import Scorer
from selftaught.scorers.programmatic import SCORER, Gated, ProgrammaticReward
from selftaught.scorers.reward_model import RewardModel
from selftaught.scorers.verifier import Verifier
from selftaught.select.diverse_pairs import BestDemonstrations, DiversePairs
from selftaught.select.diversity import (
    WINDOW,
    Custom,
    Diversity,
    Frequency,
    Judged,
    JudgePrompts,
    Probability,
    Scored,
    WindowFrequency,
    judged_scores,
)
from selftaught.select.pairs import RewardPairs
from selftaught.specs import SFT, ModelSpec, ObjectiveSpec, Preference, Sampling, SeedModel, Training
from selftaught.store.groups import Groups
from selftaught.tasks import load_task
from selftaught.tasks.stories import story_prompts
from selftaught.tasks.task import TaskSpec
from selftaught.types import Demonstration, Document, Pair, Prompt, Report, Score

if TYPE_CHECKING:
    from selftaught.lab import Lab


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of DivPO and its baselines.

    A round takes `prompts` prompts, new ones each time if `fresh_prompts`. Online they are sampled in `refreshes`
    parts, each from the policy that the part before has trained. `reward` is "task" or "module:function", called with
    prompt and text; `reward_model` replaces it, with `gate` at 0 for what is not valid. `judge` (the initial model)
    serves criterion "judge", `custom` ("module:function") criterion "custom". With `scope` "window" words are counted
    over the samples of the last `window` prompts, across the parts of a round. After each round `dev_prompts` prompts
    are sampled by `dev` for the stopping rule and `test_prompts` by `measurement`, at `temperature` if given; the first
    `generations` of these (all) count for what depends on their number. With `exact` entropies are read off the model,
    for tasks with a closed vocabulary. `stories` is how many stories the initial model writes from keywords.
    """

    task: TaskSpec
    model: ModelSpec | None = None
    seed_model: SeedModel = field(default_factory=SeedModel)
    arms: tuple[str, ...] = ("divpo",)
    rounds: int = 10
    refreshes: int = 1
    prompts: int | None = None
    fresh_prompts: bool = True
    sampling: Sampling = field(default_factory=lambda: Sampling(k=16, temperature=1.0))
    online: bool = True
    reward: str = "task"
    reward_model: ModelSpec | None = None
    gate: bool = False
    reward_bias: float = 0.0
    criterion: Literal["probability", "frequency", "judge", "custom", "none"] = "probability"
    custom: str | None = None
    length_normalize: bool = False
    scope: Literal["pool", "subset", "window"] = "pool"
    window: int = 64
    transform: Literal["inverse", "log"] = "inverse"
    one_attribute: bool = False
    judge: ModelSpec | None = None
    judge_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0, max_tokens=256))
    rho: float = 0.3
    pool: Literal["range", "quantile", "absolute"] = "range"
    threshold: float = 0.5
    minimum: float | None = None
    allow_same_pool: bool = True
    sides: Literal["both", "chosen", "rejected"] = "both"
    objective: Literal["dpo", "sft", "none"] = "dpo"
    reference: Literal["initial", "current"] = "initial"
    beta: float = 0.1
    nll_alpha: float = 0.0
    training: Training = field(default_factory=lambda: Training(lr=1e-6, schedule="constant", batch_size=64))
    arm_lr: dict[str, float] = field(default_factory=dict)
    validity_level: float | None = None
    stop_rule: Literal["first", "last"] = "last"
    dev_prompts: int | None = None
    dev: Sampling = field(default_factory=lambda: Sampling(k=100))
    test_prompts: int | None = None
    measurement: Sampling = field(default_factory=lambda: Sampling(k=200))
    temperature: float | None = None
    generations: int | None = None
    exact: bool = False
    stories: int = 0
    story_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))

    def __post_init__(self) -> None:
        check_arms(self.arms, ARMS, self.arm_lr, self.rounds)
        if self.sampling.k < 2 or self.refreshes < 1:
            raise InputError(
                f"sampling.k={self.sampling.k}, refreshes={self.refreshes}: a pair needs 2 samples, say 16, and a "
                "round 1 refresh"
            )
        if self.fresh_prompts and self.prompts is None and self.rounds > 1:
            raise InputError("fresh_prompts takes a part of the prompts in every round; say how many with --prompts")
        if (self.criterion == "custom") != (self.custom is not None):
            raise InputError(f"criterion={self.criterion}, custom={self.custom}: name your function with both")
        if self.window < 1:
            raise InputError(f"window={self.window} holds no prompt; give 1 for a prompt's own samples, or more")
        if self.validity_level is not None and not 0 <= self.validity_level <= 1:
            raise InputError(f"validity_level={self.validity_level} is not a share; give 0 to 1, or none")


ARMS: dict[str, dict] = {
    "divpo": {},
    "sft": {"objective": "sft", "online": False},
    "dpo_offline": {"criterion": "none", "online": False},
    "dpo_online": {"criterion": "none"},
    "divpo_freq_offline": {"criterion": "frequency", "online": False},
    "divpo_freq_online": {"criterion": "frequency"},
    "divpo_prob_offline": {"criterion": "probability", "online": False},
    "divpo_prob_online": {"criterion": "probability"},
    "divpo_judge_online": {"criterion": "judge"},
    "divpo_chosen_only": {"sides": "chosen"},
    "divpo_rejected_only": {"sides": "rejected"},
    "seed_t07": {"objective": "none", "temperature": 0.7},
    "seed_t13": {"objective": "none", "temperature": 1.3},
}


def run(cfg: Config, lab: "Lab") -> Outcome:
    """Train every arm from the same initial model, measuring it after each round."""
    outcome = Outcome()
    with lab.scope(arm="seed_model"):
        initial = cfg.model or lab.seed_model(cfg.task, cfg.seed_model)
        outcome.add("seed_model", initial, measure(cfg, lab, initial, initial))
    _check_seed_model(lab, outcome.rounds["seed_model"][0])
    for arm in cfg.arms:
        run_arm(arm_settings(cfg, arm, ARMS), lab, outcome, arm, initial)
    return outcome


def run_arm(cfg: Config, lab: "Lab", outcome: Outcome, arm: str, initial: ModelSpec) -> None:
    """Train one arm until the stopping rule ends it; what is measured each round is the model the rule has kept."""
    model, models, validity = initial, list[ModelSpec](), list[float]()
    for t in range(cfg.rounds):
        with lab.scope(arm=arm, round=t + 1):
            if not is_over(validity, cfg.validity_level, cfg.stop_rule):
                try:
                    model = train_round(cfg, lab, initial, model, t)
                except NothingToTrainOn as error:
                    if t == 0:
                        raise
                    lab.tell(f"{arm} keeps the model of round {t}: {error}")
                models.append(model)
                validity.append(dev_validity(cfg, lab, model) if cfg.validity_level is not None else 1.0)
            kept = kept_round(validity, cfg.validity_level, cfg.stop_rule)
            lab.note("kept", kept=kept + 1, trained=len(models), dev_validity=validity[-1])
            outcome.add(arm, models[kept], measure(cfg, lab, initial, models[kept]))


def train_round(cfg: Config, lab: "Lab", initial: ModelSpec, model: ModelSpec, t: int) -> ModelSpec:
    """Make the updates of round t; the parts of a round that give no pair are passed over, unless all do."""
    if cfg.objective == "none":
        return model
    trained, refusal = 0, NothingToTrainOn("no prompt")
    earlier: tuple[Groups, ...] = ()
    sampling = replace(cfg.sampling, stop=(*cfg.sampling.stop, *load_task(cfg.task).stop))
    for prompts in round_prompts(cfg, lab.seed, t):
        groups = lab.generate(model if cfg.online else initial, prompts, sampling)  # step 1
        groups = lab.score(groups, reward(cfg))  # step 2
        if cfg.scope == "window" and cfg.criterion in ("frequency", "judge"):
            groups, earlier = windowed(cfg, lab, groups, earlier)
        try:
            examples = select(cfg, lab, initial, groups)  # steps 3 and 4
        except NothingToTrainOn as error:
            refusal = error
            continue
        anchor = initial if cfg.reference == "initial" else model
        model = lab.train(model, examples, objective(cfg), cfg.training, reference=anchor)  # step 5
        trained += 1
    if not trained:
        raise refusal
    return model


def windowed(cfg: Config, lab: "Lab", groups: Groups, earlier: tuple[Groups, ...]) -> tuple[Groups, tuple[Groups, ...]]:
    """Score how rare each completion's words are in the window that ends with its prompt.

    `earlier` are the round's parts before this one. Also returns the parts that the next one's window can reach.
    """
    texts = Groups(prompts=groups.prompts, completions=groups.completions).without("token_ids", "logprobs", "latents")
    scorer = WindowFrequency(words=frequency(cfg, lab.seed), window=cfg.window)
    scores = lab.stage("window", Score, window_rows, texts, *earlier, scorer=scorer)
    earlier = (*earlier, texts)
    while sum(map(len, earlier[1:])) >= cfg.window - 1 and len(earlier) > 1:
        earlier = earlier[1:]
    scored = Groups(prompts=groups.prompts, completions=groups.completions, scores=(*groups.scores, scores))
    return scored, earlier


def window_rows(groups: Groups, *others: Any, scorer: WindowFrequency) -> Iterator[Score]:
    """Yield the scores of `groups`; the others are the parts before and, last, a stage's counts."""
    yield from chain.from_iterable(scorer(groups, others[:-1]))


def round_prompts(cfg: Config, seed: int, t: int) -> list[Sequence[Prompt]]:
    """Return the prompts of round t in the parts that are sampled one after the other."""
    start = t * (cfg.prompts or 0) if cfg.fresh_prompts else 0
    prompts = load_task(cfg.task).train(cfg.prompts, seed=seed, start=start)
    parts = min(cfg.refreshes, len(prompts)) if cfg.online else 1
    if not prompts:
        raise InputError(f"round {t + 1} has no prompt left: lower --rounds or --prompts, or --fresh_prompts false")
    bounds = [len(prompts) * i // parts for i in range(parts + 1)]
    return [prompts[low:high] for low, high in pairwise(bounds)]


def select(cfg: Config, lab: "Lab", initial: ModelSpec, groups: Groups) -> Any:
    """Return the examples of one part of a round, noting what the selection was like."""
    if cfg.objective == "sft":
        return lab.select(groups, BestDemonstrations(scorer=SCORER, minimum=cfg.minimum, seed=lab.seed), Demonstration)
    rule = selection(cfg, lab.seed)
    if cfg.criterion == "judge":
        groups = judged(cfg, lab, cfg.judge or initial, groups, rule)
    examples = lab.select(groups, rule, Pair)
    lab.note("pairs", **selection_facts(examples, len(groups)))
    return examples


def selection(cfg: Config, seed: int) -> Any:
    """Return the pair rule: DPO's for criterion "none", else DivPO's."""
    if cfg.criterion == "none":
        return RewardPairs(scorer=SCORER, seed=seed)
    both = {"diversity": Judged(side="most"), "rejected_diversity": Judged(side="least")}
    criteria = both if cfg.criterion == "judge" else {"diversity": diversity(cfg, seed)}
    return DiversePairs(
        **criteria,
        scorer=SCORER,
        rho=cfg.rho,
        pool=cfg.pool,
        threshold=cfg.threshold,
        minimum=cfg.minimum,
        allow_same_pool=cfg.allow_same_pool,
        sides=cfg.sides,
        seed=seed,
    )


def diversity(cfg: Config, seed: int) -> Diversity:
    """Return the criterion D; of a judge, what takes its place where it cannot be read."""
    if cfg.criterion == "probability":
        return Probability(length_normalize=cfg.length_normalize)
    if cfg.criterion == "custom":
        return Custom(function=cfg.custom or "")
    return Scored(scorer=WINDOW) if cfg.scope == "window" else frequency(cfg, seed)


def frequency(cfg: Config, seed: int) -> Frequency:
    """Return criterion b; with a window its words, whose counts `windowed` takes from elsewhere."""
    return Frequency(
        scope="subset" if cfg.scope == "subset" else "pool",
        transform=cfg.transform,
        attributes=_keys(cfg),
        one_attribute=cfg.one_attribute,
        seed=seed,
    )


def judged(cfg: Config, lab: "Lab", judge: ModelSpec, groups: Groups, rule: DiversePairs) -> Groups:
    """Let `judge` say which good completion is the most diverse and which bad one the least; add that as scores."""
    asked = lab.stage("judge_prompts", Prompt, JudgePrompts(rule=rule, seed=lab.seed), groups)
    if not len(asked):
        return groups
    answers = lab.generate(judge, asked, cfg.judge_sampling)
    scores = lab.stage("judge", Score, judged_scores, groups, answers, fallback=diversity(cfg, lab.seed))
    return Groups(prompts=groups.prompts, completions=groups.completions, scores=(*groups.scores, scores))


def reward(cfg: Config) -> Scorer:
    """Return the scorer of step 2."""
    if cfg.reward_model is not None:
        model = RewardModel(model=cfg.reward_model, scorer=SCORER)
        return Gated(scorer=model, task=cfg.task) if cfg.gate else model
    function = None if cfg.reward == "task" else cfg.reward
    return ProgrammaticReward(task=cfg.task, function=function, bias=cfg.reward_bias)


def objective(cfg: Config) -> ObjectiveSpec:
    """Return the loss of step 5, or that of the baseline which imitates."""
    return SFT() if cfg.objective == "sft" else Preference(beta=cfg.beta, nll_alpha=cfg.nll_alpha)


def dev_validity(cfg: Config, lab: "Lab", model: ModelSpec) -> float:
    """Return the share of held-out samples that are valid."""
    prompts = load_task(cfg.task).dev(cfg.dev_prompts)
    report = summarise("validity", accuracy(sampled(cfg, lab, model, prompts, cfg.dev)))
    if not report.n:
        raise InputError(f"no held-out sample of task {cfg.task.name} can be verified: set --validity_level none")
    return report.mean


def sampled(cfg: Config, lab: "Lab", model: ModelSpec, prompts: Sequence[Prompt], sampling: Sampling) -> Groups:
    """Sample `prompts`, and score with the verifier."""
    stop = (*sampling.stop, *load_task(cfg.task).stop)
    return lab.score(lab.generate(model, prompts, replace(sampling, stop=stop)), Verifier(task=cfg.task))


def measure(cfg: Config, lab: "Lab", initial: ModelSpec, model: ModelSpec) -> Measured:
    """Measure quality and diversity of a model on the test prompts, rewards also against the initial model's."""
    task: Any = load_task(cfg.task)
    prompts, sampling = task.test(cfg.test_prompts), cfg.measurement
    if cfg.temperature is not None:
        sampling = replace(sampling, temperature=cfg.temperature)
    theirs = lab.score(sampled(cfg, lab, initial, prompts, cfg.measurement), reward(cfg))
    groups = lab.score(sampled(cfg, lab, model, prompts, sampling), reward(cfg))
    reports, values = measure_quality(groups, theirs, SCORER)
    generations = cfg.generations or len(groups) * cfg.measurement.k
    reports += measure_words(groups, generations)
    if keys := _keys(cfg):
        reports += measure_attributes(groups, keys, generations)
    if cfg.exact:
        reports += exact(cfg, lab, model, groups, keys, sampling)
        if asked := task.transfer():
            others = sampled(cfg, lab, model, asked, sampling)
            overall, *_ = exact(cfg, lab, model, others, asked[0].meta["keys"], sampling)
            reports.append(replace(overall, name="transfer_entropy", id=""))
    if cfg.stories:
        reports += full_stories(cfg, lab, initial, groups)
    for report in reports:
        lab.note_report(report)
    return {report.name: report for report in reports}, values


def exact(
    cfg: Config, lab: "Lab", model: ModelSpec, groups: Groups, keys: Sequence[str], sampling: Sampling
) -> list[Report]:
    """Return the entropies of what the model would say for each attribute, read off its distribution."""
    from selftaught.evals.exact_marginals import marginal_rows

    task: Any = load_task(cfg.task)
    if not keys:
        raise InputError(f"task {task.name} has no attributes to read off the model: set --exact false")
    dials = {"values": {key: task.vocabulary(key) for key in keys}, "temperature": sampling.temperature}
    rows = lab.stage("marginals", Document, marginal_rows, groups, model=model, **dials)
    return measure_marginals({row.text: row.meta for row in rows}, len(groups) * sampling.k)


def full_stories(cfg: Config, lab: "Lab", initial: ModelSpec, groups: Groups) -> list[Report]:
    """Let the initial model write stories from the keywords, and return how diverse their words are."""
    asked = lab.stage("stories", Prompt, story_prompts, groups, most=cfg.stories)
    if len(asked) < cfg.stories:
        lab.tell(f"{len(asked)} of {cfg.stories} answers are keywords: no stories are written")
        return []
    reports = measure_words(lab.generate(initial, asked, cfg.story_sampling), cfg.stories)
    return [replace(report, name=f"story_{report.name}", id="") for report in reports]


def _keys(cfg: Config) -> tuple[str, ...]:
    return getattr(load_task(cfg.task), "keys", ())


def _check_seed_model(lab: "Lab", reports: Mapping[str, Report]) -> None:
    valid = reports["validity"].mean
    if valid < 0.5:
        lab.warn(
            f"{valid:.1%} of the initial model's samples are valid: with so few good ones there is little to choose "
            "among; train it longer, or take an easier task"
        )


def plan(cfg: Config) -> list[Work]:
    """List the work of every arm and round, as if none ended early and every prompt gave a pair."""
    task = load_task(cfg.task)
    prompts = len(task.train()) if cfg.prompts is None else cfg.prompts
    tests, held_out = len(task.test(cfg.test_prompts)), len(task.dev(cfg.dev_prompts))
    works = [_sampling_plan("seed model: evaluation", tests, cfg.measurement)]
    for arm, t in product(cfg.arms, range(cfg.rounds)):
        settings, label = arm_settings(cfg, arm, ARMS), f"{arm} {t + 1}"
        if settings.objective != "none":
            works += round_plan(
                label,
                problems=prompts,
                samples=cfg.sampling.k,
                tokens=cfg.sampling.max_tokens,
                completions=1 if settings.objective == "sft" else 2,
                training=settings.training,
            )
            if settings.criterion == "judge":
                works.append(_sampling_plan(f"{label}: judge", 2 * prompts, cfg.judge_sampling))
        works.append(_sampling_plan(f"{label}: held-out samples", held_out, cfg.dev))
        works.append(_sampling_plan(f"{label}: evaluation", tests, cfg.measurement))
    return works


def _sampling_plan(name: str, prompts: int, sampling: Sampling) -> Work:
    tokens = prompts * (PROMPT_TOKENS + sampling.k * sampling.max_tokens)
    return Work(name=name, rows=prompts * sampling.k, tokens=tokens, passes=2)


METHOD = Method(
    name="divpo",
    title="Diverse Preference Optimization",
    paper="arXiv 2501.18101",
    claim="preferring the rarest good response over the commonest bad one keeps DPO's quality and restores diversity",
    config=Config,
    run=run,
    plan=plan,
    equations={
        "pools and pairs": "selftaught.select.diverse_pairs:DiversePairs",
        "criterion a, probability": "selftaught.select.diversity:Probability",
        "criterion b, word frequency": "selftaught.select.diversity:Frequency",
        "criterion b over a window": "selftaught.select.diversity:WindowFrequency",
        "criterion c, judge": "selftaught.select.diversity:judge_prompt",
        "loss": "selftaught.functional.preference:dpo",
        "stopping rule": "selftaught.evals.stopping:kept_round",
    },
    claims=tuple(
        claim
        for arm, name in (("divpo_prob_online", "probability"), ("divpo_freq_online", "frequency"))
        for claim in (
            Claim(
                text=f"online DivPO ({name}) is more diverse than online DPO",
                arm=arm,
                baseline="dpo_online",
                metric="entropy",
            ),
            Claim(
                text=f"online DivPO ({name}) is valid as often as online DPO, less a point at most",
                arm=arm,
                baseline="dpo_online",
                metric="validity",
                margin=-0.01,
            ),
            Claim(
                text=f"online DivPO ({name}) uses more different values than online DPO",
                arm=arm,
                baseline="dpo_online",
                metric="unique_share",
            ),
        )
    ),
)
