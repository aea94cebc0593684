"""The probe is as large as it is cheap beside local training."""

from dataclasses import replace

import pytest

from fedkd.config import EvaluateConfig, RunConfig, StudentsConfig, TrainConfig
from fedkd.training import probing

DIGITS, CIFAR = (1, 28, 28), (3, 32, 32)


def asked(student, shape=CIFAR, probe=64, available=10_000, **train):
    config = RunConfig(
        students=StudentsConfig(name=student), train=TrainConfig(**train), evaluate=EvaluateConfig(probe=probe)
    )
    return probing.num_images(config, shape, 10, available)


@pytest.mark.parametrize("student", ["mlp", "fedgen-cnn", "mcmahan-cnn", "knfu-cnn"])
def test_small_students_keep_their_probe_however_little_they_train(student):
    assert asked(student, DIGITS, steps=1, batch=1) == 64


def test_the_default_training_keeps_the_probe_of_any_student():
    assert asked("resnet20") == 64


def test_a_large_student_of_few_steps_is_asked_for_a_third_of_its_training_images():
    assert asked("resnet20", steps=3, batch=32) == 32


def test_a_large_student_of_one_step_is_asked_for_as_many_as_cost_nothing():
    assert asked("resnet20", steps=1, batch=8) == 10**9 // 40_813_184 == 24


def test_a_mixture_counts_its_largest_student():
    config = RunConfig(
        students=StudentsConfig(name="mlp", mix={"mlp": 0.5, "resnet20": 0.5}), train=TrainConfig(steps=1)
    )
    assert probing.num_images(config, CIFAR, 10, 10_000) == 24
    assert probing.num_images(replace(config, students=StudentsConfig(name="mlp")), CIFAR, 10, 10_000) == 64


def test_there_are_never_more_probe_images_than_test_images():
    assert asked("mlp", DIGITS, available=5) == 5
    assert asked("resnet20", probe=0, steps=1) == 0


def test_multiplications_are_those_of_the_layers():
    assert probing.multiplications("fedgen-cnn", DIGITS, 10) == 78_328  # two strided convolutions and two linear layers
