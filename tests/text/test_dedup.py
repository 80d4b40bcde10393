import random

from hypothesis import given
from hypothesis import strategies as st

from selftaught.text.dedup import find_duplicates, lcs_length, normalise, rouge_l, words

TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), max_size=12).map(" ".join), max_size=12)


def naive_lcs(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def naive_duplicates(texts, against, threshold):
    kept, result = list(against), []
    for text in texts:
        if normalise(text) in map(normalise, kept):
            result.append("exact duplicate")
        elif any(rouge_l(words(text), words(other)) > threshold for other in kept):
            result.append("near duplicate")
        else:
            result.append("kept")
            kept.append(text)
    return result


@given(st.lists(st.sampled_from("abcd"), max_size=90), st.lists(st.sampled_from("abcd"), max_size=90))
def test_lcs_agrees_with_the_table(first, second):
    assert lcs_length(first, second) == naive_lcs(first, second)


@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_the_index_misses_nothing(texts, against, threshold):
    assert find_duplicates(texts, against, threshold) == naive_duplicates(texts, against, threshold)


def test_near_duplicates_of_longer_texts():
    source = random.Random(0)
    texts = [" ".join(source.choices("abcdefghijklmnop", k=30)) for _ in range(60)]
    texts += [" ".join(word for word in text.split() if source.random() > 0.25) for text in texts]
    found = find_duplicates(texts, threshold=0.7)
    assert found == naive_duplicates(texts, [], 0.7)
    assert set(found[60:]) >= {"near duplicate"}


def test_worked_value():
    """The LCS of "the cat sat on the mat" and "the cat on a mat" is "the cat on mat": ROUGE-L = 2*4 / (6+5) = 8/11."""
    assert rouge_l(words("the cat sat on the mat"), words("the cat on a mat")) == 8 / 11
    assert find_duplicates(["The cat sat on the mat.", "the cat on a mat"]) == ["kept", "near duplicate"]
    assert find_duplicates(["The cat sat on the mat.", "the cat on a mat"], threshold=0.8) == ["kept", "kept"]


def test_exact_only():
    texts = ["a=1;a?", "a=2;a?", " A=1;a? "]
    assert find_duplicates(texts, threshold=None) == ["kept", "kept", "exact duplicate"]
    assert find_duplicates(texts, against=["a=2;a?"], threshold=None)[1] == "exact duplicate"


def test_texts_without_words():
    assert find_duplicates(["", "!!", "!!", "??"]) == ["kept", "kept", "exact duplicate", "kept"]
