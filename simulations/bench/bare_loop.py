"""The bare loop: federated training written by hand in one file, the reference of `fedkd bench`.

Plain modules, torch.optim, images as float tensors, whole; no engine, border, ledger or random streams. It uses
nothing of `fedkd.training.site`, `rounds`, `losses`, `optimisers` or `generators`. It shares only the assembled
problem with a run (student, indices, hyper-parameters), so both do the same steps on batches of the same sizes.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.training import augment
from simulations.assemble import Assembly

# Classes of the two halves -> the bare version below.
METHODS = {("FedAvg", "Supervised"): "fedavg", ("FedAvg", "FedProx"): "fedprox", ("FedGen", "FedGen"): "fedgen"}

TEST_BATCH = 250  # images; the fastest for a small student on CPU, compared with 50, 100, 500 and more


class BareLoop:
    """The variables of a script: global entries, each client's own entries, the generator.

    `method` names its algorithm: FedAvg (`is_same=False`) if there is no bare version of the configured one.
    With another optimiser than SGD, or with augmentation, it is not the same either.
    """

    def __init__(self, assembly: Assembly) -> None:
        site, config = assembly.site, assembly.experiment.config
        halves = type(assembly.experiment.strategy).__name__, type(site.client).__name__
        is_plain = config.train.optimiser == "sgd" and not augment.names(config.train)  # what this loop can do
        self.method, self.is_same = METHODS.get(halves, "fedavg"), halves in METHODS and is_plain
        self.local, self.server = site.client.config, assembly.experiment.strategy.config
        self.config, self.train = config, config.train
        self.classes, self.train_index, self.test_index = site.problem.classes, site.train_index, site.test_index
        self.x, self.y = site.train.take(torch.arange(len(site.train)))
        self.x_test, self.y_test = site.test.take(torch.arange(len(site.test)))
        self.random = torch.Generator().manual_seed(config.seed)
        self.model: Any = site.problem.initial().to(memory_format=torch.contiguous_format)  # as torch lays it out
        self.weights = copy_of(self.model.state_dict())
        share = getattr(self.server, "share", "all")
        shared = site.problem.shared(self.weights, share)
        self.has_global = share == "all"
        self.own_names = [name for name in self.weights if name not in shared]
        self.own: dict[int, dict[str, Tensor]] = {}
        self.own_accuracy: dict[int, float] = {}
        self.batches = {client: self._batches(index) for client, index in self.train_index.items()}
        if self.method == "fedgen":
            self.labels_seen = torch.zeros(self.classes)
            self._make_generator(site.problem.latent)

    def run_round(self, number: int, cohort: Sequence[int]) -> dict[str, float]:
        """One round. Gives seconds by phase: clients, server, evaluation, total."""
        start = time.perf_counter()
        trained, counts = self._train_clients(number, cohort)
        met = time.perf_counter()
        if self.method == "fedgen":
            self._train_generator(number, trained, torch.stack(counts) + 1)
        self._average(trained, [len(self.train_index[client]) for client in cohort])
        averaged = time.perf_counter()
        self._evaluate(number)
        end = time.perf_counter()
        return {"clients": met - start, "server": averaged - met, "evaluation": end - averaged, "total": end - start}

    def _batches(self, index: Tensor) -> Iterator[Tensor]:
        """Endless passes, each in a new order; continues across rounds."""
        while True:
            yield from index[torch.randperm(len(index), generator=self.random)].split(self.train.batch)

    def _train_clients(self, number: int, cohort: Sequence[int]) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
        trained, counts, train = [], [], self.train
        for client in cohort:
            self._load(self.own.get(client, {}))
            self.model.train()
            lr = train.lr * train.lr_decay ** (number - 1)
            optimiser = torch.optim.SGD(self.model.parameters(), lr, train.momentum, weight_decay=train.weight_decay)
            drawn = []
            for step in range(train.steps or train.epochs * -(-len(self.train_index[client]) // train.batch)):
                index = next(self.batches[client])
                x, y = self.x.index_select(0, index), self.y.index_select(0, index)
                optimiser.zero_grad()
                self._loss(x, y, step, number).backward()
                optimiser.step()
                drawn.append(y)
            entries = copy_of(self.model.state_dict())
            self.own[client] = {name: entries[name] for name in self.own_names}
            trained.append(entries)
            counts.append(torch.bincount(torch.cat(drawn), minlength=self.classes))
        return trained, counts

    def _load(self, own: dict[str, Tensor]) -> None:
        # Not strict: BatchNorm's batch counter is missing.
        self.model.load_state_dict({**self.weights, **own}, strict=False)

    def _loss(self, x: Tensor, y: Tensor, step: int, number: int) -> Tensor:
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        if self.method == "fedprox" and self.local.mu:
            pairs = [(p, self.weights[name]) for name, p in self.model.named_parameters() if name in self.weights]
            loss = loss + self.local.mu / 2 * torch.stack([((p - w) ** 2).sum() for p, w in pairs]).sum()
        if self.method == "fedprox" and self.local.decay:
            loss = loss + self.local.decay / 2 * torch.stack([(p**2).sum() for p in self.model.parameters()]).sum()
        if self.method == "fedgen" and number > self.server.warmup_rounds and step < self.local.regularised_steps:
            loss = loss + self._regularisers(logits, y, number)
        return loss

    def _regularisers(self, logits: Tensor, y: Tensor, number: int) -> Tensor:
        """FedGen: cross entropy of the head on generated latents, and KL to the head on latents of the same labels."""
        factor, total = self.local.regulariser_decay ** (number - 1), torch.zeros(())
        with torch.no_grad():
            labels = torch.multinomial(
                (self.labels_seen > 0).float(), self.local.synthetic_batch, replacement=True, generator=self.random
            )
            z = self.generator(self._conditioned(labels)[0])
            target = self.model.head(self.generator(self._conditioned(y)[0])).softmax(1)
        if self.local.alpha:
            generated = F.cross_entropy(self.model.head(z), labels)
            total = total + self.local.alpha * factor * len(labels) / self.train.batch * generated
        if self.local.beta:
            kl = F.kl_div(F.log_softmax(logits, 1), target, reduction="batchmean")
            total = total + self.local.beta * factor * kl
        return total

    def _conditioned(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's input for labels, and the noise in it."""
        noise = torch.rand(len(labels), self.server.noise, generator=self.random)
        return torch.cat([noise, F.one_hot(labels, self.classes).float()], 1), noise

    def _make_generator(self, latent: int) -> None:
        hidden = self.server.hidden
        self.generator = nn.Sequential(
            nn.Linear(self.server.noise + self.classes, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, latent),
        )
        with torch.no_grad():  # torch's own initial entries come from the global generator
            for layer in self.generator:
                if isinstance(layer, nn.Linear):
                    layer.weight.uniform_(-0.1, 0.1, generator=self.random)
                    layer.bias.zero_()
        self.adam = torch.optim.Adam(
            self.generator.parameters(), self.server.generator_lr, weight_decay=self.server.generator_weight_decay
        )

    def _train_generator(self, number: int, trained: list[dict[str, Tensor]], counts: Tensor) -> None:
        self.adam.param_groups[0]["lr"] = self.server.generator_lr * self.server.generator_decay ** (number - 1)
        trust = counts / counts.sum(0)
        seen = (counts > 1).any(0).float()
        heads = torch.stack([entries["head.weight"] for entries in trained])
        biases = torch.stack([entries["head.bias"] for entries in trained])
        self.generator.train()
        for _ in range(self.server.generator_steps):
            y = torch.multinomial(seen, self.server.generator_batch, replacement=True, generator=self.random)
            inputs, noise = self._conditioned(y)
            z = self.generator(inputs)
            logits = torch.einsum("bd,kcd->kbc", z, heads) + biases[:, None]
            each = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(heads)), reduction="none").view(len(heads), -1)
            apart = (noise[:, None] - noise[None]).square().mean(2) * (z[:, None] - z[None]).abs().mean(2)
            loss = (trust[:, y] * each).sum(0).mean() + torch.exp(-apart.mean())
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        self.generator.eval()
        self.labels_seen += seen

    def _average(self, trained: list[dict[str, Tensor]], sizes: list[int]) -> None:
        shares = torch.tensor(sizes) / sum(sizes)
        for name in self.weights:
            if name not in self.own_names:
                stacked = torch.stack([entries[name] for entries in trained])
                self.weights[name] = torch.tensordot(shares, stacked, 1)

    @torch.no_grad()
    def _evaluate(self, number: int) -> None:
        """Accuracy of each client on its own test images and of the global model on all, when the run measures them."""
        self.model.eval()
        due = self.config.evaluate
        if number % due.every == 0 or number == self.config.rounds:
            for client, index in ((k, index) for k, index in self.test_index.items() if len(index)):
                self._load(self.own.get(client, {}))
                self.own_accuracy[client] = self._accuracy(index)
        if self.has_global and (number % due.pooled_every == 0 or number == self.config.rounds):
            kept = [own for own in self.own.values() if own]
            means = {name: torch.stack([own[name] for own in kept]).mean(0) for name in self.own_names if kept}
            self._load(means)
            self.accuracy = self._accuracy(torch.arange(len(self.y_test)))

    def _accuracy(self, index: Tensor) -> float:
        correct, loss = 0, 0.0
        for part in index.split(TEST_BATCH):
            y = self.y_test[part]
            logits = self.model(self.x_test[part])
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
        return correct / len(index)


def copy_of(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict that shares no memory."""
    return {name: entry.detach().clone() for name, entry in entries.items()}
