"""Noise is drawn once for the same data and epsilon."""

import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedkd import seeds
from fedkd.seeds import Stream
from simulations.deploy import noise_record

COUNTS = torch.tensor([5, 0, 3])
STREAM = seeds.stream(0, "privacy")


class Drawn:
    """A draw that counts how often it is asked, and never says the same twice."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, counts_C: Tensor, epsilon: float, stream: Stream) -> Tensor:
        self.times += 1
        return counts_C + self.times


def test_the_same_question_has_the_same_answer_also_for_another_process(tmp_path: Path) -> None:
    first, second = Drawn(), Drawn()
    said = noise_record.drawn_once(first, tmp_path)(COUNTS, 1.0, STREAM)
    again = noise_record.drawn_once(first, tmp_path)(COUNTS, 1.0, STREAM)
    other = noise_record.drawn_once(second, tmp_path)(COUNTS, 1.0, STREAM)
    assert said.tolist() == again.tolist() == other.tolist() == [6, 1, 4]
    assert (first.times, second.times) == (1, 0)


@pytest.mark.parametrize(("counts", "epsilon"), [(COUNTS + 1, 1.0), (COUNTS, 0.5)])
def test_other_data_or_another_epsilon_is_another_question(tmp_path: Path, counts: Tensor, epsilon: float) -> None:
    draw = Drawn()
    ask = noise_record.drawn_once(draw, tmp_path)
    ask(COUNTS, 1.0, STREAM)
    ask(counts, epsilon, STREAM)
    assert draw.times == 2


def test_the_account_is_for_its_owner_alone(tmp_path: Path) -> None:
    noise_record.drawn_once(Drawn(), tmp_path)(COUNTS, 1.0, STREAM)
    assert stat.S_IMODE((tmp_path / noise_record.FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", '{"1.0": 3}'])
def test_a_damaged_account_is_no_reason_to_draw_again(tmp_path: Path, text: str) -> None:
    (tmp_path / noise_record.FILE).write_text(text)
    draw = Drawn()
    with pytest.raises(ValueError):  # noqa: PT011  # JSON's own, or ours
        noise_record.drawn_once(draw, tmp_path)(COUNTS, 1.0, STREAM)
    assert draw.times == 0
