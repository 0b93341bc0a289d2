"""Settings: where a value comes from, what is refused, and that recipe `paper` has the paper's numbers."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pet.config import shipped as shipped_module
from pet.config.recipes import RECIPES
from pet.config.resolve import (
    merge,
    parse_assignment,
    read_yaml,
    resolve_pretraining,
    resolve_settings,
    resolve_tasks,
    settings_yaml,
)
from pet.config.schema import Pretraining, Settings
from pet.config.shipped import find_file, shipped_folder, shipped_names
from pet.errors import SettingsError, TaskError

# Fact sheet 2.1 (columns "PET with LM, En", "final classifier C", "supervised"); the pool: P1 App C.
PAPER = {
    "model.max_length": 256,
    "data.pool_per_label": 10_000,
    "finetune.learning_rate": 1e-5,
    "finetune.labelled_batch": 1,
    "finetune.unlabelled_batch": 3,
    "finetune.accumulation": 4,
    "finetune.steps": 1000,
    "finetune.weight_decay": 0.01,
    "finetune.adam_epsilon": 1e-8,
    "finetune.max_grad_norm": 1.0,
    "finetune.warmup_steps": 0,
    "finetune.alpha": 1e-4,
    "finetune.mask_probability": 0.15,
    "finetune.repetitions": 3,
    "label.weighting": "accuracy",
    "distill.learning_rate": 1e-5,
    "distill.batch": 4,
    "distill.accumulation": 4,
    "distill.steps": 5000,
    "distill.weight_decay": 0.01,
    "distill.adam_epsilon": 1e-8,
    "distill.max_grad_norm": 1.0,
    "distill.warmup_steps": 0,
    "distill.temperature": 2.0,
    "baseline.learning_rate": 1e-5,
    "baseline.batch": 4,
    "baseline.accumulation": 4,
    "baseline.steps": 250,
    "baseline.weight_decay": 0.01,
    "baseline.adam_epsilon": 1e-8,
    "baseline.max_grad_norm": 1.0,
    "baseline.warmup_steps": 0,
}


def value_of(settings: BaseModel, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*arguments: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        resolve_settings(*arguments)
    return str(raised.value)


# ---- the paper's numbers and the recipes ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", PAPER)
def test_recipe_paper_has_the_number_of_the_paper(key):
    assert value_of(resolve_settings(None, {"recipe": "paper"}), key) == PAPER[key]


@pytest.mark.parametrize(
    ("concern", "batches"),
    [
        ("finetune", ["labelled_batch"]),
        ("finetune", ["unlabelled_batch"]),
        ("distill", ["batch"]),
        ("baseline", ["batch"]),
    ],
)
def test_both_recipes_see_the_same_number_of_texts_per_step(concern, batches):
    per_step = [
        [getattr(getattr(settings, concern), name) * getattr(settings, concern).accumulation for name in batches]
        for settings in (resolve_settings(None, {"recipe": recipe}) for recipe in RECIPES)
    ]
    assert per_step[0] == per_step[1]


def test_recipe_fixed_is_the_default_and_changes_nothing():
    assert resolve_settings() == Settings() == resolve_settings(None, {"recipe": "fixed"})


def test_the_recipes_are_those_the_settings_accept():
    assert tuple(RECIPES) == get_args(Settings.model_fields["recipe"].annotation)


# ---- where a value comes from --------------------------------------------------------------------------------------


def test_later_sources_win(tmp_path):
    pipeline = write(tmp_path / "mine.yaml", "recipe: paper\nfinetune: {accumulation: 2, steps: 7}\n")
    assert resolve_settings().finetune.accumulation == 1, "default"
    assert resolve_settings(None, {"recipe": "paper"}).finetune.accumulation == 4, "recipe over default"
    assert resolve_settings(pipeline).finetune.accumulation == 2, "pipeline over recipe"
    flag, assignment = {"finetune": {"steps": 8}}, parse_assignment("finetune.steps=9")
    assert resolve_settings(pipeline, flag).finetune.steps == 8, "flag over pipeline"
    both = resolve_settings(pipeline, flag, assignment).finetune
    assert (both.steps, both.accumulation, both.labelled_batch) == (9, 2, 1), "--set over flag, the rest stays"


def test_an_override_can_change_the_recipe_of_a_pipeline(tmp_path):
    pipeline = write(tmp_path / "mine.yaml", "recipe: paper\n")
    assert resolve_settings(pipeline, {"recipe": "fixed"}) == Settings()


def test_an_override_can_set_a_value_back_to_none(tmp_path):
    pipeline = write(tmp_path / "mine.yaml", "data: {test: 5}\n")
    assert resolve_settings(pipeline, parse_assignment("data.test=null")).data.test is None


def test_an_empty_section_or_file_says_nothing(tmp_path):
    pipeline = write(tmp_path / "mine.yaml", "recipe:\nfinetune:\n  # steps: 10\ndata: {test: 5}\n")
    assert resolve_settings(pipeline) == resolve_settings(None, {"data": {"test": 5}})
    assert resolve_settings(write(tmp_path / "empty.yaml", "{}")) == Settings()


def test_a_pipeline_without_anything_is_a_mistake_unless_it_says_so(tmp_path):
    path = write(tmp_path / "empty.yaml", "# finetune: {steps: 3}\n")
    assert refusal(path) == f"{path} is empty; expected names and values, or {{}} for none"


def test_merge_changes_none_of_its_layers():
    low, high = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert merge(low, high) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert (low, high) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4})


def test_resolved_settings_can_be_handed_back_as_a_pipeline(tmp_path):
    settings = resolve_settings(None, {"recipe": "paper", "finetune": {"patterns": [0, 2]}, "data": {"test": 9}})
    assert resolve_settings(write(tmp_path / "again.yaml", settings_yaml(settings))) == settings


# ---- --set ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nested"),
    [
        ("seed=3", {"seed": 3}),
        ("finetune.steps=100", {"finetune": {"steps": 100}}),
        (" model.name = mini", {"model": {"name": "mini"}}),
        ("finetune.patterns=[0, 2]", {"finetune": {"patterns": [0, 2]}}),
        ("task.data=a=b", {"task": {"data": "a=b"}}),
        ("data.test=", {"data": {"test": None}}),
    ],
)
def test_an_assignment_is_a_dotted_name_and_a_yaml_value(text, nested):
    assert parse_assignment(text) == nested


def test_a_number_in_scientific_notation_ends_up_a_float():
    # YAML 1.1 reads 1e-4 as text.
    rate = resolve_settings(None, parse_assignment("finetune.learning_rate=1e-4")).finetune.learning_rate
    assert isinstance(rate, float)
    assert rate == 0.0001


@pytest.mark.parametrize("text", ["finetune.steps", "=100", "  =3"])
def test_an_assignment_without_name_or_value_is_refused(text):
    with pytest.raises(SettingsError, match=r"expected NAME=VALUE, for example --set finetune.steps=100"):
        parse_assignment(text)


def test_an_assignment_that_is_not_yaml_is_refused():
    with pytest.raises(SettingsError, match=r"--set model.name: '\[mini' is not a YAML value; quote it"):
        parse_assignment("model.name=[mini")


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"finetun": {}}, "unknown setting 'finetun'; did you mean 'finetune'?"),
        ({"finetune": {"lerning_rate": 1}}, "did you mean 'finetune.learning_rate'?"),
        ({"data": {"zzz": 1}}, "expected one of data.train_examples, data.pool_per_label, data.test, data.draw"),
        (
            {"finetune": {"zzz": 1}},
            "unknown setting 'finetune.zzz'; expected one of finetune.steps, finetune.accumulation",
        ),
        ({"alpha": 0.1}, "unknown setting 'alpha'; did you mean 'finetune.alpha'?"),
        ({"qqq": 1}, "unknown setting 'qqq'; expected one of recipe, seed, task, model, data"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_likely_meant(given, words):
    assert words in refusal(None, given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"finetune": {"steps": 0}}, "finetune.steps: input should be greater than or equal to 1 (given: 0)"),
        ({"finetune": {"alpha": 1}}, "finetune.alpha: input should be less than 1"),
        ({"finetune": {"learning_rate": -1e-5}}, "finetune.learning_rate: input should be greater than 0"),
        ({"finetune": {"steps": "many"}}, "finetune.steps: input should be a valid integer"),
        ({"finetune": {"mask_probability": 0}}, "finetune.mask_probability"),
        ({"finetune": {"patterns": [-1]}}, "finetune.patterns.0: input should be greater than or equal to 0"),
        ({"finetune": 3}, "finetune: expected names with values below it (given: 3)"),
        ({"data": {"draw": "last"}}, "data.draw: input should be 'seed' or 'first' (given: 'last')"),
        ({"model": {"max_length": 4}}, "model.max_length: input should be greater than or equal to 8"),
        ({"seed": 2**32}, "seed: input should be less than 4294967296"),
        ({"runtime": {"precision": "fp16"}}, "runtime.precision: input should be 'auto', 'fp32' or 'bf16'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_what_was_given(given, words):
    assert words in refusal(None, given)


def test_all_problems_are_named_in_one_sentence():
    problem = refusal(None, {"seed": -1, "finetune": {"steps": 0, "typo": 1}, "data": {"test": 0}})
    assert problem.startswith("settings: ")
    assert all(name in problem for name in ("seed:", "finetune.steps:", "'finetune.typo'", "data.test:"))


def test_problems_of_a_pipeline_name_its_file(tmp_path):
    path = write(tmp_path / "mine.yaml", "finetune: {steps: 0}\n")
    assert refusal(path).startswith(f"pipeline {path}: finetune.steps:")


@pytest.mark.parametrize("recipe", ["papr", 3, ["paper"]])
def test_an_unknown_recipe_is_refused_with_the_known_ones(recipe):
    assert "expected one of fixed, paper" in refusal(None, {"recipe": recipe})


def test_settings_are_frozen():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.finetune.steps = 1


def test_every_field_has_a_description():
    def undescribed(model: type[BaseModel], prefix: str = "") -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                assert field.annotation.__doc__, f"{field.annotation.__name__} says nothing of itself"
                missing += undescribed(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                missing.append(prefix + name)
        return missing

    assert undescribed(Settings) == []


# ---- files ---------------------------------------------------------------------------------------------------------


def test_every_shipped_pipeline_resolves():
    recipes = {"mini"}
    assert recipes < set(shipped_names("pipelines"))
    for name in set(shipped_names("pipelines")) - recipes:
        assert isinstance(resolve_settings(name), Settings), name
    for name in recipes:
        assert isinstance(resolve_pretraining(name, {"corpus": {"files": ["any.txt"]}}), Pretraining), name
        assert f"{name}.yaml: `corpus` is a setting of another command; use pet pretrain" in refusal(name)


def test_a_file_that_is_not_yaml_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "mine.yaml", "seed: 1\nfinetune: [1\n")
    problem = refusal(path)
    assert f"{path} line 3 is not valid YAML" in problem


def test_a_file_with_a_control_character_is_not_yaml(tmp_path):
    assert "is not valid YAML" in refusal(write(tmp_path / "mine.yaml", "seed: \x00\n"))


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    assert "holds a list; expected a mapping" in refusal(write(tmp_path / "mine.yaml", "- 1\n"))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"task: {name: caf\xe9}\n")
    assert f"{path} line 1 is not UTF-8 text" in refusal(str(path))


def test_a_file_that_vanished_is_refused_as_the_caller_s_kind_of_error(tmp_path):
    with pytest.raises(TaskError, match=r"there is no file .*gone.yaml"):
        read_yaml(tmp_path / "gone.yaml", TaskError)


def test_an_unknown_pipeline_is_refused_with_what_was_likely_meant(tmp_path, monkeypatch):
    for name in ("demo", "table-1"):
        write(tmp_path / f"{name}.yaml", "seed: 1\n")
    monkeypatch.setattr(shipped_module, "shipped_folder", lambda kind: tmp_path)
    assert "unknown pipeline 'dmo'; did you mean 'demo'?" in refusal("dmo")
    assert "use one of demo, table-1 or the path of a YAML file" in refusal("zzz")
    assert resolve_settings("demo").seed == 1


def test_a_task_card_is_found_by_name_by_folder_and_by_file(tmp_path):
    card = tmp_path / "mine" / "task.yaml"
    card.parent.mkdir()
    write(card, "name: mine\n")
    assert find_file("data", str(card.parent)) == card
    assert find_file("data", str(card)) == card
    assert find_file("data", "agnews") == shipped_folder("data") / "agnews" / "task.yaml"


def test_shipped_files_are_looked_for_inside_an_installed_package_first(tmp_path, monkeypatch):
    inside = tmp_path / "pet" / "shipped" / "pipelines"
    inside.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(shipped_module, "__file__", str(tmp_path / "pet" / "config" / "shipped.py"))
    assert shipped_folder("pipelines") == inside
    assert shipped_folder("data") == tmp_path / "data", "the checkout has them beside the package"
    write(inside / "demo.yaml", yaml.safe_dump({"seed": 4}))
    assert shipped_names("pipelines") == ["demo"]
    assert find_file("pipelines", "demo") == inside / "demo.yaml"


@pytest.mark.parametrize("text", ["finetune.learning_rate=.inf", "distill.temperature=.nan", "task.data=''"])
def test_values_that_are_no_number_or_no_name_are_refused(text):
    with pytest.raises(SettingsError):
        resolve_settings(None, parse_assignment(text))


@pytest.mark.parametrize("given", ["all-linear", ["all-linear"]])
def test_one_lora_target_need_not_be_a_list(given):
    settings = resolve_settings(None, {"finetune": {"lora": {"targets": given}}})
    assert settings.finetune.lora.targets == ("all-linear",)


def test_the_papers_table_has_the_papers_settings():
    """P1 Tab 5: 1,000 steps of 4 labelled and 12 unlabelled texts, three members a pattern; 5,000 of 16; 250 of 16."""
    tasks = resolve_tasks("table-1")
    assert list(tasks) == ["yelp-full", "agnews", "yahoo", "mnli", "mnli-mm"]
    for name, one in tasks.items():
        assert (one.task.name, one.model.name, one.model.max_length) == (name, "FacebookAI/roberta-large", 256)
        assert (one.table.sizes, one.data.pool_per_label, one.data.test) == ((0, 10, 50, 100, 1000), 10_000, None)
        members, student, baseline = one.finetune, one.distill, one.baseline
        assert (members.repetitions, members.patterns, members.alpha, members.mask_probability) == (3, None, 1e-4, 0.15)
        assert members.steps == 1000
        assert (members.labelled_batch * members.accumulation, members.unlabelled_batch * members.accumulation) == (
            4,
            12,
        )
        assert (student.steps, student.batch * student.accumulation, student.temperature) == (5000, 16, 2)
        assert (baseline.steps, baseline.batch * baseline.accumulation) == (250, 16)
        assert {part.learning_rate for part in (members, student, baseline)} == {1e-5}
        assert {part.weight_decay for part in (members, student, baseline)} == {0.01}
        assert (one.ipet.teachers, one.ipet.growth, one.ipet.steps, one.ipet.generations) == (0.25, 5, None, None)
        assert one.ipet.first_candidates == 100
