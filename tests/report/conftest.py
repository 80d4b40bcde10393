"""A small run directory as `Lab` writes it, made with the real store."""

import json
from pathlib import Path

import pytest

from selftaught.store.stage import Store, stage_key
from selftaught.types import Completion, Demonstration, Pair, Prompt, Score, completion_id

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<!-- <script> --> ]]> &lt;b&gt; \" ' ` ${x} {{ 7 * 7 }} {% raw %}",
    "line\u2028separator\u2029here \u0000 \u202e bidi \x1b[31m",
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run: 12 problems of 4 samples, every third kept, hostile text in every field a model writes."""
    path = tmp_path / "run"
    build_run(path)
    return path


def build_run(path: Path, problems: int = 12, k: int = 4, rounds: int = 2) -> None:
    """Write a whole run directory below `path`."""
    store = Store(path / "stages")
    prompts = [Prompt.from_text(f"{i}+{i}? {HOSTILE[i % 4]}", gold=str(2 * i)) for i in range(problems)]
    events: list[dict] = [report("seed_model", 0, "accuracy", 0.23), report("seed_model", 0, "accuracy_sc8", 0.354)]
    events += [train("", 0, step, 3.0 / step) for step in (10, 20, 30)]
    table = commit(store, "prompts", Prompt, prompts)
    for number in range(1, rounds + 1):
        for arm, row_type in (("lmsi", Demonstration), ("scpo", Pair)):
            events += one_round(store, arm, number, row_type, prompts, table, k)
    path.joinpath("metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")
    path.joinpath("config.yaml").write_text(f"method: scpo\nrecipe: small\nnote: '{HOSTILE[0]}'\n", encoding="utf-8")
    path.joinpath("summary.json").write_text(json.dumps(summary()), encoding="utf-8")


def one_round(store, arm, number, row_type, prompts, table, k) -> list[dict]:
    """Write the stages of one round and return its events."""
    groups = [[sample(arm, number, prompt, j) for j in range(k)] for prompt in prompts]
    completions = commit(store, f"generate-{arm}-{number}", Completion, [c for g in groups for c in g])
    rows = [score(c, j) for g in groups for j, c in enumerate(g)]
    scores = commit(store, f"score-{arm}-{number}", Score, rows)
    kept = [example(row_type, p, g) for i, (p, g) in enumerate(zip(prompts, groups, strict=True)) if i % 3 == 0]
    selected = commit(store, f"select-{arm}-{number}", row_type, kept)
    common = {"event": "stage", "arm": arm, "round": number, "cached": False}
    dropped = {"fewer votes than the threshold": len(prompts) - len(kept) - 1, HOSTILE[0]: 1}
    return [
        {**common, "verb": "generate", "stage": completions, "rows": len(rows), "seconds": 12.3, "inputs": [table]},
        {**common, "verb": "score", "stage": scores, "rows": len(rows), "seconds": 0.4, "inputs": [completions]},
        {
            **common,
            "verb": "select",
            "stage": selected,
            "rows": len(kept),
            "seconds": 0.1,
            "counts": dropped,
            "inputs": [table, completions, scores],
            "groups": {"prompts": table, "completions": [completions], "scores": [scores]},
        },
        {"event": "order", "arm": arm, "round": number, "right": 0.6, "tie": 0.3, "wrong": 0.1, "n": 77},
        *(train(arm, number, step, 0.7 / number - 0.005 * step) for step in (10, 20, 30)),
        report(arm, number, "accuracy", 0.25 + 0.04 * number),
        report(arm, number, "accuracy_sc8", 0.35 + 0.02 * number),
        report(arm, number, "vote_share", 0.4 + 0.1 * number),
    ]


def sample(arm: str, number: int, prompt: Prompt, j: int) -> Completion:
    text = f"thinking {HOSTILE[j % 4]}\n#### {j // 2}"
    row_id = completion_id(f"{arm}{number}", prompt.id, j)
    return Completion(prompt_id=prompt.id, k=j, text=text, token_ids=(1, 2, 3), id=row_id)


def score(completion: Completion, j: int) -> Score:
    if j == 3:
        return Score(completion_id=completion.id, scorer="votes", value=None, note="no answer could be read")
    answer, votes = (HOSTILE[1], 1.0) if j == 2 else ("0", 2.0)
    return Score(completion_id=completion.id, scorer="votes", value=votes, note=answer)


def example(row_type: type, prompt: Prompt, group: list[Completion]):
    if row_type is Pair:
        return Pair(prompt=prompt, chosen=group[0], rejected=group[2], weight=0.25)
    return Demonstration(prompt=prompt, completion=group[1])


def commit(store: Store, name: str, row_type: type, rows: list) -> str:
    """Write one stage and return its directory's name."""
    key = stage_key(name, 1, {}, (), 0)
    with store.writer(name, key, row_type) as writer:
        writer.write(0, rows)
        return writer.commit().path.name


def train(arm: str, number: int, step: int, loss: float) -> dict:
    margin = {"rewards/margins": 0.01 * step} if arm == "scpo" else {}
    return {"event": "train", "arm": arm, "round": number, "step": step, "loss": loss, **margin}


def report(arm: str, number: int, name: str, mean: float) -> dict:
    return {"event": "report", "arm": arm, "round": number, "name": name, "mean": mean, "stderr": 0.02, "n": 500}


def summary() -> dict:
    """Return a summary with all the design asks for."""

    def cell(mean: float) -> dict:
        return {"mean": mean, "stderr": 0.02, "n": 500}

    return {
        "method": "scpo",
        "recipe": "small",
        "seeds": [0],
        "wall_seconds": 312.4,
        "arms": {
            "seed_model": {"accuracy": cell(0.23), "accuracy_sc8": cell(0.354)},
            "lmsi": {"accuracy": cell(0.33), "accuracy_sc8": cell(0.39), "vote_share": cell(0.6)},
            "scpo": {"accuracy": cell(0.335), "accuracy_sc8": cell(0.40), "vote_share": cell(0.6), "pairs": cell(310)},
        },
        "claims": [
            claim("ScPO beats LMSI", 0.116, [0.05, 0.17], True),
            claim("ScPO beats gold", -0.03, [-0.06, -0.01], False),
            claim("undecided so far", 0.01, [-0.02, 0.04], None),
            {**claim("most of the gain", 0.0, [0.71, 0.98], True), "ratio": 0.82, "share": 0.7, "gold": "irpo_gold"},
        ],
        "per_seed": {"0": {"scpo": {"accuracy": 0.335}}},
        "rounds": {
            "lmsi": [{"accuracy": 0.29, "vote_share": 0.5}, {"accuracy": 0.33, "vote_share": 0.6}],
            "scpo": [{"accuracy": 0.29, "vote_share": 0.5}, {"accuracy": 0.33, "vote_share": 0.6}],
        },
        "tried": 4,
        "versions": {"torch": "2.13.0", "python": "3.12.1"},
    }


def claim(text: str, difference: float, ends: list[float], holds: bool | None) -> dict:
    common = {
        "arm": "scpo",
        "baseline": "lmsi",
        "metric": "accuracy",
        "over": "seeds" if holds is not None else "problems",
    }
    return {"text": text, "difference": difference, "ci95": ends, "holds": holds, **common}
