import pytest
import torch
from tests import architectures
from torch import Tensor

from selftaught.errors import InputError
from selftaught.models.decodable import TransformersDecodable
from selftaught.models.probe import open_decodable
from selftaught.models.recompute import RecomputeDecodable

ALL = [*architectures.FAMILIES, *architectures.MASKED, *architectures.UNCACHED]


def full_logits(network, rows: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.stack([network(input_ids=row[None], use_cache=False).logits[0, -1] for row in rows])


def follow(decodable, network, *, vectors: bool = False) -> None:
    """Run rows that fork, leave, join and are cut, far past the window, and compare every step with a full forward."""
    prompts = architectures.prompts(3, 17, 9)
    logits, _, parked = decodable.prefill(prompts)
    torch.testing.assert_close(logits, full_logits(network, prompts), atol=1e-4, rtol=1e-4)
    state = parked.fork(torch.arange(3), 3)
    rows = [p for p in prompts for _ in range(3)]
    generator = torch.Generator().manual_seed(1)
    for step in range(45):
        ids = torch.randint(3, architectures.VOCABULARY, (len(rows),), generator=generator)
        logits, hidden, state = decodable.step(state, decodable.embed(ids) if vectors else ids)
        rows = [torch.cat([row, i[None]]) for row, i in zip(rows, ids, strict=True)]
        assert state.lengths.tolist() == [len(row) for row in rows]
        if step % 4 == 0:
            torch.testing.assert_close(logits, full_logits(network, rows), atol=1e-4, rtol=1e-4)
        if step == 10:
            keep = torch.tensor([7, 2, 3, 0])
            state = state.select(keep).join(parked.fork(torch.tensor([1, 0, 1]), 1))
            rows = [rows[i] for i in keep] + [prompts[1], prompts[0], prompts[1]]
        if step == 20:
            # One row keeps a part of what it decoded, the other only a part of its prompt.
            state.truncate(torch.tensor([0, 4]), torch.tensor([20, 5]))
            rows[0], rows[4] = rows[0][:20], rows[4][:5]
        if step == 30:
            state = state.join(state.fork(torch.tensor([4, 1]), 2))
            rows += [rows[4], rows[4], rows[1], rows[1]]
    assert hidden.shape == (len(rows), decodable.embed(ids).shape[1])


@pytest.mark.parametrize("name", ALL)
def test_decoding_agrees_with_full_forwards(name: str) -> None:
    network = architectures.model(name)
    follow(open_decodable(network, 16), network)


@pytest.mark.parametrize("name", architectures.FAMILIES)
@pytest.mark.parametrize("own_attention", [True, False])
def test_copied_prompts_agree_too(name: str, own_attention: bool) -> None:
    network = architectures.model(name)
    follow(TransformersDecodable(network, 16, share=False, own_attention=own_attention), network)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_vectors_can_be_fed(name: str) -> None:
    network = architectures.model(name)
    follow(TransformersDecodable(network, 16), network, vectors=True)


def test_a_prompt_of_vectors_can_be_read() -> None:
    network = architectures.model("llama")
    decodable = TransformersDecodable(network, 8)
    prompts = architectures.prompts(4, 11)
    from_ids, _, _ = decodable.prefill(prompts)
    from_vectors, _, _ = decodable.prefill([decodable.embed(p) for p in prompts])
    torch.testing.assert_close(from_ids, from_vectors)


def test_each_family_is_decoded_as_it_should() -> None:
    for name in architectures.FAMILIES:
        decodable = open_decodable(architectures.model(name), 8)
        assert isinstance(decodable, TransformersDecodable) and decodable.own_attention, name
    for name in architectures.MASKED:
        decodable = open_decodable(architectures.model(name), 8)
        assert isinstance(decodable, TransformersDecodable) and not decodable.own_attention, name
    for name in architectures.UNCACHED:
        assert isinstance(open_decodable(architectures.model(name), 8), RecomputeDecodable), name


def test_hidden_feeds_the_output_layer() -> None:
    network = architectures.model("llama")
    decodable = TransformersDecodable(network, 8)
    logits, hidden, state = decodable.prefill(architectures.prompts(5, 9))
    torch.testing.assert_close(network.lm_head(hidden).float(), logits)
    logits, hidden, _ = decodable.step(state, torch.tensor([4, 5]))
    torch.testing.assert_close(network.lm_head(hidden).float(), logits)


def test_the_model_is_left_as_it_was() -> None:
    network = architectures.model("gemma3")
    before = network.config._attn_implementation
    ids = architectures.prompts(20)[0][None]
    with torch.no_grad():
        expected = network(ids).logits
        TransformersDecodable(network, 8).prefill(architectures.prompts(5))
        assert network.config._attn_implementation == before
        assert torch.equal(network(ids).logits, expected)


def test_a_prompt_longer_than_a_chunk_of_queries() -> None:
    from selftaught.models import attention

    network = architectures.model("mistral with a window")
    prompts = architectures.prompts(attention.QUERY_CHUNK // 2, 3)
    long = torch.cat([prompts[0]] * 3)
    logits, _, _ = TransformersDecodable(network, 8).prefill([long, prompts[1]])
    torch.testing.assert_close(logits, full_logits(network, [long, prompts[1]]), atol=1e-4, rtol=1e-4)


def test_fewer_than_eight_slots_are_refused() -> None:
    with pytest.raises(InputError, match="slots is 4: use at least 8"):
        TransformersDecodable(architectures.model("llama"), 4)


def test_two_states_must_be_joined_before_a_step() -> None:
    decodable = TransformersDecodable(architectures.model("llama"), 8)
    _, _, parked = decodable.prefill(architectures.prompts(5))
    one, _other = (parked.fork(torch.tensor([0]), 2) for _ in range(2))
    with pytest.raises(RuntimeError, match="join all states"):
        decodable.step(one, torch.tensor([3, 3]))


def test_bfloat16_decodes_like_a_bfloat16_forward() -> None:
    import copy

    network = copy.deepcopy(architectures.model("llama")).to(torch.bfloat16)
    decodable = TransformersDecodable(network, 8)
    prompts = architectures.prompts(12, 5)
    logits, _, parked = decodable.prefill(prompts)
    assert logits.dtype == torch.float32
    logits, hidden, _ = decodable.step(parked.fork(torch.arange(2), 1), torch.tensor([5, 6]))
    assert hidden.dtype == torch.bfloat16
    rows = [torch.cat([p, torch.tensor([i])]) for p, i in zip(prompts, (5, 6), strict=True)]
    expected = full_logits(network, rows).float()
    assert (logits - expected).abs().max() < 0.05 * expected.std()
