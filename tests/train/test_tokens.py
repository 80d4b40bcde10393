from pathlib import Path

from selftaught.specs import ModelSpec
from selftaught.train.tokens import example_tokens
from selftaught.types import Completion, Demonstration, Pair, Prompt


def test_all_sequences_count_with_their_prompt_and_end(seed_model: Path):
    """A prompt of 2 tokens; completions of 1 and 2, each with its end-of-turn token."""
    prompt = Prompt.from_text("a?")
    short, long = (Completion(prompt_id=prompt.id, k=k, text=text) for k, text in enumerate(("1", "12")))
    pair, demonstration = (
        Pair(prompt=prompt, chosen=short, rejected=long),
        Demonstration(prompt=prompt, completion=long),
    )
    assert example_tokens(ModelSpec(source=str(seed_model)), [pair, demonstration]) == [2 + 2 + 2 + 3, 2 + 3]
