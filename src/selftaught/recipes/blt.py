"""Recipes of the Byte Latent Transformer: the released 1B model's sizes, a laptop's, three for one GPU, seconds."""

from dataclasses import replace

from selftaught.methods.blt import Config
from selftaught.specs import ByteLatent, EntropyModel, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec

WIKITEXT = TaskSpec(name="text", data="Salesforce/wikitext", options={"name": "wikitext-103-raw-v1"})
_OPTIMISER = Training(weight_decay=0.1, betas=(0.9, 0.95), clip=1.0, schedule="cosine")


def paper() -> Config:
    """The sizes of the released 1B model and the paper's optimiser (arXiv 2412.09871), on data of your own.

    The paper's data are not public: WikiText-103 stands in for them. Sizes of its 400M to 8B models are not known here.
    The token model is the paper's for size: a Llama of 1B with 32k tokens.
    """
    return Config(
        task=WIKITEXT,
        arms=("entropy", "space", "bpe"),
        train_bytes=1_000_000_000_000,
        window_bytes=8192,
        entropy_model=EntropyModel(
            kind="transformer",
            layers=14,
            width=768,
            heads=12,
            window=512,
            training=replace(_OPTIMISER, lr=4e-4, batch_size=2048, max_steps=10_000, precision="bf16"),
        ),
        blt=ByteLatent(
            hidden_size=1024,
            patch_width=2,
            num_attention_heads=16,
            encoder_layers=1,
            decoder_layers=9,
            num_hidden_layers=25,
            global_attention_heads=16,
            window=512,
            max_position_embeddings=16384,
            ngram_sizes=(3, 4, 5, 6, 7, 8),
            ngram_vocab=500_002,
            patch_size=4.5,
        ),
        seed_model=_tokens(layers=22, width=2048, heads=16, context=16384, vocab_size=32_000),
        training=replace(
            _OPTIMISER,
            lr=4e-4,
            warmup_ratio=0.01,
            batch_size=2048,
            max_steps=200_000,
            precision="bf16",
            strategy="fsdp2",
            activation_checkpointing=True,
        ),
    )


def own() -> Config:
    """Your own text (`--data`) in the `gpu` setting, the arm `entropy` alone.

    With `--model` the global transformer starts from that model's layers: choose `blt.hidden_size` and
    `blt.patch_width` with its width as their product.
    """
    return replace(gpu(), task=TaskSpec(name="text"), arms=("entropy",), patch_sizes=())


def small() -> Config:
    """The package's sample of novels and a model of 0.8M parameters beside its table: minutes per arm on a core.

    Encoder and decoder see 8 bytes, and n-grams 3: what lies further back reaches a byte through patches alone. With
    wider windows a model that has read so little needs no patches, and their rule makes no difference.
    """
    return Config(
        arms=("entropy", "stride", "bpe"),
        window_bytes=512,
        blt=ByteLatent(
            hidden_size=64,
            patch_width=2,
            num_attention_heads=4,
            encoder_layers=1,
            decoder_layers=1,
            num_hidden_layers=3,
            global_attention_heads=4,
            window=8,
            max_position_embeddings=1024,
            ngram_sizes=(3,),
            ngram_vocab=32_000,
            patch_size=5.0,
        ),
        seed_model=_tokens(layers=3, width=128, heads=4, intermediate=336, context=1024, vocab_size=2048),
        training=replace(
            _OPTIMISER,
            lr=2.5e-3,
            batch_size=4,
            max_steps=1200,
            precision="fp32",
            checkpoint_every=1000,
        ),
        arm_lr={"bpe": 5e-3},
        patch_sizes=(3.0, 4.0, 6.0, 8.0),
    )


def corpus() -> Config:
    """The model of `small` on 6 MB of a corpus, read once: name it with `--data`. Minutes per arm on a core.

    The token model is narrower here, for its tokens are shorter than those of novels alone: FLOPs are equal. Learning
    rates are each arm's best of a grid by factors of 2 (LOG.md).
    """
    config = small()
    return replace(
        config,
        train_bytes=6_000_000,
        test_bytes=200_000,
        seed_model=_tokens(layers=3, width=128, heads=4, intermediate=308, context=1024, vocab_size=2048),
        training=replace(config.training, lr=5e-3, max_steps=None, epochs=1),
        arm_lr={"stride": 1e-2, "no_hash": 2.5e-3, "bpe": 2.5e-3},
    )


def gpu() -> Config:
    """WikiText-103, 23M FLOPs per byte, contexts of 2,048 bytes: minutes per arm on one GPU."""
    return _on_gpu(256, _tokens(layers=8, width=640, heads=10, context=2560, vocab_size=8192))


def gpu_small() -> Config:
    """As `gpu`, at 7M FLOPs per byte."""
    return _on_gpu(128, _tokens(layers=12, width=256, heads=4, context=2560, vocab_size=8192))


def gpu_large() -> Config:
    """As `gpu`, at 86M FLOPs per byte."""
    return _on_gpu(512, _tokens(layers=11, width=1088, heads=17, context=2560, vocab_size=8192))


def smoke() -> Config:
    """Every stage in seconds: it shows that they run, and nothing else."""
    config = small()
    return replace(
        config,
        arms=("entropy", "space", "stride", "no_hash", "bpe"),
        train_bytes=6000,
        test_bytes=600,
        window_bytes=64,
        blt=replace(config.blt, hidden_size=16, num_hidden_layers=1, ngram_vocab=64, max_position_embeddings=128),
        seed_model=_tokens(layers=1, width=16, heads=2, context=128, vocab_size=300),
        training=replace(config.training, max_steps=4),
        entropy_model=EntropyModel(context=1),
        noises=("drop", "random_case", "repeat"),
        patch_sizes=(3.0,),
    )


def _on_gpu(width: int, tokens: SeedModel) -> Config:
    """Return the setting of one size; patches by n-gram counts, which cost no FLOPs."""
    return Config(
        task=WIKITEXT,
        arms=("entropy", "space", "stride", "no_hash", "bpe"),
        train_bytes=200_000_000,
        window_bytes=2048,
        blt=ByteLatent(
            hidden_size=width,
            patch_width=2,
            num_attention_heads=width // 64,
            encoder_layers=1,
            decoder_layers=4,
            num_hidden_layers=8,
            global_attention_heads=width // 32,
            window=512,
            ngram_sizes=(3, 4, 5, 6, 7, 8),
            ngram_vocab=50_000,
            patch_size=5.0,
        ),
        seed_model=tokens,
        training=replace(
            _OPTIMISER, lr=1e-3, batch_size=32, max_steps=3000, micro_batch_tokens=65_536, precision="bf16"
        ),
        patch_sizes=(3.0, 4.0, 6.0, 8.0),
    )


def _tokens(
    *, layers: int, width: int, heads: int, context: int, vocab_size: int, intermediate: int | None = None
) -> SeedModel:
    """Return a Llama over BPE tokens that nothing has trained yet."""
    scratch = Scratch(
        layers=layers,
        width=width,
        heads=heads,
        intermediate=intermediate,
        context=context,
        init_std=round(width**-0.5 / 2, 3),
        tokenizer="bpe",
        vocab_size=vocab_size,
    )
    return SeedModel(scratch=scratch, phases=())


RECIPES = {
    "paper": paper,
    "own": own,
    "small": small,
    "corpus": corpus,
    "gpu_small": gpu_small,
    "gpu": gpu,
    "gpu_large": gpu_large,
    "smoke": smoke,
}
