"""Tasks by name. Tasks that read files are imported when asked for, so that `--help` stays quick."""

from collections.abc import Callable
from typing import Any

from selftaught.errors import InputError
from selftaught.tasks.task import Task, TaskSpec


def load_task(spec: TaskSpec | Task) -> Task:
    """Return the task that `spec` describes; a task is returned as it is.

    Raises InputError for an unknown name or option, and for a field that the task has no use for.
    """
    if not isinstance(spec, TaskSpec):
        return spec
    build = _BUILDERS.get(spec.name)
    if build is None:
        known = ", ".join(_BUILDERS)
        raise InputError(f"unknown task {spec.name!r}: give one of {known}; for your own data, user with --data FILE")
    return build(spec)


def task_names() -> tuple[str, ...]:
    """Return the names that `load_task` knows."""
    return tuple(_BUILDERS)


def _chains(spec: TaskSpec) -> Task:
    from selftaught.tasks.chains import Chains

    _refuse(spec, "data", "answer", "verifier")
    return _build(Chains, _options(spec))


def _constrained_text(spec: TaskSpec) -> Task:
    from selftaught.tasks.constrained_text import ConstrainedText

    _refuse(spec, "data", "answer", "verifier")
    return _build(ConstrainedText, _options(spec))


def _cute(spec: TaskSpec) -> Task:
    from selftaught.tasks.cute import CUTE

    _refuse(spec, "answer", "verifier", "limit")
    if spec.data is None:
        raise InputError("task cute needs the questions: pass --data DIRECTORY with cute.jsonl")
    return _build(CUTE, _options(spec) | {"data": spec.data})


def _gsm8k(spec: TaskSpec) -> Task:
    from selftaught.tasks.gsm8k import GSM8K

    _refuse(spec, "answer", "verifier")
    return _build(GSM8K, _options(spec) | ({"data": spec.data} if spec.data else {}))


def _hh_rlhf(spec: TaskSpec) -> Task:
    from selftaught.tasks.hh_rlhf import HHRLHF

    _refuse(spec, "answer", "verifier")
    return _build(HHRLHF, _options(spec) | ({"data": spec.data} if spec.data else {}))


def _list_ops(spec: TaskSpec) -> Task:
    from selftaught.tasks.list_ops import ListOps

    _refuse(spec, "data", "answer", "verifier")
    return _build(ListOps, _options(spec))


def _thought_chains(spec: TaskSpec) -> Task:
    from selftaught.tasks.thought_chains import ThoughtChains

    _refuse(spec, "data", "answer", "verifier")
    return _build(ThoughtChains, _options(spec))


def _personas(spec: TaskSpec) -> Task:
    from selftaught.tasks.personas import Personas

    _refuse(spec, "data", "answer", "verifier")
    return _build(Personas, _options(spec))


def _stories(spec: TaskSpec) -> Task:
    from selftaught.tasks.stories import Stories

    _refuse(spec, "data", "answer", "verifier")
    return _build(Stories, _options(spec))


def _safety_grammar(spec: TaskSpec) -> Task:
    from selftaught.tasks.safety_grammar import SafetyGrammar

    _refuse(spec, "data", "answer", "verifier")
    return _build(SafetyGrammar, _options(spec))


def _side_steps(spec: TaskSpec) -> Task:
    from selftaught.tasks.side_steps import SideSteps

    _refuse(spec, "data", "answer", "verifier")
    return _build(SideSteps, _options(spec))


def _sums_and_lists(spec: TaskSpec) -> Task:
    from selftaught.tasks.sums_and_lists import SumsAndLists

    _refuse(spec, "data", "answer", "verifier")
    return _build(SumsAndLists, _options(spec))


def _safety_prompts(spec: TaskSpec) -> Task:
    from selftaught.tasks.safety_prompts import SafetyPrompts

    _refuse(spec, "answer", "verifier", "limit")
    if spec.data is None:
        raise InputError("task safety_prompts needs the prompts: pass --data DIRECTORY with advbench.jsonl or others")
    return _build(SafetyPrompts, _options(spec) | {"data": spec.data})


def _user(spec: TaskSpec) -> Task:
    from selftaught.tasks.user import UserTask

    if spec.data is None:
        raise InputError("task user needs your rows: pass --data FILE.jsonl with a prompt in each line")
    functions = {"answer_function": spec.answer, "verifier_function": spec.verifier}
    return _build(UserTask, _options(spec) | {"data": spec.data} | functions)


def _build(kind: type[Any], dials: dict[str, Any]) -> Any:
    from selftaught.config import from_dict

    return from_dict(kind, dials)


def _options(spec: TaskSpec) -> dict[str, Any]:
    return {**spec.options} | ({} if spec.limit is None else {"limit": spec.limit})


def _refuse(spec: TaskSpec, *fields: str) -> None:
    for field in fields:
        if getattr(spec, field) is not None:
            raise InputError(
                f"task {spec.name} has its own {field}: drop --{field} or use --task user with --data FILE"
            )


_BUILDERS: dict[str, Callable[[TaskSpec], Task]] = {
    "chains": _chains,
    "constrained_text": _constrained_text,
    "cute": _cute,
    "gsm8k": _gsm8k,
    "hh_rlhf": _hh_rlhf,
    "list_ops": _list_ops,
    "personas": _personas,
    "safety_grammar": _safety_grammar,
    "safety_prompts": _safety_prompts,
    "side_steps": _side_steps,
    "stories": _stories,
    "sums_and_lists": _sums_and_lists,
    "thought_chains": _thought_chains,
    "user": _user,
}
