"""A strategy is called as its setting in conf/strategy is, whatever its halves are called."""

import pytest

from fedkd.configuration import compose, naming

KNOWN = {
    "fedavg": {"name": "fedavg", "client": "supervised"},
    "fedprox": {"name": "fedavg", "client": "fedprox", "mu": 0.1},
    "krum": {"name": "flower", "client": "supervised", "algorithm": "Krum", "malicious": 1},
    "trimmed": {"name": "flower", "client": "supervised", "algorithm": "Trimmed", "trim": 0.2},
}


@pytest.mark.parametrize(
    ("node", "chosen", "called"),
    [
        ({"name": "fedavg", "client": "fedprox", "mu": 5.0}, "", "fedprox"),
        ({"name": "fedavg", "client": "fedprox"}, "fedavg", "fedprox"),  # another client half makes another method
        ({"name": "fedavg"}, "", "fedavg"),
        ({"name": "flower", "client": "supervised", "algorithm": "Krum", "malicious": 3}, "", "krum"),
        ({"name": "flower", "client": "supervised", "algorithm": "Krum"}, "trimmed", "krum"),
        ({"name": "flower", "client": "supervised", "algorithm": "Mean"}, "trimmed", "trimmed"),
        ({"name": "fedavg", "client": "mine"}, "", "fedavg+mine"),
        ({"name": "mine", "client": "mine"}, "", "mine"),
        ({"name": "mine", "client": "supervised"}, "", "mine"),
    ],
)
def test_the_name_is_that_of_the_setting_with_the_same_halves(node, chosen, called):
    assert naming.setting_of(node, KNOWN, chosen) == called


@pytest.mark.parametrize("name", compose.options("strategy"))
def test_every_setting_is_known_by_its_own_name(name):
    """Chosen, and as a run that did not write it down."""
    strategy = compose.resolve([f"strategy={name}", "proxy=held-out"]).config.strategy
    assert strategy["setting"] == name
    assert compose.setting_of({key: value for key, value in strategy.items() if key != "setting"}) == name


def test_a_configuration_that_was_written_keeps_its_name():
    found = compose.resolve(["strategy=flower-krum", "strategy.malicious=2"])
    again = compose.from_yaml(found.to_yaml(), "config.yaml")
    assert (again.config, again.digest()) == (found.config, found.digest())


def test_the_name_decides_nothing():
    named, spelt = compose.resolve(["strategy=fedprox"]), ["strategy.client=fedprox", "strategy.mu=0.1"]
    assert named.digest() == compose.resolve(["strategy=fedavg", *spelt]).digest()
    assert named.sources["strategy.setting"] == "conf/strategy/fedprox.yaml"


def test_a_slip_in_a_settings_key_names_that_setting(tmp_path):
    with pytest.raises(Exception, match="fedkd config schema strategy=fedprox"):
        compose.resolve(["strategy=fedprox", "strategy.moo=1"])


def test_a_name_is_chosen_and_not_written():
    with pytest.raises(Exception, match="is chosen by strategy=fedprox"):
        compose.resolve(["strategy.setting=fedprox"])
