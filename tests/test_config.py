import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from selftaught.config import build, describe, from_dict, override, read_yaml, to_dict
from selftaught.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    steps: int | None = None
    name: str | None = None
    kind: Literal["none", "auto"] = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    source: str = "x"
    inner: Inner = Inner()
    other: Inner | None = None
    parts: tuple[Inner, ...] = (Inner(),)
    stop: tuple[str, ...] = ()
    shares: tuple[float, ...] = (0.5,)
    options: dict[str, float] = dataclasses.field(default_factory=dict)
    on: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusing:
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"count={self.count}: give 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    part: Refusing = Refusing()


inners = st.builds(
    Inner,
    rate=st.floats(allow_nan=False),
    steps=st.none() | st.integers(),
    name=st.none() | st.text(),
    kind=st.sampled_from(["none", "auto"]),
)
outers = st.builds(
    Outer,
    source=st.text(),
    inner=inners,
    other=st.none() | inners,
    parts=st.lists(inners, max_size=2).map(tuple),
    stop=st.lists(st.text(), max_size=2).map(tuple),
    shares=st.lists(st.floats(0, 1), max_size=2).map(tuple),
    options=st.dictionaries(st.text(), st.floats(0, 1), max_size=2),
    on=st.booleans(),
)


@given(outers)
def test_configurations_come_back_from_yaml(config):
    assert from_dict(Outer, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_options_override_fields():
    arguments = "--source y --inner.rate 1e-4 --inner.steps=3 --on true --stop Q:,## --shares 0.5,1 --other.rate 2"
    changed = override(Outer(inner=Inner(name="kept")), arguments.split())
    assert changed == Outer(
        source="y",
        inner=Inner(rate=1e-4, steps=3, name="kept"),
        on=True,
        stop=("Q:", "##"),
        shares=(0.5, 1.0),
        other=Inner(rate=2.0),
    )


def test_text_stays_text():
    # A revision or a stop string may look like a number, a truth value or a mapping to YAML.
    changed = override(Outer(), ["--inner.name", "1234", "--source", "true", "--stop", "Q: ,no"])
    assert (changed.inner.name, changed.source, changed.stop) == ("1234", "true", ("Q: ", "no"))


def test_none_switches_off_what_is_optional_and_is_a_word_elsewhere():
    changed = override(
        Outer(other=Inner(), inner=Inner(steps=3, name="x")),
        ["--other", "None", "--inner.steps", "null", "--inner.name", "none", "--inner.kind", "none"],
    )
    assert changed == Outer(inner=Inner(kind="none"))


def test_a_hyphen_may_stand_for_an_underscore_and_a_mapping_is_written_as_yaml():
    assert build(Outer, ["--options", "{lmsi: 0.25}"]).options == {"lmsi": 0.25}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sorce", "y"], "unknown key 'sorce': did you mean 'source'?"),
        (["--inner.rat", "1"], "unknown key 'inner.rat': did you mean 'rate'?"),
        (["--inner.q", "1"], "unknown key 'inner.q': known: rate, steps, name, kind"),
        (["--q.rate", "1"], "unknown key 'q': known: "),
        (["--source.x", "1"], "--source.x: source has no fields of its own; give it whole, --source VALUE"),
        (["--parts.rate", "1"], "--parts.rate: parts has no fields of its own"),
        (["--source"], "--source needs a value"),
        (["source", "y"], "'source' is not an option: write --field value"),
        (["--inner.steps", "2.5"], "2.5 is not of type int at inner.steps"),
        (["--inner.rate", "fast"], "at inner.rate"),
        (["--inner.rate", "true"], "True is not of type float at inner.rate"),
        (["--on", "1"], "1 is not of type bool at on"),
        (["--inner.kind", "both"], "at inner.kind"),
    ],
)
def test_a_wrong_option_is_named_with_a_remedy(arguments, message):
    with pytest.raises(InputError) as error:
        override(Outer(), arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"rat": 1}}, "unknown key 'inner.rat'"),
        ({"parts": [{}, {"rat": 1}]}, "unknown key 'parts.1.rat': did you mean 'rate'?"),
        ({1: 2}, "unknown key '1'"),
        ({"inner": 3}, "inner = 3: write keys and values"),
        ({"options": 3}, "options = 3: write keys and values"),
        ({"shares": 3}, "shares = 3: write a list, [3]"),
        ({"stop": "Q:"}, "stop = 'Q:': write a list, ['Q:']"),
        ({"shares": [0.5, "x"]}, "could not convert string to float: 'x' at shares[1]"),
        ({"source": None}, "None is not of type str at source"),
    ],
)
def test_a_wrong_key_of_a_file_is_named(data, message):
    with pytest.raises(InputError) as error:
        from_dict(Outer, data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(InputError) as error:
        from_dict(Outer, {"inner": {"steps": "x"}, "on": 3})
    assert "inner.steps" in str(error.value) and " on" in str(error.value)


def test_a_required_field_is_asked_for():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Required:
        source: str

    with pytest.raises(InputError, match="required field 'source' is missing"):
        from_dict(Required, {})


def test_a_refusal_of_the_configuration_itself_comes_through_as_it_is():
    with pytest.raises(InputError) as error:
        from_dict(Holder, {"part": {"count": 0}})
    assert str(error.value) == "count=0: give 1 or more"


def test_fields_are_listed_with_their_values():
    listed = dict(describe(Outer(inner=Inner(steps=2))))
    assert listed["inner.steps"] == 2 and listed["other"] is None and "inner" not in listed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"- 1", "must hold keys and values, not list"),
        (b"", "must hold keys and values, not NoneType"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_yaml(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match=r"No such file.*pass --config an existing YAML file"):
        read_yaml(tmp_path / "none.yaml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    radius: float = 1.0
    kind: Literal["round"] = "round"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    side: float = 1.0
    kind: Literal["square"] = "square"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Round | Square | None = None


@pytest.mark.parametrize("shape", [None, Round(), Square(), Round(radius=2.0)])
def test_one_of_several_kinds_is_read_back(shape) -> None:
    drawing = Drawing(shape=shape)
    assert from_dict(Drawing, yaml.safe_load(yaml.safe_dump(to_dict(drawing)))) == drawing


def test_a_kind_is_chosen_by_name_and_then_has_its_fields() -> None:
    chosen = override(Drawing(shape=Round(radius=3.0)), ["--shape.kind", "square", "--shape.side", "2"])
    assert chosen == Drawing(shape=Square(side=2.0))
    assert override(Drawing(shape=Round(radius=3.0)), ["--shape.radius", "4"]) == Drawing(shape=Round(radius=4.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape.side", "2"], "kind = None: give one of round, square"),
        (["--shape.kind", "oval"], "kind = 'oval': give one of round, square"),
        (["--shape.kind", "square", "--shape.radius", "2"], "unknown key 'shape.radius'"),
    ],
)
def test_a_kind_that_is_not_there_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        override(Drawing(), arguments)
