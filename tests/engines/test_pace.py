import asyncio

from selftaught.engines.pace import Overloaded, Pace


def pace_after(*outcomes: str) -> float:
    """Return the limit of a pace of 8 after flights that all started together and ended like this, in order."""

    async def run() -> float:
        pace, gates = Pace(16, 8), [asyncio.Event() for _ in outcomes]

        async def fly(outcome: str, gate: asyncio.Event) -> None:
            try:
                async with pace.flight():
                    await gate.wait()
                    if outcome == "overloaded":
                        raise Overloaded
                    if outcome == "other":
                        raise ValueError
            except (Overloaded, ValueError):
                pass

        flights = [asyncio.create_task(fly(*pair)) for pair in zip(outcomes, gates, strict=True)]
        while pace.flying < len(flights):
            await asyncio.sleep(0)
        for gate, flight in zip(gates, flights, strict=True):
            gate.set()
            await flight
        assert pace.flying == 0
        return pace.limit

    return asyncio.run(run())


def test_the_pace_by_hand() -> None:
    """8 + 1/8 after a success; halved once by what flew together; left alone by other errors; never below 1."""
    assert pace_after("fine") == 8.125
    assert pace_after("overloaded", "overloaded", "overloaded") == 4.0
    assert pace_after("overloaded", "fine") == 4.25
    assert pace_after("other") == 8.0
    assert Pace(4, 9).limit == 4
