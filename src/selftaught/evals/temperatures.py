"""What decoding with a head on a model is worth, and which temperatures it chose (arXiv 2411.09661).

Rewards are compared with those of fixed ways to draw a token, on the same prompts; temperatures are told by prompt, by
token and by the token's place in its sentence.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from statistics import fmean

from selftaught.evals.metrics import PerProblem, mean_known
from selftaught.select.latent_pairs import LATENT
from selftaught.specs import Choice, ModelSpec
from selftaught.text.tokens import token_groups
from selftaught.types import Completion, Document, Group, Pair, Prompt

TEMPERATURE = "temperature"
ALL = "all"
_ENDS = (".", "!", "?", "\n")
TemperatureOf = Callable[[Completion], Sequence[float]]
"""The temperature of each of a completion's tokens, or one number for all of them."""


def kind_of(prompt: Prompt) -> str:
    """Return the kind of prompt that `meta["category"]` names, "all" without one."""
    return str(prompt.meta.get("category", ALL))


def best_of(rewards: Mapping[str, PerProblem], prompts: Iterable[str]) -> str:
    """Return the name of what has the highest mean reward over these prompts, the first of several."""
    chosen = list(prompts)
    means = {name: mean_known(values.get(p) for p in chosen) for name, values in rewards.items()}
    known = {name: -inf if mean is None else mean for name, mean in means.items()}
    return max(known, key=known.__getitem__)


def best_by_kind(rewards: Mapping[str, PerProblem], kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the name of the best for every kind of prompt; `kinds` is by prompt.

    >>> best_by_kind({"cold": {"p": 1.0, "q": 0.2}, "hot": {"p": 0.0, "q": 0.6}}, {"p": "a", "q": "b"})
    {'a': 'cold', 'b': 'hot'}
    """
    prompts: dict[str, list[str]] = defaultdict(list)
    for prompt, kind in kinds.items():
        prompts[kind].append(prompt)
    return {kind: best_of(rewards, ids) for kind, ids in prompts.items()}


def against_fixed(
    reward: PerProblem, fixed: Mapping[str, PerProblem], kinds: Mapping[str, str]
) -> dict[str, PerProblem]:
    """Compare rewards with the best fixed way and with the best for each kind of prompt, the oracle.

    Both are chosen on these same draws, which favours them. `over_best_fixed` is the difference to the best fixed way,
    `of_oracle` that to the oracle as a share of its mean, `oracle_lead` the oracle's difference to the best fixed way
    as a share of that one's mean: the means over prompts of the last two are reward / oracle - 1 and oracle / best - 1.
    Shares of a mean that is not positive are None.

    Worked: on kind a the rewards 1 and 0 of two ways, on kind b 0.2 and 0.6. The best way has 1 and 0.2, in all 0.6,
    the oracle 1 and 0.6, in all 0.8, a lead of a third. With 1 and 0.4 we are 0.1 over the best and an eighth below the
    oracle.

    >>> fixed = {"cold": {"p": 1.0, "q": 0.2}, "hot": {"p": 0.0, "q": 0.6}}
    >>> found = against_fixed({"p": 1.0, "q": 0.4}, fixed, {"p": "a", "q": "b"})
    >>> {name: round(sum(values.values()) / 2, 3) for name, values in found.items()}
    {'over_best_fixed': 0.1, 'of_oracle': -0.125, 'oracle_lead': 0.333}
    """
    best, names = fixed[best_of(fixed, kinds)], best_by_kind(fixed, kinds)
    top = {prompt: fixed[names[kind]].get(prompt) for prompt, kind in kinds.items()}
    return {
        "over_best_fixed": _differences(reward, best, 1.0),
        "of_oracle": _differences(reward, top, mean_known(top.values())),
        "oracle_lead": _differences(top, best, mean_known(best.values())),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTemperatures:
    """The temperatures of what a head chose, `choices` being what it chose among."""

    choices: tuple[Choice, ...]

    def __call__(self, completion: Completion) -> list[float]:
        """Return one temperature per token, or one in all where there is one choice."""
        return [self.choices[int(i)].temperature for i in completion.latents[LATENT]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedTemperature:
    """One temperature for all tokens."""

    temperature: float

    def __call__(self, completion: Completion) -> list[float]:
        """Return it."""
        return [self.temperature]


def kept_temperatures(completion: Completion) -> Sequence[float]:
    """Return the temperatures that a policy kept as latents "temperature"."""
    return completion.latents[TEMPERATURE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A completion's tokens as text, without special ones, with the temperature and the place of each.

    A character that is split belongs to the first of its tokens; the others have no text.

    A place counts tokens from the one with which a sentence begins: 0, 1, ...
    """

    tokens: tuple[str, ...]
    temperatures: tuple[float, ...]
    places: tuple[int, ...]


def traces(groups: Iterable[Group], model: ModelSpec, temperature_of: TemperatureOf) -> dict[str, list[Trace]]:
    """Return the traces of each prompt's completions; `model` names the tokenizer."""
    from selftaught.models.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    special = frozenset(tokenizer.all_special_ids)
    found: dict[str, list[Trace]] = {}
    for group in groups:
        for completion in group.completions:
            ids = completion.token_ids or ()
            temperatures = temperature_of(completion)
            every = tuple(temperatures) * len(ids) if len(temperatures) == 1 else tuple(temperatures)
            kept = [(i, t) for i, t in zip(ids, every, strict=True) if i not in special]
            texts: list[str] = []
            for size, piece in token_groups(tokenizer, [i for i, _ in kept]):
                texts += [piece, *[""] * (size - 1)]
            trace = Trace(tokens=tuple(texts), temperatures=tuple(t for _, t in kept), places=tuple(places(texts)))
            found.setdefault(group.id, []).append(trace)
    return found


def places(tokens: Iterable[str]) -> list[int]:
    """Return each token's place in its sentence.

    A sentence begins with the first token that holds a letter or a digit, at the start and behind `.`, `!`, `?` or a
    line break.

    >>> places(["abe", " ", "bo", ".", " ", "di", "!"])
    [0, 1, 2, 3, 4, 0, 1]
    """
    found, place, ended = [], 1, True
    for token in tokens:
        if ended and any(map(str.isalnum, token)):
            place, ended = 0, False
        found.append(place)
        place += 1
        ended = ended or token.rstrip(" ").endswith(_ENDS)
    return found


def measure_temperatures(found: Mapping[str, Sequence[Trace]]) -> dict[str, PerProblem]:
    """Return per prompt mean temperatures over tokens: of all, where sentences begin, elsewhere, and the difference.

    `temperature_gap` is where sentences begin minus elsewhere: below 0 where a sentence begins carefully.
    """
    values: dict[str, PerProblem] = defaultdict(dict)
    for prompt, rows in found.items():
        pairs = [pair for row in rows for pair in zip(row.places, row.temperatures, strict=True)]
        starts, others = mean_known(t for place, t in pairs if not place), mean_known(t for place, t in pairs if place)
        values[TEMPERATURE][prompt] = mean_known(t for _, t in pairs)
        values["temperature_starts"][prompt], values["temperature_elsewhere"][prompt] = starts, others
        values["temperature_gap"][prompt] = None if starts is None or others is None else starts - others
    return dict(values)


def by_place(found: Mapping[str, Sequence[Trace]], most: int = 50) -> list[float]:
    """Return the mean temperature of the first, second, ... token of a sentence, for at most `most` places."""
    at: dict[int, list[float]] = defaultdict(list)
    for row in (row for rows in found.values() for row in rows):
        for place, temperature in zip(row.places, row.temperatures, strict=True):
            at[place].append(temperature)
    return [fmean(at[place]) for place in sorted(at)[:most]]


def choice_counts(pairs: Iterable[Pair], names: Sequence[str]) -> dict[str, int]:
    """Return how often each choice was made, in chosen and in rejected completions: `chosen NAME`, `rejected NAME`."""
    counts: Counter[str] = Counter()
    for pair in pairs:
        for side in ("chosen", "rejected"):
            counts.update(f"{side} {names[int(i)]}" for i in getattr(pair, side).latents[LATENT])
    return {f"{side} {name}": counts[f"{side} {name}"] for side in ("chosen", "rejected") for name in names}


def shares_by_kind(
    groups: Iterable[Group], names: Sequence[str], kinds: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return for every kind of prompt how often each choice was made, as a share."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group in groups:
        for completion in group.completions:
            counts[kinds[group.id]].update(names[int(i)] for i in completion.latents[LATENT])
    return {kind: {n: count[n] / count.total() for n in names} for kind, count in counts.items()}


def heat_rows(
    groups: Iterable[Group], counts: Counter[str], *, model: ModelSpec, choices: tuple[Choice, ...], most: int
) -> Iterator[Document]:
    """Yield up to `most` answers, of every kind of prompt in turn, with the text and temperature of each token."""
    by_kind: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_kind[kind_of(group.prompt)].append(group)
    shown = list(islice((rows[i] for i in range(most) for rows in by_kind.values() if i < len(rows)), most))
    found = traces(shown, model, ChosenTemperatures(choices=choices))
    for group in shown:
        trace, completion = found[group.id][0], group.completions[0]
        facts = {"tokens": list(trace.tokens), "temperatures": list(trace.temperatures), "prompt": group.prompt.text}
        yield Document(text=completion.text, meta={"kind": kind_of(group.prompt), **facts}, parents=(completion.id,))


def _differences(ours: PerProblem, theirs: PerProblem, unit: float | None) -> PerProblem:
    found: PerProblem = {}
    for prompt, other in theirs.items():
        own = ours.get(prompt)
        if own is None or other is None or unit is None or unit <= 0:
            found[prompt] = None
        else:
            found[prompt] = (own - other) / unit
    return found
