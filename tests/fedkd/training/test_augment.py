"""Augmentation: what each operation may change, and that it depends on nothing but the client's own stream."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.fedgkd import FedGKD
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.errors import ConfigError
from fedkd.training import augment


def changed(x: torch.Tensor, black: tuple[float, ...] = (-1.0,), job=None, **train) -> torch.Tensor:
    problem = tiny.problem(train=replace(tiny.TRAIN, **train))
    return augment.augmented(problem, job or tiny.job(problem), x.clone(), black)


def some(count: int = 40, channels: int = 2) -> torch.Tensor:
    return torch.arange(count * channels * 36.0).view(count, channels, 6, 6) + 1


def test_a_flip_mirrors_about_half_of_the_images():
    x = some(400)
    found = changed(x, augment="flip")
    same, mirrored = (
        (found == x).flatten(1).all(1),
        (found == x.flip(-1)).flatten(1).all(1),
    )
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_a_crop_is_a_shifted_image_on_black():
    x = some()
    found = changed(x, (-1.0, -3.0), augment="crop-flip")
    shifts = set()
    for before, after in zip(x, found, strict=True):
        padded = torch.stack(
            [torch.nn.functional.pad(channel, [4] * 4, value=v) for channel, v in zip(before, (-1, -3), strict=True)]
        )
        views = {(i, j): padded[:, i : i + 6, j : j + 6] for i in range(9) for j in range(9)}
        shifts |= {k for k, view in views.items() if torch.equal(view, after) or torch.equal(view.flip(-1), after)}
    assert {i for i, _ in shifts} == {j for _, j in shifts} == set(range(9))  # all shifts occur, and nothing else
    assert found.shape == x.shape


def test_cutout_hides_one_square_in_all_channels_and_nothing_else():
    x = some()
    hidden = changed(x, augment="cutout", cutout=0.5) == 0
    assert bool((hidden.any(1) == hidden.all(1)).all())
    assert_close(changed(x, augment="cutout", cutout=0.5), x.masked_fill(hidden, 0.0))
    rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert rows.max() == columns.max() == 3
    assert rows.min() >= 1
    assert torch.equal(hidden[:, 0].sum((1, 2)), rows * columns)


def test_noise_has_the_configured_spread_on_samples_of_any_shape():
    found = changed(torch.zeros(2000, 5), augment=["noise"], noise=0.3)
    assert float(found.std()) == pytest.approx(0.3, rel=0.03)
    assert float(found.mean()) == pytest.approx(0, abs=0.01)
    assert len(found.unique()) > 9000


def test_none_and_an_empty_list_change_nothing():
    x = some()
    for off in ("none", [], ["none"]):
        assert torch.equal(changed(x, augment=off), x)


def test_a_list_is_applied_in_its_order():
    x = some()
    one, other = (changed(x, augment=order) for order in (["noise", "cutout"], ["cutout", "noise"]))
    assert bool((one == 0).any())
    assert not bool((other == 0).any())


def test_draws_differ_by_client_round_exchange_and_place_in_the_pass_and_by_nothing_else():
    x, job = some(), tiny.job(tiny.problem())
    jobs = [
        job,
        replace(job, client=1),
        replace(job, round=2),
        replace(job, exchange=1),
        replace(job, state=ClientState(position=4)),
        replace(job, state=ClientState(epoch=1)),
    ]
    found = [changed(x, augment="noise", job=each) for each in jobs]
    assert all(not torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(changed(x, augment="noise"), found[0])


@pytest.mark.parametrize(
    ("name", "shape", "vocabulary", "what"),
    [
        ("flip", (20,), 0, "'flip', and the samples are no images"),
        (["noise", "cutout"], (3, 50), 0, "'cutout', and the samples are no images"),
        ("noise", (12,), 100, "'noise', and the samples are token ids"),
    ],
)
def test_what_samples_do_not_allow_is_refused_with_a_sentence(name, shape, vocabulary, what):
    with pytest.raises(ConfigError, match=what):
        augment.check(replace(tiny.TRAIN, augment=name), shape, vocabulary)


def test_what_they_allow_passes():
    augment.check(replace(tiny.TRAIN, augment=["crop-flip", "noise"]), (1, 6, 6), 0)
    augment.check(replace(tiny.TRAIN, augment="noise"), (20,), 0)
    augment.check(tiny.TRAIN, (12,), 100)


def test_training_sees_augmented_samples_and_evaluation_does_not(problem, job):
    site = tiny.site(FedGKD(), problem)
    augmenting = replace(site, problem=replace(problem, train=replace(tiny.TRAIN, augment="noise", noise=1.0)))
    assert not torch.equal(site.draw(job).x, augmenting.draw(job).x)
    assert torch.equal(site.draw(job).y, augmenting.draw(job).y)
    assert torch.equal(site.own(0)[0], augmenting.own(0)[0])
    judge = replace(job, task="evaluate")
    tiny.assert_same(tiny.lasting(site.run(judge)), tiny.lasting(augmenting.run(judge)))


def test_the_same_job_gives_the_same_bits_again(problem, job):
    augmented = replace(problem, train=replace(tiny.TRAIN, augment=["crop-flip", "cutout", "noise"]))
    first, again = (tiny.lasting(tiny.fit(Supervised(), job, tiny.site(Supervised(), augmented))) for _ in range(2))
    tiny.assert_same(first, again)
