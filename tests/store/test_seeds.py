from selftaught.store.seeds import row_seed


def test_golden_values() -> None:
    """Sampled rows depend on these: a change breaks every stored stage."""
    assert row_seed(0, "p", 0) == GOLDEN[0]
    assert row_seed(2**63, "é", 15) == GOLDEN[1]


def test_every_part_counts_and_the_range_is_64_bits() -> None:
    seeds = {row_seed(s, p, k) for s in range(5) for p in ("a", "b", "a\0", "") for k in range(5)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**60


GOLDEN = (16072293312834603956, 17958280546102221248)
