"""Byte Latent Transformer (Pagnoni et al. 2024, arXiv 2412.09871): bytes in patches that follow their entropy.

A language model over bytes, without a tokenizer, whose large transformer runs once per patch:

    1. a small model p_e of the next byte is trained on the text first, and frozen:
       H_i = - sum_v p_e(v | x_<i) ln p_e(v | x_<i), nats (eq. 1, with its sign);
    2. byte i begins a patch where H_i > theta; theta gives the wanted mean length on the training text;
    3. bytes with their hashed n-grams pass a small encoder, patches attend to their bytes and pass the large model,
       and in a small decoder bytes attend to the last complete patch (section 3);
    4. all of 3 is trained on - ln p(x_i | x_<i), the mean over bytes;
    5. what it is worth: bits per byte of held-out text, and how many more there are of each original byte under noise
       (section 5.3), beside other rules of patching and a model over BPE tokens at equal FLOPs per byte.

Arms are settings of one model (`ARMS`), and `bpe`: a Llama over tokens (`seed_model.scratch`), from random weights, on
the same text in the same order of windows.

Departures, and choices where the paper is silent:
- the entropy model is a table of n-gram counts in small recipes, a transformer in large ones (the paper's);
- text is cut into windows of `window_bytes` that never cross a document, read as they are: no packing across documents;
- a window's patches are found in that window alone, and stored before training, since no weight in training moves them;
- thresholds are calibrated on the windows trained on, begin symbols counted; the lengths of held-out text are reported;
- FLOPs per byte are those of the training text's patches, by arithmetic (`functional.flops`), look-ups free. The `bpe`
  arm's sizes stand in the recipe; `flops_per_byte` says how equal they are;
- all nats over all bytes: windows and documents are summed before they are divided. The end of a text is not predicted;
- noise is drawn for each test document by the run's seed, and is the same for every arm;
- arms are trained on equal bytes, not for equal time: n-grams and patches have costs that FLOPs do not show.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftaught.errors import InputError
from selftaught.methods.method import Claim, Measured, Method, Outcome
from selftaught.methods.rounds import check_arms
from selftaught.plan import Work
from selftaught.specs import SFT, ByteLatent, EntropyModel, ModelSpec, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec
from selftaught.tasks.text_corpora import NoisedDocuments, Split, TextCorpus, WindowDocuments
from selftaught.text.noise import NOISES, SHARES, noised
from selftaught.types import Document, Report, Score

if TYPE_CHECKING:
    from selftaught.evals.bits_per_byte import Cost, Costs
    from selftaught.lab import Lab
    from selftaught.store.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the Byte Latent Transformer.

    `task.data` is the text, the sample of the package where there is none; `task.options` are `name`, `sources` and
    `whole` of `TextCorpus`; `task.limit` bounds the documents of each split, `train_bytes` and `test_bytes` the bytes.
    `model` is one of tokens whose layers the global transformer starts from, none by default: "byte-ify" (section 6.2).
    `seed_model.scratch` is the token model of the arm `bpe`. The settings of every other arm are `blt`, changed as
    `ARMS` says, where the rule of patches is named too; `arm_lr` has learning rates that differ. The trained model of
    the arm `swept`, which must have a threshold, is measured again at those that give mean lengths of `patch_sizes`
    bytes. `noises` spoil the share of characters that the paper says; those that are drawn are measured once more with
    `light_share` of them (0: not), at which a small model still reads.
    """

    task: TaskSpec = field(default_factory=lambda: TaskSpec(name="text"))
    model: ModelSpec | None = None
    seed_model: SeedModel = field(default_factory=lambda: SeedModel(scratch=Scratch(tokenizer="bpe"), phases=()))
    arms: tuple[str, ...] = ("entropy",)
    train_bytes: int = 100_000_000
    test_bytes: int = 1_000_000
    window_bytes: int = 512
    entropy_model: EntropyModel = field(default_factory=EntropyModel)
    blt: ByteLatent = field(default_factory=ByteLatent)
    training: Training = field(default_factory=Training)
    arm_lr: dict[str, float] = field(default_factory=dict)
    noises: tuple[str, ...] = NOISES
    light_share: float = 0.1
    swept: str = "entropy"
    patch_sizes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_arms(self.arms, ARMS, self.arm_lr, self.rounds)
        self._check_text()
        self._check_lengths()
        if self.blt.patching != "entropy":
            raise InputError(f"blt.patching={self.blt.patching!r}: arms name the rule; give some of {', '.join(DRAWN)}")
        if self.patch_sizes and self.swept not in ("entropy", "monotonic", "both"):
            raise InputError(f"swept={self.swept!r}: patch_sizes needs an arm with a threshold")

    def _check_text(self) -> None:
        wrong = set(self.task.options) - {"name", "sources", "whole"}
        if self.task.name not in ("text", "user") or self.task.answer or self.task.verifier or wrong:
            odd = ", ".join(sorted(wrong)) or "answer and verifier, or another task's name"
            raise InputError(f"task {self.task.name}: BLT reads texts, which take --data FILE and no {odd}")
        for noise in self.noises:
            noised("", noise)
        if not 0 <= self.light_share <= 1:
            raise InputError(f"light_share={self.light_share} is no share of the characters; give 0 to 1")

    def _check_lengths(self) -> None:
        entropy = self.entropy_model.training
        for name, longest in {
            "blt.max_position_embeddings": self.blt.max_position_embeddings,
            "seed_model.scratch.context": self.seed_model.scratch.context,
            "training.max_length": self.training.max_length,
            "entropy_model.training.max_length": entropy.max_length if entropy else None,
        }.items():
            if longest is not None and self.window_bytes >= longest:
                raise InputError(
                    f"{name}={longest}: a begin symbol and a window of window_bytes={self.window_bytes} must fit; "
                    "raise the one or lower the other"
                )
        for size in self.patch_sizes:
            if not 1 < size < inf:
                raise InputError(f"patch_sizes={self.patch_sizes}: give mean lengths of more than 1 byte")

    @property
    def rounds(self) -> int:
        """A model is trained once."""
        return 1

    @property
    def noise_shares(self) -> dict[str, tuple[str, float | None]]:
        """Return (noise, share of characters) by the name of its measure: as in the paper, and lightly."""
        found = {noise: (noise, SHARES.get(noise)) for noise in self.noises}
        if self.light_share:
            found |= {f"{LIGHT}{noise}": (noise, self.light_share) for noise in self.noises if noise in SHARES}
        return found


ARMS: dict[str, dict[str, Any]] = {
    "entropy": {},
    "monotonic": {"patching": "monotonic"},
    "both": {"patching": "both"},
    "space": {"patching": "space"},
    "stride": {"patching": "stride"},
    "byte": {"patching": "byte"},
    "top_k": {"patching": "top_k"},
    "bpe_patches": {"patching": "explicit"},
    "no_hash": {"ngram_sizes": ()},
    "no_cross_attention": {"encoder_cross_attention": "none", "decoder_cross_attention": "none"},
    "learned_query": {"pooled_query": False},
    "frequent_ngrams": {"ngram_table": "frequency"},
    "bpe": {},
}
"""The arms as changes of `Config.blt`."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The documents trained on, their windows, and the windows of the test documents by noise, "" for none."""

    documents: "Stage"
    train: "Stage"
    test: dict[str, "Stage"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """An arm's model before training, the windows it reads, with their patches where it has any, and what it costs.

    `flops` are forward FLOPs per byte of the training text, `patch_length` the mean bytes per patch, or per token, of
    the clean test text.
    """

    model: ModelSpec
    train: "Stage"
    test: dict[str, "Stage"]
    flops: float
    patch_length: float


def run(cfg: Config, lab: "Lab") -> Outcome:
    """Train every arm on the same windows and measure it on the same test text, clean and noised."""
    outcome = Outcome()
    with lab.scope(arm="seed_model"):
        texts = read(cfg, lab)
        outcome.weights = sizes(texts.test[""])
        entropy = entropy_model(cfg, lab, texts) if reads_entropies(*cfg.arms) else None  # step 1
    starts: dict[str, ModelSpec] = {}
    for arm in cfg.arms:
        with lab.scope(arm=arm, round=1):
            start = tokens(cfg, lab, texts) if arm == "bpe" else patches(cfg, lab, arm, texts, entropy)
            swept = thresholds(cfg, start, texts, entropy) if arm == cfg.swept else []
            model = lab.train(start.model, start.train, SFT(), training(cfg, arm))  # step 4
            outcome.add(arm, model, measure(cfg, lab, model, start))
            starts[arm] = start.model
            if swept:
                sweep(cfg, lab, model, texts, swept)
    with lab.scope(arm="seed_model"):
        show(lab, texts, {arm: model for arm, model in starts.items() if arm in DRAWN}, entropy)
    return outcome


def reads_entropies(*arms: str) -> bool:
    """Return whether any of the arms has patches by entropy."""
    return not WITHOUT_ENTROPIES.issuperset(arms)


def training(cfg: Config, arm: str) -> Training:
    """Return the training of an arm."""
    return replace(cfg.training, lr=cfg.arm_lr.get(arm, cfg.training.lr))


def read(cfg: Config, lab: "Lab") -> Texts:
    """Cut the training text, and the test text with each noise, into windows."""
    corpus = TextCorpus(data=cfg.task.data, **cfg.task.options)

    def documents(split: Split, limit: int) -> "Stage":
        return lab.stage("documents", Document, list(islice(corpus.documents(split, limit), cfg.task.limit)))

    def cut(stage: "Stage") -> "Stage":
        return lab.stage("windows", Document, WindowDocuments(length=cfg.window_bytes), stage)

    train, clean = documents("train", cfg.train_bytes), documents("test", cfg.test_bytes)
    noised = {
        name: lab.stage("noise", Document, NoisedDocuments(noise=noise, share=share, seed=lab.seed), clean)
        for name, (noise, share) in cfg.noise_shares.items()
    }
    test = {noise: cut(stage) for noise, stage in {"": clean, **noised}.items()}
    return Texts(documents=train, train=cut(train), test=test)


def entropy_model(cfg: Config, lab: "Lab", texts: Texts) -> str:
    """Return the directory of the entropy model, trained on the windows alone."""
    spec = cfg.entropy_model

    def arguments(out: Path) -> dict[str, Any]:
        where = {"documents": texts.train.path, "out": out}
        return {"spec": spec, "positions": cfg.blt.max_position_embeddings, **where, "seed": lab.seed}

    params = {"spec": replace(spec, training=None), "positions": cfg.blt.max_position_embeddings}
    made = lab.artifact("entropy_model", ENTROPY_MODEL, params, [texts.train.key], arguments)
    model = ModelSpec(source=str(made.path))
    if spec.kind == "transformer" and spec.training:
        model = lab.train(model, texts.train, SFT(), spec.training)
    return model.source


def patches(cfg: Config, lab: "Lab", arm: str, texts: Texts, entropy: str | None) -> Start:
    """Build an arm's model, its threshold calibrated (step 2), and store the patches of all windows."""
    from selftaught.evals.patches import patch_facts, patched
    from selftaught.models.blt.build import PatchDocuments, TokenPatches
    from selftaught.models.load import model_key, place_key

    spec, documents = replace(cfg.blt, **ARMS[arm]), texts.train
    entropy = entropy if reads_entropies(arm) else None
    rule: PatchDocuments | TokenPatches | None = None
    if spec.patching == "explicit":
        rule = TokenPatches(tokenizer=lab.scratch(cfg.seed_model.scratch, [texts.documents]).source)
        documents = lab.stage("patches", Document, rule, texts.train)

    def arguments(out: Path) -> dict[str, Any]:
        where = {"entropy": entropy, "documents": documents.path, "out": out}
        return {"spec": spec, **where, "start": cfg.model, "seed": lab.seed}

    params = {"spec": spec, "entropy": entropy and place_key(entropy), "start": cfg.model and model_key(cfg.model)}
    made = lab.artifact("blt", BLT, params, [documents.key], arguments)
    lab.note("calibrated", **json.loads((made.path / "patches.json").read_text(encoding="utf-8")))
    rule, model = rule or PatchDocuments(model=str(made.path)), ModelSpec(source=str(made.path))
    train = lab.stage("patches", Document, rule, texts.train)
    test = {noise: lab.stage("patches", Document, rule, windows) for noise, windows in texts.test.items()}
    flops = forward_flops(model, cfg.window_bytes, patched(train).mean_length)
    facts = patch_facts(list(test[""]), width=-(-cfg.window_bytes // 8))
    lab.note("patches", **facts)
    return Start(model=model, train=train, test=test, flops=flops, patch_length=facts["patch_length"])


def tokens(cfg: Config, lab: "Lab", texts: Texts) -> Start:
    """Build the token model and count the bytes of its tokens."""
    from selftaught.evals.flops import bytes_per_token
    from selftaught.models.load import load_tokenizer

    model = lab.scratch(cfg.seed_model.scratch, [texts.documents])
    tokenizer = load_tokenizer(model)
    train, test = (bytes_per_token(tokenizer, windows) for windows in (texts.train, texts.test[""]))
    flops = forward_flops(model, cfg.window_bytes, train)
    return Start(model=model, train=texts.train, test=texts.test, flops=flops, patch_length=test or nan)


def forward_flops(model: ModelSpec, context: int, length: float | None) -> float:
    """Return forward FLOPs per byte of a model with patches, or tokens, of `length` bytes; nan where there are none."""
    from selftaught.evals.flops import flops_per_byte
    from selftaught.models.load import load_config

    return nan if length is None else flops_per_byte(load_config(model), context, length)


def measure(cfg: Config, lab: "Lab", model: ModelSpec, start: Start) -> Measured:
    """Return bits per byte of the test text and its rise under each noise (step 5), pooled over documents."""
    from selftaught.evals.bits_per_byte import Cost, excess, mean_costs, per_document, pooled, standard_error

    cost = {n: by_document(windows, costs(cfg, lab, model, windows)) for n, windows in start.test.items()}
    clean = cost.pop("")
    # Noise may leave nothing of a short document.
    rises = {n: excess(dict.fromkeys(clean, Cost(0.0, 0)) | c, clean) for n, c in cost.items()}
    kinds = {"rise_light": [n for n in rises if n.startswith(LIGHT)], "rise": cfg.noises}
    if rises.keys() >= set(DROP_AND_CASE):
        kinds["rise_drop_and_case"] = DROP_AND_CASE
    means = {name: mean_costs([rises[n] for n in noises]) for name, noises in kinds.items() if noises}
    parts: dict[str, Costs] = {"bits_per_byte": clean, **means, **{f"rise_{n}": c for n, c in rises.items()}}
    reports = [Report(name=n, mean=pooled(c), stderr=standard_error(c), n=len(c)) for n, c in parts.items()]
    facts = {"patch_length": start.patch_length, "flops_per_byte": start.flops}
    reports += [Report(name=name, mean=value, stderr=0.0, n=len(clean)) for name, value in facts.items()]
    for report in reports:
        lab.note_report(report)
    return {report.name: report for report in reports}, {name: per_document(c) for name, c in parts.items()}


def costs(cfg: Config, lab: "Lab", model: ModelSpec, windows: "Stage") -> "Costs":
    """Return what each window costs under `model`, by its id; in float32, as arms differ by less than bf16 rounds."""
    from selftaught.evals.bits_per_byte import Cost

    if not len(windows):
        return {}
    scores: Iterable[Score] = lab.logps(model, windows, replace(cfg.training, precision="fp32"))
    nats = {score.completion_id: -score.value for score in scores if score.value is not None}
    return {window.id: Cost(nats[window.id], len(window.text.encode())) for window in windows}


def by_document(windows: "Stage", found: "Costs") -> "dict[str, Cost]":
    """Return what documents cost from their windows; one that is noised has its clean one's id."""
    from selftaught.evals.bits_per_byte import gather

    return gather((window.meta.get("clean", window.parents[0]), found[window.id]) for window in windows)


def sizes(windows: Iterable[Document]) -> dict[str, float]:
    """Return the bytes of documents by their id from those of their windows: what claims of one run weigh them by."""
    found: Counter[str] = Counter()
    for window in windows:
        found[window.parents[0]] += len(window.text.encode())
    return dict(found)


def thresholds(cfg: Config, start: Start, texts: Texts, entropy: str | None) -> list[float]:
    """Return the thresholds (nats) that give mean lengths of `patch_sizes` bytes, calibrated as the model's own is."""
    from selftaught.evals.patches import changed
    from selftaught.models.blt.build import calibrate, calibration_sample, open_entropy_model
    from selftaught.models.load import load_config

    if not cfg.patch_sizes or entropy is None:
        return []
    known, table = load_config(start.model), open_entropy_model(entropy)
    sample = [window.text for window in calibration_sample(texts.train)]
    return [calibrate(changed(known, patch_size=size), table, sample) for size in cfg.patch_sizes]


def sweep(cfg: Config, lab: "Lab", model: ModelSpec, texts: Texts, wanted: Sequence[float]) -> None:
    """Measure a trained model at other thresholds: more FLOPs or fewer, without training again."""
    from selftaught.evals.patches import changed, trade_off
    from selftaught.models.blt.build import PatchDocuments
    from selftaught.models.load import load_config

    known, points = load_config(model), []
    for threshold in wanted:
        rule = PatchDocuments(model=model.source, threshold=threshold)
        windows = lab.stage("patches", Document, rule, texts.test[""])
        found, config = costs(cfg, lab, model, windows), changed(known, patching_threshold=threshold)
        points.append(asdict(trade_off(config, windows, found, cfg.window_bytes)))
    lab.note("sweep", points=points)


def show(lab: "Lab", texts: Texts, models: dict[str, ModelSpec], entropy: str | None) -> None:
    """Note the beginning of a test text with its entropies and its patches by each arm's rule, for the report."""
    from selftaught.evals.patches import patched_text
    from selftaught.functional.patches import byte_ids
    from selftaught.models.blt.build import open_entropy_model
    from selftaught.models.load import load_config

    if models:
        shown = next(iter(texts.test[""])).text.encode()[:SHOWN_BYTES].decode(errors="ignore").encode()
        rules = {arm: load_config(model) for arm, model in models.items()}
        drawn = patched_text(byte_ids(shown).tolist(), rules, open_entropy_model(entropy) if entropy else None)
        lab.note("patched_text", **asdict(drawn))


def plan(cfg: Config) -> list[Work]:
    """List the work; a byte counts as a token, and counting n-grams and finding patches as nothing."""
    windows = -(-cfg.test_bytes // cfg.window_bytes)

    def trained(name: str, settings: Training) -> Work:
        every = int(settings.epochs * -(-cfg.train_bytes // cfg.window_bytes))
        rows = (settings.max_steps or 0) * settings.batch_size or every
        return Work(name=name, rows=rows, tokens=rows * cfg.window_bytes, passes=6)

    def read(name: str, times: int) -> Work:
        return Work(name=name, rows=times * windows, tokens=times * cfg.test_bytes, passes=2)

    spec = cfg.entropy_model
    needed = spec.kind == "transformer" and reads_entropies(*cfg.arms)
    works = [trained("entropy model", spec.training)] if needed and spec.training else []
    for arm in cfg.arms:
        swept = len(cfg.patch_sizes) if arm == cfg.swept else 0
        works += [trained(f"{arm}: training", cfg.training), read(f"{arm}: bits per byte", 1)]
        works += [read(f"{arm}: noise", len(cfg.noise_shares)), read(f"{arm}: sweep", swept)]
    return [work for work in works if work.rows]


SHOWN_BYTES = 240
LIGHT = "light_"
DROP_AND_CASE = ("light_drop", "light_random_case")
WITHOUT_ENTROPIES = frozenset({"space", "stride", "byte", "bpe_patches", "bpe"})
DRAWN = ("entropy", "monotonic", "both", "space", "stride", "byte", "top_k")
ENTROPY_MODEL = "selftaught.models.blt.build:build_entropy_model"
BLT = "selftaught.models.blt.build:build_blt"

METHOD = Method(
    name="blt",
    title="Byte Latent Transformer",
    paper="arXiv 2412.09871",
    claim="a model over bytes, in patches that follow their entropy, needs no tokenizer and stands noise better",
    config=Config,
    run=run,
    plan=plan,
    equations={
        "entropy of the next byte (1)": "selftaught.functional.patches:next_byte_entropies",
        "global threshold": "selftaught.functional.patches:threshold_starts",
        "approximate monotonic rule": "selftaught.functional.patches:monotonic_starts",
        "rolling polynomial hash": "selftaught.functional.byte_hash:ngram_hashes",
        "FLOPs per byte": "selftaught.functional.flops:blt_flops_per_byte",
        "bits per byte": "selftaught.evals.bits_per_byte:pooled",
    },
    claims=(
        Claim(
            text="Patches at spaces cost fewer bits per byte than strides, at no more FLOPs",
            arm="space",
            baseline="stride",
            metric="bits_per_byte",
            lower_is_better=True,
        ),
        Claim(
            text="So do patches by entropy",
            arm="entropy",
            baseline="stride",
            metric="bits_per_byte",
            lower_is_better=True,
        ),
        Claim(
            text="Hashed n-grams cost fewer bits per byte than none at equal FLOPs",
            arm="entropy",
            baseline="no_hash",
            metric="bits_per_byte",
            lower_is_better=True,
        ),
        Claim(
            text="Dropping a share of the characters, and drawing their case, adds fewer bits than to a BPE model of "
            "equal FLOPs (mean of both)",
            arm="entropy",
            baseline="bpe",
            metric="rise_drop_and_case",
            lower_is_better=True,
        ),
        Claim(
            text="So does light noise, the mean of those and of repeats",
            arm="entropy",
            baseline="bpe",
            metric="rise_light",
            lower_is_better=True,
        ),
        Claim(
            text="So does the paper's noise, the mean of its kinds",
            arm="entropy",
            baseline="bpe",
            metric="rise",
            lower_is_better=True,
        ),
        Claim(
            text="So does dropping characters",
            arm="entropy",
            baseline="bpe",
            metric="rise_drop",
            lower_is_better=True,
        ),
        Claim(
            text="So does drawing the case of a share of the characters",
            arm="entropy",
            baseline="bpe",
            metric="rise_light_random_case",
            lower_is_better=True,
        ),
        Claim(
            text="So does repeating a share of the characters",
            arm="entropy",
            baseline="bpe",
            metric="rise_light_repeat",
            lower_is_better=True,
        ),
        Claim(
            text="So does drawing the case of every character",
            arm="entropy",
            baseline="bpe",
            metric="rise_random_case",
            lower_is_better=True,
        ),
    ),
)
