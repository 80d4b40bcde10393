"""Rejecting Instruction Preferences, and Self-RIP (Yu et al. 2025, arXiv 2501.18578).

A bad prompt shows in its worst completion: low reward, short, far below the best. RIP drops such prompts before DPO
(Section 2):

    1. M samples y_1 .. y_N for every prompt of a pool, and a reward model scores them;
    2. y_w = argmax r, y_l = argmin r; m1 = r(y_l), m2 = length of y_l, m3 = r(y_w) - r(y_l);
    3. a prompt is kept where m1 >= tau1 and m2 >= tau2 and m3 <= tau3;
    4. M is trained on - log sigmoid(beta [log M'/M (y_w) - log M'/M (y_l)]) over the kept prompts' pairs.

Self-RIP (Section 2.3) takes the kept prompts as examples from which M writes new prompts, cleans these up as
Self-Instruct does, and filters them again with the same absolute thresholds. The paper's other rows are settings
(`ARMS`): other filters, other pairs, written prompts with or without either filter.

Departures, and choices where the paper is silent:
- thresholds are the medians of the pool, the paper's best setting; with `grid` they are searched as in the paper, each
  measure alone and then jointly, by the reward on dev prompts; they are frozen with their N;
- lengths are in characters (the paper's 1878 fits characters), `length_unit` "tokens" is the other reading;
- the gap is kept below its threshold, as text and method say; one table prints the contrary;
- prompts whose rewards are all equal make no pair and leave before quantiles are taken;
- baselines: Jaccard and IFD keep the upper half, perplexity the lower three quarters (`sides` turns a measure round);
- `unseen` leaves one kind of labelled prompt out while thresholds are chosen; they are then used on all;
- arms are compared at equal numbers of updates where the recipe sets `training.max_steps`;
- `nll_alpha` adds a likelihood term on the chosen completion; the paper's loss has none (0);
- a prompt written by the model that repeats one of its examples, or any known prompt, is dropped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.evals.evaluate import summarise
from selftaught.evals.filtering import audit_prompts, audit_removal, measure_reports
from selftaught.evals.metrics import PerProblem, accuracy
from selftaught.methods.method import Claim, Measured, Method, Outcome
from selftaught.methods.rounds import arm_settings, check_arms
from selftaught.plan import Work, evaluation_plan, problem_counts, round_plan
from selftaught.scorers.base import Scorer
from selftaught.scorers.perplexity import CompletionNLL
from selftaught.scorers.programmatic import ProgrammaticReward
from selftaught.scorers.reward_model import RewardModel
from selftaught.select.prompt_measures import MEDIANS, LengthUnit, Rejected, Side, check_measures, measure_groups
from selftaught.select.prompt_measures import Measured as MeasuredPrompt
from selftaught.select.rip import (
    Filtered,
    KeepAll,
    KeptPrompts,
    Labelled,
    PromptFilter,
    RandomSubset,
    RankedPairs,
    RipPairs,
    Thresholds,
    objections,
    search_quantiles,
)
from selftaught.specs import Evaluation, ModelSpec, Preference, Sampling, SeedModel, Training
from selftaught.store.groups import Groups
from selftaught.tasks import Task, TaskSpec, load_task
from selftaught.tasks.written import CleanUp, Form, ask_for_prompts
from selftaught.text.self_instruct import UNSERVABLE
from selftaught.types import Pair, Prompt, Report

if TYPE_CHECKING:
    from selftaught.lab import Lab
    from selftaught.store.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of RIP, Self-RIP and their baselines.

    `quantiles` (the three medians) and `bounds` (absolute) name the conditions by measure, `sides` turns a measure
    round, `group_by` is the key of a prompt's meta within whose values quantiles are taken. `filter_model` samples the
    pool in place of the model in training, which then samples for the kept prompts only. `label` is the meta key that
    says how a prompt is corrupted. `source` "written" trains on `written` prompts that the model writes after examples
    among `seeds`, the whole pool or what RIP keeps; `shots` counts the examples of the form "tags". `near_duplicate` is
    the ROUGE-L above which a prompt repeats another, None for exact repeats only.
    """

    task: TaskSpec
    model: ModelSpec | None = None
    seed_model: SeedModel = field(default_factory=SeedModel)
    filter_model: ModelSpec | None = None
    arms: tuple[str, ...] = ("rip",)
    problems: int | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(k=64, temperature=0.8, top_p=0.95))
    reward_model: ModelSpec | None = None
    reward_function: str | None = None
    filter: Literal["rip", "none", "random", "labels"] = "rip"
    quantiles: dict[str, float] | None = None
    bounds: dict[str, float] = field(default_factory=dict)
    sides: dict[str, Side] = field(default_factory=dict)
    group_by: str = ""
    grid: tuple[float, ...] = ()
    length_unit: LengthUnit = "chars"
    rejected: Rejected = "worst"
    bottom_share: float = 0.25
    label: str = "corruption"
    unseen: str = ""
    source: Literal["pool", "written"] = "pool"
    seeds: Literal["pool", "kept"] = "kept"
    written: int = 20_000
    attempts: int = 3
    prompt_form: Form = "tags"
    shots: int = 8
    prompt_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    near_duplicate: float | None = 0.7
    keywords: tuple[str, ...] = UNSERVABLE
    beta: float = 0.1
    nll_alpha: float = 0.0
    training: Training = field(default_factory=lambda: Training(lr=1e-6, batch_size=64, schedule="constant"))
    arm_lr: dict[str, float] = field(default_factory=dict)
    dev_problems: int = 0
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(k=1))

    def __post_init__(self) -> None:
        if self.sampling.k < 2:
            raise InputError(
                f"sampling.k={self.sampling.k}: RIP compares the best with the worst of N; give 2 or more, say 8"
            )
        check_arms(self.arms, ARMS, self.arm_lr, self.rounds)
        if self.grid and not self.dev_problems:
            raise InputError("grid chooses thresholds by the reward on dev prompts: say how many with --dev_problems")
        if self.written < 1 or self.attempts < 1 or self.shots < 1:
            raise InputError(f"written={self.written} attempts={self.attempts} shots={self.shots}: give 1 or more")
        check_measures(self.rule.measures)

    @property
    def rounds(self) -> int:
        """RIP is one round, offline."""
        return 1

    @property
    def rule(self) -> RipPairs:
        """RIP's conditions."""
        return RipPairs(
            quantiles=self.quantiles,
            bounds=self.bounds,
            sides=self.sides,
            group_by=self.group_by,
            rejected=self.rejected,
            share=self.bottom_share,
            length_unit=self.length_unit,
        )


def _only(measure: str, quantile: float = 0.5) -> dict:
    return {"quantiles": {measure: quantile}, "bounds": {}}


ARMS: dict[str, dict] = {
    "no_filter": {"filter": "none"},
    "random": {"filter": "random"},
    "jaccard": _only("jaccard"),
    "perplexity": _only("perplexity", 0.75),
    "ifd": _only("ifd"),
    "rejected_reward": _only("rejected_reward"),
    "rejected_length": _only("rejected_length"),
    "gap": _only("gap"),
    "rip": {},
    "oracle": {"filter": "labels"},
    "bottom25": {"filter": "none", "rejected": "bottom"},
    "self_instruct": {"source": "written", "seeds": "pool", "filter": "none"},
    "self_instruct_filtered": {"source": "written", "seeds": "pool"},
    "self_rip_unfiltered": {"source": "written", "filter": "none"},
    "self_rip": {"source": "written"},
}


def run(cfg: Config, lab: "Lab") -> Outcome:
    """Train every arm from the same seed model."""
    task = load_task(cfg.task)
    outcome = Outcome()
    with lab.scope(arm="seed_model"):
        seed_model = cfg.model or lab.seed_model(cfg.task, cfg.seed_model)
        pool = sample_pool(cfg, lab, task, seed_model)
        measured = measure_groups(pool, cfg.rule.ranking, tuple(dict.fromkeys((*MEDIANS, *cfg.rule.measures))))
        _note_measures(cfg, lab, measured)
        untouched = audit(cfg, task, measured, KeepAll(), pool, None)
        outcome.add("seed_model", seed_model, _noted(lab, measure(cfg, lab, task, seed_model), untouched))
    _check_seed_model(lab, outcome.rounds["seed_model"][0])
    for arm in cfg.arms:
        with lab.scope(arm=arm, round=1):
            settings = arm_settings(cfg, arm, ARMS)
            model, filtered = train_arm(settings, lab, task, seed_model)
            outcome.add(arm, model, _noted(lab, measure(settings, lab, task, model), filtered))
    return outcome


def train_arm(cfg: Config, lab: "Lab", task: Task, model: ModelSpec) -> tuple[ModelSpec, dict[str, Report]]:
    """Filter, pair and train; also return what is known of the filter."""
    ranking = cfg.rule.ranking
    groups = sample_pool(cfg, lab, task, model)  # steps 1 and 2
    measured = measure_groups(groups, ranking, cfg.rule.measures)
    thresholds = choose_thresholds(cfg, lab, task, model, groups, measured)
    rule = prompt_filter(cfg, lab, thresholds, measured)  # step 3
    chosen_by = rule
    if cfg.source == "written":
        chosen_by = thresholds if cfg.seeds == "kept" else KeepAll()
        keep = KeptPrompts(ranking=ranking, filter=chosen_by)
        seeds = lab.stage("seeds", Prompt, keep, groups) if cfg.seeds == "kept" else groups.prompts
        # `rule` stays: quantiles are not taken anew of what the model writes.
        groups = sampled(cfg, lab, task, model, write_prompts(cfg, lab, task, model, seeds, groups.prompts))
    elif cfg.filter_model is not None:
        kept = lab.stage("kept", Prompt, KeptPrompts(ranking=ranking, filter=rule), groups)
        groups, rule = sampled(cfg, lab, task, model, kept), KeepAll()
    pairs = lab.select(groups, Filtered(ranking=ranking, filter=rule, then=RankedPairs(ranking=ranking)), Pair)
    return train(cfg, lab, task, model, pairs), audit(cfg, task, measured, chosen_by, groups, pairs)


def sample_pool(cfg: Config, lab: "Lab", task: Task, model: ModelSpec) -> Groups:
    """Sample and score the pool: the same stages for every arm."""
    prompts = task.train(cfg.problems, seed=lab.seed)
    return sampled(cfg, lab, task, cfg.filter_model or model, lab.table(prompts))


def sampled(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, prompts: "Stage") -> Groups:
    """Sample and score prompts, with the likelihoods that the conditions need."""
    groups = lab.generate(model, prompts, replace(cfg.sampling, stop=(*cfg.sampling.stop, *task.stop)))
    groups = lab.score(groups, reward(cfg, task))
    names, best = cfg.rule.measures, cfg.rule.scorer
    if "perplexity" in names or "ifd" in names:
        groups = lab.score(groups, CompletionNLL(model=model, best_by=best))
    return lab.score(groups, CompletionNLL(model=model, given=False, best_by=best)) if "ifd" in names else groups


def reward(cfg: Config, task: Task) -> Scorer:
    """Return the reward model or, without one, the user's function or the task's own reward."""
    if cfg.reward_model is not None:
        return RewardModel(model=cfg.reward_model, scorer=cfg.rule.scorer)
    return ProgrammaticReward(task=task, function=cfg.reward_function)


def choose_thresholds(
    cfg: Config, lab: "Lab", task: Task, model: ModelSpec, groups: Groups, measured: Sequence[MeasuredPrompt]
) -> Thresholds:
    """Return the thresholds of the pool, by quantiles as they are given or as the dev reward chooses them."""
    hidden = Labelled(key=cfg.label, labels=(cfg.unseen,))
    seen = [row for row in measured if not cfg.unseen or row.meta.get(cfg.label) != cfg.unseen]
    if not cfg.grid:
        thresholds = cfg.rule.fit(seen)
    else:
        ranking, dev = cfg.rule.ranking, task.dev(cfg.dev_problems)

        def value(tried: Thresholds | None) -> float:
            kept = Filtered(ranking=ranking, filter=tried or KeepAll(), then=RankedPairs(ranking=ranking))
            selector = Filtered(ranking=ranking, filter=hidden, then=kept) if cfg.unseen else kept
            trained = train(cfg, lab, task, model, lab.select(groups, selector, Pair))
            return mean_reward(cfg, lab, task, trained, dev)

        tried = search_quantiles(
            seen, value, measures=cfg.rule.measures, grid=cfg.grid, sides=cfg.sides, group_by=cfg.group_by
        )
        for attempt in tried:
            lab.note("quantiles", quantiles=attempt.quantiles, value=attempt.value)
        thresholds = next(t.thresholds for t in tried if t.thresholds is not None)
    lab.note("thresholds", bounds=thresholds.bounds, samples=thresholds.samples, prompts=thresholds.prompts)
    return thresholds


def prompt_filter(cfg: Config, lab: "Lab", thresholds: Thresholds, measured: Sequence[MeasuredPrompt]) -> PromptFilter:
    """Return the arm's filter. `random` keeps as many prompts as RIP does, of the same pool."""
    if cfg.filter == "none":
        return KeepAll()
    if cfg.filter == "labels":
        return Labelled(key=cfg.label)
    rulings = thresholds(measured)
    if cfg.filter == "random":
        return RandomSubset(count=sum(not ruling.failed for ruling in rulings.values()), seed=lab.seed)
    for objection in objections(rulings, measured, thresholds):
        lab.tell(f"warning: {objection}")
    return thresholds


def train(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, pairs: "Stage") -> ModelSpec:
    """Train with DPO (step 4); with dev prompts, return the epoch with the highest reward on them."""
    prompts = task.dev(cfg.dev_problems) if cfg.dev_problems else []
    dev = (lambda trained: mean_reward(cfg, lab, task, trained, prompts)) if prompts else None
    return lab.train(model, pairs, Preference(beta=cfg.beta, nll_alpha=cfg.nll_alpha), cfg.training, dev=dev)


def write_prompts(
    cfg: Config, lab: "Lab", task: Task, model: ModelSpec, seeds: Iterable[Prompt], pool: Iterable[Prompt]
) -> "Stage":
    """Let the model write `cfg.written` prompts after examples from `seeds`, asking again for those that are dropped.

    Raises:
        NothingToTrainOn: there is no seed, or no completion states a new prompt.
    """
    known, rows = list(seeds), list[Prompt]()
    if not known:
        raise NothingToTrainOn("the filter keeps no prompt of the pool to write new ones from: relax the thresholds")
    clean_up = CleanUp(task=task, form=cfg.prompt_form, near_duplicate=cfg.near_duplicate, keywords=cfg.keywords)
    for attempt in range(cfg.attempts):
        missing, seed = cfg.written - len(rows), lab.seed + 10_007 * attempt
        asked = ask_for_prompts(task, known, missing, form=cfg.prompt_form, shots=cfg.shots, seed=seed)
        answers = lab.generate(model, asked, replace(cfg.prompt_sampling, k=1))
        rows += lab.stage("written", Prompt, clean_up, answers, lab.table([*pool, *rows]))
        if len(rows) >= cfg.written:
            break
    if not rows:
        raise NothingToTrainOn(f"none of {cfg.attempts} x {cfg.written} completions states a new prompt")
    return lab.table(rows)


# --- measures --------------------------------------------------------------------------------------------------------


def measure(cfg: Config, lab: "Lab", task: Task, model: ModelSpec) -> Measured:
    """Measure exact match (`accuracy`) and mean reward (`clean_reward`) of greedy answers to the test prompts."""
    prompts = task.test(cfg.evaluation.problems)
    reports, values = lab.evaluate(model, task, cfg.evaluation, prompts)
    rewards = _greedy_rewards(cfg, lab, task, model, prompts)
    return reports | {"clean_reward": summarise("clean_reward", rewards)}, values | {"clean_reward": rewards}


def mean_reward(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, prompts: Sequence[Prompt]) -> float:
    """Return the mean reward of greedy answers."""
    return summarise("reward", _greedy_rewards(cfg, lab, task, model, prompts)).mean


def _greedy_rewards(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, prompts: Sequence[Prompt]) -> PerProblem:
    evaluation = cfg.evaluation
    # As the lab's own evaluation samples, so that the stage is shared.
    greedy = Sampling(temperature=0.0, top_p=evaluation.top_p, max_tokens=evaluation.max_tokens, stop=task.stop)
    groups = lab.score(lab.generate(model, lab.table(prompts), greedy), reward(cfg, task))
    return accuracy(groups, scorer=cfg.rule.scorer)


def audit(
    cfg: Config,
    task: Task,
    measured: Sequence[MeasuredPrompt],
    rule: PromptFilter,
    groups: Groups,
    pairs: "Stage | None",
) -> dict[str, Report]:
    """Report what an arm's filter does: on the pool, where its prompts have labels, and to the arm's own prompts."""
    labels = {row.id: row.meta[cfg.label] for row in measured if cfg.label in row.meta}
    on_pool = audit_removal(rule(measured), labels, cfg.unseen) if len(labels) == len(measured) else {}
    prompts = list(groups.prompts)
    trained = prompts if pairs is None else [pair.prompt for pair in pairs]
    return on_pool | audit_prompts(prompts, trained, getattr(task, "well_formed", None))


def _noted(lab: "Lab", measured: Measured, filtered: dict[str, Report]) -> Measured:
    """Put the two together, noting what the lab has not noted itself."""
    reports, values = measured
    for report in (reports["clean_reward"], *filtered.values()):
        lab.note_report(report)
    return reports | filtered, values


def _note_measures(cfg: Config, lab: "Lab", measured: Sequence[MeasuredPrompt]) -> None:
    labels = {row.id: bool(row.meta.get(cfg.label)) for row in measured}
    for report in measure_reports(measured, labels) if any(labels.values()) else ():
        lab.note_report(replace(report, name=f"pool/{report.name}"))


def _check_seed_model(lab: "Lab", reports: Mapping[str, Report]) -> None:
    greedy = reports["accuracy"].mean
    if greedy < 0.05 or greedy > 0.95:
        lab.warn(
            f"the seed model answers {greedy:.1%} of the test prompts: RIP needs a model that is neither hopeless nor "
            "finished; change the model or the task"
        )


def plan(cfg: Config) -> list[Work]:
    """List the work of every arm, all prompts kept."""
    problems, tested = problem_counts(cfg.task, cfg.problems, cfg.evaluation)
    works = [evaluation_plan("seed model", tested, cfg.evaluation)]
    for arm in cfg.arms:
        settings = arm_settings(cfg, arm, ARMS)
        written = settings.written if settings.source == "written" else 0
        works += round_plan(
            arm,
            problems=problems + written,
            samples=settings.sampling.k,
            tokens=settings.sampling.max_tokens,
            completions=2,
            training=settings.training,
            dev=settings.dev_problems,
            written=written,
            written_tokens=settings.prompt_sampling.max_tokens,
        )
        works.append(evaluation_plan(arm, tested, cfg.evaluation))
    return works


METHOD = Method(
    name="rip",
    title="Rejecting Instruction Preferences",
    paper="arXiv 2501.18578",
    claim="prompts whose worst sampled answer is poor, short or far below the best are better left out of training",
    config=Config,
    run=run,
    plan=plan,
    equations={
        "m1, m2, m3": "selftaught.select.prompt_measures:measure",
        "filter": "selftaught.select.rip:Thresholds",
        "pairs": "selftaught.select.prompt_measures:Ranking",
        "loss": "selftaught.functional.preference:dpo",
    },
    claims=(
        Claim(
            text="RIP removes corrupted prompts with an AUC of at least 0.8",
            arm="rip",
            baseline=None,
            metric="auc_removed",
            margin=0.8,
        ),
        Claim(text="RIP beats training on all prompts", arm="rip", baseline="no_filter", metric="clean_reward"),
        Claim(text="RIP beats a random subset of the same size", arm="rip", baseline="random", metric="clean_reward"),
        Claim(
            text="Self-RIP writes better formed prompts than Self-Instruct",
            arm="self_rip",
            baseline="self_instruct",
            metric="well_formed",
        ),
    ),
)
