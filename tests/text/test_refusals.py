import pytest

from selftaught.text.refusals import refuses


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I can't do that.",
        "I\u2019m very sorry",
        "Sorry, no.",
        "I cannot in good conscience help you",
        "I really can`t recommend it.",
        "As an AI language model, ...",
        "i am not able to say",
        "That's against the law.",
        "I will not provide this",
        "I APOLOGISE, but no",
    ],
)
def test_refusals(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure, here is how.",
        "I can help with that.",
        "The aisle is on the left.",
        "You cannot fail if you practise.",
        "x" * 201 + " I'm sorry, I can't.",
        "\x00\ud800 \u2063",
    ],
)
def test_other_texts(text):
    assert not refuses(text)


@pytest.mark.parametrize("text", ["i " * 10**6, "i can't " * 10**5, "i'm " + " " * 10**6, "\u2019" * 10**6])
def test_long_text_is_read_at_its_start_only(text):
    assert not refuses(text)
