"""Step-KTO: stepwise Kahneman-Tversky optimisation for mathematical reasoning (Lin et al. 2025, arXiv 2501.10799).

Every step of a solution, and its final answer, are told to be right or wrong; both go through KTO's value function.
For t = 0 .. T-1:

    1. M_t samples k solutions y = (s_1 .. s_S) of every problem x;
    2. c_o says whether the final answer is right, c_h whether step h is;
    3. at most m right and m wrong solutions of a problem are kept;
    4. M_{t+1} minimises  L = L_outcome + gamma L_step  from M_t, which is also the reference:

        L_outcome = mean over y [lambda - v(r_o, c_o)],            r_o = log M / M_t (y | x)
        L_step    = mean over y 1/S sum_h [lambda - v(r_h, c_h)],  r_h = log M / M_t (s_h | x, s_<h)
        v(r, 1)   = lambda_D sigmoid(beta (r - z)),   v(r, 0) = lambda_U sigmoid(beta (z - r))

gamma = 0 is KTO. The other rows are settings of the same loop (`ARMS`).

Departures, and choices where the paper is silent (its full text was not at hand: the loss is rebuilt from KTO's,
arXiv 2402.01306, and from descriptions; treat every item as a choice):
- each level has its own beta, class weights and reference point; the step term is a mean over S, then over solutions;
- z of the outcome is the batch's mean log-ratio of mismatched (problem, solution) pairs, that of the steps the batch's
  mean step log-ratio, both without gradient and at least 0; mismatched steps would mean nothing;
- step labels are independent of each other; what follows a wrong step may be masked or counted as wrong instead;
- steps without a label are masked, and S counts labelled steps only;
- step labels come from a program (the task's, or the arithmetic of the equations in a step) or, as in the paper, from a
  language model that sees a reference solution (`step_labels` judge). Which model, prompt and number of votes the paper
  has is unverified: ours is the seed model unless another is named, the same in all rounds and arms, the majority of
  three votes. It is shown the solutions that are kept, and a step or solution that it leaves open has no label;
- what is measured is labelled by a program whoever judges, so that arms are compared by the same truth;
- class weights follow the class sizes of the round, within [0.5, 2];
- every round samples anew from M_t and discards older data; M_t is the reference.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Literal

from selftaught.errors import InputError
from selftaught.evals.steps import evaluate_steps
from selftaught.methods.method import Claim, Measured, Method, Outcome
from selftaught.methods.rounds import arm_settings, check_arms, run_rounds
from selftaught.plan import PROMPT_TOKENS, Work, evaluation_plan, problem_counts, round_plan
from selftaught.scorers.base import Scorer
from selftaught.scorers.step_judge import StepQuestions, step_scores
from selftaught.scorers.steps import StepEquations, StepVerifier
from selftaught.scorers.verifier import Verifier
from selftaught.select.feedback import FeedbackRows, Policy, RightDemonstrations, class_weights
from selftaught.select.pairs import GoldPairs
from selftaught.specs import (
    KTO,
    SFT,
    Evaluation,
    ModelSpec,
    ObjectiveSpec,
    Preference,
    Sampling,
    SeedModel,
    StepKTO,
    Training,
)
from selftaught.store.groups import Groups
from selftaught.tasks import load_task
from selftaught.tasks.task import Task, TaskSpec
from selftaught.text.steps import Segmentation
from selftaught.types import Demonstration, Feedback, Pair, Prompt, Score

if TYPE_CHECKING:
    from selftaught.lab import Lab


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of Step-KTO and its baselines. `per_class` is m; `flip` is the share of wrong step labels.

    With `step_labels="equations"` steps are those of `segmentation`, judged by the equations in them; with "judge" they
    are judged by the model `step_judge` (the seed model), whose votes are the k of `step_judge_sampling`.
    """

    task: TaskSpec
    model: ModelSpec | None = None
    seed_model: SeedModel = field(default_factory=SeedModel)
    arms: tuple[str, ...] = ("step_kto",)
    rounds: int = 3
    problems: int | None = None
    fresh_problems: bool = False
    sampling: Sampling = field(default_factory=lambda: Sampling(k=8, temperature=1.0, top_p=0.95))
    per_class: int = 2
    balanced: bool = False
    step_labels: Literal["task", "equations", "judge"] = "task"
    step_judge: ModelSpec | None = None
    step_judge_sampling: Sampling = field(default_factory=lambda: Sampling(k=3, temperature=0.7, max_tokens=512))
    segmentation: Segmentation = field(default_factory=Segmentation)
    label_policy: Policy = "independent"
    flip: float = 0.0
    objective: Literal["step_kto", "kto", "flattened_kto", "rft", "irpo"] = "step_kto"
    beta: float = 0.1
    step_beta: float = 0.3
    gamma: float = 1.0
    outcome: bool = True
    step_reduction: Literal["mean", "sum", "batch"] = "mean"
    step_reference_point: Literal["batch", "outcome", "zero"] = "batch"
    length_normalize: bool = False
    class_weights: Literal["ratio", "equal"] = "ratio"
    nll_alpha: float = 1.0
    training: Training = field(default_factory=lambda: Training(lr=1e-6, epochs=1, batch_size=64))
    arm_lr: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        if self.training.batch_size < 2:
            raise InputError("training.batch_size=1 has no mismatched completion to measure against; give 2 or more")
        check_arms(self.arms, ARMS, self.arm_lr, self.rounds)
        if self.fresh_problems and self.problems is None and self.rounds > 1:
            raise InputError("fresh_problems takes a part of the problems in every round; say how many with --problems")
        if self.step_judge is not None and self.step_labels != "judge":
            raise InputError(
                f"step_judge={self.step_judge.source} is never asked with step_labels={self.step_labels}: say "
                "--step_labels judge"
            )
        if self.step_judge_sampling.k > 1 and self.step_judge_sampling.temperature == 0:
            raise InputError(
                f"step_judge_sampling: k={self.step_judge_sampling.k} votes at temperature 0 are one vote; give 0.7, "
                "or k=1"
            )


STEPWISE = ("step_kto", "flattened_kto")
"""The objectives that look at step labels."""

ARMS: dict[str, dict] = {
    "step_kto": {},
    "step_kto_gamma05": {"gamma": 0.5},
    "step_kto_gamma2": {"gamma": 2.0},
    "step_kto_noise10": {"flip": 0.1},
    "step_kto_noise20": {"flip": 0.2},
    "step_kto_noise30": {"flip": 0.3},
    "step_kto_first_error": {"label_policy": "first_error"},
    "step_kto_propagate": {"label_policy": "propagate"},
    "process_only": {"outcome": False},
    "flattened_kto": {"objective": "flattened_kto"},
    "kto": {"objective": "kto"},
    "kto_beta1": {"objective": "kto", "beta": 1.0},
    "rft": {"objective": "rft"},
    "irpo": {"objective": "irpo"},
}


def run(cfg: Config, lab: "Lab") -> Outcome:
    """Train every arm from the same seed model, measuring it after each round."""
    task = load_task(cfg.task)
    outcome = Outcome()
    measured = partial(measure, cfg, lab, task)
    with lab.scope(arm="seed_model"):
        seed_model = cfg.model or lab.seed_model(cfg.task, cfg.seed_model)
        outcome.add("seed_model", seed_model, measured(seed_model))
    if cfg.step_labels == "judge":
        # A judge that changed with the model in training would give labels that do not compare.
        cfg = replace(cfg, step_judge=cfg.step_judge or seed_model)
    for arm in cfg.arms:
        train = partial(train_round, arm_settings(cfg, arm, ARMS), lab, task)
        run_rounds(lab, outcome, arm, seed_model, cfg.rounds, train, measured)
    return outcome


def train_round(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, t: int) -> ModelSpec:
    """Turn M_t into M_{t+1}."""
    start = t * (cfg.problems or 0) if cfg.fresh_problems else 0
    problems = task.train(cfg.problems, seed=lab.seed, start=start)
    if not problems:
        raise InputError(f"round {t + 1} has no problem left: lower --rounds or --problems, or give more data")
    groups = lab.generate(model, problems, replace(cfg.sampling, stop=(*cfg.sampling.stop, *task.stop)))  # step 1
    groups = label_steps(cfg, lab, task, lab.score(groups, Verifier(task=task)), model)  # step 2
    row_type, selector = selection(cfg, lab.seed)
    examples = lab.select(groups, selector, row_type)  # step 3
    return lab.train(model, examples, objective(cfg, examples), cfg.training)  # step 4


def label_steps(cfg: Config, lab: "Lab", task: Task, groups: Groups, model: ModelSpec) -> Groups:
    """Add step labels by a program or, where anything trains on them, by the judge; `model` judges if nobody else."""
    if cfg.step_labels != "judge":
        return lab.score(groups, step_scorer(cfg, task))
    if cfg.objective not in STEPWISE:
        return groups
    questions = StepQuestions(rule=feedback_rows(cfg, lab.seed), segmentation=cfg.segmentation)
    asked = lab.stage("judge_prompts", Prompt, questions, groups)
    if not len(asked):
        return groups
    judged = lab.generate(cfg.step_judge or model, asked, cfg.step_judge_sampling)
    scores = lab.stage("judge", Score, step_scores, groups, judged, segmentation=cfg.segmentation)
    unread = sum(score.span is None for score in scores)
    lab.note("step_judge", asked=len(asked), unread=unread)
    message = (
        f"the judge's labels of {unread} of {len(asked)} solutions could not be read, and these steps train nothing: "
        "name a stronger --step_judge.source, or raise --step_judge_sampling.max_tokens"
    )
    if unread == len(asked):
        raise InputError(message)
    if 2 * unread > len(asked):
        lab.warn(message)
    return Groups(prompts=groups.prompts, completions=groups.completions, scores=(*groups.scores, scores))


def step_scorer(cfg: Config, task: Task) -> Scorer:
    """Return the program that labels steps: the task's own verifier, or the equations in them.

    Where a judge labels what is trained on, it labels what is measured: the task's if there is one.
    """
    by_task = hasattr(task, "verify_steps") if cfg.step_labels == "judge" else cfg.step_labels == "task"
    return StepVerifier(task=task) if by_task else StepEquations(segmentation=cfg.segmentation)


def selection(cfg: Config, seed: int) -> tuple[type, FeedbackRows | RightDemonstrations | GoldPairs]:
    """Return the type of the training examples and the rule that makes them."""
    rows = feedback_rows(cfg, seed)
    if cfg.objective == "rft":
        return Demonstration, RightDemonstrations(rows=rows)
    if cfg.objective == "irpo":
        return Pair, GoldPairs(seed=seed)
    return Feedback, rows


def feedback_rows(cfg: Config, seed: int) -> FeedbackRows:
    """Return the rule of step 3.

    KTO leaves the steps' labels out itself: with them its rows, and their reference, are Step-KTO's. A judge's labels
    would cost more than that saves.
    """
    return FeedbackRows(
        per_class=cfg.per_class,
        balanced=cfg.balanced,
        steps="steps" if cfg.step_labels != "judge" or cfg.objective in STEPWISE else None,
        policy=cfg.label_policy,
        flip=cfg.flip,
        seed=seed,
    )


def objective(cfg: Config, examples: Iterable[Feedback]) -> ObjectiveSpec:
    """Return the loss of step 4, its class weights from the labels of `examples`."""
    if cfg.objective == "rft":
        return SFT()
    if cfg.objective == "irpo":
        return Preference(beta=cfg.beta, nll_alpha=cfg.nll_alpha)
    good, bad, right, wrong = _weights(cfg, examples)
    if cfg.objective == "flattened_kto":
        normalize = cfg.length_normalize
        return KTO(
            beta=cfg.step_beta,
            desirable_weight=right,
            undesirable_weight=wrong,
            length_normalize=normalize,
            per_step=True,
        )
    if cfg.objective == "kto":
        return KTO(beta=cfg.beta, desirable_weight=good, undesirable_weight=bad, length_normalize=cfg.length_normalize)
    return StepKTO(
        beta=cfg.beta,
        step_beta=cfg.step_beta,
        gamma=cfg.gamma,
        outcome=cfg.outcome,
        desirable_weight=good,
        undesirable_weight=bad,
        step_desirable_weight=right,
        step_undesirable_weight=wrong,
        step_reduction=cfg.step_reduction,
        step_reference_point=cfg.step_reference_point,
        length_normalize=cfg.length_normalize,
    )


def _weights(cfg: Config, examples: Iterable[Feedback]) -> tuple[float, float, float, float]:
    """Return lambda_D and lambda_U of the outcomes, then of the steps."""
    if cfg.class_weights == "equal":
        return 1.0, 1.0, 1.0, 1.0
    outcomes: Counter[bool] = Counter()
    steps: Counter[bool] = Counter()
    for row in examples:
        outcomes[row.label] += 1
        steps.update(label for *_, label in row.step_labels)
    return *class_weights(outcomes[True], outcomes[False]), *class_weights(steps[True], steps[False])


def measure(cfg: Config, lab: "Lab", task: Task, model: ModelSpec) -> Measured:
    """Measure accuracy (greedy, of samples, by majority) and, of greedy solutions and of samples, the steps."""
    evaluation = cfg.evaluation
    reports, values = lab.evaluate(model, task, evaluation)
    drawn = Sampling(
        k=evaluation.k,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        max_tokens=evaluation.max_tokens,
        stop=task.stop,
    )
    for prefix, sampling in (("", drawn), ("greedy_", replace(drawn, k=1, temperature=0.0))):
        # The evaluation has drawn the same: these are its stages, with step labels added.
        groups = lab.generate(model, task.test(evaluation.problems), sampling)
        scored = lab.score(lab.score(groups, Verifier(task=task)), step_scorer(cfg, task))
        more, per_problem = evaluate_steps(scored, prefix)
        for report in more:
            lab.note_report(report)
        reports, values = reports | {report.name: report for report in more}, values | per_problem
    return reports, values


def plan(cfg: Config) -> list[Work]:
    """List the work of every arm and round, as many rows as a problem can give."""
    problems, tested = problem_counts(cfg.task, cfg.problems, cfg.evaluation)
    works = [evaluation_plan("seed model", tested, cfg.evaluation)]
    for arm, t in product(cfg.arms, range(cfg.rounds)):
        settings = arm_settings(cfg, arm, ARMS)
        label = f"{arm} {t + 1}"
        works += round_plan(
            label,
            problems=problems,
            samples=settings.sampling.k,
            tokens=settings.sampling.max_tokens,
            completions={"rft": settings.per_class, "irpo": 2}.get(settings.objective, 2 * settings.per_class),
            training=settings.training,
        )
        if settings.step_labels == "judge" and settings.objective in STEPWISE:
            works.append(_judge_plan(f"{label}: judge of steps", problems, settings))
        works.append(evaluation_plan(label, tested, cfg.evaluation))
    return works


def _judge_plan(name: str, problems: int, cfg: Config) -> Work:
    votes, kept = cfg.step_judge_sampling, min(cfg.sampling.k, 2 * cfg.per_class)
    # It reads the problem, a reference about as long as a solution, and the solution.
    tokens = PROMPT_TOKENS + 2 * cfg.sampling.max_tokens + votes.k * votes.max_tokens
    return Work(name=name, rows=problems * kept * votes.k, tokens=problems * kept * tokens, passes=2)


METHOD = Method(
    name="step_kto",
    title="Step-KTO",
    paper="arXiv 2501.10799",
    claim="binary feedback on every step besides the final answer leaves fewer wrong steps inside right solutions",
    config=Config,
    run=run,
    plan=plan,
    equations={
        "value and loss": "selftaught.functional.kto:kto",
        "outcome and step level": "selftaught.objectives.step_kto:StepKTOObjective",
        "reference points": "selftaught.functional.kto:reference_point",
        "step labels": "selftaught.select.feedback:FeedbackRows",
        "judge of steps": "selftaught.scorers.step_judge:step_scores",
    },
    claims=(
        Claim(
            text="Step-KTO leaves fewer solutions with a wrong step among those with a right answer than KTO",
            arm="step_kto",
            baseline="kto",
            metric="step_error_share",
            lower_is_better=True,
        ),
        Claim(
            text="Step-KTO is at most 1 point less accurate than KTO",
            arm="step_kto",
            baseline="kto",
            metric="accuracy",
            margin=-0.01,
        ),
    ),
)
