import json
from pathlib import Path

import fixed_runs
import tiny
import torch
from safetensors.torch import save_file

from fedkd.configuration import compose


def test_the_list_has_every_strategy_and_every_student_of_small_images():
    assert set(fixed_runs.STRATEGIES) == set(compose.options("strategy"))
    assert set(fixed_runs.STUDENTS) == set(tiny.STUDENTS)


def test_a_bit_of_a_tensor_or_a_digit_of_the_ledger_is_a_difference_and_a_new_key_is_none(tmp_path):
    run = written(tmp_path / "a", torch.zeros(2), accuracy=0.5)
    assert fixed_runs.differences(run, written(tmp_path / "b", torch.zeros(2), accuracy=0.5)) == ([], [])
    assert fixed_runs.differences(run, written(tmp_path / "c", torch.tensor([0.0, -0.0]), accuracy=0.5))[0]
    assert fixed_runs.differences(run, written(tmp_path / "d", torch.zeros(2), accuracy=0.25))[0]
    assert fixed_runs.differences(run, written(tmp_path / "e", torch.zeros(2), accuracy=0.5, new=1)) == ([], ["new"])
    assert fixed_runs.differences(run, None)[0]


def written(run: Path, weights: torch.Tensor, **row: float) -> Path:
    """As much of a run folder as the list compares."""
    (run / "checkpoints" / "round-0002").mkdir(parents=True)
    save_file({"w": weights}, run / "checkpoints" / "round-0002" / "server.safetensors")
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run / "clients.jsonl").write_text("")
    return run
