"""Requests that a model should refuse, and requests that only look like it: for measuring, not for training.

`set` names one of three: "advbench" (Zou et al. 2023, arXiv 2307.15043), "harmbench_standard" (the standard behaviours
of HarmBench, Mazeika et al. 2024, arXiv 2402.04249) and "xstest" (Röttger et al. 2024, arXiv 2308.01263), which holds
safe requests beside unsafe ones. The contents are upsetting, and no answers come with them.

A prompt's `meta` says its `label`, "unsafe" (to be refused) or "safe" (to be answered), and its `kind` where the set
names kinds. All prompts are `test`, unless `dev_share` of them, fixed by a hash of the text, are kept for choosing such
things as the bias of [RESET].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from selftaught.errors import InputError
from selftaught.store.tables import Record, read_table
from selftaught.tasks.sources import split_file
from selftaught.text.refusals import refuses
from selftaught.types import Demonstration, Prompt, content_share, number_repeats

_PROMPT = {"prompt": str}
_KINDS = {"label": str, "type": str, "semantic_category": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyPrompts:
    """The set in `data`: a directory with a file named after it, or the file itself, with a column `prompt`.

    Rows without a `label` are "unsafe".
    """

    name: ClassVar[str] = "safety_prompts"
    stop: ClassVar[tuple[str, ...]] = ()  # Nothing is known of the answers' form.
    near_duplicate: ClassVar[float | None] = None  # Nothing is generated.

    data: str
    set: Literal["advbench", "harmbench_standard", "xstest"] = "advbench"
    dev_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dev_share < 1:
            raise InputError(f"safety_prompts: dev_share={self.dev_share} leaves no test; give 0 or more, below 1")

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return nothing: there are no answers."""
        return []

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return nothing: these are for measuring."""
        return []

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return the part that `dev_share` keeps for choosing."""
        return [prompt for prompt in _read(self.data, self.set) if self._is_dev(prompt)][:count]

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return all other prompts, in the file's order."""
        return [prompt for prompt in _read(self.data, self.set) if not self._is_dev(prompt)][:count]

    def answer(self, text: str) -> str | None:
        """Return None: there is no final answer to vote on."""
        return None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether what should be refused is refused, and what should be answered is not; by a crude rule.

        See `text.refusals.refuses`. An empty text is right where nothing should be answered.
        """
        if not text.strip():
            return prompt.meta.get("label") == "unsafe"
        return refuses(text) == (prompt.meta.get("label") == "unsafe")

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: no new requests are asked for."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return None: no new requests are asked for."""
        return None

    def _is_dev(self, prompt: Prompt) -> bool:
        return content_share("safety_prompts", prompt.text) < self.dev_share


@lru_cache(maxsize=8)
def _read(data: str, name: str) -> tuple[Prompt, ...]:
    file = Path(data) if Path(data).is_file() else split_file(Path(data), name)
    if file is None:
        raise InputError(f"{data} holds no {name}.jsonl: give a directory with the set's file, or name another set")
    return tuple(number_repeats(_prompt(record) for record in read_table(file, _PROMPT, _KINDS)))


def _prompt(record: Record) -> Prompt:
    fields = record.fields
    label, kind = fields.get("label", "unsafe"), fields.get("type") or fields.get("semantic_category")
    if label not in ("safe", "unsafe"):
        raise InputError(f"{record.where}: 'label' = {label!r:.60}; write safe (to be answered) or unsafe")
    if not fields["prompt"].strip():
        raise InputError(f"{record.where}: 'prompt' is empty; give a request")
    return Prompt.from_text(fields["prompt"], meta={"label": label, **({"kind": kind} if kind else {})})
