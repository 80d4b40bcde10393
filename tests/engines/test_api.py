"""Generation over HTTP: whatever a server does, no row is lost, none doubled, and the order is the prompts'."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from tests import architectures, tiny
from tests.engines.faulty import Answer, FaultyServer, texts
from tests.serve.serving import running

from selftaught.engines.api import Remote, generate_remote
from selftaught.engines.sampler import generate
from selftaught.errors import InputError, SelftaughtError
from selftaught.models.load import model_key
from selftaught.specs import ModelSpec, Resets, Sampling
from selftaught.store.seeds import row_seed
from selftaught.types import Message, Prompt, completion_id

PROMPTS = [Prompt.from_text(f"prompt {i}") for i in range(12)]
SAMPLING = Sampling(k=2, temperature=0.7, max_tokens=9, stop=("#",))


class Pauses:
    """In the place of waiting: notes for how long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def remote(**changes: Any) -> Remote:
    return Remote(**{"sleep": Pauses(), "attempts": 4, "seconds": 20.0} | changes)


def ask(server: FaultyServer | str, prompts=PROMPTS, sampling: Sampling = SAMPLING, **options: Any) -> list:
    source = server if isinstance(server, str) else server.source
    model = ModelSpec(source=source, template=options.pop("template", "plain"))
    options = {"seed": 0, "stage_key": "stage", "model_id": "m", "remote": remote()} | options
    return list(generate_remote(model, prompts, sampling, **options))


def complete(groups: list, prompts=PROMPTS, k: int = SAMPLING.k, first: int = 0) -> None:
    """Check that every row is there once, in order, and is its own prompt's."""
    rows = [(c.prompt_id, c.k) for group in groups for c in group]
    assert rows == [(p.id, first + i) for p in prompts for i in range(k)]
    for prompt, group in zip(prompts, groups, strict=True):
        assert all(c.text.startswith(prompt.text + " ") for c in group)
        assert len({c.text for c in group}) == k


def proper(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
    return texts(body)


def test_rows_come_in_order_with_all_they_have() -> None:
    with FaultyServer(proper) as server:
        groups = ask(server)
    complete(groups)
    row = groups[3][1]
    seed = row_seed(0, PROMPTS[3].id, 0) % 2**31
    assert (row.text, row.finish, row.logprobs) == (f"prompt 3 {seed}.1", "stop", (-0.5, -0.5))
    assert (row.token_ids, row.model, row.id) == (None, "m", completion_id("stage", PROMPTS[3].id, 1))
    assert len(server.asked) == 12 and set(server.paths) == {"/v1/completions"}
    expected = {
        "model": "fake",
        "n": 2,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 9,
        "stop": ["#"],
        "logprobs": 0,
    }
    assert all({k: body[k] for k in body if k not in ("seed", "prompt")} == expected for body in server.asked)


def test_chats_are_asked_with_their_turns() -> None:
    prompt = Prompt(messages=(Message(role="system", content="be brief"), Message(role="user", content="hello")))
    with FaultyServer(proper) as server:
        groups = ask(server, [prompt], Sampling(k=1, top_k=5, min_p=0.1), template="chat")
    (body,) = server.asked
    assert server.paths == ["/v1/chat/completions"] and groups[0][0].logprobs == (-0.5, -0.25)
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert (body["top_k"], body["min_p"], body["logprobs"]) == (5, 0.1, True) and "stop" not in body


def test_other_templates_are_rendered_here(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("Q: {{ messages[0].content }} A:")
    with FaultyServer(proper) as server:
        ask(server, PROMPTS[:1], template=str(file))
    assert server.asked[0]["prompt"] == "Q: prompt 0 A:"


def test_more_samples_have_other_seeds() -> None:
    with FaultyServer(proper) as server:
        first, later = ask(server), ask(server, first_k=2)
    complete(later, first=2)
    assert not {c.text for g in first for c in g} & {c.text for g in later for c in g}


FAULTS: dict[str, Answer] = {
    "429": Answer({"error": {"message": "slow down"}}, 429),
    "429 with seconds": Answer({}, 429, {"Retry-After": "7"}),
    "500": Answer(b"<html>oh no</html>", 500, {"Content-Type": "text/html"}),
    "503": Answer({}, 503),
    "cut before the body": Answer({"choices": []}, cut=0),
    "cut in the body": Answer({"choices": [{"text": "half"}]}, cut=20),
    "no JSON": Answer(b'{"choices": [{"text": "ha'),
    "not UTF-8": Answer(b"\xff\xfe{}"),
    "empty body": Answer(b""),
    "null": Answer(None),
    "a list": Answer([1, 2]),
    "no choices": Answer({"choices": []}),
    "choices of null": Answer({"choices": None}),
    "a choice without text": Answer({"choices": [{"finish_reason": "stop"}]}),
    "a choice without end": Answer({"choices": [{"text": "a", "finish_reason": None}]}),
    "text that is a number": Answer({"choices": [{"text": 5, "finish_reason": "stop"}]}),
    "an error with status 200": Answer({"error": {"message": "busy"}}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("every", [2, 3])
def test_no_row_is_lost_or_doubled(fault: str, every: int) -> None:
    """Every second or third answer has the fault."""

    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        return FAULTS[fault] if number % every == 0 else texts(body)

    with FaultyServer(behave) as server:
        complete(ask(server, remote=remote(attempts=30)))
    assert len(server.asked) > 12


def test_all_faults_at_once() -> None:
    """Each prompt meets every fault in turn before it is answered."""
    met: dict[str, int] = {}

    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        turn = met[body["prompt"]] = met.get(body["prompt"], -1) + 1
        return [*FAULTS.values(), texts(body)][turn]

    with FaultyServer(behave) as server:
        complete(ask(server, remote=remote(attempts=len(FAULTS) + 1)))
    assert len(server.asked) == 12 * (len(FAULTS) + 1)


def test_an_answer_that_never_comes_is_given_up() -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        return Answer(wait=lambda: asyncio.sleep(60)) if number < 2 else texts(body)

    with FaultyServer(behave) as server:
        complete(ask(server, remote=remote(seconds=0.3)))
    assert len(server.asked) == 14


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(
        SelftaughtError, match=f"prompt {PROMPTS[0].id}, sample 0: no answer .* in 4 attempts: Connection"
    ):
        ask("http://127.0.0.1:9/v1#none", PROMPTS[:1])


@pytest.mark.parametrize("given", ["7", "date"])
def test_a_server_is_left_alone_as_long_as_it_asks(given: str) -> None:
    """The pause after a 429 is at least Retry-After, though backoff would be half a second."""
    value = formatdate(time.time() + 3600, usegmt=True) if given == "date" else given
    pauses = Pauses()

    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        return Answer({}, 429, {"Retry-After": value}) if number == 0 else texts(body)

    with FaultyServer(behave) as server:
        complete(ask(server, PROMPTS[:1], remote=remote(sleep=pauses)), PROMPTS[:1])
    (pause,) = pauses.seconds
    assert pause == (7.0 if given == "7" else 600.0)


def test_pauses_grow() -> None:
    pauses = Pauses()
    with FaultyServer(lambda number, body, server: Answer({}, 500)) as server, pytest.raises(SelftaughtError):
        ask(server, PROMPTS[:1], remote=remote(sleep=pauses, attempts=6, longest_pause=4.0))
    lowest = [0.5, 1, 2, 4, 4]
    assert all(low <= pause <= low + 1 for low, pause in zip(lowest, pauses.seconds, strict=True))


def test_a_refusal_is_not_repeated() -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        return Answer({"error": {"message": "no such\nmodel"}}, 404)

    with FaultyServer(behave) as server, pytest.raises(InputError, match=r"status 404: .*no such.* model") as caught:
        ask(server, PROMPTS[:1])
    assert len(server.asked) == 1 and PROMPTS[0].id in str(caught.value) and "\n" not in str(caught.value)


def test_logprobs_are_not_asked_for_where_they_are_refused() -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        if "logprobs" in body:
            return Answer({"error": {"message": "logprobs are not supported", "param": "logprobs"}}, 400)
        answer = texts(body)
        for choice in answer.body["choices"]:
            choice["logprobs"] = None
        return answer

    with FaultyServer(behave) as server:
        groups = ask(server, remote=remote(start=1, most=1))
    complete(groups)
    assert {c.logprobs for g in groups for c in g} == {None} and len(server.asked) == 13


@pytest.mark.parametrize("given", [None, 5, {}, {"token_logprobs": [None, -1.0]}, {"token_logprobs": ["a"]}, "missing"])
def test_logprobs_that_cannot_be_read_are_none(given: Any) -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        answer = texts(body)
        for choice in answer.body["choices"]:
            choice["logprobs"] = given
            if given == "missing":
                del choice["logprobs"]
        return answer

    with FaultyServer(behave) as server:
        groups = ask(server)
    complete(groups)
    assert {c.logprobs for g in groups for c in g} == {None}


@pytest.mark.parametrize("given", [1, 2, 5])
def test_servers_that_ignore_n(given: int) -> None:
    """Of four samples a server gives one, two or five at a time."""
    with FaultyServer(lambda number, body, server: texts(body, n=given)) as server:
        complete(ask(server, sampling=replace(SAMPLING, k=4)), k=4)
    assert len(server.asked) == 12 * {1: 4, 2: 2, 5: 1}[given]


def test_choices_are_put_in_order() -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        answer = texts(body)
        answer.body["choices"].reverse()
        return answer

    with FaultyServer(behave) as server:
        assert [c.text.rpartition(".")[2] for c in ask(server, PROMPTS[:1])[0]] == ["0", "1"]


def test_what_a_server_censors_is_no_answer() -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        answer = texts(body)
        answer.body["choices"][0] |= {"finish_reason": "content_filter", "text": ""}
        return answer

    match = f"prompt {PROMPTS[0].id}, sample 0: .*content filter cut the answer"
    with FaultyServer(behave) as server, pytest.raises(SelftaughtError, match=match):
        ask(server, PROMPTS[:1])


def test_an_answer_cut_by_length_says_so() -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        answer = texts(body)
        answer.body["choices"][1]["finish_reason"] = "length"
        return answer

    with FaultyServer(behave) as server:
        assert [c.finish for c in ask(server, PROMPTS[:1])[0]] == ["stop", "length"]


# --- Concurrency ------------------------------------------------------------------------------------------------------


def test_concurrency_rises_while_all_goes_well() -> None:
    """Answers are held back until as many fly as should: the test ends only if they do."""
    most, prompts = 6, [Prompt.from_text(f"p {i}") for i in range(80)]

    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        # From the 30th request on the limit has been reached: 1 + 2 + 3 + 4 + 5 + 6 = 21.
        return replace(texts(body), wait=(lambda: server.until_flying(most)) if number >= 30 else None)

    with FaultyServer(behave) as server:
        complete(ask(server, prompts, remote=remote(start=1, most=most, attempts=1)), prompts)
    assert server.flights[0] == 1 and max(server.flights[:6]) <= 3 and max(server.flights) == most


def test_concurrency_falls_where_a_server_bears_no_more() -> None:
    """A server that answers 429 to whoever comes second: eight fly at first, and soon one or two."""
    prompts = [Prompt.from_text(f"p {i}") for i in range(60)]

    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        answer = Answer({}, 429) if server.flying > 1 else texts(body)
        return replace(answer, wait=lambda: asyncio.sleep(0.005))

    with FaultyServer(behave) as server:
        complete(ask(server, prompts, remote=remote(start=8, most=8, attempts=1000)), prompts)
    assert max(server.flights) > 3 and max(server.flights[60:100]) <= 3
    assert len(server.asked) < 4 * len(prompts)


# --- The journal ------------------------------------------------------------------------------------------------------


def test_what_was_received_is_kept_when_a_row_fails(tmp_path: Path) -> None:
    """The sixth prompt is refused; the same call again asks for what is missing, and for nothing else."""
    refuse = True

    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        return Answer({}, 400) if refuse and body["prompt"] == "prompt 5" else texts(body)

    journal = tmp_path / "answers.jsonl"
    with FaultyServer(behave) as server:
        with pytest.raises(InputError, match=PROMPTS[5].id):
            ask(server, journal=journal, remote=remote(start=1, most=1))
        kept = len(journal.read_text().splitlines())
        assert kept == 10
        refuse = False
        groups = ask(server, journal=journal)
        assert [b["prompt"] for b in server.asked].count("prompt 0") == 1
    complete(groups)


def test_the_time_for_everything() -> None:
    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        return Answer(wait=lambda: asyncio.sleep(60))

    with (
        FaultyServer(behave) as server,
        pytest.raises(SelftaughtError, match=r"within 0\.3 seconds; what was received"),
    ):
        ask(server, remote=remote(total_seconds=0.3))


# --- The client -------------------------------------------------------------------------------------------------------


def test_a_server_decodes_by_itself() -> None:
    model = ModelSpec(source="http://localhost/v1#x", decoding=Resets())
    with pytest.raises(InputError, match="leave the model's decoding out"):
        generate_remote(model, PROMPTS, SAMPLING, seed=0)


def test_the_key_is_sent_and_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234")
    with FaultyServer(proper) as server:
        ask(server, PROMPTS[:1])
    assert "Bearer sk-1234" in server.headers[0]
    assert not any(word in server.headers[0].lower() for word in ("-os:", "-arch:", "-runtime", "linux"))


def test_inside_a_running_loop() -> None:
    """As in a notebook."""

    async def cell(server: FaultyServer) -> list:
        return ask(server)

    with FaultyServer(proper) as server:
        complete(asyncio.run(cell(server)))


# --- Against the package's own server ---------------------------------------------------------------------------------


def test_against_selftaught_serve() -> None:
    """The rows are those that the sampler draws here with the seeds that were sent."""
    prompts = [Prompt.from_text(t) for t in ("abc", "the quick brown fox", "12 34")]
    sampling = Sampling(k=3, temperature=0.8, max_tokens=12, stop=("e",))
    with running() as server:
        groups = ask(f"{server.url}#tiny", prompts, sampling)
    for prompt, group in zip(prompts, groups, strict=True):
        seed = row_seed(0, prompt.id, 0) % 2**31
        (expected,) = generate(
            architectures.model("llama"), architectures.tokenizer(), [prompt], sampling, seed=seed, slots=8
        )
        assert [(c.text, c.finish) for c in group] == [(c.text, c.finish) for c in expected]
        for mine, theirs in zip(group, expected, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_a_stage_of_a_server(tmp_path: Path) -> None:
    prompts = [Prompt.from_text(t) for t in ("abc", "fox", "12")]
    with running() as server, tiny.open_lab(tmp_path) as lab:
        model = ModelSpec(source=f"{server.url}#tiny")
        groups = lab.generate(model, prompts, Sampling(k=2, max_tokens=6))
        assert [len(g.completions) for g in groups] == [2, 2, 2]
        assert {c.model for g in groups for c in g.completions} == {model_key(model)}
        again = lab.generate(model, prompts, Sampling(k=2, max_tokens=6))
        assert [g.completions for g in again] == [g.completions for g in groups]
        assert not list(tmp_path.rglob(".answers*"))


KILLED = """
import sys
from pathlib import Path
from tests import tiny
from selftaught.specs import ModelSpec, Sampling
from selftaught.types import Prompt
with tiny.open_lab(Path(sys.argv[1])) as lab:
    lab.generate(ModelSpec(source=sys.argv[2]), [Prompt.from_text(f"prompt {i}") for i in range(12)], Sampling(k=2))
"""


@pytest.mark.slow
def test_a_killed_stage_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    """The process is killed when six prompts are answered and the seventh is not."""
    stuck, going = threading.Event(), threading.Event()

    def behave(number: int, body: dict[str, Any], server: FaultyServer) -> Answer:
        if number >= 6 and not going.is_set():
            stuck.set()
            return Answer(wait=lambda: asyncio.sleep(60))
        return texts(body)

    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root)))}
    with FaultyServer(behave) as server:
        command = [sys.executable, "-c", KILLED, str(tmp_path), server.source]
        with subprocess.Popen(command, env=environment) as process:
            assert stuck.wait(60)
            journal = None
            while journal is None or journal.read_bytes().count(b"\n") < 12:
                journal = next(tmp_path.rglob(".answers*"), None)
                assert process.poll() is None
            process.kill()
        going.set()
        before = {body["prompt"] for body in server.asked[:6]}
        asked = len(server.asked)
        with tiny.open_lab(tmp_path) as lab:
            groups = lab.generate(ModelSpec(source=server.source), PROMPTS, Sampling(k=2))
        assert {body["prompt"] for body in server.asked[asked:]} == {p.text for p in PROMPTS} - before
        complete([g.completions for g in groups])
        assert not list(tmp_path.rglob(".answers*"))
        assert json.dumps(server.asked)


@pytest.mark.slow
def test_against_transformers_serve(tmp_path: Path) -> None:
    """It ignores n and logprobs, so that every sample is a request of its own and has no log-probs."""
    pytest.importorskip("accelerate", reason="transformers serve needs accelerate: pip install 'transformers[serving]'")
    architectures.model("llama").save_pretrained(tmp_path)
    architectures.tokenizer().save_pretrained(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(tmp_path), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path / "log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            while not answers(port):
                assert process.poll() is None, log.read_text()
            # With the default `start` a server that is still loading refuses some: they are asked again.
            source = f"http://127.0.0.1:{port}/v1#{tmp_path}"
            groups = ask(source, PROMPTS[:3], Sampling(k=2, max_tokens=5))
        finally:
            process.kill()
    assert [[c.k for c in g] for g in groups] == [[0, 1]] * 3
    assert all(c.text and c.finish in ("stop", "length") and c.logprobs is None for g in groups for c in g)


def answers(port: int) -> bool:
    """Whether somebody listens there, after a moment's wait for it."""
    try:
        with socket.create_connection(("127.0.0.1", port), 0.5):
            return True
    except OSError:
        time.sleep(0.1)
        return False
