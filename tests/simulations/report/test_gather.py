"""Runs made anywhere: where each stands, which cannot stand together, and what is told of those that do not count."""

import json
import os
from pathlib import Path

import fabricated
import pytest

from fedkd.errors import ConfigError, FolderError
from simulations.analysis import plan
from simulations.cli import main
from simulations.report import gather, labels


def lay(folder: Path, *found: fabricated.RunRecord) -> Path:
    """Run folders, named by strategy and number."""
    for number, each in enumerate(found):
        fabricated.write(each, folder / f"{each.method}-{number}")
    return folder


def collect(*places: Path, **wanted: object) -> tuple[fabricated.Question, list[fabricated.RunRecord]]:
    return gather.collect([str(place) for place in places], Path("runs"), gather.Choices(**wanted))  # type: ignore[arg-type]


def test_runs_of_two_strategies_make_one_setting(tmp_path: Path) -> None:
    lay(tmp_path, *(fabricated.member(name, seed) for name in ("fedavg", "fedprox") for seed in (0, 1, 2)))
    question, found = collect(tmp_path)
    assert (question.settings, question.methods, question.seeds) == (("",), ("fedavg", "fedprox"), (0, 1, 2))
    assert question.baseline == "fedavg"
    assert all(each.is_done for each in found)


def test_what_differs_beside_the_strategy_is_the_setting(tmp_path: Path) -> None:
    alphas = [
        fabricated.member(name, words={"partition.alpha": alpha}) for name in ("fedavg", "local") for alpha in (0.1, 10)
    ]
    question, _ = collect(lay(tmp_path, *alphas))
    assert question.settings == ("alpha 0.1", "alpha 10")
    assert question.methods == ("fedavg", "local")


def test_settings_are_in_the_order_of_numbers() -> None:
    assert sorted(["alpha 10", "alpha 0.5", "alpha 9", "alpha 0.05"], key=labels.natural) == [
        "alpha 0.05",
        "alpha 0.5",
        "alpha 9",
        "alpha 10",
    ]


def test_hyper_parameters_of_one_strategy_tell_its_methods_apart(tmp_path: Path) -> None:
    tried = [fabricated.member("fedprox", seed, words={"strategy.mu": mu}) for seed in (0, 1) for mu in (0.1, 0.1, 0.5)]
    del tried[1], tried[3]
    question, _ = collect(lay(tmp_path, *tried))
    assert sorted(question.methods) == ["fedprox", "fedprox mu 0.5"]


def test_values_of_one_method_alone_make_no_setting(tmp_path: Path) -> None:
    tuned = [fabricated.member("fedavg"), fabricated.member("fedprox", words={"train.lr": 0.03})]
    assert collect(lay(tmp_path, *tuned))[0].settings == ("",)


def test_places_of_different_configurations_differ() -> None:
    configs = [
        dict(
            fabricated.member(
                name, words={"partition.alpha": alpha, "strategy.variant": variant, "train.lr": lr}
            ).config
        )
        for name in ("fedavg", "fedgen")
        for alpha in (0.1, 1)
        for variant in ("paper", None)
        for lr in (0.1, 0.2)
    ]
    places = labels.places(configs)
    assert len(set(places.values())) == len(configs)


def test_machine_facts_make_no_setting(tmp_path: Path) -> None:
    question, _ = collect(lay(tmp_path, *(fabricated.member(seed=seed) for seed in (0, 1))))  # data.root differs
    assert question.settings == ("",)


def test_different_data_for_different_methods_are_refused_by_name(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"), fabricated.member("fedgen", words={"data.name": "mnist"}))
    with pytest.raises(ConfigError, match="digits: fedavg-0; mnist: fedgen-1") as caught:
        collect(tmp_path)
    assert caught.value.code == 2


def test_different_data_for_all_methods_are_settings(tmp_path: Path) -> None:
    grid = [fabricated.member(name, words={"data.name": data}) for name in ("fedavg", "knfu") for data in ("a", "b")]
    assert collect(lay(tmp_path, *grid))[0].settings == ("a", "b")


def test_different_lengths_are_refused_by_name(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"), fabricated.member("fedgen", rounds=5))
    with pytest.raises(ConfigError, match="5 rounds: fedgen-1; 12 rounds: fedavg-0"):
        collect(tmp_path)


def test_half_written_and_foreign_runs_are_listed_and_the_others_count(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"), fabricated.member("fedgen"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text("{", encoding="utf-8")
    fabricated.write(fabricated.member("knfu"), tmp_path / "foreign", schema=99)
    _, found = collect(tmp_path)
    reasons = {each.folder.name: each.reason for each in found if not each.is_done}
    assert set(reasons) == {"half", "foreign"}
    assert "run.json" in reasons["half"]
    assert "another version" in reasons["foreign"]


def test_same_run_given_twice_counts_once(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"))
    assert len(collect(tmp_path, tmp_path / "fedavg-0")[1]) == 1


def test_same_configuration_and_seed_counts_once(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"), fabricated.member("fedavg"))
    _, found = collect(tmp_path)
    assert [each.is_done for each in found] == [True, False]
    assert "fedavg-0" in found[1].reason


def test_no_finished_run_is_an_error(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.replace(fabricated.member("fedavg"), state="stopped"))
    with pytest.raises(FolderError, match="no run is done"):
        collect(tmp_path)


def lay_comparison(folder: Path, name: str, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """A comparison of two methods, all its runs done."""
    place = folder / name
    cells = []
    for method in ("fedavg", "fedprox"):
        for seed in seeds:
            fabricated.write(fabricated.member(method, seed), place / f"runs/{method}-s{seed}")
            cells.append(plan.Cell("", method, seed, (f"strategy={method}",), "0" * 64, f"runs/{method}-s{seed}"))
    facts = {"command": "fedkd compare", "asked": "", "code": "", "about": "", "settings": ("",)}
    more = {"methods": ("fedavg", "fedprox"), "seeds": seeds, "metric": "clients.mean last", "baseline": "fedprox"}
    made = plan.ComparisonPlan(**facts, **more, columns={}, target=None, published=None, cells=tuple(cells))  # type: ignore[arg-type]
    (place / "plan.yaml").write_text("".join(plan._lines(made)), encoding="utf-8")
    return place


@pytest.mark.parametrize("meant", ["", "skew", "skew/plan.yaml", "skew/runs", "skew/report.html"])
def test_any_folder_or_file_of_a_comparison_means_the_comparison(tmp_path: Path, meant: str) -> None:
    place = lay_comparison(tmp_path, "skew")
    (place / "report.html").write_text("an older one", encoding="utf-8")
    question, found = collect(tmp_path / meant)
    assert (question.name, question.baseline, len(found)) == ("skew", "fedprox", 4)
    assert gather.place([str(tmp_path / meant)], tmp_path, None) == place


def test_a_folder_of_runs_has_those_of_its_comparisons_too(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedgen", 0))
    lay_comparison(tmp_path, "one")
    lay_comparison(tmp_path, "two", seeds=(2, 3))
    question, found = collect(tmp_path)
    assert (set(question.methods), question.seeds) == ({"fedavg", "fedprox", "fedgen"}, (0, 1, 2, 3))
    assert len(found) == 9


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="there is no run"):
        collect(tmp_path / "nowhere")


def test_metric_that_no_run_has_is_refused_with_those_they_have(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"))
    with pytest.raises(ConfigError, match=r"clients\.mean"):
        collect(tmp_path, metric="server.fidelity last")


def test_unknown_baseline_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"))
    with pytest.raises(ConfigError, match="one of: fedavg"):
        collect(tmp_path, baseline="fedgen")


def test_report_goes_to_the_one_folder_or_to_a_new_one(tmp_path: Path) -> None:
    lay(tmp_path, fabricated.member("fedavg"), fabricated.member("fedgen"))
    one, other = str(tmp_path / "fedavg-0"), str(tmp_path / "fedgen-1")
    assert gather.place([one], tmp_path, None) == Path(one)
    assert gather.place(["fedgen-1"], tmp_path, None) == Path(other)
    assert gather.place([one, other], tmp_path, None) == gather.place([other, one], tmp_path, None)
    assert gather.place([one, other], tmp_path, None).parent == tmp_path
    assert gather.place([one], tmp_path, tmp_path / "x") == tmp_path / "x"


def test_verb_writes_the_report_of_a_run_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(tmp_path, fabricated.member("<script>", rounds=3))
    folder = tmp_path / "<script>-0"
    assert main.main(["report", str(folder), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == os.fspath(folder / "report.html")
    assert found["table"][0]["strategy"] == "<script>"
    assert "<script>-0</h1>" not in (folder / "report.html").read_text(encoding="utf-8")


def test_verb_says_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(tmp_path, fabricated.member("fedavg"), fabricated.member("fedgen", rounds=5))
    assert main.main(["report", str(tmp_path)]) == 2
    assert "different lengths" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_own_data_sets_are_told_apart_by_their_folders():
    configs = [{"data.name": "own", "data.root": f"/data/{name}", "strategy.setting": "fedavg"} for name in ("a", "b")]
    assert [place.setting for place in labels.places(configs).values()] == ["a", "b"]
