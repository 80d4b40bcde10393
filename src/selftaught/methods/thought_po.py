"""Thought Preference Optimization (Wu et al. 2024, arXiv 2410.10630, "Thinking LLMs").

A model learns to write a hidden thought before its response, from a judge that sees the response alone. For
t = 0 .. T-1, with fresh instructions x_i and a thought prompt p (Section 2):

    1. M_t samples K outputs for p + x_i; each is split into thought z and response y;
    2. the judge scores responses: pointwise, or in all ordered pairs, whose verdicts become Bradley-Terry scores;
    3. s_k = z-score of the score - rho * z-score of the response's length, within the K responses of a prompt;
    4. chosen = argmax s, rejected = argmin s, both with thought and response, behind the prompt p + x_i;
    5. outputs that cannot be split are never scored; they are the rejected ones of at most 10% of the pairs;
    6. M_{t+1} minimises  - log sigmoid(beta [log M/M_t (z_c, y_c) - log M/M_t (z_r, y_r)])
                          (+ alpha NLL(z_c, y_c) / length)
       from M_t, which is also the reference, on this round's pairs only.

The baseline is the same loop without p and z (arm `direct`). The paper's loss is on thought and response alike:
`loss_on` "full". Arm `response_only` takes the log-probs of y given z in step 6, so that thoughts are read and not
trained; what could not be split stays in the loss as a whole.

Departures, and choices where the paper is silent:
- every arm trains on as many tokens a round as the first arm, prompts included: an arm whose pairs are shorter gets
  further fresh instructions (`match_tokens`); the paper gives both the same instructions;
- outputs cut off by the token limit count as outputs that cannot be split;
- a response without a verdict or a score is neither chosen nor rejected;
- Bradley-Terry scores have `elo_prior` (0.5) wins each way between any two responses, or an undefeated one would have
  no finite score;
- prompts whose scores are all equal, and pairs of the same response text, are dropped; ties are broken at random;
- an unparsed output is rejected first where a prompt has no other pair (if its best response scores at least the
  median of those chosen elsewhere), then in place of a scored one;
- lengths are in characters; `length_control` "auto" finds the smallest rho, as far as bisection tells, with which
  chosen responses are on average no longer than rejected ones;
- at evaluation an output that cannot be split is wrong; the paper samples again;
- the paper does not give beta, learning rate and batch size;
- not built: lengths in tokens.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, chain, islice, product
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, Literal

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.evals.evaluate import summarise
from selftaught.evals.metrics import PerProblem, accuracy
from selftaught.evals.thoughts import by_category, measure_thoughts
from selftaught.judging import compare, judge
from selftaught.methods.method import Claim, Measured, Method, Outcome
from selftaught.methods.rounds import arm_settings, check_arms, run_rounds
from selftaught.plan import PROMPT_TOKENS, Work, evaluation_plan, problem_counts, round_plan
from selftaught.scorers.judges import Judge, OfResponses
from selftaught.scorers.verifier import Verifier
from selftaught.select.thought_pairs import ThoughtPairs, without_thoughts
from selftaught.specs import Evaluation, ModelSpec, Preference, Sampling, SeedModel, Training
from selftaught.store.groups import Groups
from selftaught.tasks import load_task
from selftaught.tasks.task import Task, TaskSpec
from selftaught.text.thoughts import FORMATS, NONE, ThoughtFormat, ask, load_format
from selftaught.types import Pair, Prompt, Report

if TYPE_CHECKING:
    from selftaught.lab import Lab
    from selftaught.store.stage import Stage

MOST_EXTRA = 8
"""Further instructions, in multiples of `problems`, that an arm may get so that its tokens equal the first arm's."""
MAIN_MEASURES = ("win_rate", "judge_score", "accuracy")
"""What is also told by `meta["category"]`, and what chooses an epoch: the first of them that has a value."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of Thought PO and its special cases. The first of `arms` sets the tokens of the others.

    `form` is a thought format: generic, specific, system, none, one of the task's own, or a YAML file. `judged`
    "whole" shows the judge the thought too, `loss_on` "response_only" keeps thoughts and markers out of the loss (the
    paper's is "full"). `dev_problems` choose the epoch, by the judge or, without, by accuracy.
    """

    task: TaskSpec
    model: ModelSpec | None = None
    seed_model: SeedModel = field(default_factory=SeedModel)
    arms: tuple[str, ...] = ("thought", "direct")
    rounds: int = 4
    problems: int | None = None
    match_tokens: bool = True
    form: str = "generic"
    sampling: Sampling = field(default_factory=lambda: Sampling(k=8, temperature=0.8, top_p=0.95, max_tokens=1024))
    judge: Judge = field(default_factory=Judge)
    judged: Literal["response", "whole"] = "response"
    length_control: Literal["auto", "fixed", "off"] = "auto"
    rho: float = 0.25
    thought_rho: float = 0.0
    unparsed_cap: float = 0.1
    elo_prior: float = 0.5
    beta: float = 0.1
    nll_alpha: float = 0.0
    loss_on: Literal["full", "response_only"] = "full"
    training: Training = field(default_factory=lambda: Training(lr=1e-6, epochs=2, batch_size=32))
    arm_lr: dict[str, float] = field(default_factory=dict)
    dev_problems: int = 0
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(k=1, temperature=0.8, top_p=0.95))

    def __post_init__(self) -> None:
        if self.sampling.k < 2:
            raise InputError(f"sampling.k={self.sampling.k}: one response has none to be compared with; give 2 or more")
        if self.problems is not None and self.problems < 1:
            raise InputError(f"problems={self.problems}: give 1 or more, or none for all there are")
        check_arms(self.arms, ARMS, self.arm_lr, self.rounds)


ARMS: dict[str, dict] = {
    "thought": {},
    "thought_specific": {"form": "specific"},
    "direct": {"form": "none"},
    "thought_judged_whole": {"judged": "whole"},
    "no_length_control": {"length_control": "off"},
    "no_parse_rejects": {"unparsed_cap": 0.0},
    "response_only": {"loss_on": "response_only"},
}


def run(cfg: Config, lab: "Lab") -> Outcome:
    """Train every arm from the same seed model, measuring it before the first and after every round."""
    task, outcome = load_task(cfg.task), Outcome()
    arms = {arm: arm_settings(cfg, arm, ARMS) for arm in cfg.arms}
    with lab.scope(arm="seed_model"):
        seed_model = cfg.model or lab.seed_model(cfg.task, cfg.seed_model)
        direct = measure(arm_settings(cfg, "direct", ARMS), lab, task, seed_model, seed_model)
        outcome.add("seed_model", seed_model, direct)
    for arm, settings in arms.items():
        with lab.scope(arm=arm):
            outcome.add(arm, seed_model, measure(settings, lab, task, seed_model, seed_model))
    _check_seed_model(lab, outcome.rounds)
    tokens: dict[int, int] = {}
    for arm, settings in arms.items():
        train = partial(train_round, settings, lab, task, seed_model, tokens)
        run_rounds(lab, outcome, arm, seed_model, cfg.rounds, train, partial(measure, settings, lab, task, seed_model))
    return outcome


def train_round(
    cfg: Config, lab: "Lab", task: Task, seed_model: ModelSpec, tokens: dict[int, int], model: ModelSpec, t: int
) -> ModelSpec:
    """Turn M_t into M_{t+1}. `tokens` holds what the first arm trained on in each round, once it has."""
    problems = task.train(cfg.problems, seed=lab.seed, start=t * (cfg.problems or 0))
    if not problems:
        raise InputError(f"round {t + 1} has no problem left: lower --rounds or --problems, or give more data")
    pairs = make_pairs(cfg, lab, task, model, problems)
    if cfg.match_tokens:
        pairs = match_tokens(cfg, lab, task, model, t, pairs, tokens)
    if cfg.loss_on == "response_only":
        pairs = lab.stage("pairs", Pair, without_thoughts, pairs, form=thought_format(cfg, task))
    objective = Preference(beta=cfg.beta, nll_alpha=cfg.nll_alpha)
    dev = _dev_value(cfg, lab, task, seed_model) if cfg.dev_problems else None
    return lab.train(model, pairs, objective, cfg.training, dev=dev)  # step 6


def make_pairs(cfg: Config, lab: "Lab", task: Task, model: ModelSpec, problems: Sequence[Prompt]) -> "Stage":
    """Return the pairs that `model` makes of its outputs for `problems`; NothingToTrainOn where it makes none."""
    form = thought_format(cfg, task)
    sampling = replace(cfg.sampling, stop=(*cfg.sampling.stop, *task.stop))
    groups = lab.generate(model, [ask(form, problem) for problem in problems], sampling)  # step 1
    groups = judge(lab, groups, cfg.judge, task=task, form=NONE if cfg.judged == "whole" else form)  # step 2
    selector = ThoughtPairs(
        form=form,
        scorer=cfg.judge.name,
        pairwise=cfg.judge.in_pairs,
        rho={"auto": None, "fixed": cfg.rho, "off": 0.0}[cfg.length_control],
        thought_rho=cfg.thought_rho,
        unparsed_cap=cfg.unparsed_cap,
        prior=cfg.elo_prior,
        seed=lab.seed,
    )
    return lab.select(groups, selector, Pair)  # steps 3 to 5


def match_tokens(
    cfg: Config, lab: "Lab", task: Task, model: ModelSpec, t: int, pairs: "Stage", tokens: dict[int, int]
) -> "Stage":
    """Return as many pairs as come to the first arm's tokens, of further instructions too where `pairs` hold fewer."""
    from selftaught.train.tokens import example_tokens

    lengths, tables = example_tokens(model, pairs), [pairs]
    wanted = tokens.setdefault(t, sum(lengths))
    if sum(lengths) < wanted and cfg.problems:
        more = ceil(cfg.problems * min(1.15 * (wanted / sum(lengths) - 1), MOST_EXTRA))
        problems = task.train(more, seed=lab.seed, start=cfg.problems * (cfg.rounds + t * MOST_EXTRA))
        with suppress(NothingToTrainOn):
            tables += [make_pairs(cfg, lab, task, model, problems)] if problems else []
        lengths += example_tokens(model, tables[1]) if len(tables) > 1 else []
    if sum(lengths) < 0.95 * wanted:
        lab.tell(f"round {t + 1} has {sum(lengths)} tokens to train on, the first arm had {wanted}: give more problems")
    count = bisect_right(list(accumulate(lengths)), wanted)
    if count < len(lengths) or len(tables) > 1:
        pairs = lab.stage("pairs", Pair, first_rows, *tables, count=count)
    lab.note("tokens", pairs=count, tokens=sum(lengths[:count]), wanted=wanted)
    return pairs


def first_rows(*arguments: Any, count: int) -> Iterator[Any]:
    """Yield the first `count` rows of tables, one after the other. The last argument, of counts, is left as it is."""
    return islice(chain.from_iterable(arguments[:-1]), count)


def measure(
    cfg: Config, lab: "Lab", task: Task, seed_model: ModelSpec, model: ModelSpec, problems: list[Prompt] | None = None
) -> Measured:
    """Measure a model's responses to the test problems, or to `problems`; values are by problem, so that arms pair up.

    `accuracy` and what the judge says are over greedy outputs, the rest is over samples where there are several.
    """
    chosen = task.test(cfg.evaluation.problems) if problems is None else problems
    form, k = thought_format(cfg, task), cfg.evaluation.k
    asked = lab.table([ask(form, problem) for problem in chosen])
    sampling = _greedy(cfg, task)
    greedy = lab.generate(model, asked, sampling)
    verifier = OfResponses(scorer=Verifier(task=task), form=form, as_empty=True)
    values = {"accuracy": accuracy(lab.score(greedy, verifier))}
    sampled = lab.score(greedy, verifier)
    if k > 1:
        several = replace(sampling, k=k, temperature=cfg.evaluation.temperature, top_p=cfg.evaluation.top_p)
        sampled = lab.score(lab.generate(model, asked, several), verifier)
        values[f"accuracy_samples{k}"] = accuracy(sampled)
    kind_of = getattr(task, "thought_kind", None) if cfg.form != "none" else None
    values |= measure_thoughts(sampled, form, kind_of, getattr(task, "thought_kinds", ()))
    values |= _judged(cfg, lab, task, seed_model, chosen, greedy)
    origin = {prompt.id: prompt.parents[0] for prompt in asked}
    values = {name: {origin.get(i, i): v for i, v in found.items()} for name, found in values.items()}
    for name in [name for name in MAIN_MEASURES if name in values]:
        values |= by_category(name, values[name], chosen)
    reports = {name: summarise(name, found) for name, found in values.items()}
    for name, report in reports.items():
        lab.note_report(report if problems is None else replace(report, name=f"dev/{name}"))
    return reports, values


def _judged(
    cfg: Config, lab: "Lab", task: Task, seed_model: ModelSpec, problems: list[Prompt], greedy: Groups
) -> dict[str, PerProblem]:
    """Return a pointwise judge's scores, or a pairwise one's preference for `greedy` over the seed's direct answers.

    The task's own grading without pairs is `accuracy` already.
    """
    form = thought_format(cfg, task)
    if not cfg.judge.in_pairs:
        known = cfg.judge.model is None and cfg.judge.function is None
        scored = {} if known else accuracy(judge(lab, greedy, cfg.judge, task=task, form=form), cfg.judge.name)
        return {"judge_score": scored} if scored else {}
    plain = thought_format(arm_settings(cfg, "direct", ARMS), task)
    baseline = lab.generate(seed_model, [ask(plain, problem) for problem in problems], _greedy(cfg, task))
    won = compare(lab, problems, (baseline, plain), (greedy, form), cfg.judge, task=task)
    return {"win_rate": won}


def _greedy(cfg: Config, task: Task) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=cfg.evaluation.max_tokens, stop=task.stop)


def _dev_value(cfg: Config, lab: "Lab", task: Task, seed_model: ModelSpec) -> Callable[[ModelSpec], float]:
    """Return the measure by which an epoch is chosen: the judge's on the first dev problems, without one accuracy."""
    problems = task.dev(cfg.dev_problems)

    def value(model: ModelSpec) -> float:
        reports, _ = measure(cfg, lab, task, seed_model, model, problems)
        means = [reports[name].mean for name in MAIN_MEASURES if name in reports]
        known = [mean for mean in means if isfinite(mean)]
        if not known:
            raise InputError(f"nothing can be measured on the dev problems of task {task.name}: set --dev_problems 0")
        return known[0]

    return value


def thought_format(cfg: Config, task: Task) -> ThoughtFormat:
    """Return the format that `cfg.form` names, of those the task has where it has its own."""
    return load_format(cfg.form, dict(getattr(task, "thought_formats", FORMATS)))


def _check_seed_model(lab: "Lab", rounds: Mapping[str, list[dict[str, Report]]]) -> None:
    """Warn where there is nothing to find among the thoughts: DPO then moves to whichever thought does least harm."""
    direct = rounds["seed_model"][0]["accuracy"].mean
    for arm, (first, *_) in rounds.items():
        if "accuracy_useful" not in first or arm in ("seed_model", "direct"):
            continue
        useful = first["accuracy_useful"].mean
        if not useful >= direct + 0.15:
            lab.warn(
                f"the seed model is right behind {useful:.1%} of its useful thoughts and {direct:.1%} of the time "
                f"without thinking (arm {arm}): thoughts must be worth much more than guesses before training starts; "
                "train the seed model longer or change the task"
            )
    for arm, (first, *_) in rounds.items():
        if first["format_errors"].mean > 0.5:
            lab.warn(
                f"{first['format_errors'].mean:.0%} of the seed model's outputs in arm {arm} cannot be split into "
                "thought and response: give another --form, or raise max_tokens"
            )


def plan(cfg: Config) -> list[Work]:
    """List the work of every arm and round; further instructions that make tokens equal are not foreseen."""
    problems, tested = problem_counts(cfg.task, cfg.problems, cfg.evaluation)
    works = [evaluation_plan("seed model", tested, cfg.evaluation)]
    works += [evaluation_plan(f"{arm} 0", tested, cfg.evaluation) for arm in cfg.arms]
    k, tokens = cfg.sampling.k, cfg.sampling.max_tokens
    for arm, t in product(cfg.arms, range(cfg.rounds)):
        works += round_plan(
            f"{arm} {t + 1}",
            problems=problems,
            samples=k,
            tokens=tokens,
            completions=2,
            training=cfg.training,
            dev=cfg.dev_problems,
        )
        if cfg.judge.model is not None:
            pairs = cfg.judge.in_pairs
            rows = problems * (k * (k - 1) if pairs else k) * cfg.judge.sampling.k
            read = PROMPT_TOKENS + tokens * (1 + pairs) + cfg.judge.sampling.max_tokens
            works.append(Work(name=f"{arm} {t + 1}: judgments", rows=rows, tokens=rows * read, passes=2))
        works.append(evaluation_plan(f"{arm} {t + 1}", tested, cfg.evaluation))
    return works


METHOD = Method(
    name="thought_po",
    title="Thought Preference Optimization",
    paper="arXiv 2410.10630",
    claim="judged by its responses alone, a model learns to think first, and overtakes one that answers at once",
    config=Config,
    run=run,
    plan=plan,
    equations={
        "thought and response": "selftaught.text.thoughts:split",
        "judge": "selftaught.judging:judge",
        "Elo": "selftaught.select.elo:bradley_terry",
        "length control and pairs": "selftaught.select.thought_pairs:ThoughtPairs",
        "loss": "selftaught.functional.preference:dpo",
    },
    claims=(
        Claim(
            text="before training, thinking is worse than answering at once",
            arm="thought",
            baseline="direct",
            metric="accuracy",
            lower_is_better=True,
            round=0,
        ),
        Claim(
            text="after the last round, thinking is better than the direct baseline of equal training",
            arm="thought",
            baseline="direct",
            metric="accuracy",
        ),
        Claim(
            text="after the last round, thinking is better than the seed model's direct answers",
            arm="thought",
            baseline="seed_model",
            metric="accuracy",
        ),
    ),
)
