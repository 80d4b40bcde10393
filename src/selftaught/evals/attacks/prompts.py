"""Attacked requests as prompts, so that a run keeps them and samples from them as from any others."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from selftaught.errors import InputError
from selftaught.evals.attacks.attempts import Attacked, open_attacked
from selftaught.evals.attacks.coordinate import (
    Case,
    Found,
    Search,
    adaptive_attack,
    coordinate_attack,
    keeps_ids,
    make_case,
    ordinary_tokens,
)
from selftaught.specs import ModelSpec, Resets
from selftaught.types import Pair, Prompt


@dataclass(frozen=True, kw_only=True)
class SuffixAttack:
    """Searches suffixes that make `model` begin its answer as the unsafe one of a pair does.

    Aimed at are the first `target` tokens of the unsafe answer; the last `tail` characters of the request stay behind
    the suffix. With `weight` the attack is the adaptive one, which also makes the reset token of the model's decoding
    improbable, `step` tokens of the target at a time. Suffixes are such that their text is read as the ids that were
    found.
    """

    model: ModelSpec
    search: Search
    target: int = 4
    tail: int = 0
    weight: float = 0.0
    step: int = 1

    def __call__(self, pairs: Iterable[Pair], counts: Counter[str]) -> Iterator[Prompt]:
        """Yield an attacked prompt per pair, the log-prob of its target before and after in `meta`.

        Raises:
            InputError: the attack is adaptive and the model's decoding has no reset token; or as `coordinate_attack`.
        """
        model = open_attacked(self.model)
        for pair in pairs:
            turn = pair.prompt.messages[-1]
            place = len(turn.content) - self.tail
            case = make_case(model, pair.prompt, pair.rejected.text, at=place)
            case = replace(case, target=case.target[: self.target])
            found = self._search(model, case)
            counts["target reached" if found.reached else "target not reached"] += 1
            content = turn.content[:place] + model.tokenizer.decode(list(found.suffix)) + turn.content[place:]
            yield replace(
                pair.prompt,
                messages=(*pair.prompt.messages[:-1], replace(turn, content=content)),
                meta={**pair.prompt.meta, "target_before": found.history[0], "target_after": found.value},
                parents=(pair.prompt.id,),
                id="",
            )

    def _search(self, model: Attacked, case: Case) -> Found:
        allowed, keep = ordinary_tokens(model.tokenizer), keeps_ids(model.tokenizer, case)
        if not self.weight:
            return coordinate_attack(model.network, case, self.search, allowed=allowed, keep=keep)
        if not isinstance(self.model.decoding, Resets):
            raise InputError(
                f"{self.model.source} does not decode with resets: leave weight at 0, or name its Resets()"
            )
        return adaptive_attack(
            model.network,
            case,
            self.search,
            reset=model.tokenizer.convert_tokens_to_ids(self.model.decoding.token),
            weight=self.weight,
            step=self.step,
            allowed=allowed,
            keep=keep,
        )
