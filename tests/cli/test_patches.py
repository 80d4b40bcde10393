import io
import re
from pathlib import Path

import pytest
import torch

from selftaught import cli
from selftaught.cli import patches as command
from selftaught.models.blt import BltConfig, BltForCausalLM, ByteNgramsConfig, ByteTokenizer, count_ngrams

TEXT = "It was a dark and stormy night; the rain fell in torrents."


@pytest.fixture
def lines(capsys):
    """Return a function that runs the command and returns its lines after the heading, as (rule, mean, patches)."""

    def run(*arguments: object) -> list[tuple[str, str, str]]:
        assert cli.main(["patches", *map(str, arguments)]) == 0
        heading, *rows = capsys.readouterr().out.splitlines()
        assert heading.split() == ["rule", "mean", "bytes", "patches"]
        return [re.fullmatch(r"(\w+) +([\d.]+)  (.*)", row).groups() for row in rows]

    return run


@pytest.fixture
def fails(capsys):
    def run(*arguments: object) -> str:
        assert cli.main(["patches", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("selftaught: ")

    return run


@pytest.fixture
def entropies() -> torch.nn.Module:
    """After "a" comes "b" or "c"; what comes after these is sure."""
    return count_ngrams([torch.tensor([1, *(b + 4 for b in b"abacab" * 50)])], context=1)


def blt(directory: Path, entropy_model=None, **settings) -> Path:
    """Write a small BLT with its own rule."""
    heads = {"num_attention_heads": 2, "global_attention_heads": 2}
    config = BltConfig(hidden_size=8, decoder_layers=1, num_hidden_layers=1, ngram_sizes=[], **heads, **settings)
    if entropy_model is not None:
        config.entropy_config = entropy_model.config
    model = BltForCausalLM(config)
    if entropy_model is not None:
        model.model.entropy_model.load_state_dict(entropy_model.state_dict())
    model.save_pretrained(directory)
    ByteTokenizer().save_pretrained(directory)
    return directory


def test_several_rules_side_by_side(lines):
    shown = lines(TEXT)
    assert [rule for rule, _, _ in shown] == list(command.SHOWN)
    for _, mean, patches in shown:
        assert patches.replace("|", "") == TEXT
        assert float(mean) == pytest.approx(len(TEXT) / len(patches.split("|")), abs=0.005)
    assert {rule: patches for rule, _, patches in shown}["space"].startswith("It |was |a |dark |and ")


def test_the_wanted_length_is_that_of_rules_with_one(lines):
    rules = ("--rule", "entropy", "--rule", "stride", "--rule", "top_k", "--rule", "byte")
    short, long = ({r: float(m) for r, m, _ in lines(TEXT, *rules, "--patch_size", n)} for n in ("2", "8"))
    assert all(short[rule] < long[rule] for rule in ("entropy", "stride", "top_k"))
    assert short["byte"] == long["byte"] == 1.0


def test_a_text_is_read_from_a_file_or_standard_input_byte_for_byte(lines, tmp_path, monkeypatch):
    data = b"caf\xc3\xa9 \xff|\x00\n"
    tmp_path.joinpath("text").write_bytes(data)
    shown = lines("--file", tmp_path / "text", "--rule", "byte")
    assert shown == [("byte", "1.00", r"c|a|f|\xc3|\xa9| |\xff|\||\x00|\n")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert lines("--file", "-", "--rule", "byte") == shown


def test_bytes_of_a_command_line_that_are_no_utf8_are_themselves(lines):
    assert lines(b"a\xff".decode("utf-8", "surrogateescape"), "--rule", "byte")[0][2] == r"a|\xff"


@pytest.mark.parametrize("text", ["<b>&\"' \x1b[31m", "\u202eab 😀👩\u200d👧", "x"])
@pytest.mark.parametrize("name", ["a.html", "a.svg"])
def test_hostile_texts_are_shown_and_drawn(lines, tmp_path, text, name):
    shown = lines(text, "--out", tmp_path / name, "--rule", "entropy", "--rule", "byte")
    assert all(patches.isprintable() for _, _, patches in shown)
    assert "bars: patches by entropy" in (tmp_path / name).read_text(encoding="utf-8")


def test_a_blt_shows_its_own_rule_first(lines, tmp_path, entropies):
    own = blt(tmp_path, entropies, patching="entropy", patching_threshold=0.5)
    shown = lines("abacab", "--model", own)
    assert shown[0] == ("entropy", "1.50", "a|ba|ca|b")
    assert [rule for rule, _, _ in shown] == list(command.SHOWN)
    assert lines("abacab", "--model", own, "--rule", "stride", "--rule", "entropy")[0] == shown[0]


def test_rules_are_shown_as_they_are_named(lines, tmp_path):
    shown = lines(TEXT, "--rule", "bpe", "--rule", "stride", "--rule", "bpe", "--out", tmp_path / "o.svg")
    assert [rule for rule, _, _ in shown] == ["bpe", "stride"]
    assert "bpe" in tmp_path.joinpath("o.svg").read_text(encoding="utf-8")


def test_a_blt_without_entropies_shows_its_own_rule_over_those_of_n_grams(lines, tmp_path):
    own = blt(tmp_path, patching="stride", patch_size=3.0)
    assert lines("abcdefgh", "--model", own)[0] == ("stride", "2.67", "abc|def|gh")


def test_an_entropy_model_is_used_with_a_threshold_found_for_it(lines, tmp_path, entropies):
    entropies.save_pretrained(tmp_path)
    assert isinstance(entropies.config, ByteNgramsConfig)
    ((rule, _, patches),) = lines("abac" * 5, "--model", tmp_path, "--rule", "entropy", "--patch_size", 3)
    assert rule == "entropy" and patches.replace("|", "") == "abac" * 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either a text or --file FILE"),
        (("a", "--file", "b"), "give either a text or --file FILE"),
        (("",), "the text is empty: give at least one byte"),
        (("a" * (command.MOST_BYTES + 1),), "more than 8,000 bytes"),
        (("--file", "no/such/file"), "cannot read no/such/file: No such file"),
        (("--file", "."), "cannot read .: Is a directory"),
        (("a", "--patch_size", "1"), "--patch_size 1.0: give more than 1"),
        (("a", "--patch_size", "nan"), "--patch_size nan: give more than 1"),
        (("a", "--patch_size", "inf"), "--patch_size inf: give more than 1"),
        (("a", "--patch_size", "100000"), "patch_size=100000.0"),
        (("a", "--out", "a.png"), "a.png ends in neither of .html, .svg"),
        (("a", "--model", "no/such/model"), "cannot open no/such/model"),
        (("\ud800",), "lone surrogate"),
        (("a", "--nonsense"), "unknown option '--nonsense'"),
    ],
)
def test_what_cannot_be_done_is_one_line(fails, arguments, said):
    assert said in fails(*arguments)


def test_models_that_have_no_rule_or_read_tokens_are_errors(fails, tmp_path, seed_model):
    assert "reads tokens: give a BLT" in fails("a", "--model", seed_model)
    assert "patching='explicit' finds no boundaries" in fails("a", "--model", blt(tmp_path, patching="explicit"))
    short = blt(tmp_path / "short", patching="space", max_position_embeddings=4)
    assert "4 bytes are more than the 3" in fails("abcd", "--model", short)


def test_nothing_is_drawn_for_a_name_of_another_kind(fails, tmp_path):
    fails("a", "--out", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
