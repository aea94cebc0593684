"""The setting: what a reviewer asks first, so that no other file is needed."""

import fabricated
import pytest

from fedkd.configuration import compose
from fedkd.configuration.resolved import Resolved
from simulations.analysis import choices
from simulations.report import facts, methods, page, run_tables, setting, summary_table, tables

TASK = {"train": 60_000, "test": 10_000, "classes": 10, "shape": [1, 28, 28], "parameters": {"mlp": 55_210}}


def run(*words: str, seed: int = 0, place: str = "", method: str = "") -> fabricated.RunRecord:
    """A run with the whole configuration of its words."""
    resolved: Resolved = compose.resolve(["data=mnist", "students=mlp", *words, f"seed={seed}"])
    strategy = resolved.choices["strategy"]
    found = fabricated.member(method or strategy, seed, place)
    names = ["mlp"] * resolved.config.clients
    info = {**found.info, "task": TASK, "students": names, "proxy": None, "strategy": strategy}
    return fabricated.replace(found, config=resolved.values(), info={**info, "engine": {"chosen": "engine: inline"}})


def shown(*found: fabricated.RunRecord, **changes: object) -> dict[str, str]:
    """The lines that all settings share."""
    return {row[0]: row[1] for row in setting.shared(fabricated.verdict(found, **changes))[0].rows}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("data set", "mnist: 60,000 training and 10,000 test images of 1 x 28 x 28 in 10 classes"),
        ("partition", "dirichlet: test matched, alpha 0.5, min_samples 10"),
        ("clients", "20, 5 drawn per round; at least 2 must reply"),
        ("student", "mlp, 55,210 parameters"),
        ("normalisation", "BatchNorm in the normalisation layers; its statistics are averaged"),
        ("optimiser", "SGD, momentum 0.9, weight decay 0, gradients clipped at 1"),
        ("learning rate", "0.05, times 0.99 per round as of the client's own last round"),
        ("local work per round", "2 epochs in batches of 64"),
        ("rounds", "7"),
        ("public set", "none"),
        ("evaluated on", "test data: each client's own part every round, all parts together every 5 rounds"),
        ("other values", "evaluate.probe = 10 (default 64)"),
        ("seeds", "3"),
    ],
)
def test_a_line_for_each_thing_that_a_reviewer_asks(line: str, text: str) -> None:
    words = (
        "partition.alpha=0.5 clients=20 clients_per_round=5 quorum=2 train.momentum=0.9 train.clip=1 train.lr=0.05 "
        "train.lr_decay=0.99 train.lr_clock=participation train.steps=null train.epochs=2 train.batch=64 rounds=7 "
        "evaluate.pooled_every=5 evaluate.probe=10"
    )
    assert shown(run("strategy=fedavg", *words.split(), seed=3))[line] == text


def test_every_decisive_value_is_told_somewhere() -> None:
    """Whatever is changed in the schema shows: in its own line, or among the other values."""
    plain = run("strategy=fedavg")
    for key, value in plain.config.items():
        other = not value if isinstance(value, bool) else value * 2 + 1 if isinstance(value, int | float) else "group"
        other = "validation" if key == "evaluate.on" else other
        if key.startswith(("engine.", "checkpoint.", "strategy.", "part.", "students.mix")) or key in without_effect():
            continue
        odd = fabricated.replace(plain, config={**plain.config, key: other}, info={**plain.info, "students": []})
        before = fabricated.replace(plain, info={**plain.info, "students": []})
        assert shown(odd) != shown(before), key


def without_effect() -> set[str]:
    """What moves no result, or means nothing without another value."""
    return {
        "seed", "track", "data.root", "data.download", "proxy.name", "proxy.size", "parts", "evaluate.validation",
        "train.moments", "train.epochs", "train.lr_clock", "train.schedule", "train.lr_step",
        "students.name", "students.statistics",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("train.warmup=5", "0.01, constant after 5 rounds of warm-up"),
        ("train.schedule=constant train.lr_decay=0.9", "0.01, constant"),
        ("train.schedule=cosine train.warmup=1", "0.01, cosine to 0 after the last round after 1 round of warm-up"),
        ("train.schedule=step train.lr_decay=0.1 train.lr_step=7", "0.01, times 0.1 per 7 rounds"),
    ],
)
def test_a_schedule_is_told_in_words(words: str, text: str) -> None:
    assert shown(run("strategy=fedavg", *words.split()))["learning rate"] == text


def test_settings_differ_in_columns_and_nothing_is_said_twice() -> None:
    found = [
        run("strategy=fedavg", f"partition.alpha={alpha}", seed=seed, place=f"alpha {alpha}")
        for alpha in (0.1, 0.5)
        for seed in (1, 2)
    ]
    first, second = setting.shared(fabricated.verdict(found))
    assert second.headings == ("fact", "alpha 0.1", "alpha 0.5")
    assert second.rows[0] == ("partition", *(f"dirichlet: test matched, alpha {a}, min_samples 10" for a in (0.1, 0.5)))
    assert not {row[0] for row in first.rows} & {row[0] for row in second.rows}


def test_a_line_in_which_seeds_differ_tells_of_the_first_seed() -> None:
    found = [run("strategy=fedavg", seed=seed) for seed in (1, 2)]
    assert found[0].partition["train"] != found[1].partition["train"]
    assert shown(*found)["images of the clients"] == facts.samples(found[0])


def test_methods_that_differ_in_a_line_are_named_there() -> None:
    found = [run("strategy=fedavg"), run("strategy=fedprox"), run("strategy=fedgen", "train.lr=0.3")]
    assert shown(*found)["learning rate"] == "0.01, constant (fedavg, fedprox); 0.3, constant (fedgen)"


def values(*found: fabricated.RunRecord, **changes: object) -> dict[tuple[str, str], tuple[str, str]]:
    table = methods.table(fabricated.verdict(found, **changes))
    assert table is not None
    return {row[:2]: row[2:] for row in table.rows}  # type: ignore[misc]


def test_hyper_parameters_are_beside_their_defaults_and_those_that_differ_are_marked() -> None:
    rows = values(run("strategy=fedavg"), run("strategy=fedprox", "strategy.mu=1"))
    assert rows["fedprox", "mu *"] == ("1", "0.1")  # the default of conf, not of the code
    assert rows["fedprox", "strategy"][0] == "fedprox: server half fedavg, client half fedprox"
    assert "weighting examples" in rows["fedavg", "at the default"][0]
    assert not [key for key in rows if key[0] == "fedavg" and key[1].endswith("*")]
    assert not [key for _, key in rows if key == "setting"]  # it is the name of the method


@pytest.mark.parametrize("option", compose.options("strategy"))
def test_a_strategy_as_it_is_in_conf_differs_in_nothing_even_in_an_older_folder(option: str) -> None:
    found = run(f"strategy={option}", *(["proxy=held-out"] if option in ("fedmd", "dsfl", "feddf", "knfu") else []))
    old = fabricated.replace(found, info={**found.info, "strategy": found.config["strategy.name"]})
    rows = values(old)
    assert rows.get((option, "strategy"), (option,))[0].startswith(option)  # only where it is not the method's name
    assert not [key for _, key in rows if key.endswith("*")]


def tuned() -> choices.Tuned:
    trials = tuple(choices.Trial((f"strategy.mu={mu}",), (score,)) for mu, score in ((0.1, 0.6), (1, 0.7)))
    choice = choices.Choice("", "fedprox", trials, ("strategy.mu=1",))
    of = choices.from_plan({"seeds": [1], "metric": "global last10"}, ())
    assert of is not None
    return choices.Tuned(of.seeds, of.metric, (choice,))


def test_what_was_tuned_is_told_with_grid_scores_data_and_edge() -> None:
    table = setting.tuned(fabricated.verdict([run("strategy=fedavg"), run("strategy=fedprox")], tuned=tuned()))
    assert table is not None
    assert table.rows == (("fedprox", "strategy.mu  0.1: 60.00; 1: 70.00", "strategy.mu = 1", "largest", "2"),)
    assert "20 % of each client's training data" in table.note
    assert "mean over seed 1" in table.note


def test_the_setting_is_on_the_page_in_markdown_and_in_latex() -> None:
    verdict = fabricated.verdict([run("strategy=fedavg"), run("strategy=fedprox", "strategy.mu=1")], tuned=tuned())
    html, text, tex = page.render(verdict, ()), tables.markdown(verdict, ()), tables.setting_latex(verdict)
    assert html.index('id="verdict"') < html.index('id="setting"') < html.index('id="runs"')
    for part in (html, text, tex):
        for said in ("55,210 parameters", "mu *", "Tuning", "client half fedprox"):
            assert said in part.replace("\\", "")
    assert text.index("## Setting") < text.index("## Runs")
    assert "inline" not in tex  # the same runs give the same bytes wherever they run


def test_older_folders_have_no_sizes_and_still_a_setting() -> None:
    found = run("strategy=fedavg")
    old = fabricated.replace(found, info={k: v for k, v in found.info.items() if k not in ("task", "students")})
    lines = shown(old)
    assert lines["data set"] == "mnist: images of 1 x 28 x 28 in 5 classes"
    assert lines["student"] == "mlp"
    assert shown(fabricated.member())["rounds"] == "12"


def test_a_comparison_without_any_run_has_no_setting() -> None:
    lost = [fabricated.replace(each, state="failed", config={}, info={}, rows=()) for each in fabricated.members()]
    verdict = fabricated.verdict(lost)
    assert setting.shared(verdict) == setting.of_methods(verdict) == setting.provenance(verdict) == []


def test_code_and_machine_are_counted_where_runs_differ() -> None:
    one, other = fabricated.member(seed=0), fabricated.member(seed=1)
    other = fabricated.replace(other, info={**other.info, "host": "gpu"})
    rows = dict(setting.provenance(fabricated.verdict([one, other]))[0].rows)  # type: ignore[arg-type]
    assert rows["machine"].startswith("vm: Linux x86_64, 2 cores; threads 1, cpu AVX2 (1 run); gpu:")
    assert rows["code"] == "fedkd 0.1.0, commit 3873157921a9961d349c460514e16c7712780c84"


def test_no_table_says_a_thing_twice() -> None:
    traffic = {"traffic": run_tables._BYTES, "again": run_tables._BYTES}
    verdict = fabricated.verdict(columns=traffic)
    assert [head for head in run_tables.run_table(verdict).headings if "MB" in head] == ["traffic (MB)"]
    assert [head for head in summary_table.table(verdict).headings if "again" in head] == []
    assert "traffic" not in tables.comma_separated(verdict).splitlines()[0]  # bytes_up and bytes_down say it
    decides = fabricated.verdict(columns={"same": fabricated.question(fabricated.members()).metric})
    assert [head for head in summary_table.table(decides).headings if "same" in head] == []


def test_defaults_of_the_schema_are_known() -> None:
    assert facts.defaults()["train.lr"] == 0.01
