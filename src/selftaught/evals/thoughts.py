"""What thinking does, measured on split completions: accuracy of responses, format, lengths, kinds of thoughts.

After Thought Preference Optimization (arXiv 2410.10630, section 3.3 and figures 4 and 5).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from selftaught.evals.metrics import PerProblem, mean_known
from selftaught.text.thoughts import ThoughtFormat, split
from selftaught.types import Completion, Group, Prompt, content_id


def measure_thoughts(
    groups: Iterable[Group],
    form: ThoughtFormat,
    kind_of: Callable[[str], str] | None = None,
    kinds: Sequence[str] = (),
    scorer: str = "verifier",
) -> dict[str, PerProblem]:
    """Return per problem, as means over its completions, what is to be known of thoughts and responses.

    `format_errors` is the share of completions that `form` cannot split; `thought_chars` and `response_chars` are over
    the others. With `kind_of`, which classifies a thought as one of `kinds`, `share_KIND` is a share of those, and
    `accuracy_KIND` the share of right responses (`scorer` gives 1 or 0) behind such thoughts, None where there is none.
    """
    values: dict[str, PerProblem] = defaultdict(dict)
    for group in groups:
        parts = {c.id: split(form, c) for c in group.completions}
        read = {i: p for i, p in parts.items() if not p.error}
        values["format_errors"][group.id] = 1 - len(read) / len(parts) if parts else None
        values["thought_chars"][group.id] = mean_known([float(len(p.thought)) for p in read.values()])
        values["response_chars"][group.id] = mean_known([float(len(p.response)) for p in read.values()])
        if kind_of is None:
            continue
        scores = group.scores_by(scorer)
        found = {i: kind_of(p.thought) for i, p in read.items()}
        for kind in kinds:
            mine = [i for i, k in found.items() if k == kind]
            right = [s.value for s in map(scores.get, mine) if s and s.value is not None]
            values[f"share_{kind}"][group.id] = len(mine) / len(found) if found else None
            values[f"accuracy_{kind}"][group.id] = mean_known(right)
    return dict(values)


def contest(
    baseline: Iterable[Group],
    groups: Iterable[Group],
    counts: Counter[str],
    *,
    baseline_form: ThoughtFormat,
    form: ThoughtFormat,
) -> Iterator[Completion]:
    """Yield, for each problem, the first response of `baseline` (k = 0) and that of `groups` (k = 1), without thoughts.

    Both list the same problems in the same order; prompts name the problem they were made of as their parent. A
    completion without a response gives an empty one, which no judge is shown.
    """
    for theirs, ours in zip(baseline, groups, strict=True):
        (problem,) = ours.prompt.parents
        for k, (group, its_form) in enumerate(((theirs, baseline_form), (ours, form))):
            completion = group.completions[0]
            parts = split(its_form, completion)
            if parts.error:
                counts[f"no response: {parts.error}"] += 1
            yield Completion(
                prompt_id=problem,
                k=k,
                text=parts.response,
                model=completion.model,
                parents=(problem, completion.id),
                id=content_id("contest", problem, k, completion.id),
            )


def by_category(name: str, values: PerProblem, prompts: Iterable[Prompt]) -> dict[str, PerProblem]:
    """Return the values of the prompts of each `meta["category"]` as `NAME/CATEGORY`; prompts without one are left out.

    >>> prompt = Prompt.from_text("x", meta={"category": "sums"})
    >>> by_category("accuracy", {prompt.id: 1.0}, [prompt]) == {"accuracy/sums": {prompt.id: 1.0}}
    True
    """
    found: dict[str, PerProblem] = defaultdict(dict)
    for prompt in prompts:
        if "category" in prompt.meta and prompt.id in values:
            found[f"{name}/{prompt.meta['category']}"][prompt.id] = values[prompt.id]
    return dict(found)
