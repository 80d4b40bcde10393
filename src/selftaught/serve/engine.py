"""The thread that owns the sampler. All requests of the server are rows of that one sampler.

If the sampler raises, nothing of its state can be trusted: every request it holds fails with that error, and a new
sampler takes its place. If none can be built the engine stops, and `healthy` is false.
"""

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from selftaught.engines.rows import Event, Request
from selftaught.engines.sampler import Sampler
from selftaught.errors import InputError, SelftaughtError

_log = logging.getLogger(__name__)
_Batch = list[Event] | Exception


class EngineFailed(SelftaughtError):
    """The sampler raised while it held the request, or is gone."""


@dataclass(eq=False)
class Job:
    """Sampler requests that belong together, and what has happened to them; `quiet` leaves out single tokens."""

    requests: tuple[Request, ...]
    loop: asyncio.AbstractEventLoop
    quiet: bool = False
    inbox: asyncio.Queue[_Batch] = field(default_factory=asyncio.Queue)
    left: int = 0

    async def next(self) -> list[Event]:
        """Return the coming events, those of a step or of several; raises what went wrong instead."""
        batch = await self.inbox.get()
        if isinstance(batch, Exception):
            raise batch
        return batch


class Engine:
    """Runs samplers built by `build` in a thread of its own, between `start` and `stop`."""

    def __init__(self, build: Callable[[], Sampler]) -> None:
        self._build = build
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._sampler = build()
        self._jobs: dict[str, Job] = {}
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.tokenizer = self._sampler.tokenizer
        self.options = self._sampler.policy.options
        self.context = self._sampler.model.context
        self.healthy = True

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Fail what is left and wait for the step in progress."""
        self._commands.put(None)
        self._thread.join()

    async def submit(self, requests: Sequence[Request], *, quiet: bool = False) -> Job:
        """Give requests to the sampler, with ids no other request has, and return where their events arrive.

        Raises:
            InputError: the sampler refuses one of them; then none is sampled.
            EngineFailed: there is no sampler.
        """
        job = Job(tuple(requests), asyncio.get_running_loop(), quiet)
        self._commands.put(partial(self._submit, job))
        try:
            await job.next()
        except BaseException:
            self.cancel(job)
            raise
        return job

    def cancel(self, job: Job) -> None:
        """Take a job off the sampler, wherever it is; one that is done is left alone."""
        self._commands.put(partial(self._cancel, job))

    def fail_all(self, reason: str) -> None:
        """Fail every job in hand."""
        self._commands.put(partial(self._fail_all, EngineFailed(reason)))

    def _run(self) -> None:
        while self._take_commands():
            if self._sampler.busy:
                self._guarded(lambda: self._hand_out(self._sampler.run_step()))

    def _take_commands(self) -> bool:
        """Carry out what has been asked for; with nothing to sample, wait for it. False: stop."""
        while not (self._commands.empty() and self._sampler.busy):
            command = self._commands.get()
            if command is None:
                self._fail_all(EngineFailed("the server is shutting down"))
                return False
            self._guarded(command)
        return True

    def _guarded(self, action: Callable[[], None]) -> None:
        reason = ""
        try:
            action()
        except Exception as error:
            reason = str(error) or type(error).__name__
            _log.error("the sampler failed: %s", reason, exc_info=not isinstance(error, SelftaughtError))
        # Out of the handler: the traceback holds the old sampler's memory.
        if reason:
            self._replace_sampler(reason)

    def _submit(self, job: Job) -> None:
        if not self.healthy:
            self._send(job, EngineFailed("the model cannot be run; see the server's log"))
            return
        job.left = sum(len(r.seeds) for r in job.requests)
        # Known before the sampler is asked: where that fails for all, it fails for this job too.
        self._jobs.update((r.id, job) for r in job.requests)
        try:
            for request in job.requests:
                self._sampler.submit(request)
        except InputError as error:
            self._cancel(job)
            self._send(job, error)
            return
        self._send(job, [])

    def _cancel(self, job: Job) -> None:
        for request in job.requests:
            self._jobs.pop(request.id, None)
            self._sampler.cancel(request.id)

    def _hand_out(self, events: list[Event]) -> None:
        batches: dict[Job, list[Event]] = defaultdict(list)
        for event in events:
            job = self._jobs.get(event.request)
            if job and not (job.quiet and event.kind == "token"):
                batches[job].append(event)
        for job, batch in batches.items():
            job.left -= sum(event.kind == "done" for event in batch)
            if not job.left:
                for request in job.requests:
                    del self._jobs[request.id]
            self._send(job, batch)

    def _send(self, job: Job, batch: _Batch) -> None:
        try:
            job.loop.call_soon_threadsafe(job.inbox.put_nowait, batch)
        except RuntimeError:  # the loop is closed: nobody waits any more
            _log.debug("a job outlived its loop")

    def _fail_all(self, error: Exception) -> None:
        for job in set(self._jobs.values()):
            self._send(job, error)
        self._jobs.clear()

    def _replace_sampler(self, reason: str) -> None:
        self._fail_all(EngineFailed(reason))
        self._sampler = _Nothing()  # type: ignore[assignment]
        try:
            self._sampler = self._build()
        except Exception:
            _log.exception("no new sampler can be built; the server answers 503 until it is started again")
            self.healthy = False


class _Nothing:
    """In the place of a sampler that has failed."""

    busy = False

    def cancel(self, request_id: str) -> None:
        """There is nothing to cancel."""
