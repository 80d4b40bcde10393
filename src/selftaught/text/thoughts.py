"""Thoughts before answers: how a model is asked to think first, and how its text is split into thought and response.

Thought Preference Optimization (arXiv 2410.10630, section 2.1 and figure 2), prompts in our own words. A thought is
for the model alone: whoever reads, judges or measures a completion does so through `split`.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from selftaught.config import from_dict, read_yaml
from selftaught.errors import InputError
from selftaught.text.rubrics import question_of
from selftaught.types import Completion, Message, Prompt

NO_RESPONSE_MARKER = "no response marker"
WRONG_ORDER = "markers in the wrong order"
EMPTY_RESPONSE = "empty response"
SECOND_RESPONSE = "second response marker"
TRUNCATED = "cut off before its end"
ERRORS = (NO_RESPONSE_MARKER, WRONG_ORDER, EMPTY_RESPONSE, SECOND_RESPONSE, TRUNCATED)
"""All that `Parts.error` can say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtFormat:
    """How thinking is asked for and marked.

    `before` and `after` are put around the last user turn, `system` becomes (or joins) the system turn. `thought` and
    `response` are the markers that open the two parts; without a response marker the whole text is the response.
    `strict` makes a second response marker inside the response an error.
    """

    name: str
    before: str = ""
    after: str = ""
    system: str = ""
    thought: str = ""
    response: str = ""
    strict: bool = False

    def __post_init__(self) -> None:
        if self.thought and not self.response:
            raise InputError(f"thought format {self.name!r} marks thoughts but no response: give it a response marker")
        if self.thought and self.thought == self.response:
            raise InputError(f"thought format {self.name!r} has one marker {self.thought!r} for both parts: give two")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A completion's thought and response, stripped; `error` says why there is no valid response, "" where there is."""

    thought: str = ""
    response: str = ""
    error: str = field(default="")


def ask(form: ThoughtFormat, prompt: Prompt) -> Prompt:
    """Return the prompt p + x: `prompt` in the words of `form`. `meta["problem"]` keeps x, for a judge to be shown.

    Raises:
        InputError: the prompt has no user turn.
    """
    last = max((i for i, turn in enumerate(prompt.messages) if turn.role == "user"), default=None)
    if last is None:
        raise InputError(f"prompt {prompt.id} has no user turn to put a thought prompt around: add one")
    turns = list(prompt.messages)
    turns[last] = replace(turns[last], content=f"{form.before}{turns[last].content}{form.after}")
    if form.system and turns[0].role == "system":
        turns[0] = replace(turns[0], content=f"{turns[0].content}\n\n{form.system}")
    elif form.system:
        turns.insert(0, Message(role="system", content=form.system))
    meta = {**prompt.meta, "problem": question_of(prompt)}
    return replace(prompt, messages=tuple(turns), meta=meta, parents=(prompt.id,), id="")


def split(form: ThoughtFormat, completion: Completion) -> Parts:
    """Return the parts of a completion; one that did not come to its end is an error whatever it says."""
    return Parts(error=TRUNCATED) if completion.finish != "stop" else split_text(form, completion.text)


def split_text(form: ThoughtFormat, text: str) -> Parts:
    """Return the parts of any text, in time linear in its length.

    The response begins at the first response marker behind the thought marker, or at the first of all where there is
    no thought marker; what stands before it, without the thought marker, is the thought.

    >>> split_text(GENERIC, "Here is my thought process:\\nShort, then.\\nHere is my response:\\nHi!")
    Parts(thought='Short, then.', response='Hi!', error='')
    >>> split_text(GENERIC, "Hi!").error
    'no response marker'
    """
    if not form.response:
        response = text.strip()
        return Parts(response=response, error="" if response else EMPTY_RESPONSE)
    opened, behind = _thought_marker(form, text)
    start = text.find(form.response, behind)
    if start < 0:
        return Parts(error=WRONG_ORDER if opened >= 0 and form.response in text else NO_RESPONSE_MARKER)
    before = text[:opened] if opened >= 0 else ""
    thought = f"{before}{text[behind:start]}".strip()
    response = text[start + len(form.response) :]
    if form.strict and form.response in response:
        return Parts(thought=thought, error=SECOND_RESPONSE)
    response = response.strip()
    return Parts(thought=thought, response=response, error="" if response else EMPTY_RESPONSE)


def response_start(form: ThoughtFormat, completion: Completion) -> int:
    """Return the character behind the response marker; 0 without a marker, and where `split` finds no response."""
    if not form.response or split(form, completion).error:
        return 0
    _, behind = _thought_marker(form, completion.text)
    return completion.text.find(form.response, behind) + len(form.response)


def _thought_marker(form: ThoughtFormat, text: str) -> tuple[int, int]:
    """Return where the thought marker begins, -1 without one, and where the response marker is searched from.

    One marker may hold the other: what the thought marker covers is not searched.
    """
    opened = text.find(form.thought) if form.thought else -1
    return opened, opened + len(form.thought) if opened >= 0 else 0


def join(form: ThoughtFormat, thought: str, response: str) -> str:
    """Return the text that `split_text` takes apart into `thought` and `response`: a demonstration of the format.

    Raises:
        InputError: the format has no thought, or a part holds a marker, so that the text would be split elsewhere.
    """
    if not form.response:
        if thought:
            raise InputError(f"thought format {form.name!r} has no place for a thought ({thought[:40]!r}): drop it")
        return response.strip()
    marks = [mark for mark in (form.thought, form.response) if mark]
    text = "\n".join([form.thought] * bool(form.thought) + [thought.strip(), form.response, response.strip()])
    if split_text(form, text) != Parts(thought=thought.strip(), response=response.strip()):
        raise InputError(
            f"thought {thought[:40]!r} and response {response[:40]!r} cannot be told apart again: the response must "
            f"not be empty and neither may hold {' or '.join(map(repr, marks))}"
        )
    return text


_GENERIC_TEXT = (
    "Give a thorough and detailed answer to the request below. You may think before you answer and write your thoughts "
    "down. If you do, put them after the line 'Here is my thought process:'. Put the answer itself after the line "
    "'Here is my response:'; the person who asked sees only that part."
)
GENERIC = ThoughtFormat(
    name="generic",
    before=f"{_GENERIC_TEXT}\n\nRequest: ",
    thought="Here is my thought process:",
    response="Here is my response:",
)
SYSTEM = replace(GENERIC, name="system", before="", system=f"You are a helpful assistant. {_GENERIC_TEXT}")
SPECIFIC = ThoughtFormat(
    name="specific",
    before=(
        "Give a thorough and detailed answer to the request below. Think first, in writing, after the tag "
        "<internal thought>: draft a response there, then examine the draft and note what could be better. After that "
        "write your final answer after the tag <response>; the person who asked sees only that part.\n\nRequest: "
    ),
    thought="<internal thought>",
    response="<response>",
)
NONE = ThoughtFormat(name="none")
"""No thought is asked for: a completion is a response."""

FORMATS = {form.name: form for form in (GENERIC, SPECIFIC, SYSTEM, NONE)}


def load_format(name: str, known: dict[str, ThoughtFormat] = FORMATS) -> ThoughtFormat:
    """Return the format called `name` among those `known`, or the one in that YAML file.

    Raises:
        InputError: there is neither.
    """
    if name in known:
        return known[name]
    if not name.endswith((".yaml", ".yml")):
        raise InputError(f"no thought format is called {name!r}: known are {', '.join(known)}; or give a .yaml file")
    return from_dict(ThoughtFormat, {"name": Path(name).stem, **read_yaml(Path(name))})
