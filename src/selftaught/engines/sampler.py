"""The sampler: continuous batching of any `Decodable` under any `Policy`, and batch generation on top of it.

Prompts are read in order and their samples take seats as seats come free. A draw is a function of the row's seed and of
how often the row was asked, so that it does not depend on the rows beside it; see docs/design/decoding.md for when
whole rows are equal bit for bit.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from selftaught.engines.policy import Draw, Policy, SoftmaxPolicy
from selftaught.engines.rows import Event, Output, Request, Seats
from selftaught.engines.stopping import StopStrings, decode
from selftaught.errors import InputError
from selftaught.models.decodable import Decodable
from selftaught.models.load import tokenizer_fingerprint
from selftaught.models.probe import open_decodable
from selftaught.specs import Sampling
from selftaught.store.seeds import row_seed
from selftaught.text.templates import encode_prompt, end_token_ids
from selftaught.types import Completion, Prompt, completion_id

PREFILL_TOKENS = 2048


@dataclass(slots=True)
class _Ready:
    """Prompts that were read together and whose samples wait for seats: `left` holds (row, request, sample)."""

    state: Any
    logits: Tensor
    hidden: Tensor
    left: deque[tuple[int, Request, int]]


class Sampler:
    """Draws samples for requests, many rows at a time.

    Args:
        model: a transformers causal language model, or any `Decodable`.
        tokenizer: turns ids into text, for stop strings and outputs.
        slots: rows that decode at once; by default chosen for the model's size and device (`default_slots`).
        policy: how rows decode.
        template: whose end-of-turn tokens end a row.
        share: let the samples of a prompt share its cache; pays off from two samples on.
    """

    def __init__(
        self,
        model: PreTrainedModel | Decodable,
        tokenizer: Any,
        *,
        slots: int | None = None,
        policy: Policy | None = None,
        template: str = "plain",
        share: bool = True,
    ) -> None:
        is_plain = isinstance(model, torch.nn.Module) and not hasattr(model, "prefill")
        self.model: Decodable = open_decodable(model, slots or default_slots(model), share) if is_plain else model
        self.tokenizer = tokenizer
        self.policy = policy or SoftmaxPolicy()
        self._stop_ids = np.array(sorted(_stop_ids(model, tokenizer, template)), np.int64)
        self._stops = StopStrings(tokenizer)
        self._seats = Seats(self.model.slots)
        self._waiting: deque[Request] = deque()
        self._ready: deque[_Ready] = deque()
        self._seat = np.zeros(0, np.int64)
        self._state: Any = None
        self._policy_state: Any = None
        self._logits: Tensor | None = None
        self._hidden: Tensor | None = None

    @property
    def queued(self) -> int:
        """Requests not read yet."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether `run_step` has anything left to do."""
        return bool(self._waiting or self._ready or len(self._seat))

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InputError: its prompt is empty or leaves no room for a token in the model's context.
        """
        check_fits(request.id, len(request.prompt), self.model.context)
        if not request.seeds or request.sampling.max_tokens < 1:
            raise InputError(
                f"request {request.id} asks for {len(request.seeds)} samples of {request.sampling.max_tokens} tokens: ask for at least one of each"
            )
        self._stops.number(request.sampling.stop)
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """Drop a request wherever it is; there is no event. An unknown or finished id is ignored."""
        self._waiting = deque(r for r in self._waiting if r.id != request_id)
        for ready in self._ready:
            ready.left = deque(x for x in ready.left if x[1].id != request_id)
        self._ready = deque(r for r in self._ready if r.left)
        running = np.array([self._seats.request[s].id != request_id for s in self._seat.tolist()], bool)
        if not running.all():
            keep = torch.from_numpy(np.flatnonzero(running))
            self._keep(keep)
            self._logits, self._hidden = (x[keep.to(x.device)] for x in (self._logits, self._hidden))

    @torch.no_grad()
    def run_step(self) -> list[Event]:
        """Draw one token (or what the policy draws) in every running row and return what happened."""
        self._read_prompts()
        self._seat_samples()
        if not len(self._seat):
            return []
        u = self._seats.next_uniforms(self._seat).to(self._logits.device)
        draw = self.policy(self._logits, self._hidden, self._policy_state, u)
        tokens, logprobs = draw.tokens.cpu().numpy(), draw.logprobs.float().cpu().numpy()
        events = self._record(draw, tokens, logprobs)
        stopped, full = self._finished(draw, tokens)
        done = stopped | full
        events += [self._done(row, bool(stopped[row])) for row in np.flatnonzero(done).tolist()]
        self._advance(draw, tokens, ~done)
        return events

    def _read_prompts(self) -> None:
        """Prefill ahead, so that a seat never stays empty for want of a prompt."""
        free = int(self._seats.free.sum())
        while self._waiting and sum(len(r.left) for r in self._ready) < free:
            batch = [self._waiting.popleft()]
            width, samples = len(batch[0].prompt), len(batch[0].seeds)
            alone = getattr(self.model, "prefill_alone", False)
            while self._waiting and not alone and samples < free + self.model.slots:
                width = max(width, len(self._waiting[0].prompt))
                if width * (len(batch) + 1) > PREFILL_TOKENS:
                    break
                batch.append(self._waiting.popleft())
                samples += len(batch[-1].seeds)
            logits, hidden, state = self.model.prefill([torch.tensor(r.prompt) for r in batch])
            left = deque((row, r, k) for row, r in enumerate(batch) for k in range(len(r.seeds)))
            self._ready.append(_Ready(state, logits, hidden, left))

    def _seat_samples(self) -> None:
        """Give free seats to samples, in order; a few at a time, because seating costs as much for one as for many."""
        free = int(self._seats.free.sum())
        waiting = sum(len(r.left) for r in self._ready)
        if not waiting or free < min(waiting, max(1, self.model.slots // 16)):
            return
        while free and self._ready:
            ready = self._ready[0]
            taken = [ready.left.popleft() for _ in range(min(free, len(ready.left)))]
            free -= len(taken)
            self._start(ready, taken)
            if not ready.left:
                self._ready.popleft()

    def _start(self, ready: _Ready, taken: list[tuple[int, Request, int]]) -> None:
        rows = torch.tensor([row for row, _, _ in taken])
        seat = self._seats.take(
            [(request, sample) for _, request, sample in taken],
            stop_sets=[self._stops.number(request.sampling.stop) for _, request, _ in taken],
            limits=[self._limit(request) for _, request, _ in taken],
        )
        prompts = {row: torch.tensor(request.prompt) for row, request, _ in taken}
        state = ready.state.fork(rows, 1)
        policy_state = self.policy.start(
            [prompts[row] for row, _, _ in taken], [r.sampling for _, r, _ in taken], self.model.embed
        )
        logits, hidden = (x[rows.to(x.device)] for x in (ready.logits, ready.hidden))
        if len(self._seat):
            state, policy_state = self._state.join(state), self._policy_state.join(policy_state)
            logits, hidden = torch.cat([self._logits, logits]), torch.cat([self._hidden, hidden])
        self._state, self._policy_state, self._logits, self._hidden = state, policy_state, logits, hidden
        self._seat = np.concatenate([self._seat, seat])

    def _limit(self, request: Request) -> int:
        # The last token drawn is never fed, so it needs no position.
        room = (
            request.sampling.max_tokens if self.model.context is None else self.model.context - len(request.prompt) + 1
        )
        return min(request.sampling.max_tokens, room)

    def _record(self, draw: Draw, tokens: np.ndarray, logprobs: np.ndarray) -> list[Event]:
        drawn = tokens >= 0
        every = bool(drawn.all())
        seat = self._seat if every else self._seat[drawn]
        if not every:
            tokens, logprobs = tokens[drawn], logprobs[drawn]
        if not np.isfinite(logprobs).all():
            bad = int(seat[np.flatnonzero(~np.isfinite(logprobs))[0]])
            raise InputError(
                f"the model's logits for {self._seats.request[bad].id} are not finite after {self._seats.count[bad]} tokens: "
                "check the weights, or load them in float32 or bfloat16"
            )
        self._seats.record(seat, tokens, logprobs)
        if draw.latents:
            self._seats.record_latents(self._seat, {k: v.float().cpu().numpy() for k, v in draw.latents.items()})
        events = []
        for i in np.flatnonzero(self._seats.stream[seat]).tolist():
            events.append(self._event("token", int(seat[i]), token=int(tokens[i]), logprob=float(logprobs[i])))
        return events + self._retract(draw)

    def _retract(self, draw: Draw) -> list[Event]:
        if draw.retract is None:
            return []
        events = []
        counts = draw.retract.cpu().numpy()
        for row in np.flatnonzero(counts > 0).tolist():
            seat = int(self._seat[row])
            count = self._seats.retract(seat, int(counts[row]))
            if self._seats.stream[seat]:
                events.append(self._event("retract", seat, count=count))
        return events

    def _finished(self, draw: Draw, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows stopped and which ran out of tokens or context."""
        if draw.truncate is not None:
            lengths = draw.truncate.cpu()
            rows = (lengths >= 0).nonzero().squeeze(-1)
            self._state.truncate(rows, lengths[rows])
        seat = self._seat
        stopped = np.isin(tokens, self._stop_ids)
        if draw.finished is not None:
            stopped |= draw.finished.cpu().numpy()
        numbers = self._seats.stop_set[seat]
        if numbers.any():
            for row in self._stops.candidates(numbers, tokens).tolist():
                stopped[row] |= self._stops.reached(int(numbers[row]), self._seats.standing(int(seat[row])))
        full = self._seats.count[seat] >= self._seats.limit[seat]
        if self.model.context is not None:
            full |= self._state.lengths.numpy() >= self.model.context
        return stopped, full

    def _done(self, row: int, stopped: bool) -> Event:
        seat = int(self._seat[row])
        ids = self._seats.standing(seat)
        if ids and ids[-1] in self._stop_ids:
            ids.pop()
        text = self._stops.cut(int(self._seats.stop_set[seat]), decode(self.tokenizer, ids))
        return self._event("done", seat, output=self._seats.output(seat, text, "stop" if stopped else "length"))

    def _event(self, kind: Any, seat: int, **fields: Any) -> Event:
        return Event(kind=kind, request=self._seats.request[seat].id, sample=int(self._seats.sample[seat]), **fields)

    def _advance(self, draw: Draw, tokens: np.ndarray, keep: np.ndarray) -> None:
        """Feed what the rows that go on drew."""
        inputs = draw.tokens if draw.next_inputs is None else draw.next_inputs
        if draw.next_inputs is None and (tokens[keep] < 0).any():
            raise ValueError(
                f"{type(self.policy).__name__} drew no token for a row and gave no next_inputs to feed instead"
            )
        if not keep.all():
            rows = torch.from_numpy(np.flatnonzero(keep))
            self._keep(rows)
            inputs = inputs[rows.to(inputs.device)]
        if len(self._seat):
            self._logits, self._hidden, self._state = self.model.step(self._state, inputs)

    def _keep(self, rows: Tensor) -> None:
        index = rows.numpy()
        gone = np.ones(len(self._seat), bool)
        gone[index] = False
        self._seats.leave(self._seat[gone])
        self._seat = self._seat[index]
        self._state = self._state.select(rows)
        self._policy_state = self._policy_state.select(rows)


def default_slots(model: torch.nn.Module) -> int:
    """Return how many rows decode at once: as many as keep the processor busy without crowding its memory."""
    parameters = sum(p.numel() for p in model.parameters())
    if next(model.parameters()).device.type != "cpu":
        return 256
    return 256 if parameters < 3e6 else 128 if parameters < 2e7 else 32


def check_fits(name: str, tokens: int, context: int | None) -> None:
    """Raise InputError where a prompt of this many tokens leaves no room for an answer, or is empty."""
    if tokens == 0:
        raise InputError(f"prompt {name} is empty: give it text, or use a tokenizer that adds a BOS token")
    if context is not None and tokens >= context:
        raise InputError(
            f"prompt {name} has {tokens} tokens and the model's context is {context}: shorten it or use a model with a longer context"
        )


def generate(
    model: PreTrainedModel | Decodable,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    seed: int,
    stage_key: str = "",
    template: str = "plain",
    model_id: str = "",
    slots: int | None = None,
    first_k: int = 0,
    policy: Policy | None = None,
    progress: bool | None = None,
) -> Iterator[list[Completion]]:
    """Yield `sampling.k` completions per prompt, in prompt order, numbered from `first_k`.

    A sample depends on `seed`, the prompt's id and its number, so that sample 3 of 4 is sample 3 of 8. `progress` None
    shows a bar on a terminal only.

    Raises:
        InputError: before anything is sampled, where a prompt does not fit the model's context.
    """
    sampler = Sampler(model, tokenizer, slots=slots, policy=policy, template=template, share=sampling.k > 1)
    encoded = [tuple(encode_prompt(tokenizer, prompt, template)) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        check_fits(prompt.id, len(ids), sampler.model.context)
    numbers = range(first_k, first_k + sampling.k)
    requests = deque(
        Request(id=str(i), prompt=ids, sampling=sampling, seeds=tuple(row_seed(seed, prompt.id, k) for k in numbers))
        for i, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True))
    )
    shown = sys.stderr.isatty() if progress is None else progress
    fingerprint = tokenizer_fingerprint(tokenizer)
    with tqdm(total=len(prompts) * sampling.k, unit="sample", disable=not shown, leave=False) as bar:
        for index, outputs in _in_order(sampler, requests, sampling.k, bar):
            prompt = prompts[index]
            yield [
                _completion(prompt, k, o, stage_key, model_id, fingerprint)
                for k, o in zip(numbers, outputs, strict=True)
            ]


def _in_order(sampler: Sampler, requests: deque[Request], k: int, bar: Any) -> Iterator[tuple[int, list[Output]]]:
    """Run all requests; yield (index, its k outputs) in order of index."""
    outputs: dict[int, list[Output | None]] = {}
    coming = 0
    while requests or sampler.busy:
        while requests and sampler.queued < sampler.model.slots:
            sampler.submit(requests.popleft())
        for event in sampler.run_step():
            outputs.setdefault(int(event.request), [None] * k)[event.sample] = event.output
            bar.update()
        while None not in outputs.get(coming, [None]):
            yield coming, outputs.pop(coming)
            coming += 1


def _completion(prompt: Prompt, k: int, output: Output, stage_key: str, model_id: str, fingerprint: str) -> Completion:
    return Completion(
        prompt_id=prompt.id,
        k=k,
        text=output.text,
        token_ids=output.token_ids,
        logprobs=output.logprobs,
        finish=output.finish,
        discarded=output.discarded,
        latents=output.latents,
        model=model_id,
        tokenizer=fingerprint,
        id=completion_id(stage_key, prompt.id, k),
    )


def _stop_ids(model: Any, tokenizer: Any, template: str) -> set[int]:
    """Return the end-of-turn ids of the template and those the model's generation settings name."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = [named] if isinstance(named, int) else named or []
    return {*end_token_ids(tokenizer, template), *named}
