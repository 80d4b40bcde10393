"""How many requests a server is sent at once: one more per round that succeeds, half when it is overloaded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Overloaded(Exception):
    """What is raised inside of a `Pace` where the server asked, or was seen, to need fewer requests at once."""


class Pace:
    """Lets between 1 and `most` requests fly at once, at first `start`."""

    def __init__(self, most: int, start: int) -> None:
        self.limit = float(min(most, start))
        self.flying = 0
        self._most = most
        self._falls = 0
        self._turn = asyncio.Condition()

    @asynccontextmanager
    async def flight(self) -> AsyncIterator[None]:
        """Wait for a place and hold it; `Overloaded` raised inside halves the limit, a normal end raises it."""
        async with self._turn:
            await self._turn.wait_for(lambda: self.flying < int(self.limit))
            self.flying += 1
            falls = self._falls
        try:
            yield
            self.limit = min(self._most, self.limit + 1 / self.limit)
        except Overloaded:
            # What flew together fails together, and that is one sign, not many.
            if falls == self._falls:
                self.limit, self._falls = max(1.0, self.limit / 2), falls + 1
            raise
        finally:
            self.flying -= 1
            async with self._turn:
                self._turn.notify(max(0, int(self.limit) - self.flying))
