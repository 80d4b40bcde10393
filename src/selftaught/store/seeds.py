"""Seeds of single rows: equal on every machine, whatever the order, shard or process in which a row is made."""

import hashlib


def row_seed(stage_seed: int, prompt_id: str, k: int) -> int:
    """Return the unsigned 64-bit seed of sample `k` of a prompt in a stage seeded with `stage_seed`."""
    text = f"{stage_seed}\0{prompt_id}\0{k}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"row_seed").digest(), "little")
