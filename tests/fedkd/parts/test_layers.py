"""Layers and their relations: invariants (docs/parts.md)."""

from collections import OrderedDict
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import tiny
import torch
from hypothesis import given
from torch import nn
from torch.testing import assert_close

from fedkd import config, seeds
from fedkd.errors import ConfigError
from fedkd.parts import graph, layers
from fedkd.parts.part import Part, Seen, shapes, tap_of
from fedkd.problem import Problem
from fedkd.student import Student


def deep() -> Student:
    """Two maps and a vector of one width, then a narrower vector."""
    first = nn.Conv2d(1, 4, 3, padding=1)
    second = nn.Conv2d(4, 4, 2, stride=2)
    third = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Student(OrderedDict(a=first, b=second, c=third, d=nn.Linear(4, 2), head=nn.Linear(2, tiny.CLASSES)))


@pytest.fixture
def problem() -> Problem:
    return tiny.problem(deep)


def seen(part: Part, problem: Problem, teacher: Student | None = None) -> tuple[Seen, Student]:
    """A batch as the part sees it, with the outputs of a teacher; itself unless it is given."""
    student = problem.initial()
    x = tiny.samples(5).take(torch.arange(5))[0]
    names = list(shapes(problem))
    outputs = student.taps(x, names)[1]
    with torch.no_grad():
        told = (teacher or student).taps(x, names)[1]
    per_sample = {tap_of(part.teacher or "", name): told[name] for name in part.taps(problem)}
    return Seen(student, None, None, outputs, per_sample, lambda x: None), student


# Mappings


@given(own=st.integers(1, 8), its=st.integers(1, 8))
def test_mappings_stay_among_the_teachers_layers_and_keep_their_order(own, its):
    rng = seeds.stream(0, "test").numpy
    for kind in ("all_to_one", "forward", "reverse", "random"):
        found = layers.mapping(kind, own, its, rng())
        assert len(found) == own
        assert all(0 <= layer < its for layer in found)
    assert layers.mapping("forward", own, its, rng()) == sorted(layers.mapping("forward", own, its, rng()))
    reverse = layers.mapping("reverse", own, its, rng())
    assert reverse == sorted(reverse, reverse=True)
    assert layers.mapping("forward", 1, its, rng()) == layers.mapping("all_to_one", 1, its, rng()) == [its - 1]
    assert layers.mapping("forward", own, own, rng()) == list(range(own))
    assert sorted(layers.mapping("random", own, own, rng())) == list(range(own))
    assert layers.mapping("none", own, its, rng()) == []


def test_a_random_mapping_is_the_same_throughout_a_run_and_another_in_another(problem):
    part = config.LayersPart(taps=["a", "b", "c"], mapping="random")
    pairs = [tuple(layers.Layers(part, seed)._pairs(["a", "b", "c"])) for seed in (0, 0, 1, 2, 3, 4, 5)]
    assert pairs[0] == pairs[1]
    assert len(set(pairs)) > 1


# Distances


def test_a_teacher_like_the_student_is_no_distance_away(problem):
    part = layers.Layers(config.LayersPart(taps=["a", "b", "c", "d"], mapping="forward"))
    found, _ = seen(part, problem)
    assert float(dict(part.terms(found))["layers"].detach()) == 0


def test_the_last_block_before_the_head_is_compared_unless_others_are_named(problem):
    part = layers.Layers(config.LayersPart())
    assert part.taps(problem) == ("d",)
    teacher = problem.initial().load({"d.bias": torch.tensor([1.0, 2.0])})
    found, student = seen(part, problem, teacher)
    expected = (torch.tensor([1.0, 2.0]) - student.d.bias.detach()).square().mean()
    assert_close(dict(part.terms(found))["layers"].detach(), expected)


def test_distances_of_several_layers_add_up(problem):
    other = problem.student(seeds.stream(5, "other"))
    names = ["b", "c", "d"]
    parts = [layers.Layers(config.LayersPart(taps=taps, mapping="forward")) for taps in (names, *[[n] for n in names])]
    found = [float(dict(part.terms(seen(part, problem, other)[0]))["layers"].detach()) for part in parts]
    assert found[0] == pytest.approx(sum(found[1:]), rel=1e-5)


def test_maps_are_pooled_to_the_smaller_side_and_beside_vectors_to_one_place():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    small = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    assert float(layers.distance(maps, small)) == 0
    assert float(layers.distance(small, maps)) == 0
    assert float(layers.distance(maps, torch.tensor([[7.5]]))) == 0
    assert layers.pool(small, (2, 2)) is small


def test_layers_of_other_widths_and_unknown_blocks_are_refused(problem):
    layers.Layers(config.LayersPart(taps=["a", "b", "c"])).check(problem)
    with pytest.raises(ConfigError, match="differ in width"):
        layers.Layers(config.LayersPart(taps=["a", "d"])).check(problem)
    with pytest.raises(ConfigError, match="no block z"):
        layers.Layers(config.LayersPart(taps=["a", "z"])).check(problem)


def test_without_a_teacher_there_is_no_term(problem):
    for part in (layers.Layers(config.LayersPart()), graph.Graph(config.GraphPart())):
        found, _ = seen(part, problem)
        assert dict(part.terms(replace(found, per_sample={}))) == {}


# Relations


def test_the_deepest_map_with_several_places_is_compared_unless_another_is_named(problem):
    assert graph.Graph(config.GraphPart()).taps(problem) == ("b",)
    assert graph.Graph(config.GraphPart(tap="a")).taps(problem) == ("a",)


def test_a_map_of_one_place_has_no_relations(problem):
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1))

    def one() -> Student:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        return Student(OrderedDict(a=pooled, b=flat, head=nn.Linear(2, tiny.CLASSES)))

    with pytest.raises(ConfigError, match="a map of 1 x 1"):
        graph.Graph(config.GraphPart(tap="a")).check(tiny.problem(one))
    with pytest.raises(ConfigError, match="no feature map with more than one position"):
        graph.Graph(config.GraphPart()).check(tiny.problem(tiny.plain))
    with pytest.raises(ConfigError, match="no block 'z'"):
        graph.Graph(config.GraphPart(tap="z")).check(problem)


def test_a_teacher_like_the_student_has_the_same_relations(problem):
    part = graph.Graph(config.GraphPart())
    found, _ = seen(part, problem)
    assert float(dict(part.terms(found))["graph"].detach()) == 0
    other, _ = seen(part, problem, problem.student(seeds.stream(5, "other")))
    assert float(dict(part.terms(other))["graph"].detach()) > 0


@given(seed=st.integers(0, 99))
def test_relations_are_distributions_that_no_rotation_of_features_changes(seed):
    draws = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 5, 3, 3, generator=draws)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=draws)).Q
    found = graph.relations(maps, 7)
    assert_close(found.sum(2), torch.ones(2, 9))
    assert_close(graph.relations(torch.einsum("cd,bdhw->bchw", rotation, maps), 7), found, atol=1e-5, rtol=1e-4)


@given(seed=st.integers(0, 99))
def test_the_distance_of_relations_does_not_depend_on_the_order_of_places(seed):
    draws = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 5, 3, 3, generator=draws), torch.randn(2, 5, 3, 3, generator=draws)
    order = torch.randperm(9, generator=draws)

    def mixed(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2)[:, :, order].view_as(maps)

    before = (graph.relations(one, 7) - graph.relations(other, 7)).square().mean()
    after = (graph.relations(mixed(one), 7) - graph.relations(mixed(other), 7)).square().mean()
    assert_close(after, before)


def test_relations_by_hand():
    maps = torch.zeros(1, 4, 1, 2)
    maps[0, :, 0, 0] = 1  # a place with four features of 1 beside one of 0: products 4 and 0, over sqrt(4)
    e2 = torch.tensor(2.0).exp()
    expected = torch.stack([torch.stack([e2, torch.tensor(1.0)]) / (1 + e2), torch.tensor([0.5, 0.5])])
    assert_close(graph.relations(maps, 7)[0], expected)


def test_larger_maps_are_pooled():
    assert graph.relations(torch.rand(2, 3, 14, 10), 7).shape == (2, 49, 49)
    assert graph.relations(torch.rand(2, 3, 4, 4), 7).shape == (2, 16, 16)
