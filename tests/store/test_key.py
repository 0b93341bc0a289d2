"""What an identity depends on, and that anyone can compute it."""

import hashlib

import pytest

from pet.store.key import Key

KEY = Key(
    "label", 3, {"steps": 250, "rate": 1e-5, "nested": {"b": [1, 2], "a": None}}, {"prepare": "p1", "model": "m1"}
)


@pytest.mark.parametrize(
    "other",
    [
        Key("distill", 3, KEY.settings, KEY.inputs),
        Key("label", 4, KEY.settings, KEY.inputs),
        Key("label", 3, {**KEY.settings, "steps": 251}, KEY.inputs),
        Key("label", 3, {**KEY.settings, "more": None}, KEY.inputs),
        Key("label", 3, {**KEY.settings, "nested": {"b": [2, 1], "a": None}}, KEY.inputs),
        Key("label", 3, KEY.settings, {**KEY.inputs, "prepare": "p2"}),
        Key("label", 3, KEY.settings, {"prepare": "m1", "model": "p1"}),
    ],
    ids=["stage", "version", "setting", "setting more", "order of a list", "input", "inputs swapped"],
)
def test_identity_depends_on_stage_version_settings_and_inputs(other):
    assert other.identity != KEY.identity


def test_identity_does_not_depend_on_the_order_of_keys():
    settings = {"nested": {"a": None, "b": [1, 2]}, "rate": 0.00001, "steps": 250}
    assert Key("label", 3, settings, {"model": "m1", "prepare": "p1"}).identity == KEY.identity


def test_identity_is_a_digest_anyone_can_compute():
    text = '{"inputs":{"prepare":"é"},"settings":{"a":1.5,"b":[true,null]},"stage":"label","version":1}'
    key = Key("label", 1, {"b": [True, None], "a": 1.5}, {"prepare": "é"})
    assert key.identity == hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def test_nan_has_no_identity():
    with pytest.raises(ValueError, match="not JSON compliant"):
        Key("label", 1, {"rate": float("nan")}, {}).identity  # noqa: B018
