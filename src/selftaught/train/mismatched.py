"""KTO's mismatched completions: each prompt of a global batch with the completion of another example of it.

The data order follows from seed and step, so the pairs of all updates are known before the first one. Their reference
log-probs are computed then, by the untrained policy, one epoch after the other: no reference model stays in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from selftaught.specs import Training
from selftaught.train.batching import Item, make_items, with_reference
from selftaught.train.distributed import Ranks
from selftaught.train.encoding import Encoded
from selftaught.train.reference import all_logps
from selftaught.train.schedule import batch_indices, steps_per_epoch, total_steps
from selftaught.train.setup import Prepared


def mismatched_pairs(examples: Sequence[Encoded], longest: int) -> list[Encoded | None]:
    """Return each prompt with the completion of the example before it (the first's is the last), as ids.

    Examples with the same prompt are passed over; None where all have the same. A completion is cut where it would
    end beyond `longest` tokens, so that no row is longer than the longest example.
    """
    prompts = [example.prompt.tobytes() for example in examples]
    pairs: list[Encoded | None] = []
    for i, own in enumerate(examples):
        others = (examples[i - back] for back in range(1, len(examples)) if prompts[i - back] != prompts[i])
        other = next(others, None)
        pairs.append(None if other is None else _pair(own, other, longest))
    return pairs


def _pair(own: Encoded, other: Encoded, longest: int) -> Encoded:
    name = f"{own.id} with {other.completion_ids[0]}"
    return Encoded(
        id=name,
        weight=1.0,
        prompt=own.prompt,
        completions=(other.completions[0][: longest - len(own.prompt)],),
        completion_ids=(name,),
        finished=(False,),
        retokenised=0,
    )


def with_mismatched(items: Sequence[Item], reference: Mapping[str, float], longest: int) -> list[Item]:
    """Return the items of a global batch, each with its mismatched pair and the pair's reference log-prob."""
    pairs = mismatched_pairs([item.example for item in items], longest)
    made = [None if pair is None else with_reference(make_items([pair], True)[0], reference) for pair in pairs]
    return [replace(item, mismatched=pair) for item, pair in zip(items, made, strict=True)]


def mismatched_reference(
    prepared: Prepared, items: Sequence[Item], settings: Training, seed: int, longest: int, ranks: Ranks
) -> dict[str, float]:
    """Return the log-probs that the policy gives to the mismatched pairs of all updates, by name."""
    logps: dict[str, float] = {}
    for epoch in _epochs(len(items), settings, seed):
        pairs: dict[str, Encoded] = {}
        for chosen in epoch:
            found = mismatched_pairs([items[i].example for i in chosen], longest)
            pairs |= {pair.id: pair for pair in found if pair is not None and pair.id not in logps}
        logps |= all_logps(prepared, make_items(list(pairs.values()), True), settings.micro_batch_tokens, ranks)
    return logps


def _epochs(examples: int, settings: Training, seed: int) -> Iterator[list[Sequence[int]]]:
    total, per_epoch = total_steps(examples, settings), steps_per_epoch(examples, settings.batch_size)
    for first in range(0, total, per_epoch):
        steps = range(first, min(first + per_epoch, total))
        yield [batch_indices(step, examples, settings, seed).tolist() for step in steps]
