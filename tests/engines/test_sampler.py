from dataclasses import replace

import pytest
import torch
from tests import architectures

from selftaught.engines.policy import SoftmaxPolicy
from selftaught.engines.sampler import Request, Sampler, default_slots, generate
from selftaught.errors import InputError
from selftaught.models.decodable import TransformersDecodable
from selftaught.specs import Sampling
from selftaught.store.seeds import row_seed
from selftaught.types import Prompt, completion_id

TEXTS = ("abc", "the quick brown fox jumps", "x", "12 34 56 78 90", "lorem ipsum dolor sit amet consectetur", "zz top")
GREEDY = Sampling(temperature=0.0, max_tokens=40)
WARM = Sampling(k=4, temperature=1.0, max_tokens=30)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt.from_text(t) for t in texts or TEXTS]


def run(name: str = "llama", sampling: Sampling = WARM, rows=None, slots: int = 16, **options):
    """Return {prompt id: its completions}."""
    rows = prompts() if rows is None else rows
    network = options.pop("network", None) or architectures.model(name)
    options.setdefault("seed", 0)
    found = generate(network, architectures.tokenizer(), rows, sampling, slots=slots, **options)
    return {prompt.id: completions for prompt, completions in zip(rows, found, strict=True)}


def drawn(groups) -> dict:
    """Return everything a row drew, to the bit."""
    return {(p, c.k): (c.token_ids, c.logprobs, c.text, c.finish) for p, cs in groups.items() for c in cs}


def transformers_greedy(name: str, text: str) -> list[int]:
    ids = torch.tensor([architectures.tokenizer()(text)["input_ids"]])
    network = architectures.model(name)
    out = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=1)
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", [*architectures.FAMILIES, *architectures.MASKED])
def test_greedy_is_what_transformers_generates(name: str, k: int) -> None:
    found = run(name, replace(GREEDY, k=k), slots=8)
    for prompt in prompts():
        expected = transformers_greedy(name, prompt.text)
        for completion in found[prompt.id]:
            assert list(completion.token_ids) == expected
            assert completion.finish == ("stop" if expected[-1] == 1 else "length")


@pytest.mark.parametrize("name", architectures.UNCACHED)
def test_greedy_without_a_cache(name: str) -> None:
    found = run(name, replace(GREEDY, max_tokens=6), rows=prompts(*TEXTS[:3]), slots=8)
    for prompt in prompts(*TEXTS[:3]):
        expected = transformers_greedy(name, prompt.text)
        assert list(found[prompt.id][0].token_ids) == expected[: len(found[prompt.id][0].token_ids)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral with a window", "gemma2"])
def test_logprobs_are_those_of_a_full_forward(name: str) -> None:
    network, encode = architectures.model(name), architectures.tokenizer()
    for prompt_id, completions in run(name, replace(WARM, temperature=0.7, top_p=0.9)).items():
        text = next(p.text for p in prompts() if p.id == prompt_id)
        for completion in completions:
            ids = torch.tensor([encode(text)["input_ids"] + list(completion.token_ids)])
            n = len(completion.token_ids)
            with torch.no_grad():
                logps = network(ids).logits[0, -n - 1 : -1].log_softmax(-1)
            expected = logps.gather(-1, ids[0, -n:, None]).squeeze(-1)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral with a window"])
def test_rows_do_not_depend_on_order_or_company(name: str) -> None:
    """Bit for bit, with a fixed number of slots: reversed order, one prompt left out, a much longer one added."""
    together = drawn(run(name))
    assert drawn(run(name, rows=prompts(*TEXTS[::-1]))) == together
    fewer = drawn(run(name, rows=prompts(*TEXTS[1:3])))
    assert fewer == {key: together[key] for key in fewer}
    longer = drawn(run(name, rows=prompts("a" * 70, *TEXTS)))
    assert {key: longer[key] for key in together} == together


def test_rows_do_not_depend_on_the_number_of_samples() -> None:
    four, eight = drawn(run(sampling=WARM)), drawn(run(sampling=replace(WARM, k=8)))
    assert four == {key: eight[key] for key in four}


def test_numbering_can_start_later() -> None:
    eight = drawn(run(sampling=replace(WARM, k=8)))
    last = drawn(run(first_k=4))
    assert last == {key: eight[key] for key in last} and {k for _, k in last} == {4, 5, 6, 7}


def test_a_bfloat16_model_repeats_its_rows_too() -> None:
    import copy

    network = copy.deepcopy(architectures.model("llama")).to(torch.bfloat16)
    together = drawn(run(network=network))
    apart = drawn(run(network=network, rows=prompts(*TEXTS[3:5])))
    assert apart == {key: together[key] for key in apart}


def test_samples_differ_and_repeat() -> None:
    first = run()
    assert drawn(run()) == drawn(first)
    assert drawn(run(seed=1)) != drawn(first)
    for completions in first.values():
        assert len({c.token_ids for c in completions}) == WARM.k


def test_completions_are_labelled() -> None:
    (completions,) = run(rows=prompts("abc"), stage_key="stage", model_id="tiny").values()
    prompt = prompts("abc")[0]
    assert [c.k for c in completions] == [0, 1, 2, 3]
    assert [c.id for c in completions] == [completion_id("stage", prompt.id, k) for k in range(4)]
    assert {c.model for c in completions} == {"tiny"} and all(c.tokenizer for c in completions)
    assert all(len(c.token_ids) == len(c.logprobs) <= 30 for c in completions)


def test_the_end_token_is_drawn_but_not_shown() -> None:
    for completions in run(sampling=replace(WARM, k=8, max_tokens=100)).values():
        for c in completions:
            assert (c.finish == "stop") == (c.token_ids[-1] == 1)
            assert "<eos>" not in c.text


def test_tokens_end_where_the_context_does() -> None:
    text = "a" * (architectures.CONTEXT - 10)
    (completions,) = run(rows=prompts(text), sampling=Sampling(k=8, max_tokens=500)).values()
    # The last of the eleven tokens is drawn at the last position and never read.
    assert max(len(c.token_ids) for c in completions) == 11


def test_a_prompt_that_fills_the_context_is_refused_before_anything_is_sampled() -> None:
    rows = prompts("abc", "a" * architectures.CONTEXT)
    with pytest.raises(InputError, match=f"prompt {rows[1].id} has 160 tokens but the model's context is 160: shorten"):
        generate(architectures.model("llama"), architectures.tokenizer(), rows, WARM, seed=0)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="is empty"):
        run(rows=[Prompt.from_text("")])


def test_a_model_in_training_mode_is_refused() -> None:
    network = architectures.model("llama").train()
    try:
        with pytest.raises(InputError, match=r"call model\.eval"):
            Sampler(network, architectures.tokenizer())
    finally:
        network.eval()


def test_logits_that_are_not_finite_are_an_error() -> None:
    import copy

    network = copy.deepcopy(architectures.model("llama"))
    network.model.norm.weight.data[:] = float("nan")
    with pytest.raises(InputError, match="not finite after 0 tokens"):
        run(network=network)


def test_no_prompts_give_nothing() -> None:
    assert run(rows=[]) == {}


def test_a_request_ends_at_a_string_that_straddles_tokens() -> None:
    stop = (" ", "st", "ab")
    free = run(sampling=replace(WARM, k=8, max_tokens=100))
    cut = run(sampling=replace(WARM, k=8, max_tokens=100, stop=stop))
    stopped = 0
    for prompt_id, completions in cut.items():
        for c, whole in zip(completions, free[prompt_id], strict=True):
            assert not any(s in c.text for s in stop)
            ends = [whole.text.find(s) + len(s) for s in stop if s in whole.text]
            if ends:
                # The tokens that formed the string stay in token_ids: they were drawn.
                assert whole.token_ids[: len(c.token_ids)] == c.token_ids and c.finish == "stop"
                assert sum(t > 2 for t in c.token_ids) == min(ends)  # special tokens are not text
                stopped += 1
            else:
                assert c == whole
    assert stopped > 5


def request(name: str, text: str, k: int = 2, stream: bool = False, **sampling) -> Request:
    ids = tuple(architectures.tokenizer()(text)["input_ids"])
    settings = Sampling(max_tokens=sampling.pop("max_tokens", 20), **sampling)
    return Request(
        id=name, prompt=ids, sampling=settings, seeds=tuple(row_seed(0, name, i) for i in range(k)), stream=stream
    )


def finish(sampler: Sampler) -> dict:
    outputs = {}
    while sampler.busy:
        for event in sampler.run_step():
            if event.kind == "done":
                outputs[event.request, event.sample] = event.output
    return outputs


def test_requests_with_different_settings_run_together() -> None:
    settings = {
        "a": {"temperature": 0.0},
        "b": {"top_k": 3},
        "c": {"temperature": 0.5, "top_p": 0.8},
        "d": {"stop": ("e",)},
    }
    sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=16)
    for name, options in settings.items():
        sampler.submit(request(name, TEXTS[1], **options))
    together = finish(sampler)
    for name, options in settings.items():
        alone = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=16)
        alone.submit(request(name, TEXTS[1], **options))
        assert finish(alone) == {key: value for key, value in together.items() if key[0] == name}


def test_events_of_a_stream_add_up_to_its_output() -> None:
    sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=8)
    sampler.submit(request("shown", "abc", stream=True))
    sampler.submit(request("silent", "abc"))
    events = []
    while sampler.busy:
        events += sampler.run_step()
    assert {e.kind for e in events if e.request == "silent"} == {"done"}
    for sample in range(2):
        mine = [e for e in events if (e.request, e.sample) == ("shown", sample)]
        output = mine[-1].output
        assert [e.kind for e in mine] == ["token"] * len(output.token_ids) + ["done"]
        assert tuple(e.token for e in mine[:-1]) == output.token_ids
        assert tuple(e.logprob for e in mine[:-1]) == output.logprobs


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_cancelled_request_leaves_the_others_alone(steps: int) -> None:
    def serve(*, cancelled: bool):
        sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=8)
        sampler.submit(request("a", TEXTS[0], k=3, max_tokens=40))
        sampler.submit(request("b", TEXTS[1], k=10, max_tokens=40))
        outputs = {}
        for _ in range(steps):
            outputs |= {(e.request, e.sample): e.output for e in sampler.run_step()}
        if cancelled:
            sampler.cancel("b")
            sampler.cancel("nobody")
        return outputs | finish(sampler)

    whole, rest = serve(cancelled=False), serve(cancelled=True)
    assert {k: v for k, v in rest.items() if k[0] == "a"} == {k: v for k, v in whole.items() if k[0] == "a"}
    assert not [k for k in rest if k[0] == "b"] or steps > 0


def test_a_cancelled_request_frees_its_seats() -> None:
    sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=8)
    sampler.submit(request("a", TEXTS[0], k=8))
    sampler.run_step()
    sampler.cancel("a")
    assert not sampler.busy and sampler.run_step() == []
    sampler.submit(request("b", TEXTS[0], k=8))
    assert len(finish(sampler)) == 8


def test_requests_that_ask_for_nothing_are_refused() -> None:
    sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=8)
    with pytest.raises(InputError, match="0 samples of 20 tokens"):
        sampler.submit(request("a", "abc", k=0))
    with pytest.raises(InputError, match="1 samples of 0 tokens"):
        sampler.submit(request("a", "abc", k=1, max_tokens=0))


def test_more_samples_than_slots() -> None:
    (completions,) = run(rows=prompts("abc"), sampling=replace(WARM, k=21), slots=8).values()
    assert len({c.token_ids for c in completions}) == 21
    (few,) = run(rows=prompts("abc"), sampling=replace(WARM, k=4), slots=8).values()
    assert few == completions[:4]


def test_bits_hold_where_prompts_are_read_alone_and_all_slots_are_computed(monkeypatch) -> None:
    """What a machine falls back to whose products depend on the number of rows."""
    from selftaught.models import decodable

    expected = drawn(run())
    monkeypatch.setattr(decodable, "rows_agree", lambda model: False)
    network = TransformersDecodable(architectures.model("llama"), 16)
    assert network.prefill_alone and network.slab.widths == (16,)
    assert drawn(run(network=network)) == expected
    assert (
        drawn(run(network=TransformersDecodable(architectures.model("llama"), 16), rows=prompts(*TEXTS[::-1])))
        == expected
    )


def test_default_slots_follow_size_and_memory(monkeypatch) -> None:
    network = architectures.model("llama")
    assert default_slots(network) == 256
    # A row of 512 columns takes 2 layers x 2 x 2 heads x 8 x 512 x 4 bytes = 131,072.
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 4 * 20, "SC_PAGE_SIZE": 131072}.__getitem__)
    assert default_slots(network) == 16


def test_a_policy_is_given_the_prompts_and_their_settings() -> None:
    seen = []

    class Noting(SoftmaxPolicy):
        def start(self, requests, embed):
            seen.extend((request.prompt, request.sampling) for request in requests)
            assert embed(torch.tensor([3, 4])).shape == (2, 32)
            return super().start(requests, embed)

    run(rows=prompts("abc"), policy=Noting())
    assert seen == [((3, 4, 5), WARM)] * 4


def test_an_option_the_policy_does_not_know_is_refused() -> None:
    request = Request(id="r7", prompt=(3, 4), sampling=WARM, seeds=(1,), options={"reset_bias": 2.0})
    sampler = Sampler(architectures.model("llama"), architectures.tokenizer(), slots=8)
    with pytest.raises(InputError, match="request r7 has the option 'reset_bias': this model's decoding knows none"):
        sampler.submit(request)
    sampler.policy.options = {"reset_bias": lambda value: "a number above 2" if value <= 2 else None}
    with pytest.raises(InputError, match=r"request r7 has reset_bias=2\.0: give a number above 2"):
        sampler.submit(request)
    sampler.submit(replace(request, options={"reset_bias": 3.0}))
    assert sampler.queued == 1
