"""Students that differ and public sets, from words to the files of a run."""

import json

import pytest
import tiny
import torch

from fedkd.configuration import compose
from fedkd.data import proxy
from fedkd.errors import CheckpointError, ConfigError
from simulations import assemble
from simulations.cli import partition_view
from simulations.run import assignments, run_folder, runs
from simulations.run.options import Options

SMALL = ("data=digits", "clients=4", "rounds=2", "train.steps=2", "evaluate.probe=8", "engine=inline")
MIXED = "students={fedgen-cnn: 0.5, mlp: 0.5}"
PUBLIC = ("proxy=held-out", "proxy.size=20")


def made(*words: str) -> assemble.Assembly:
    return assemble.assemble(compose.resolve([*SMALL, *words]).config)


def refused(*words: str) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        made(*words)
    return caught.value.what, caught.value.mistakes[0].mend


def play(path, *words: str) -> None:
    threads = torch.get_num_threads()
    try:
        runs.start(compose.resolve([*SMALL, *words]), runs=path.parent, name=path.name, options=Options(quiet=True))
    finally:
        torch.set_num_threads(threads)


# What cannot be


def test_who_averages_weights_refuses_a_mixture_and_names_who_does_not():
    what, mend = refused("strategy=fedavg", MIXED)
    assert what.startswith("strategy 'fedavg' averages weights, so it cannot work with students of different")
    assert mend.startswith("average within architectures, students.mixed=groups, or choose one of: ")
    named = mend.rpartition(": ")[2].split(", ")
    assert {"fedmd", "knfu", "local"} <= set(named)
    assert set(named) <= set(compose.options("strategy"))
    assert not {"fedavg", "fedprox", "centralised"} & set(named)


def test_who_pools_all_data_has_one_student_and_no_groups():
    what, mend = refused("strategy=centralised", MIXED, "students.mixed=groups")
    assert what.startswith("strategy 'centralised' trains one student on everybody's data")
    assert mend.startswith("choose one of: ")


def test_who_needs_a_public_set_refuses_to_be_without():
    what, mend = refused("strategy=fedmd")
    assert what == "strategy 'fedmd' needs a public set of samples, and proxy is none"
    assert "proxy=held-out" in mend


def test_who_needs_none_may_have_one():
    assert made("strategy=fedavg", *PUBLIC).experiment.problem.proxy.name == "held-out"


def test_images_too_small_for_one_student_of_a_mixture_are_a_mistake():
    config = compose.resolve([*SMALL, "students={name: mlp, mlp: 1, resnet8: 1}"]).config
    with pytest.raises(ConfigError, match="'resnet8' needs images of at least 5 x 5"):
        assemble.build_problem(config, (1, 4, 4), 10, (1, 2, 3, 4))


# What is assembled


def test_by_size_the_first_named_student_goes_to_the_smallest_clients():
    assembly = made("strategy=local", MIXED, "students.assign=size", "partition=quantity")
    sizes = [len(index) for index in assembly.partition.train]
    order = sorted(range(4), key=lambda client: sizes[client])
    assert [assembly.experiment.problem.architecture(k) for k in order] == ["fedgen-cnn"] * 2 + ["mlp"] * 2


def test_a_mixture_of_one_is_no_mixture():
    problem = made("strategy=fedavg", "students={mlp: 1}", "students.name=mlp").experiment.problem
    assert not problem.is_mixed
    assert problem.assigned == ("mlp",) * 4


def test_the_first_client_holds_everybodys_data_where_it_is_pooled():
    assembly = made("strategy=centralised")
    train = assembly.site.train_index
    assert sorted(train[0].tolist()) == sorted(i for index in assembly.partition.train for i in index.tolist())
    assert [len(train[k]) for k in (1, 2, 3)] == [len(assembly.partition.train[k]) for k in (1, 2, 3)]


def test_what_is_held_out_is_nobodys_even_where_data_are_pooled():
    assembly = made("strategy=centralised", *PUBLIC)
    x = assembly.site.train.x[assembly.site.train_index[0]]
    known = {image.numpy().tobytes() for image in x}
    repeated = [image for image in assembly.experiment.problem.proxy.samples.x if image.numpy().tobytes() in known]
    assert not repeated


def test_common_images_are_as_many_as_there_are_and_the_same_for_a_seed():
    one, other, third = (made("strategy=local", f"seed={seed}", "evaluate.common=50").site.common for seed in (0, 0, 1))
    assert len(set(one.tolist())) == 50
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert len(made("strategy=local").site.common) == 355


# Within architectures


def test_groups_play_a_federation_an_architecture():
    assembly = made("strategy=fedavg", MIXED, "students.mixed=groups")
    played = tiny.play(assembly.experiment, tiny.FakeEngine(assembly.site), count=2)
    assert not [failure for each in played for failure in each.failures]
    accuracy = played[-1].row["accuracy"]
    assert set(accuracy) == {"clients", "common", "trained", "by_class"}
    assert set(played[-1].state.server.groups) == {"fedgen-cnn", "mlp"}


# What a run leaves


def test_a_run_says_who_has_which_student_and_which_images_are_public(tmp_path):
    place = tmp_path / "run"
    play(place, "strategy=fedmd", MIXED, *PUBLIC)
    told = json.loads((place / "run.json").read_text())
    assembly = made("strategy=fedmd", MIXED, *PUBLIC)
    public = assembly.experiment.problem.proxy
    assert told["students"] == list(assembly.experiment.problem.assigned)
    assert sorted(told["students"]) == ["fedgen-cnn", "fedgen-cnn", "mlp", "mlp"]
    assert told["proxy"] == {"name": "held-out", "size": 20, "labelled": True, "checksum": public.checksum}


def test_where_all_are_alike_it_says_so_too(tmp_path):
    place = tmp_path / "run"
    play(place, "strategy=fedavg", "students=mlp")
    told = json.loads((place / "run.json").read_text())
    assert (told["students"], told["proxy"]) == (["mlp"], None)


@pytest.mark.parametrize(("name", "what"), [("students", "the clients' students are"), ("proxy", "the public set is")])
def test_a_run_does_not_go_on_with_others(tmp_path, name, what):
    play(tmp_path / "run", "strategy=local", *PUBLIC)
    folder = run_folder.reopen(tmp_path / "run")
    folder.note(**{name: "others"})
    with pytest.raises(CheckpointError, match=f"{what} not what this run began with"):
        assignments.keep(folder, made("strategy=local", *PUBLIC), "fedgen-cnn")
    folder.release()


def test_a_run_from_before_there_were_public_sets_goes_on(tmp_path):
    play(tmp_path / "run", "strategy=local")
    path = tmp_path / "run" / "run.json"
    told = json.loads(path.read_text())
    del told["students"], told["proxy"]
    path.write_text(json.dumps(told))
    folder = run_folder.reopen(tmp_path / "run")
    assignments.keep(folder, made("strategy=local"), "fedgen-cnn")
    folder.release()
    assert json.loads(path.read_text())["students"] == ["fedgen-cnn"]  # once, where all have the same


def test_a_written_configuration_makes_the_same_mixture(tmp_path):
    place = tmp_path / "run"
    play(place, "strategy=local", MIXED, *PUBLIC)
    again = assemble.assemble(compose.from_yaml_file(place / "config.yaml").config).experiment.problem
    assert list(again.assigned) == json.loads((place / "run.json").read_text())["students"]


# What is shown of a partition


def test_the_partition_shown_is_the_one_that_is_dealt():
    """What is held out is nobody's here too, and no public set needs to be loaded for that."""
    config = compose.resolve([*SMALL, *PUBLIC]).config
    assembly = made("strategy=local", *PUBLIC)
    shown = assemble.split_data(config, assembly.dataset, proxy.hold_out(config, assembly.dataset))
    assert shown.digest() == assembly.partition.digest()
    labels = assembly.dataset.train.y.numpy()
    counts = partition_view.as_json(shown, labels)
    assert sum(counts["train"]) == len(assembly.dataset.train) - 20
    assert partition_view.table(shown, labels, assembly.dataset.labels, width=120)


def test_run_folders_that_hold_a_name_for_each_of_clients_all_alike_are_still_known():
    from simulations.run import assignments

    assert assignments._once(["mlp"] * 4) == assignments._once(("mlp",)) == ["mlp"]
    assert assignments._once(["mlp", "lenet5"]) == ["mlp", "lenet5"]
