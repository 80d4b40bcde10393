"""Tests of selftaught.evals.attacks."""

import copy
import json
import re
from collections import Counter
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from tests import architectures, byte_models
from transformers import LlamaConfig, LlamaForCausalLM

from selftaught.engines.resets import ResetPolicy
from selftaught.engines.sampler import generate
from selftaught.errors import InputError
from selftaught.evals import safety
from selftaught.evals.attacks import (
    Attacked,
    Case,
    Search,
    SuffixAttack,
    adaptive_attack,
    answers,
    ask,
    coordinate_attack,
    force_start,
    keeps_ids,
    make_case,
    open_attacked,
    ordinary_tokens,
    with_suffix,
)
from selftaught.evals.attacks.coordinate import _Reader
from selftaught.models.blt.tokenization import ByteTokenizer
from selftaught.models.scratch import train_tokenizer
from selftaught.specs import ModelSpec, Resets, Sampling, Scratch
from selftaught.text.templates import CHAT, MODEL_ONLY, encode_prompt
from selftaught.types import Completion, Message, Pair, Prompt

ALLOWED = tuple(range(3, architectures.VOCABULARY))
CASE = Case(head=(5, 9, 30), tail=(41,), target=(7, 20, 11))
FAMILIES = (*architectures.FAMILIES, *architectures.MASKED, *architectures.UNCACHED)


def network(name="llama"):
    return architectures.model(name)


def ids(text):
    return tuple(architectures.tokenizer()(text)["input_ids"])


@torch.no_grad()
def target_logprob(model, case, suffix):
    """The target's log-probability, a token at a time."""
    read, total = [*case.head, *suffix, *case.tail], 0.0
    for token in case.target:
        logits = model(input_ids=torch.tensor([read])).logits[0, -1]
        total += logits.log_softmax(-1)[token].item()
        read.append(token)
    return total


# --- the gradient and the objective ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_values_are_log_probabilities_in_any_company(name):
    reader = _Reader(network(name), CASE)
    suffixes = torch.tensor([[4, 5], [30, 31], [3, 47]])
    values, _ = reader.values(suffixes)
    expected = [target_logprob(network(name), CASE, row) for row in suffixes.tolist()]
    assert values.tolist() == pytest.approx(expected, abs=1e-4) and reader.read == 3


# Root mean square norms are taken in float32 whatever the weights are, so that small differences drown there.
SMALL, LARGE = (1e-5, 1e-5), (1e-2, 2e-3)


@pytest.mark.parametrize(("name", "size", "error"), [("gpt2", *SMALL), ("llama", *LARGE), ("gemma3", *LARGE)])
def test_the_gradient_is_that_of_finite_differences(name, size, error):
    model = copy.deepcopy(network(name)).double()
    case, suffix = CASE, torch.tensor([12, 33])
    found = _Reader(model, case, reset=2, weight=0.5).gradient(suffix)
    vectors = model.get_input_embeddings()(torch.arange(architectures.VOCABULARY)).detach()
    one_hot = torch.zeros(2, len(vectors), dtype=torch.float64)
    one_hot[[0, 1], suffix] = 1

    @torch.no_grad()
    def objective(chosen):
        rows = [vectors[list(case.head)], chosen @ vectors, vectors[[*case.tail, *case.target]]]
        logps = model(inputs_embeds=torch.cat(rows)[None]).logits[0].log_softmax(-1)
        first = len(case.head) + len(suffix) + len(case.tail) - 1
        said = sum(logps[first + t, token] for t, token in enumerate(case.target))
        return said + 0.5 * sum((1 - logps[first + t, 2].exp()).log() for t in range(len(case.target) + 1))

    for place, token in ((0, 3), (0, 40), (1, 2), (1, 33)):
        step = torch.zeros_like(one_hot)
        step[place, token] = size
        slope = (objective(one_hot + step) - objective(one_hot - step)) / (2 * size)
        assert found[place, token].item() == pytest.approx(slope.item(), rel=error, abs=error)


def test_the_gradient_leaves_the_weights_without_one():
    _Reader(network(), CASE).gradient(torch.tensor([12, 33]))
    assert all(p.grad is None for p in network().parameters())


def test_what_the_gradient_promises_comes_true_more_often_than_not():
    found = []
    for suffix in torch.tensor([[12, 33, 20], [4, 8, 40], [30, 10, 27]]):
        reader = _Reader(network(), CASE)
        slopes = reader.gradient(suffix)
        for place in range(3):
            rows = suffix.repeat(len(ALLOWED), 1)
            rows[:, place] = torch.tensor(ALLOWED)
            values, _ = reader.values(rows)
            found.append(spearmanr(slopes[place, list(ALLOWED)], values).statistic)
    assert sum(found) / len(found) > 0.3


# --- the search ------------------------------------------------------------------------------------------------------


def test_the_exact_search_finds_the_best_single_token():
    best = max(ALLOWED, key=lambda token: target_logprob(network(), CASE, [token]))
    for start in (3, 25):
        search = Search(exact=True, budget=200)
        found = coordinate_attack(network(), CASE, search, allowed=ALLOWED, start=[start])
        assert found.suffix == (best,)
        assert found.value == pytest.approx(target_logprob(network(), CASE, [best]), abs=1e-4)


def test_the_exact_search_ends_where_no_swap_helps():
    found = coordinate_attack(network(), CASE, Search(length=2, exact=True), allowed=ALLOWED)
    assert found.spent < Search().budget and found.history[-1] == found.history[-2]
    for place in range(2):
        for token in ALLOWED:
            other = list(found.suffix)
            other[place] = token
            assert target_logprob(network(), CASE, other) <= found.value + 1e-4


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["llama", "mamba", "bloom", "gpt-oss"])
def test_the_objective_never_falls_and_the_budget_holds(name, exact):
    rows = []
    model = network(name)
    hook = model.register_forward_pre_hook(
        lambda module, args, given: rows.append(len(given.get("input_ids", given.get("inputs_embeds")))),
        with_kwargs=True,
    )
    search = Search(length=4, budget=120, batch=30, top_k=8, exact=exact)
    try:
        found = coordinate_attack(model, CASE, search, allowed=ALLOWED)
    finally:
        hook.remove()
    assert list(found.history) == sorted(found.history) and found.history[-1] == found.value > found.history[0]
    assert found.spent == sum(rows) == 120
    assert found.value == pytest.approx(target_logprob(model, CASE, found.suffix), abs=1e-4)


def test_with_all_tokens_proposed_the_gradient_changes_nothing():
    search = Search(budget=1 + 1 + 2 * len(ALLOWED), batch=10**6, top_k=10**6)
    start = [12, 33]
    found = coordinate_attack(network(), CASE, search, allowed=ALLOWED, start=start)
    exact = replace(search, exact=True, budget=1 + 2 * (len(ALLOWED) - 1))
    assert found.suffix == coordinate_attack(network(), CASE, exact, allowed=ALLOWED, start=start).suffix


def test_a_seed_fixes_the_search():
    def run(seed):
        return coordinate_attack(network(), CASE, Search(length=4, budget=60, batch=8, seed=seed), allowed=ALLOWED)

    assert run(1) == run(1)
    assert run(1).suffix != run(2).suffix


def test_only_allowed_tokens_are_proposed():
    allowed = (8, 13, 21)
    for exact in (False, True):
        search = Search(length=3, budget=50, exact=exact)
        assert set(coordinate_attack(network(), CASE, search, allowed=allowed).suffix) <= set(allowed)


def test_a_greedily_reached_target_is_reported():
    with torch.no_grad():
        read = torch.tensor([[*CASE.head, 12, *CASE.tail]])
        said = network().generate(read, max_new_tokens=2, do_sample=False)[0, -2:]
    case = replace(CASE, target=tuple(said.tolist()))
    found = coordinate_attack(network(), case, Search(budget=1), allowed=ALLOWED, start=[12])
    assert found.reached and found.spent == 1
    assert not coordinate_attack(network(), CASE, Search(budget=1), allowed=ALLOWED, start=[12]).reached


def test_on_ten_million_parameters():
    """Six tokens of suffix, 256 sequences read: a random model's target gains 5.5 nats, 3.0 with swaps at random."""
    source = torch.Generator().manual_seed(1)
    head, target, start = (torch.randint(3, 4096, (n,), generator=source).tolist() for n in (8, 4, 6))
    sizes = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(**sizes, vocab_size=4096, max_position_embeddings=128, initializer_range=0.05)
        ).eval()
    assert sum(p.numel() for p in model.parameters()) >= 10**7
    case = Case(head=tuple(head), target=tuple(target))
    guided, blind = (
        coordinate_attack(model, case, Search(budget=256, batch=31, top_k=top_k), allowed=range(3, 4096), start=start)
        for top_k in (32, 4093)
    )
    assert guided.spent == blind.spent == 256 and guided.history[0] == pytest.approx(blind.history[0])
    assert guided.value - guided.history[0] > 4
    assert guided.value > blind.value + 1


# --- the adaptive attack ---------------------------------------------------------------------------------------------

RESET = 40


@pytest.fixture(scope="module")
def resetting():
    """A model that answers "q" and three letters with "s", with y among them "u[RESET]s", with y and z "uvw".

    With z it says "s" now and then, so that who wants nothing but "u" does better without.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(
            LlamaConfig(**sizes, vocab_size=48, max_position_embeddings=32, eos_token_id=1, pad_token_id=0)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        letters = torch.tensor(ids("abcdeyz"))
        y, z = ids("yz")
        replies = torch.tensor([[*ids("s"), 1, 0, 0], [*ids("u"), RESET, *ids("s"), 1], [*ids("uvw"), 1]])
        for _ in range(250):
            suffix = letters[torch.randint(len(letters), (64, 3))]
            kind = (suffix == y).any(1).long() * (1 + (suffix == z).any(1).long())
            kind[(kind == 2) & (torch.rand(64) < 0.3)] = 0
            rows = torch.cat([torch.tensor(ids("q")).expand(64, 1), suffix, replies[kind]], 1)
            labels = rows.clone()
            labels[:, :4] = -100
            labels[labels == 0] = -100
            model(input_ids=rows, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def reset_probability(model, case, suffix):
    logits = model(input_ids=torch.tensor([[*case.head, *suffix, *case.target]])).logits[0, -1]
    return logits.softmax(-1)[RESET].item()


LETTERS = ids("abcdeyz")


def test_the_adaptive_attack_blocks_the_reset(resetting):
    case = Case(head=ids("q"), target=ids("u"))
    search, start = Search(budget=200, exact=True), ids("abc")
    plain = coordinate_attack(resetting, case, search, allowed=LETTERS, start=start)
    adaptive = adaptive_attack(resetting, case, search, reset=RESET, allowed=LETTERS, start=start)
    assert ids("y")[0] in plain.suffix and {*ids("yz")} <= {*adaptive.suffix}
    assert reset_probability(resetting, case, plain.suffix) > 0.9
    assert reset_probability(resetting, case, adaptive.suffix) < 0.1
    assert adaptive.reached and plain.reached


def test_the_target_grows_step_by_step(resetting):
    case = Case(head=ids("q"), target=ids("uvw"))
    search = Search(budget=90, batch=6, top_k=3)
    found = adaptive_attack(resetting, case, search, reset=RESET, allowed=LETTERS, start=ids("abc"), step=2)
    assert found.reached and {*ids("yz")} <= {*found.suffix} and found.spent <= 90
    # The last stage has the whole target, and no reset anywhere along it.
    said = target_logprob(resetting, case, found.suffix)
    begun = [replace(case, target=case.target[:t]) for t in range(4)]
    absent = [1 - reset_probability(resetting, part, found.suffix) for part in begun]
    assert found.value == pytest.approx(said + sum(map(log, absent)), abs=1e-3)


def test_success_is_measured_with_the_models_own_decoding(resetting):
    """An attack that does not know of the reset gets "u" said and taken back, the adaptive one gets "uvw"."""
    tokenizer = architectures.tokenizer()
    policy = ResetPolicy(RESET, Resets())
    model = Attacked(network=resetting, tokenizer=tokenizer, policy=policy)
    prompt = Prompt.from_text("q")
    case = make_case(model, prompt, "u")
    assert case == Case(head=ids("q"), target=ids("u"))
    search = Search(budget=200, exact=True)
    plain = coordinate_attack(resetting, case, search, allowed=LETTERS, start=ids("abc"))
    knowing = adaptive_attack(resetting, case, search, reset=RESET, allowed=LETTERS, start=ids("abc"))

    def measured(suffix):
        groups = answers(model, [with_suffix(prompt, case, suffix)], Sampling(temperature=0.0, max_tokens=6), seed=0)
        reports, _ = safety.evaluate_unsafe(safety.label(groups, lambda p, text: "u" in text, tokenizer))
        return {r.name: r.mean for r in reports}

    assert [measured(ids("abc"))[name] for name in ("violation", "violation_before", "reset_rate")] == [0, 0, 0]
    found = measured(plain.suffix)
    assert [found[name] for name in ("violation", "violation_before", "reset_rate")] == [0, 1, 1]
    assert measured(knowing.suffix)["violation"] == 1


# --- requests and answers --------------------------------------------------------------------------------------------


def with_reset_token():
    tokenizer = copy.deepcopy(architectures.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    tokenizer.init_kwargs[MODEL_ONLY] = ["[RESET]"]
    return tokenizer


def test_special_and_added_tokens_are_never_proposed():
    tokenizer = with_reset_token()
    tokenizer.add_tokens(["added"])
    found = ordinary_tokens(tokenizer)
    assert set(found) == set(range(3, 48))
    assert not {tokenizer.convert_tokens_to_ids(t) for t in ("[RESET]", "added", "<eos>", "<pad>")} & set(found)


def test_parts_of_characters_are_never_proposed():
    assert ordinary_tokens(ByteTokenizer()) == tuple(b + 4 for b in range(128))


def test_a_byte_model_is_attacked():
    """It takes no vectors in place of ids, and a suffix of any bytes would seldom be text."""
    model = Attacked(network=byte_models.blt(), tokenizer=ByteTokenizer())
    case = make_case(model, Prompt.from_text("tell me how"), "Sure")
    keep, allowed = keeps_ids(model.tokenizer, case), ordinary_tokens(model.tokenizer)
    found = coordinate_attack(model.network, case, Search(length=20, budget=80, batch=16), allowed=allowed, keep=keep)
    assert found.value > found.history[0] and keep(found.suffix)
    assert model.tokenizer.decode(list(found.suffix)).encode() == bytes(i - 4 for i in found.suffix)


def test_where_the_suffix_goes():
    model = Attacked(network=network(), tokenizer=architectures.tokenizer())
    prompt = Prompt(messages=(Message(role="user", content="ab"), Message(role="user", content="cd?")))
    assert make_case(model, prompt, "uv") == Case(head=ids("ab\ncd?"), target=ids("uv"))
    assert make_case(model, prompt, "uv", at=2) == Case(head=ids("ab\ncd"), tail=ids("?"), target=ids("uv"))
    attempt = with_suffix(prompt, make_case(model, prompt, "uv", at=2), ids("xy"))
    assert attempt.ids == ids("ab\ncdxy?") and attempt.prompt == prompt


def test_a_suffix_lies_inside_a_chat_turn_and_resets_are_defused(tmp_path):
    tokenizer = with_reset_token()
    tokenizer.chat_template = "{% for m in messages %}<unk>{{ m.content }};{% endfor %}<unk>"
    model = Attacked(network=network(), tokenizer=tokenizer, template=CHAT)
    prompt = Prompt.from_text("ab[RESET]")
    case = make_case(model, prompt, "u")
    assert tokenizer.convert_tokens_to_ids("[RESET]") not in case.head and case.tail == (*ids(";"), 2)
    assert [*case.head, *case.tail] == encode_prompt(tokenizer, prompt, CHAT)
    twice = tmp_path / "twice.jinja"
    twice.write_text("{{ messages[0].content }}{{ messages[0].content }}")
    with pytest.raises(InputError, match="shows its last turn 2 times"):
        make_case(replace(model, template=str(twice)), prompt, "u")


def test_suffixes_that_no_text_gives_can_be_left_out():
    texts = ["the cat sat on the mat", "that hat", "a cat and a hat", "mat on the hat"]
    tokenizer = train_tokenizer(Scratch(tokenizer="bpe", vocab_size=290, context=64), texts)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=64)).eval()
    case = Case(
        head=tuple(tokenizer("the cat ")["input_ids"]), target=tuple(tokenizer("mat")["input_ids"]), tail=(ord("!"),)
    )
    letters = [i for letter in "that" for i in tokenizer(letter)["input_ids"]]
    keep, asked = keeps_ids(tokenizer, case), []
    assert keep(tuple(tokenizer("that")["input_ids"])) and not keep(tuple(letters))

    def recorded(suffix):
        asked.append((suffix, keep(suffix)))
        return asked[-1][1]

    search = Search(length=6, budget=300, batch=64)
    allowed = ordinary_tokens(tokenizer)
    for exact in (False, True):
        found = coordinate_attack(model, case, replace(search, exact=exact), allowed=allowed, keep=recorded)
        assert dict(asked)[found.suffix] and found.value > found.history[0]
        whole = [*case.head, *found.suffix, *case.tail]
        assert tokenizer(tokenizer.decode(whole))["input_ids"] == whole
    assert {kept for _, kept in asked} == {True, False}
    with pytest.raises(InputError, match="`keep` is False for the first suffix"):
        coordinate_attack(model, case, search, allowed=allowed, start=letters, keep=keep)


def test_an_attempt_without_an_attack_is_plain_generation():
    model = Attacked(network=network(), tokenizer=architectures.tokenizer())
    prompts = [Prompt.from_text(text) for text in ("abc", "the quick", "12 34")]
    sampling = Sampling(k=3, max_tokens=12)
    groups = answers(model, [ask(model, p) for p in prompts], sampling, seed=5)
    expected = list(generate(network(), architectures.tokenizer(), prompts, sampling, seed=5))
    for group, prompt, row in zip(groups, prompts, expected, strict=True):
        assert group.prompt == prompt
        assert [(c.k, c.token_ids, c.text) for c in group.completions] == [(c.k, c.token_ids, c.text) for c in row]


def test_a_forced_start_and_its_reset(resetting):
    model = Attacked(network=resetting, tokenizer=architectures.tokenizer(), policy=ResetPolicy(RESET, Resets()))
    greedy = Sampling(temperature=0.0, max_tokens=6)
    attempts = [force_start(model, Prompt.from_text(text), "uvw", n) for text, n in (("qayb", 1), ("qyzb", 2))]
    assert [a.ids for a in attempts] == [ids("qaybu"), ids("qyzbuv")]
    taken, kept = safety.label(answers(model, attempts, greedy, seed=0), lambda p, t: "u" in t, model.tokenizer)
    assert taken.completions[0].text == "s" and kept.completions[0].text == "w"
    found = safety.evaluate_unsafe([taken, kept])[1]
    assert list(found["violation"].values()) == [0, 1] and list(found["violation_before"].values()) == [1, 1]
    untouched = force_start(model, Prompt.from_text("qab"), "uvw", 0)
    assert untouched == ask(model, Prompt.from_text("qab"))
    with pytest.raises(InputError, match="4 tokens are to be forced, of a start that has 3"):
        force_start(model, Prompt.from_text("q"), "uvw", 4)


def test_a_model_is_opened_as_its_spec_says(tmp_path, resetting):
    resetting.save_pretrained(tmp_path)
    tokenizer = architectures.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model = open_attacked(ModelSpec(source=str(tmp_path)))
    (group,) = answers(model, [ask(model, Prompt.from_text("qabc"))], Sampling(temperature=0.0, max_tokens=4), seed=0)
    assert group.completions[0].text == "s"
    with pytest.raises(InputError, match="lacks"):
        open_attacked(ModelSpec(source=str(tmp_path), decoding=Resets()))


def test_attacked_requests_are_prompts_that_are_read_as_they_were_found(tmp_path, resetting):
    resetting.save_pretrained(tmp_path)
    architectures.tokenizer().save_pretrained(tmp_path)
    spec = ModelSpec(source=str(tmp_path))
    requests = [Prompt.from_text(text, gold="g", meta={"kind": "x"}) for text in ("qabc?", "qbca?")]
    pairs = [
        Pair(
            prompt=prompt,
            chosen=Completion(prompt_id=prompt.id, k=0, text="s"),
            rejected=Completion(prompt_id=prompt.id, k=1, text="ufgh"),
        )
        for prompt in requests
    ]
    counts = Counter()
    attack = SuffixAttack(model=spec, search=Search(length=3, budget=200, batch=32), target=2, tail=1)
    found = list(attack(pairs, counts))
    model = open_attacked(spec)
    assert counts.total() == 2 and len(found) == 2
    for prompt, request in zip(found, requests, strict=True):
        text = prompt.text
        assert text.startswith(request.text[:-1]) and text.endswith("?") and len(text) == len(request.text) + 3
        assert (prompt.gold, prompt.meta["kind"], prompt.parents) == ("g", "x", (request.id,))
        # What was found is what a user's text gives: the target's log-prob is that of the ids it is encoded as.
        case = Case(head=tuple(encode_prompt(model.tokenizer, prompt, "plain")), target=ids("uf"))
        assert target_logprob(model.network, case, ()) == pytest.approx(prompt.meta["target_after"], abs=1e-4)
        assert prompt.meta["target_after"] >= prompt.meta["target_before"]
    with pytest.raises(InputError, match="does not decode with resets"):
        list(replace(attack, weight=1.0)(pairs, Counter()))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"start": []}, "a suffix of 0 tokens"),
        ({}, {"search": Search(length=0)}, "a suffix of 0 tokens"),
        ({"target": ()}, {}, "the target is empty"),
        ({"target": (7,) * 200}, {}, "the model's context is 160"),
        ({"head": (7,) * 150}, {}, "the model's context is 160"),
        ({}, {"start": [3, 1]}, "token 1 of the first suffix is not allowed"),
        ({}, {"allowed": ()}, "no token is allowed"),
        ({}, {"keep": lambda suffix: False}, "`keep` is False for the first suffix"),
    ],
)
def test_searches_that_make_no_sense(change, options, message):
    given = {"search": Search(), "allowed": ALLOWED, **options}
    search = given.pop("search")
    with pytest.raises(InputError, match=message):
        coordinate_attack(network(), replace(CASE, **change), search, **given)
    with pytest.raises(InputError, match=message):
        adaptive_attack(network(), replace(CASE, **change), search, reset=2, **given)


def test_other_bad_input():
    for name in ("budget", "batch", "top_k"):
        with pytest.raises(InputError, match=f"{name}=0"):
            Search(**{name: 0})
    with pytest.raises(InputError, match="the target holds the reset token 20"):
        adaptive_attack(network(), CASE, Search(), reset=20, allowed=ALLOWED)
    for options in ({"step": 0}, {"weight": -1.0}):
        with pytest.raises(InputError, match="give a step from 1, a weight from 0"):
            adaptive_attack(network(), CASE, Search(), reset=2, allowed=ALLOWED, **options)
    with pytest.raises(InputError, match="budget=2 is less than its 3 stages"):
        adaptive_attack(network(), CASE, Search(budget=2), reset=2, allowed=ALLOWED)
    assert adaptive_attack(network(), CASE, Search(budget=3), reset=2, allowed=ALLOWED).spent == 3
    with pytest.raises(InputError, match="training mode"):
        coordinate_attack(copy.deepcopy(network()).train(), CASE, Search(), allowed=ALLOWED)
    broken = copy.deepcopy(network())
    broken.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        coordinate_attack(broken, CASE, Search(), allowed=ALLOWED)


def test_a_filter_that_refuses_all_swaps_ends():
    start = (5, 6)
    for exact in (False, True):
        search = Search(budget=20, exact=exact)
        found = coordinate_attack(network(), CASE, search, allowed=ALLOWED, start=start, keep=lambda s: s == start)
        assert found.suffix == start and found.spent <= 20


# --- docs/safety.md --------------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation(tmp_path, monkeypatch, capsys):
    """It runs as it stands, with a tiny model and two requests in place of those it names."""
    page = (Path(__file__).parents[2] / "docs" / "safety.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    tokenizer = copy.deepcopy(architectures.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}?"
    tokenizer.save_pretrained(tmp_path / "my-model")
    network().save_pretrained(tmp_path / "my-model")
    (tmp_path / "safety_prompts").mkdir()
    rows = [{"prompt": f"ask {label}", "label": label} for label in ("safe", "unsafe")]
    (tmp_path / "safety_prompts" / "xstest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    for given, smaller in (("max_tokens=256", "max_tokens=6"), ("budget=10_000", "budget=20")):
        assert given in example
        example = example.replace(given, smaller)
    exec(compile(example, "docs/safety.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| no attack", "| prefill", "| suffix"]
    assert len(lines) == 5 and lines[2].count(" - ") == 0
