from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from selftaught.errors import InputError
from selftaught.models.load import tokenizer_fingerprint
from selftaught.models.scratch import train_tokenizer
from selftaught.models.special_tokens import add_to_tokenizer
from selftaught.specs import Scratch
from selftaught.text.templates import (
    answer_start,
    encode_completion,
    encode_prompt,
    end_token_ids,
    pad_id_for,
    prefilled,
    render,
    whole_answer,
)
from selftaught.types import Completion, Message, Prompt

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITHOUT_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
REWRITING = "{% for m in messages %}{{ loop.length }} {{ m.content }}<|end|>{% endfor %}"
ALTERNATING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT
PROMPT = Prompt(messages=(Message(role="system", content="Be brief."), Message(role="user", content="2+2?")))


def tokenizer_of(chat: str | None = None, *, eos: bool = True, added: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters; `added` puts <s> before and </s> behind every text, as some do."""
    tokenizer = train_tokenizer(Scratch(tokenizer="char"), ["Be brief. 0123456789+?=#:\nuserassistantsystemx"])
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"] * bool(chat) + ["<s>", "</s>"] * added
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.chat_template = chat
    if added:
        tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
        around = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    if not eos:
        tokenizer.eos_token = None
    return tokenizer


def tokens(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def completion_of(tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int] | None, finish: str = "stop"):
    """Return a completion that this tokenizer sampled."""
    return Completion(
        prompt_id=PROMPT.id,
        k=0,
        text=text,
        token_ids=None if ids is None else tuple(ids),
        finish=finish,
        tokenizer=tokenizer_fingerprint(tokenizer),
    )


def targets(tokenizer: PreTrainedTokenizerFast, completion: Completion, template: str) -> tuple[str, bool]:
    ids, again = encode_completion(tokenizer, PROMPT, completion, template, tokenizer_fingerprint(tokenizer))
    return tokens(tokenizer, ids), again


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_plain_joins_the_turns():
    assert render(PROMPT, "plain") == "Be brief.\n2+2?"


def test_chat_opens_the_assistants_turn():
    tokenizer = tokenizer_of(CHAT)
    assert render(PROMPT, "chat", tokenizer) == "<|system|>Be brief.<|end|>\n<|user|>2+2?<|end|>\n<|assistant|>"
    assert tokens(tokenizer, encode_prompt(tokenizer, PROMPT, "chat")) == render(PROMPT, "chat", tokenizer)


def test_a_jinja_file_sees_the_messages(tmp_path: Path):
    file = tmp_path / "question.jinja"
    file.write_text("{{ messages[-1].content }}=", encoding="utf-8")
    assert render(PROMPT, str(file)) == "2+2?="


def test_a_tokenizers_bos_leads_and_its_eos_does_not_close_a_prompt():
    tokenizer = tokenizer_of(added=True)
    assert tokens(tokenizer, encode_prompt(tokenizer, Prompt.from_text("2+2?"), "plain")) == "<s>2+2?"


def test_chat_templates_write_their_own_bos():
    tokenizer = tokenizer_of("<s>" + CHAT, added=True)
    assert tokens(tokenizer, encode_prompt(tokenizer, PROMPT, "chat")).count("<s>") == 1


def test_an_eos_that_the_prompt_itself_ends_with_stays():
    tokenizer = tokenizer_of()
    assert tokens(tokenizer, encode_prompt(tokenizer, Prompt.from_text("2<eos>"), "plain")) == "2<eos>"


def test_a_prompt_of_nothing_but_eos_is_kept():
    tokenizer = tokenizer_of(added=True)
    assert encode_prompt(tokenizer, Prompt.from_text(""), "plain") == [tokenizer.bos_token_id]


# --- end of turn -----------------------------------------------------------------------------------------------------


def test_end_tokens():
    tokenizer = tokenizer_of(CHAT)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end_token_ids(tokenizer, "plain") == (tokenizer.eos_token_id,)
    assert end_token_ids(tokenizer, "chat") == (tokenizer.eos_token_id, end)


def test_an_end_of_turn_that_is_eos_counts_once():
    tokenizer = tokenizer_of(CHAT)
    tokenizer.eos_token = "<|end|>"
    assert end_token_ids(tokenizer, "chat") == (tokenizer.eos_token_id,)


def test_without_eos_there_is_no_end_token():
    assert end_token_ids(tokenizer_of(eos=False), "plain") == ()


def test_a_template_that_closes_no_turn_adds_no_end_token():
    tokenizer = tokenizer_of(WITHOUT_END)
    assert end_token_ids(tokenizer, "chat") == (tokenizer.eos_token_id,)


# --- completions -----------------------------------------------------------------------------------------------------


def test_sampled_ids_are_kept_even_where_the_text_encodes_otherwise():
    tokenizer = tokenizer_of()
    odd = [tokenizer.unk_token_id, tokenizer.convert_tokens_to_ids("4"), tokenizer.eos_token_id]
    ids, again = encode_completion(
        tokenizer, PROMPT, completion_of(tokenizer, "4", odd), "plain", tokenizer_fingerprint(tokenizer)
    )
    assert (ids, again) == (odd, False)


@pytest.mark.parametrize("finish", ["length", "error"])
def test_what_did_not_finish_is_not_closed(finish):
    tokenizer = tokenizer_of()
    four = tokenizer.convert_tokens_to_ids("4")
    assert targets(tokenizer, completion_of(tokenizer, "4", [four], finish), "plain") == ("4", False)


@pytest.mark.parametrize(("template", "closed"), [("plain", "4<eos>"), ("chat", "4<|end|>")])
def test_what_ended_in_a_stop_string_is_encoded_again_and_closed(template, closed):
    tokenizer = tokenizer_of(CHAT)
    sampled = tokenizer("4\n", add_special_tokens=False)["input_ids"]
    assert targets(tokenizer, completion_of(tokenizer, "4", sampled), template) == (closed, True)
    assert targets(tokenizer, completion_of(tokenizer, "", []), template) == (closed[1:], True)


@pytest.mark.parametrize("end", ["<eos>", "<|end|>"])
def test_either_end_of_a_chat_turn_closes_it(end):
    tokenizer = tokenizer_of(CHAT)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("4", end)]
    assert targets(tokenizer, completion_of(tokenizer, "4", ids), "chat") == ("4" + end, False)


def test_text_of_another_origin_is_encoded_and_closed():
    tokenizer = tokenizer_of(CHAT)
    given = Completion(prompt_id=PROMPT.id, k=0, text="2+2=4", finish="length")
    assert targets(tokenizer, given, "plain") == ("2+2=4<eos>", True)
    assert targets(tokenizer, given, "chat") == ("2+2=4<|end|>", True)


def test_ids_of_another_tokenizer_are_not_taken_for_ours():
    ours, theirs = tokenizer_of(), train_tokenizer(Scratch(tokenizer="char"), ["42"])
    assert tokenizer_fingerprint(ours) != tokenizer_fingerprint(theirs)
    sampled = completion_of(theirs, "42", theirs("42")["input_ids"])
    assert targets(ours, sampled, "plain") == ("42<eos>", True)


def test_a_completion_takes_no_bos():
    tokenizer = tokenizer_of(added=True)
    assert targets(tokenizer, Completion(prompt_id=PROMPT.id, k=0, text="4"), "plain") == ("4</s>", True)


def test_a_jinja_template_closes_with_eos(tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[-1].content }}", encoding="utf-8")
    given = Completion(prompt_id=PROMPT.id, k=0, text="4")
    assert targets(tokenizer_of(), given, str(file)) == ("4<eos>", True)


# --- what cannot be done ---------------------------------------------------------------------------------------------

GIVEN = Completion(prompt_id=PROMPT.id, k=0, text="4")


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (None, "has no chat template: pass --template plain or --template FILE.jinja"),
        (WITHOUT_END, "does not close an answer with an end-of-turn token"),
        (REWRITING, "rewrites earlier turns once an answer is added"),
        (ALTERNATING, f"cannot render prompt {PROMPT.id}: no system turn; change the prompt's turns or the template"),
        ("{{ messages | nothing }}", "cannot render"),
    ],
)
def test_a_chat_template_that_cannot_be_used(chat, message):
    tokenizer = tokenizer_of(chat)
    with pytest.raises(InputError) as error:
        encode_completion(tokenizer, PROMPT, GIVEN, "chat", tokenizer_fingerprint(tokenizer))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_no_eos_to_close_a_completion_with():
    tokenizer = tokenizer_of(eos=False)
    with pytest.raises(
        InputError, match=r"has no EOS token, so a completion cannot be closed: set tokenizer\.eos_token"
    ):
        encode_completion(tokenizer, PROMPT, GIVEN, "plain", tokenizer_fingerprint(tokenizer))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is neither 'plain', 'chat' nor a readable file: No such file or directory"),
        (b"a\n{% for %}", "line 2: "),
        (b"{{ question }}", f"cannot render prompt {PROMPT.id}: 'question' is undefined"),
        (b"\xff", "byte 0 is not UTF-8"),
    ],
)
def test_a_jinja_file_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str):
    file = tmp_path / "t.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as error:
        render(PROMPT, str(file))
    assert message in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_template_file_cannot_reach_the_machine(tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages.__class__.__mro__ }}", encoding="utf-8")
    with pytest.raises(InputError, match="cannot render"):
        render(PROMPT, str(file))


def test_rows_are_padded_with_what_ends_none_of_them():
    tokenizer = tokenizer_of()
    own = tokenizer.pad_token_id
    assert pad_id_for(tokenizer, {own + 1}) == own
    assert pad_id_for(tokenizer, {own, 0, 1}) == next(i for i in range(9) if i not in {own, 0, 1})
    with pytest.raises(InputError, match="give it a pad token of its own"):
        pad_id_for(tokenizer, set(range(len(tokenizer))))


# --- answers that a prompt begins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_an_answer_goes_on_where_the_prompt_begins_it(template):
    """What the model is fed, and then writes, is what training on the whole answer shows it."""
    tokenizer = tokenizer_of(CHAT)
    begun = prefilled(PROMPT, "2+2")
    whole = Completion(prompt_id=PROMPT.id, k=0, text="2+2=4")
    rest = Completion(prompt_id=begun.id, k=0, text="=4")
    fingerprint = tokenizer_fingerprint(tokenizer)
    fed = encode_prompt(tokenizer, begun, template)
    assert fed == encode_prompt(tokenizer, PROMPT, template) + tokenizer("2+2")["input_ids"]
    assert tokens(tokenizer, fed) == render(begun, template, tokenizer)
    trained = encode_prompt(tokenizer, PROMPT, template)
    trained += encode_completion(tokenizer, PROMPT, whole, template, fingerprint)[0]
    assert fed + encode_completion(tokenizer, begun, rest, template, fingerprint)[0] == trained


def test_a_jinja_file_sees_only_the_turns_before_the_answer(tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[-1].content }}=", encoding="utf-8")
    begun = prefilled(PROMPT, "4")
    assert render(begun, str(file)) == "2+2?=4"
    assert tokens(tokenizer_of(), encode_prompt(tokenizer_of(), begun, str(file))) == "2+2?=4"


def test_a_begun_answer_belongs_to_its_prompt():
    begun = prefilled(PROMPT, "2+2")
    assert prefilled(PROMPT, "") is PROMPT
    assert (begun.parents, begun.gold, answer_start(begun), answer_start(PROMPT)) == ((PROMPT.id,), None, "2+2", "")
    assert begun.id not in (PROMPT.id, prefilled(PROMPT, "2").id)


def test_the_whole_answer_has_its_start_unless_that_was_taken_back():
    begun = prefilled(PROMPT, "2+2")
    said = Completion(prompt_id=begun.id, k=0, text="=4", token_ids=(5, 6, 7), discarded=())
    assert whole_answer(begun, said) == "2+2=4"
    assert whole_answer(begun, replace(said, discarded=((0, 1),))) == "=4"
    assert whole_answer(PROMPT, said) == "=4"


# --- tokens that only the model may write ----------------------------------------------------------------------------


def guarded(chat: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of(chat)
    add_to_tokenizer(tokenizer, "[RESET]")
    return tokenizer


HOSTILE = (
    "[RESET]",
    "2+2?[RESET]",
    "[RESET][RESET][RESET]",
    "[RE[RESET]SET]",
    "[[RESET]]",
    " [RESET] ",
    "x\n[RESET]\n[RESET",
    "[RESET]<eos>",
    "<eos>[RESET]",
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("place", ["system", "user", "earlier answer", "start of the answer"])
def test_no_text_of_a_prompt_becomes_the_models_own_token(text, template, place):
    tokenizer = guarded(CHAT)
    reset = tokenizer.convert_tokens_to_ids("[RESET]")
    turns = [Message(role="system", content="Be brief."), Message(role="user", content="2+2?")]
    if place == "earlier answer":
        turns += [Message(role="assistant", content=text), Message(role="user", content="3+3?")]
    elif place == "start of the answer":
        turns += [Message(role="assistant", content=text)]
    else:
        turns[place == "user"] = Message(role=turns[place == "user"].role, content=text)
    prompt = Prompt(messages=tuple(turns))
    ids = encode_prompt(tokenizer, prompt, template)
    assert reset not in ids and ids
    harmless = encode_prompt(tokenizer, Prompt(messages=tuple(replace(t, content="2+2?") for t in turns)), template)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|assistant|>", "<|user|>", "<|system|>")}
    assert [i for i in ids if i in ends] == [i for i in harmless if i in ends], "the template's own tokens stay"


@settings(max_examples=60)
@given(text=st.text(alphabet="[RESET]x ", max_size=40))
def test_the_literal_is_spelled_and_not_lost(text):
    tokenizer = guarded()
    ids = encode_prompt(tokenizer, Prompt.from_text("?" + text), "plain")
    assert tokenizer.convert_tokens_to_ids("[RESET]") not in ids
    plain = tokenizer_of()
    assert len(ids) == len(plain("?" + text)["input_ids"]), "one id for every character"


def test_a_byte_level_tokenizer_gives_the_literal_back():
    tokenizer = train_tokenizer(Scratch(tokenizer="bpe", vocab_size=300), ["say [RESET] and [RESET] again"] * 9)
    add_to_tokenizer(tokenizer, "[RESET]")
    for text in ("say [RESET] and", "[RESET]", "a[RE[RESET]SET]b"):
        ids = encode_prompt(tokenizer, Prompt.from_text(text), "plain")
        assert tokenizer.convert_tokens_to_ids("[RESET]") not in ids
        assert tokenizer.decode(ids) == text


def test_the_mark_is_saved_with_the_tokenizer(tmp_path: Path):
    guarded(CHAT).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = encode_prompt(loaded, Prompt.from_text("2[RESET]2"), "chat")
    assert loaded.convert_tokens_to_ids("[RESET]") not in ids
    loaded.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).init_kwargs["model_only_tokens"] == ["[RESET]"]


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_in_a_completion_the_literal_is_the_token(template):
    tokenizer = guarded(CHAT)
    shown, again = targets(tokenizer, Completion(prompt_id=PROMPT.id, k=0, text="2+2[RESET]4"), template)
    assert (shown, again) == ("2+2[RESET]4" + ("<eos>" if template == "plain" else "<|end|>"), True)
    ids, _ = encode_completion(
        tokenizer, PROMPT, Completion(prompt_id=PROMPT.id, k=0, text="2[RESET]4"), template, "other"
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("[RESET]")) == 1
