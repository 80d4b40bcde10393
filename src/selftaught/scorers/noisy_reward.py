"""A stand-in for an external reward model: the gold verdict, flipped at random."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from selftaught.tasks import Task, TaskSpec, load_task
from selftaught.types import Completion, Group, Prompt, Score, content_share


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyReward:
    """Reward 1 or 0: the task's verdict, flipped with probability `flip`, or `flip_off` off its distribution.

    Off its distribution are problems that a model wrote (`meta["generated"]`) and those longer than `longest`
    (`meta["length"]`), where that is given. Like a reward model's errors, a flip belongs to the prompt and the text:
    the same text is judged the same way each time. An unsound problem has no true verdict: its reward is a coin toss.
    """

    task: Task | TaskSpec
    flip: float = 0.25
    flip_off: float = 0.35
    longest: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return "noisy_reward"

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the rewards of each group's completions."""
        task = load_task(self.task)
        for group in groups:
            yield [self._score(task, group.prompt, c) for c in group.completions]

    def _score(self, task: Task, prompt: Prompt, completion: Completion) -> Score:
        right = task.verify(prompt, completion.text)
        off = prompt.meta.get("generated", False) or (
            self.longest is not None and prompt.meta.get("length", 0) > self.longest
        )
        chance = 0.5 if right is None else self.flip_off if off else self.flip
        flipped = content_share("noisy reward", self.seed, prompt.id, completion.text) < chance
        return Score(completion_id=completion.id, scorer=self.name, value=float(bool(right) != flipped))
