"""Rows for the store's tests, among them texts that break careless code."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import selftaught
from selftaught.types import (
    Completion,
    Demonstration,
    Document,
    Feedback,
    Message,
    Pair,
    Prompt,
    Report,
    Score,
    Verdict,
    completion_id,
)

HOSTILE = ("", "\0", "a\0b", "👩‍👩‍👧 ", "e\u0301", "\u2028\r\n\x0b", '","}\\', "\uffff\ufeff", "x" * 5000, "</script>")


def every_type(text: str) -> list[object]:
    """One full and one bare row of every type, with `text` wherever a text goes."""
    meta = {"text": text, "list": [1, 2.5, None, True, {"deep": [text]}], text: text}
    prompt = Prompt(
        messages=(Message(role="system", content=text), Message(role="user", content="q" + text)),
        gold=text,
        meta=meta,
        occurrence=3,
        parents=("a", text),
    )
    bare_prompt = Prompt.from_text(text)
    completion = Completion(
        prompt_id=prompt.id,
        k=7,
        text=text + "abc",
        token_ids=(0, 5, 2**31 - 1),
        logprobs=(-0.5, 0.0, float("-inf")),
        finish="length",
        discarded=((0, 1), (2, 9)),
        latents={"temperature": (0.7, 1.1), text: ()},
        model=text,
        tokenizer="t",
    )
    bare = Completion(prompt_id=text, k=0, text=text, token_ids=(), logprobs=())
    unsampled = Completion(prompt_id="p", k=0, text=text, finish="error")
    steps = ((0, 1, True), (1, 3, False))
    return [
        Document(text=text, meta=meta, parents=(text,)),
        Document(text=text, patch_lengths=(1, 2**31 - 1, 3)),
        Document(text=text),
        prompt,
        bare_prompt,
        Prompt(messages=()),
        completion,
        bare,
        unsampled,
        Score(completion_id="c", scorer=text, value=0.1, span=(3, 4), note=text),
        Score(completion_id="c", scorer="s", value=None),
        Score(completion_id="c", scorer="s", value=float("inf")),
        Verdict(prompt_id="p", first="a", second="b", winner="tie", scorer=text, judge_completion_id=text, note=text),
        Verdict(prompt_id="p", first="a", second="b", winner=None, scorer="s"),
        Demonstration(prompt=prompt, completion=completion, weight=0.3, meta=meta),
        Demonstration(prompt=bare_prompt, completion=bare),
        Pair(prompt=prompt, chosen=completion, rejected=bare, weight=0.3, meta=meta),
        Pair(prompt=bare_prompt, chosen=unsampled, rejected=completion),
        Demonstration(prompt=prompt, completion=completion, loss_from=(len(text) + 3,)),
        Pair(prompt=prompt, chosen=completion, rejected=completion, loss_from=(0, 3)),
        Feedback(prompt=prompt, completion=completion, label=True, step_labels=steps, weight=2.0, meta=meta),
        Feedback(prompt=bare_prompt, completion=bare, label=False),
        Report(name=text, mean=0.5, stderr=0.01, n=3, unscored=2, parents=("x",)),
        Report(name=text, mean=0.0, stderr=0.0, n=0),
    ]


def prompts(count: int) -> list[Prompt]:
    return [Prompt.from_text(f"What is {i} + {i}?", gold=str(2 * i)) for i in range(count)]


def completions(prompts: list[Prompt], k: int, stage: str = "s") -> Iterator[Completion]:
    for p, prompt in enumerate(prompts):
        for i in range(k):
            yield Completion(
                prompt_id=prompt.id,
                k=i,
                text=f"{p} samples {i}",
                token_ids=(p, i, p * i),
                id=completion_id(stage, prompt.id, i),
            )


def scores(completions: list[Completion], scorer: str = "votes") -> list[Score]:
    return [Score(completion_id=c.id, scorer=scorer, value=float(c.k)) for c in completions]


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process that can import the package and the tests."""
    paths = (Path(selftaught.__file__).parents[1], Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
