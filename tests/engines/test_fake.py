from selftaught.engines.fake import FakeGenerator
from selftaught.specs import Sampling
from selftaught.types import Prompt, completion_id


def test_it_answers_from_the_script() -> None:
    prompts = [Prompt.from_text("one"), Prompt.from_text("two")]
    generator = FakeGenerator(lambda prompt, k: f"{prompt.text} {k}")
    groups = list(generator(prompts, Sampling(k=2)))
    assert [[c.text for c in g] for g in groups] == [["one 0", "one 1"], ["two 0", "two 1"]]
    assert groups == list(generator(prompts, Sampling(k=2)))
    assert groups[1][0].id == completion_id("fake", prompts[1].id, 0)


def test_it_stops_where_a_sampler_would() -> None:
    (prompt,) = [Prompt.from_text("one")]
    generator = FakeGenerator(lambda prompt, k: "12345#6")
    ((stopped,),) = generator([prompt], Sampling(stop=("#",)))
    assert (stopped.text, stopped.finish) == ("12345", "stop")
    ((cut,),) = generator([prompt], Sampling(max_tokens=3))
    assert (cut.text, cut.finish) == ("123", "length")
