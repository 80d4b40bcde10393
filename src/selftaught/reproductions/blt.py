"""The Byte Latent Transformer in miniature (arXiv 2412.09871): rules of patching and a BPE model at equal FLOPs."""

from dataclasses import replace

from selftaught.recipes import blt
from selftaught.reproductions import Reproduction
from selftaught.text.noise import NOISES

ARMS = ("entropy", "space", "stride", "no_hash", "bpe")

REPRODUCTION = Reproduction(
    method="blt",
    metrics=(
        "bits_per_byte",
        "rise_drop_and_case",
        "rise_light",
        "rise_light_random_case",
        "rise_light_repeat",
        "rise",
        *(f"rise_{noise}" for noise in NOISES),
        "patch_length",
        "flops_per_byte",
    ),
    recipes={"small": replace(blt.small(), arms=ARMS), "corpus": replace(blt.corpus(), arms=ARMS)},
    tried=42,
)
