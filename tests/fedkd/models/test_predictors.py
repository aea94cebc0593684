"""What a client half judges by; the numbers can be checked by hand."""

import tiny
import torch

from clients.fedensemble import FedEnsemble
from clients.fedfuse import FedFuse
from clients.fedproto import FedProto
from fedkd.engine import ClientState, Job
from fedkd.models import predictors
from fedkd.payload import Payload


def batch() -> torch.Tensor:
    return tiny.samples(12).take(torch.arange(12))[0]


def ask(client, problem, payload=None, **memory) -> torch.Tensor:
    job = Job(task="evaluate", client=0, round=1, payload=payload or Payload(), state=ClientState(memory=memory))
    return tiny.predict(client, problem.initial().eval(), batch(), job)


def test_a_prior_is_added(problem):
    prior = torch.tensor([0.0, -1.0, 2.0])
    found = predictors.PriorAdjusted(prior)([problem.initial().eval()], batch())
    torch.testing.assert_close(found, problem.initial().eval()(batch()) + prior)
    torch.testing.assert_close(found, ask(FedFuse(FedFuse.Config()), problem, log_prior=prior))


def test_the_nearest_prototype_has_the_largest_logit_and_unknown_labels_the_least(problem):
    prototypes, counts = torch.linspace(-1, 1, 12).view(3, tiny.LATENT), torch.tensor([3, 0, 1])
    found = predictors.Prototypes(prototypes, counts != 0)([problem.initial().eval()], batch())
    assert (found[:, 1] == predictors.FAR).all()
    z = problem.initial().eval().features(batch())
    torch.testing.assert_close(found[:, 0], -(z - prototypes[0]).square().sum(1))
    client = FedProto(FedProto.Config())
    torch.testing.assert_close(found, ask(client, problem, Payload(prototypes=prototypes, label_counts=counts)))


def test_an_ensemble_is_the_mean_by_copies(problem):
    one, other = problem.initial().eval(), tiny.problem(seed=1).initial().eval()
    rows = {name: torch.stack([entry, other.weights[name]]) for name, entry in one.weights.items()}
    payload = Payload(samples={**rows, "copies": torch.tensor([3, 1])})
    for combine in ("logits", "probabilities"):
        found = predictors.Ensemble(torch.tensor([0.75, 0.25]), combine)([one, other], batch())
        torch.testing.assert_close(found, ask(FedEnsemble(FedEnsemble.Config(combine=combine)), problem, payload))
    torch.testing.assert_close(found.exp(), 0.75 * one(batch()).softmax(1) + 0.25 * other(batch()).softmax(1))
