"""What of a section is part of an identity: as its fields say, and no list of names elsewhere."""

from typing import Annotated

import pytest

from pet.config.identity import InIdentity, fields_of, identity_settings
from pet.config.schema import (
    CorpusSettings,
    DataSettings,
    DistillSettings,
    FinetuneSettings,
    IpetSettings,
    ModelSettings,
    Section,
    Settings,
)


class Inner(Section):
    size: int = 1
    later: Annotated[float, InIdentity.UNLESS_DEFAULT] = 0.5


class Outer(Section):
    steps: int = 10
    names: tuple[str, ...] = ("a",)
    place: Annotated[str, InIdentity.NEVER] = "here"
    members: Annotated[int | None, InIdentity.OF_RUN] = None
    later: Annotated[int | None, InIdentity.OF_RUN, InIdentity.UNLESS_DEFAULT] = None
    inner: Inner = Inner()


def test_a_field_that_says_nothing_is_part_of_the_identity_as_a_json_value():
    assert identity_settings(Outer(place="there", members=3)) == {"steps": 10, "names": ["a"], "inner": {"size": 1}}


def test_what_a_run_consists_of_is_part_of_the_runs_identity_alone():
    of_run = {"steps": 10, "names": ["a"], "members": 3, "inner": {"size": 1}}
    assert identity_settings(Outer(members=3), of_run=True) == of_run
    assert identity_settings(Outer(later=2), of_run=True)["later"] == 2
    assert "later" not in identity_settings(Outer(later=2))


def test_a_field_that_was_added_later_is_left_out_while_it_has_its_default_however_deep_it_lies():
    assert identity_settings(Outer(inner=Inner(later=0.5)))["inner"] == {"size": 1}
    assert identity_settings(Outer(inner=Inner(later=0.6)))["inner"] == {"size": 1, "later": 0.6}


def test_another_default_in_a_section_that_extends_this_one_loses_no_mark():
    class Other(Outer):
        place: str = "elsewhere"
        members: int | None = 5
        inner: Annotated[Inner, InIdentity.UNLESS_DEFAULT] = Inner(size=2)

    assert identity_settings(Other()) == {"steps": 10, "names": ["a"]}
    assert identity_settings(Other(inner=Inner())) == identity_settings(Outer())


@pytest.mark.parametrize(
    ("section", "set_differently"),
    [
        (FinetuneSettings, {"patterns": (0,), "repetitions": 9}),
        (IpetSettings, {"generations": 7, "steps": 7, "teachers": 0.7}),
        (DistillSettings, {"model": "other"}),
        (ModelSettings, {"name": "other", "revision": "v2", "trust_remote_code": True}),
        (CorpusSettings, {"files": ("a.txt",), "task": "bbc", "data": "folder"}),
        (DataSettings, {"train_files": ("a.csv",)}),
    ],
)
def test_an_artifact_does_not_depend_on_what_its_stage_knows_otherwise(section, set_differently):
    assert identity_settings(section(**set_differently)) == identity_settings(section())


@pytest.mark.parametrize(
    "set_differently",
    [
        {"runtime": {"device": "cpu", "keep_members": False}},
        {"table": {"sizes": [10]}},
        {"data": {"train_files": ["a.csv"]}},
        {"model": {"trust_remote_code": True}},
    ],
)
def test_no_run_depends_on_where_and_how_fast_it_is_made(set_differently):
    changed = Settings.model_validate(set_differently)
    assert identity_settings(changed, of_run=True) == identity_settings(Settings(), of_run=True)


@pytest.mark.parametrize(
    ("model", "name"), [(FinetuneSettings, "lorra"), (Settings, "Ipet"), (DistillSettings, "lora")]
)
def test_a_name_that_is_no_field_is_refused_when_it_is_written_down(model, name):
    with pytest.raises(AttributeError, match=f"{model.__name__} has no fields .*{name}"):
        fields_of(model, "steps" if model is not Settings else "seed", name)


def test_fields_that_one_identity_leaves_out_are_left_out():
    assert "lora" in identity_settings(FinetuneSettings())
    assert "lora" not in identity_settings(FinetuneSettings(), without=fields_of(FinetuneSettings, "lora"))
