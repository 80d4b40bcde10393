"""Self-Consistency Preference Optimization (Prasad et al. 2024, arXiv 2411.04109).

The most frequent answer among k sampled solutions supplies the chosen response, the least frequent one the rejected
response, and the vote margin weighs a DPO + NLL loss. No gold answer is used. For t = 0 .. T-1 (Section 2):

    1. M_t writes new problems after a few unanswered ones;
    2. M_t samples k responses y_1 .. y_k for every problem;
    3. V(y) = number of responses with the answer of y;
    4. problems with max V < tau_t are dropped;
    5. y+ = argmax V, y- = argmin V, w = (V(y+) - V(y-)) / k;
    6. M_{t+1} minimises  - w log sigmoid(beta [log M/M_t (y+) - log M/M_t (y-)])
                          - alpha w / |y+| log M(y+)
       from M_t, which is also the reference.

The paper's other rows are settings of the same loop (`ARMS`): gold answers and w = 1 make it IRPO, the NLL term
alone on majority answers makes it LMSI, a reward model in place of the votes makes it IRPO with that reward model.

Departures, and choices where the paper is silent:
- hot samples (higher temperature) do not vote; they only widen the pool of rejected responses, with their answer's
  votes;
- responses without an answer have no vote, may be rejected, and are at most `unread_cap` of the rejected ones;
- a tie for the most frequent answer drops the problem, and so does w = 0;
- generated problems that repeat another one (exactly or, where the task says so, with ROUGE-L above 0.7) are dropped;
- by default M_t itself writes the problems; the paper's main runs let an instruct model do it (`problem_model`);
- `fresh_problems` gives every round problems of its own; the paper uses the same ones in every round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import nan
from typing import TYPE_CHECKING, Literal

from selftaught.errors import InputError
from selftaught.evals.evaluate import evaluate_samples
from selftaught.evals.metrics import ordering_quality, pair_margin
from selftaught.methods.method import Claim, Method, Outcome
from selftaught.methods.rounds import arm_settings, check_arms, run_rounds
from selftaught.plan import Work, evaluation_plan, problem_counts, round_plan
from selftaught.scorers.noisy_reward import NoisyReward
from selftaught.scorers.verifier import Verifier
from selftaught.scorers.votes import Votes
from selftaught.select.pairs import (
    ConsistencyPairs,
    GoldPairs,
    MajorityDemonstrations,
    RewardPairs,
    Selector,
    SemiSupervisedPairs,
)
from selftaught.specs import SFT, Evaluation, ModelSpec, ObjectiveSpec, Preference, Sampling, SeedModel, Training
from selftaught.tasks import load_task
from selftaught.tasks.generated import fresh_prompts
from selftaught.tasks.task import Task, TaskSpec
from selftaught.types import Demonstration, Pair, Prompt, Report

if TYPE_CHECKING:
    from selftaught.lab import Lab
    from selftaught.store.groups import Groups
    from selftaught.store.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of ScPO and its special cases. `tau` and `labelled` are shares; the last `tau` serves later rounds."""

    task: TaskSpec
    model: ModelSpec | None = None
    seed_model: SeedModel = field(default_factory=SeedModel)
    problem_model: ModelSpec | None = None
    arms: tuple[str, ...] = ("scpo",)
    rounds: int = 2
    problems: int | None = None
    fresh_problems: bool = False
    new_problems: int = 0
    problem_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, top_p=0.9, max_tokens=128))
    sampling: Sampling = field(default_factory=lambda: Sampling(k=8, temperature=0.7, top_p=0.9))
    hot: Sampling | None = None
    hot_from_round: int = 2
    labels: Literal["votes", "gold", "noisy_reward"] = "votes"
    labelled: float = 0.0
    reward_flips: float = 0.25
    reward_flips_off: float = 0.35
    tau: tuple[float, ...] = (0.5, 0.7)
    weight: Literal["margin", "none"] = "margin"
    unread_cap: float = 0.2
    objective: Literal["dpo_nll", "nll"] = "dpo_nll"
    beta: float = 0.5
    nll_alpha: float = 1.0
    weight_normalize: bool = False
    training: Training = field(default_factory=lambda: Training(lr=5e-6, epochs=10, batch_size=16))
    arm_lr: dict[str, float] = field(default_factory=dict)
    dev_problems: int = 0
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        if self.sampling.k < 2:
            raise InputError(
                f"sampling.k={self.sampling.k}: one sample has nothing to agree with; give 2 or more, say 8"
            )
        if not self.tau or not all(0 <= share <= 1 for share in self.tau):
            raise InputError(f"tau={self.tau}: give a share of the k votes for each round, such as 0.5,0.7")
        check_arms(self.arms, ARMS, self.arm_lr, self.rounds)
        if self.fresh_problems and self.problems is None and self.rounds > 1:
            raise InputError("fresh_problems takes a part of the problems in every round; say how many with --problems")


ARMS: dict[str, dict] = {
    "scpo": {},
    "scpo_unweighted": {"weight": "none"},
    "scpo_semi": {"labelled": 0.5},
    "irpo_gold": {"labels": "gold", "new_problems": 0},
    "irpo_noisy_rm": {"labels": "noisy_reward"},
    "lmsi": {"objective": "nll"},
}


def run(cfg: Config, lab: "Lab") -> Outcome:
    """Train every arm from the same seed model, measuring it after each round."""
    task = load_task(cfg.task)
    outcome = Outcome()
    measure = partial(lab.evaluate, task=task, evaluation=cfg.evaluation)
    with lab.scope(arm="seed_model"):
        seed_model = cfg.model or lab.seed_model(cfg.task, cfg.seed_model)
        outcome.add("seed_model", seed_model, measure(seed_model))
    _check_seed_model(lab, outcome.rounds["seed_model"][0], cfg.evaluation.k)
    for arm in cfg.arms:
        train = partial(train_round, arm_settings(cfg, arm, ARMS), lab, task)
        run_rounds(lab, outcome, arm, seed_model, cfg.rounds, train, measure)
    return outcome


def train_round(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, t: int) -> ModelSpec:
    """Turn M_t into M_{t+1}."""
    k = cfg.sampling.k
    start = t * (cfg.problems or 0) if cfg.fresh_problems else 0
    sampling = replace(cfg.sampling, stop=(*cfg.sampling.stop, *task.stop))
    problems = task.train(cfg.problems, seed=lab.seed, start=start)
    if not problems:
        raise InputError(f"round {t + 1} has no problem left: lower --rounds or --problems, or give more data")
    problems += new_problems(cfg, lab, task, cfg.problem_model or model, problems)  # step 1
    groups = lab.generate(model, problems, sampling)  # step 2
    if cfg.hot and t + 1 >= cfg.hot_from_round:
        groups = lab.generate(model, groups, replace(cfg.hot, stop=sampling.stop), first_k=k)
    groups = lab.score(groups, Votes(task=task, k=k))  # step 3
    groups = lab.score(groups, Verifier(task=task))  # for measures, and for labels where the arm has them
    if cfg.labels == "noisy_reward":
        groups = lab.score(groups, NoisyReward(task=task, flip=cfg.reward_flips, flip_off=cfg.reward_flips_off))
    row_type, selector = selection(cfg, t, lab.seed)
    examples = lab.select(groups, selector, row_type)  # steps 4 and 5
    measure_votes(lab, groups, examples, k)
    dev = lab.dev_accuracy(task, cfg.dev_problems, cfg.evaluation) if cfg.dev_problems else None
    return lab.train(model, examples, objective(cfg), cfg.training, dev=dev)  # step 6


def new_problems(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, known: Sequence[Prompt]) -> list[Prompt]:
    """Let `model` write `cfg.new_problems` problems after examples without answers; keep those that are new."""
    if not cfg.new_problems:
        return []
    asked = task.problem_prompts(known, cfg.new_problems, seed=lab.seed)
    written = lab.generate(model, asked, cfg.problem_sampling)
    return list(lab.stage("problems", Prompt, fresh_prompts, written, lab.table(known), task=task))


def selection(cfg: Config, t: int, seed: int) -> tuple[type, Selector]:
    """Return the type of the training examples and the rule that makes them."""
    k = cfg.sampling.k
    threshold = cfg.tau[min(t, len(cfg.tau) - 1)] * k
    votes = ConsistencyPairs(k=k, threshold=threshold, weight=cfg.weight, unread_cap=cfg.unread_cap, seed=seed)
    if cfg.objective == "nll":
        return Demonstration, MajorityDemonstrations(k=k, threshold=threshold, seed=seed)
    if cfg.labels == "gold":
        return Pair, GoldPairs(seed=seed)
    if cfg.labels == "noisy_reward":
        return Pair, RewardPairs(scorer="noisy_reward", seed=seed)
    if cfg.labelled:
        return Pair, SemiSupervisedPairs(gold=GoldPairs(seed=seed), consistency=votes, labelled=cfg.labelled, seed=seed)
    return Pair, votes


def objective(cfg: Config) -> ObjectiveSpec:
    """Return the loss of step 6, or LMSI's: ordinary fine-tuning, a mean over tokens."""
    if cfg.objective == "nll":
        return SFT()
    return Preference(beta=cfg.beta, nll_alpha=cfg.nll_alpha, weight_normalize=cfg.weight_normalize)


def measure_votes(lab: "Lab", groups: "Groups", examples: "Stage", k: int) -> None:
    """Note what votes are worth: their share, order against gold, Somers' D, and the accuracy margin of the pairs.

    Figures 2 and 3 and table 7.
    """
    for report in evaluate_samples(groups, k)[0]:
        lab.note_report(replace(report, name=f"train/{report.name}"))
    if order := ordering_quality(groups):
        lab.note("order", right=order.right, tie=order.tie, wrong=order.wrong, n=order.n)
    verdicts = {s.completion_id: s.value for group in groups for s in group.scores if s.scorer == "verifier"}
    pairs = (example for example in examples if isinstance(example, Pair))
    lab.note("pairs", kept=len(examples), margin=pair_margin(pairs, verdicts))


def _check_seed_model(lab: "Lab", reports: Mapping[str, Report], k: int) -> None:
    greedy, voted = (reports[name].mean if name in reports else nan for name in ("accuracy", f"accuracy_sc{k}"))
    # Without gold answers, or with one sample, there is nothing to compare.
    if greedy < 0.05 or greedy > 0.95 or voted - greedy < 0.02:
        lab.warn(
            f"the seed model answers {greedy:.1%} greedily and {voted:.1%} by majority of {k}: ScPO needs a model that "
            "is neither hopeless nor finished and whose majority beats its greedy answer; change the model or the task"
        )


def plan(cfg: Config) -> list[Work]:
    """List the work of every arm and round, all problems kept."""
    problems, tested = problem_counts(cfg.task, cfg.problems, cfg.evaluation)
    works = [evaluation_plan("seed model", tested, cfg.evaluation)]
    for arm, t in product(cfg.arms, range(cfg.rounds)):
        settings = arm_settings(cfg, arm, ARMS)
        works += round_plan(
            f"{arm} {t + 1}",
            problems=problems + settings.new_problems,
            samples=settings.sampling.k + (settings.hot.k if settings.hot and t + 1 >= settings.hot_from_round else 0),
            tokens=settings.sampling.max_tokens,
            completions=1 if settings.objective == "nll" else 2,
            training=settings.training,
            dev=settings.dev_problems,
            written=settings.new_problems,
            written_tokens=settings.problem_sampling.max_tokens,
        )
        works.append(evaluation_plan(f"{arm} {t + 1}", tested, cfg.evaluation))
    return works


METHOD = Method(
    name="scpo",
    title="Self-Consistency Preference Optimization",
    paper="arXiv 2411.04109",
    claim="preferring the majority answer over the least voted one, weighted by the margin, nearly equals gold labels",
    config=Config,
    run=run,
    plan=plan,
    equations={
        "votes": "selftaught.select.votes:count_votes",
        "pairs and weights": "selftaught.select.pairs:ConsistencyPairs",
        "loss": "selftaught.functional.preference:dpo",
    },
    claims=(
        Claim(text="ScPO beats the seed model", arm="scpo", baseline="seed_model", metric="accuracy"),
        Claim(text="ScPO beats LMSI", arm="scpo", baseline="lmsi", metric="accuracy"),
        Claim(
            text="ScPO reaches at least 70% of the gain of IRPO with gold answers",
            arm="scpo",
            baseline="seed_model",
            metric="accuracy",
            gold="irpo_gold",
            share=0.7,
        ),
        Claim(
            text="ScPO beats IRPO with a noisy reward model", arm="scpo", baseline="irpo_noisy_rm", metric="accuracy"
        ),
        Claim(text="weighted ScPO beats unweighted", arm="scpo", baseline="scpo_unweighted", metric="accuracy"),
    ),
)
