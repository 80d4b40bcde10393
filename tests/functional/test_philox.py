import torch

from selftaught.functional.philox import WORD, philox, uniforms


def test_known_answers() -> None:
    """The three known-answer vectors of the authors' Random123 library for philox4x32-10."""
    vectors = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    counters, keys, words = (torch.tensor(column) for column in zip(*vectors, strict=True))
    assert torch.equal(philox(counters, keys), words)


def test_a_uniform_depends_on_its_seed_and_position_only() -> None:
    seeds = torch.tensor([5, -1, 2**62])
    together = uniforms(seeds, torch.arange(10).expand(3, 10))
    alone = uniforms(seeds[1:2], torch.tensor([[7]]))
    assert torch.equal(together[1, 7], alone[0, 0])
    assert together.unique().numel() == together.numel()


def test_uniforms_are_uniform() -> None:
    values = uniforms(torch.arange(500), torch.arange(100).expand(500, 100)).flatten()
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values.float(), 20, 0, 1)
    expected = len(values) / 20
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 43.8  # the 99.9% quantile with 19 degrees of freedom
