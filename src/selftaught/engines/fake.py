"""A generator that answers from a script: for tests of everything that comes after generation."""

from collections.abc import Callable, Iterator, Sequence

from selftaught.specs import Sampling
from selftaught.types import Completion, Prompt, completion_id


class FakeGenerator:
    """Answers sample k of a prompt with `script(prompt, k)`, the same every time.

    A text longer than `sampling.max_tokens` characters is cut there and finishes by length; a stop string ends it.
    """

    def __init__(self, script: Callable[[Prompt, int], str], stage_key: str = "fake") -> None:
        self.script = script
        self.stage_key = stage_key

    def __call__(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Completion]]:
        """Yield `sampling.k` completions per prompt, in order."""
        for prompt in prompts:
            yield [self._answer(prompt, k, sampling) for k in range(sampling.k)]

    def _answer(self, prompt: Prompt, k: int, sampling: Sampling) -> Completion:
        text = self.script(prompt, k)
        text = text[: min((i for i in map(text.find, sampling.stop) if i >= 0), default=None)]
        return Completion(
            prompt_id=prompt.id,
            k=k,
            text=text[: sampling.max_tokens],
            finish="stop" if len(text) <= sampling.max_tokens else "length",
            model="fake",
            id=completion_id(self.stage_key, prompt.id, k),
        )
