"""Groups with rewards, as the tests of prompt filters need them."""

from collections.abc import Mapping, Sequence
from typing import Any

from selftaught.types import Completion, Group, Prompt, Score


def rewarded(
    name: str,
    rewards: Sequence[float | None],
    texts: Sequence[str] | None = None,
    meta: Mapping[str, Any] | None = None,
    scorer: str = "reward",
) -> Group:
    """Return a group of one completion per reward; without `texts`, sample k has k + 1 characters."""
    prompt = Prompt.from_text(name, meta=meta or {})
    texts = texts or ["x" * (k + 1) for k in range(len(rewards))]
    completions = tuple(
        Completion(prompt_id=prompt.id, k=k, text=text, token_ids=tuple(range(len(text.split()) + 1)), model=f"m{k}")
        for k, text in enumerate(texts)
    )
    scores = tuple(
        Score(completion_id=c.id, scorer=scorer, value=value, note="" if value is not None else "no reward")
        for c, value in zip(completions, rewards, strict=True)
    )
    return Group(prompt=prompt, completions=completions, scores=scores)
