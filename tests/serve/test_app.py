"""The server as OpenAI's own client sees it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
import torch
from openai import OpenAI
from tests import architectures
from tests.serve.serving import WAIT, Retracting, Server, running
from tests.serve.test_stream import BYTES

from selftaught.engines.sampler import generate
from selftaught.specs import Sampling
from selftaught.types import Message, Prompt

TEXTS = ("abc", "the quick brown fox", "12 34 56", "x")
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "seed": 5}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def retracting() -> Iterator[Server]:
    with running(policy=Retracting()) as server:
        yield server


def chat(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


def drawn(text: str, k: int = 1, seed: int = 5, **sampling: Any) -> list[Any]:
    """Return what `selftaught generate` would draw."""
    settings = Sampling(**{"k": k, "max_tokens": 12} | sampling)
    rows = generate(
        architectures.model("llama"), architectures.tokenizer(), [Prompt.from_text(text)], settings, seed=seed, slots=8
    )
    return next(iter(rows))


def test_the_model_is_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny" and client.models.retrieve("tiny").id == "tiny"


def test_it_draws_what_generate_draws(client: OpenAI) -> None:
    found = client.completions.create(prompt="abc", n=3, temperature=0.7, top_p=0.9, logprobs=0, **ASKED)
    expected = drawn("abc", 3, temperature=0.7, top_p=0.9)
    assert [c.text for c in found.choices] == [c.text for c in expected]
    assert [c.finish_reason for c in found.choices] == [c.finish for c in expected]
    assert [c.index for c in found.choices] == [0, 1, 2]
    assert [c.logprobs.token_logprobs for c in found.choices] == [pytest.approx(c.logprobs, abs=1e-5) for c in expected]
    tokens = sum(len(c.token_ids) for c in expected)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (
        3,
        tokens,
        3 + tokens,
    )
    assert (found.object, found.model) == ("text_completion", "tiny")


def test_logprobs_are_of_the_untempered_distribution(client: OpenAI) -> None:
    found = client.chat.completions.create(messages=chat("abc"), temperature=0.3, logprobs=True, **ASKED).choices[0]
    prefix = architectures.tokenizer()("abc")["input_ids"]
    for token in found.logprobs.content:
        with torch.no_grad():
            logps = architectures.model("llama")(torch.tensor([prefix])).logits[0, -1].log_softmax(-1)
        drawn_id = architectures.tokenizer().convert_tokens_to_ids(token.token) if token.token else 1
        assert logps[drawn_id].item() == pytest.approx(token.logprob, abs=1e-4)
        assert bytes(token.bytes).decode() == token.token and token.top_logprobs == []
        prefix = [*prefix, drawn_id]
    assert "".join(t.token for t in found.logprobs.content) == found.message.content


def test_text_offsets_point_into_the_text(client: OpenAI) -> None:
    choice = client.completions.create(prompt="abc", logprobs=0, **ASKED).choices[0]
    spans = zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)
    assert all(choice.text[start:].startswith(token) for start, token in spans)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_chat_tokens_by_either_name(client: OpenAI, field: str) -> None:
    found = client.chat.completions.create(model="tiny", messages=chat("abc"), temperature=0, **{field: 3})
    assert found.usage.completion_tokens == 3 and found.choices[0].finish_reason == "length"
    assert found.choices[0].message.role == "assistant"


def test_a_completion_has_sixteen_tokens_unless_asked_otherwise(client: OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt="abc", seed=0, logit_bias={})
    assert found.usage.completion_tokens == 16


def test_a_chat_goes_on_to_the_end_of_the_context(client: OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=chat("a" * 150), n=6, seed=1)
    assert {c.finish_reason for c in found.choices} <= {"stop", "length"}
    assert found.usage.completion_tokens <= 6 * (architectures.CONTEXT - 150 + 1)


def test_turns_are_rendered_by_the_template(server: Server) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "abc"}]}]
    found = server.client().chat.completions.create(messages=turns, temperature=0, **ASKED)
    assert found.choices[0].message.content == drawn("be brief\nabc", temperature=0)[0].text


def test_the_tokenizers_own_chat_template_is_used() -> None:
    import copy

    tokenizer = copy.deepcopy(architectures.tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ '<eos>' if m.role == 'assistant' else '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    with running(tokenizer=tokenizer) as server:
        found = server.client().chat.completions.create(messages=chat("abc"), temperature=0, **ASKED)
        raw = server.client().completions.create(prompt="u:abc\na:", temperature=0, **ASKED)
        assert found.choices[0].message.content == raw.choices[0].text and found.usage.prompt_tokens == 8


def test_lists_of_prompts(client: OpenAI) -> None:
    found = client.completions.create(prompt=["abc", "x", "abc"], n=2, **ASKED)
    first, second = drawn("abc", 2), drawn("x", 2)
    assert [c.text for c in found.choices[:4]] == [c.text for c in (*first, *second)]
    # The same prompt asked twice at once is answered twice, not copied.
    assert [c.text for c in found.choices[4:]] != [c.text for c in first]
    assert found.usage.prompt_tokens == 7


def test_prompts_of_token_ids(client: OpenAI) -> None:
    ids = architectures.tokenizer()("abc")["input_ids"]
    texts = client.completions.create(prompt="abc", temperature=0, **ASKED).choices[0].text
    one = client.completions.create(prompt=ids, temperature=0, **ASKED)
    two = client.completions.create(prompt=[ids, ids], temperature=0, **ASKED)
    assert [c.text for c in (*one.choices, *two.choices)] == [texts] * 3


def test_stop_strings_end_the_text(client: OpenAI) -> None:
    whole = client.completions.create(prompt="abc", temperature=0, **ASKED).choices[0].text
    for stop in (whole[4:6], [whole[8], whole[4:6]]):
        cut = client.completions.create(prompt="abc", temperature=0, stop=stop, **ASKED).choices[0]
        assert (cut.text, cut.finish_reason) == (whole[: whole.index(whole[4:6])], "stop")
        streamed = client.completions.create(prompt="abc", temperature=0, stop=stop, stream=True, **ASKED)
        assert "".join(c.choices[0].text for c in streamed) == cut.text


def test_top_k_and_min_p_are_extra_fields(client: OpenAI) -> None:
    greedy = client.completions.create(prompt="abc", temperature=0, **ASKED).choices[0].text
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert client.completions.create(prompt="abc", extra_body=extra, **ASKED).choices[0].text == greedy


def test_without_a_seed_samples_differ(client: OpenAI) -> None:
    texts = [client.completions.create(model="tiny", prompt="abc", max_tokens=12).choices[0].text for _ in range(3)]
    assert len(set(texts)) == 3


def test_fields_that_ask_for_nothing_are_accepted(client: OpenAI) -> None:
    extra = {"suffix": None, "best_of": 1, "echo": False, "user": "someone", "frequency_penalty": 0, "top_logprobs": 0}
    assert client.completions.create(prompt="abc", extra_body=extra, **ASKED).choices[0].text == drawn("abc")[0].text


@pytest.mark.parametrize("n", [1, 3])
def test_a_chat_stream_adds_up(client: OpenAI, n: int) -> None:
    asked = {"messages": chat("abc"), "n": n, "logprobs": True, **ASKED}
    whole = client.chat.completions.create(**asked)
    texts, tokens, finishes = [""] * n, [[] for _ in range(n)], {}
    *chunks, last = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    assert [c.delta.role for c in chunks[0].choices] == ["assistant"] * n
    for choice in (c for chunk in chunks for c in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert texts == [c.message.content for c in whole.choices]
    assert tokens == [c.logprobs.content for c in whole.choices]
    assert finishes == {c.index: c.finish_reason for c in whole.choices}
    assert last.usage == whole.usage and last.choices == []
    assert len(chunks) > 6 and len({c.id for c in chunks}) == 1


def test_the_stream_is_server_sent_events(server: Server) -> None:
    asked = {"prompt": "abc", "stream": True, **ASKED}
    answer = httpx2.post(f"{server.url}/completions", json=asked, timeout=WAIT)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "") and all(e.startswith("data: ") for e in events)
    text = "".join(json.loads(e[6:])["choices"][0]["text"] for e in events)
    assert text == drawn("abc")[0].text


def test_a_stream_never_holds_half_a_character() -> None:
    """Byte tokens of a random model make many invalid characters; valid ones come whole, and all adds up."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257, eos_token_id=256, max_position_embeddings=64, **sizes)).eval()
    with running(model, tokenizer=BYTES) as server:
        asked = {"model": "tiny", "prompt": "é√", "max_tokens": 40, "seed": 1}
        whole = server.client().completions.create(**asked).choices[0].text
        pieces = [c.choices[0].text for c in server.client().completions.create(stream=True, **asked)]
        assert "".join(pieces) == whole and len(pieces) > 5


def test_concurrent_requests_are_batched_and_equal_those_alone(server: Server) -> None:
    def ask(i: int) -> tuple[str, str]:
        made = server.client().completions.create(
            model="tiny", prompt=TEXTS[i % 4] + str(i), max_tokens=10 + i % 7, seed=i, temperature=0.5 + i / 32
        )
        return made.choices[0].text, made.choices[0].finish_reason

    alone = [ask(i) for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == alone


def test_retractions_add_up_to_the_final_text(retracting: Server) -> None:
    """A client that drops `retract` characters from its end and then appends has what is not streamed."""
    client = retracting.client()
    for n, stop in ((1, None), (3, ["a", "e"])):
        asked = {"messages": chat("abc"), "n": n, "stop": stop, "logprobs": True, **ASKED, "max_tokens": 30}
        whole = client.chat.completions.create(**asked)
        texts, tokens, last, taken = [""] * n, [[] for _ in range(n)], {}, 0
        for chunk in client.chat.completions.create(stream=True, **asked):
            for choice in chunk.choices:
                extra, i = choice.model_extra or {}, choice.index
                back = extra.get("retract", 0)
                taken += back
                texts[i] = texts[i][: len(texts[i]) - back] + (choice.delta.content or "")
                tokens[i] = tokens[i][: len(tokens[i]) - extra.get("retract_tokens", 0)]
                tokens[i] += choice.logprobs.content if choice.logprobs else []
                last[i] = extra
        assert texts == [c.message.content for c in whole.choices]
        assert tokens == [c.logprobs.content for c in whole.choices]
        assert taken > 0
        for choice in whole.choices:
            assert {k: last[choice.index].get(k) for k in choice.model_extra} == choice.model_extra


def test_what_was_taken_back_is_told(retracting: Server) -> None:
    """Tokens 4 to 7, and then of 9 to 14 the last four: two retractions, eight tokens, 14 draws."""
    found = retracting.client().completions.create(
        prompt="abc", n=1, logprobs=0, **ASKED | {"max_tokens": 14, "seed": 0}
    )
    choice = found.choices[0]
    discarded, latents = choice.model_extra["discarded"], choice.model_extra["latents"]
    assert found.usage.completion_tokens == 14
    assert (discarded["retractions"], discarded["tokens"]) == (2, 8)
    assert sum(map(len, discarded["texts"])) == 8 and len(choice.text) == 6 == len(choice.logprobs.tokens)
    assert latents == {"choice": [float(i) for i in range(1, 15)]}


def test_a_policys_options_are_extra_fields(retracting: Server) -> None:
    retracting.engine._sampler.policy.seen.clear()
    client = retracting.client()
    found = client.completions.create(prompt="abc", extra_body={"every": 100}, **ASKED)
    assert "discarded" not in found.choices[0].model_extra
    client.completions.create(prompt="abc", temperature=0.5, **ASKED)
    client.completions.create(prompt="abc", **ASKED)
    # A temperature that is asked for switches off the head's.
    assert retracting.engine._sampler.policy.seen == [{"every": 100}, {"adaptive": 0}, {}]


def test_a_filter_that_would_do_nothing_is_refused(retracting: Server) -> None:
    """Where the model chooses temperature and filters, a filter of the request needs a temperature of the request."""
    client = retracting.client()
    with pytest.raises(openai.BadRequestError, match="top_p would do nothing"):
        client.completions.create(prompt="abc", top_p=0.9, **ASKED)
    assert client.completions.create(prompt="abc", top_p=0.9, temperature=1, **ASKED).choices
    assert client.completions.create(prompt="abc", top_p=1, **ASKED).choices


@pytest.mark.parametrize("value", ["1", True, [1], {}, 10**400])
def test_an_option_is_a_number(retracting: Server, value: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"every is a .*: give a finite number"):
        retracting.client().completions.create(prompt="abc", extra_body={"every": value}, **ASKED)


def test_a_system_turn_alone_is_a_prompt(client: OpenAI) -> None:
    turns = [Message(role="system", content="abc")]
    found = client.chat.completions.create(
        messages=[{"role": m.role, "content": m.content} for m in turns], temperature=0, **ASKED
    )
    assert found.choices[0].message.content == drawn("abc", temperature=0)[0].text
