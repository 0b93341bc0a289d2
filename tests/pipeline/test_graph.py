"""The graph of a run: every node stands after what it is made from, and a stage is a file and a line."""

import shutil

import pytest
from support.rows import find_one, open_context, read_json

from pet.errors import MissingArtifact
from pet.pipeline.graph import build_graph
from pet.pipeline.node import Node, Stage
from pet.pipeline.runner import look_up, make_graph
from pet.pipeline.stages import baseline, prepare


def nodes_in(given):
    """All nodes in what a node was given, however deep."""
    if isinstance(given, Node):
        return [given]
    if isinstance(given, dict):
        return nodes_in(list(given.values()))
    if isinstance(given, list | tuple):
        return [node for one in given for node in nodes_in(one)]
    return nodes_in([getattr(given, name) for name in getattr(given, "__dataclass_fields__", ())])


@pytest.mark.parametrize("generations", [0, 2])
@pytest.mark.parametrize("changes", [{}, {"adapt": {"enabled": True}}, {"data": {"train_examples": 0}}])
def test_every_node_stands_once_and_after_all_that_it_is_made_from(done, changes, generations):
    nodes = build_graph(open_context(done.ground, done.store, **changes), generations).nodes
    place = {node.identity: number for number, node in enumerate(nodes)}
    assert len(place) == len(nodes)
    for number, node in enumerate(nodes):
        inputs = set(node.key.inputs.values())
        assert all(place[identity] < number for identity in inputs)
        assert inputs <= {one.identity for one in nodes_in(node.given)}, "what a key names is given"


def test_a_graph_is_built_without_a_store_a_text_that_is_made_or_a_model_that_is_loaded(done, tmp_path, monkeypatch):
    monkeypatch.setattr("pet.modeling.loading.load_masked_lm", None)
    ctx = open_context(done.ground, tmp_path / "none", adapt={"enabled": True})
    assert len(build_graph(ctx, 3).nodes) > 30
    assert not (tmp_path / "none").exists()


def test_a_part_of_a_graph_is_made_without_the_rest(done, tmp_path):
    """As tables do for the supervised baselines."""
    ctx = open_context(done.ground, tmp_path)
    assert make_graph(ctx, build_graph(ctx).of(prepare.STAGE, baseline.STAGE)) is None
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"prepare", "baseline"}
    assert find_one(tmp_path, "baseline").name == done.one("baseline").name


def test_what_is_given_to_a_node_has_no_files_until_it_is_made(done, tmp_path):
    node = build_graph(open_context(done.ground, tmp_path)).nodes[-1]
    with pytest.raises(MissingArtifact, match=f"run is not in {tmp_path}"):
        _ = node.artifact


# ---- a new stage ---------------------------------------------------------------------------------------------------


def lengths_node(ctx, scored):
    """A stage of this file: how long the name of the metric is, times a setting."""
    return ctx.node(LENGTHS, [scored, 2], {"times": 2}, {"evaluate": scored.identity}, about="lengths")


def make_lengths(ctx, draft, scored, times):
    ctx.say("lengths: counting")
    draft.write_json("lengths.json", times * len(scored.artifact.manifest["settings"]["metric"]))


LENGTHS = Stage("lengths", version=1, make=make_lengths, step="lengths")


def test_a_stage_is_a_node_and_how_it_is_made_and_is_listed_made_reused_and_mended_like_any_other(done, tmp_path):
    shutil.copytree(done.store, tmp_path / "store")
    ctx = open_context(done.ground, tmp_path / "store")
    *nodes, run = build_graph(ctx).nodes
    lengths = lengths_node(ctx, nodes[-1])
    assert [look_up(ctx, node).found is None for node in (*nodes, lengths)] == [False] * len(nodes) + [True]
    made = make_graph(ctx, [*nodes, lengths, run])
    assert made is not None and made.path.name == done.one("run").name
    folder = find_one(tmp_path / "store", "lengths")
    assert read_json(folder / "lengths.json") == 2 * len("accuracy")
    assert {"device", "peak_memory_bytes"} <= set(read_json(folder / "manifest.json"))
    before = folder.stat().st_mtime_ns
    make_graph(ctx, [*nodes, lengths], lambda node: node is lengths)
    assert folder.stat().st_mtime_ns == before
    (folder / "lengths.json").unlink()
    assert look_up(ctx, lengths).damaged
    make_graph(ctx, [*nodes, lengths])
    assert read_json(find_one(tmp_path / "store", "lengths") / "lengths.json") == 16
