"""Counter-based random numbers: a draw is a function of (row seed, position) and of nothing else.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). No state is
carried, so a row's draws do not depend on the rows beside it, on their order or on when a run was interrupted.
"""

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Return the Philox4x32-10 block of each counter: [..., 4] and [..., 2] 32-bit words in int64 -> [..., 4]."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2^64, which leaves both 32-bit halves right; the mask undoes the sign of the shift.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & WORD) ^ c1 ^ k0, p1 & WORD, (p0 >> 32 & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
    return torch.stack((c0, c1, c2, c3), -1)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return two uniforms in [0, 1) for every row and position.

    Args:
        seeds: [R] int64, the bits of an unsigned 64-bit row seed.
        positions: [R, N] int64, not negative.

    Returns:
        [R, N, 2] float64, 53 random bits each.
    """
    positions = positions.to(torch.int64)
    zero = torch.zeros_like(positions)
    counter = torch.stack((positions & WORD, positions >> 32, zero, zero), -1)
    key = torch.stack((seeds & WORD, seeds >> 32 & WORD), -1).unsqueeze(1).expand(*positions.shape, 2)
    words = philox(counter, key)
    high, low = words[..., 0::2], words[..., 1::2]
    return ((high << 21) + (low >> 11)).to(torch.float64) * 2.0**-53
