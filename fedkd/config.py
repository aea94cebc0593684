"""The schema of a run: types, ranges, defaults and reference in one. Free of torch, so that errors appear at once."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

METRICS = ("balanced_accuracy", "macro_f1", "auroc", "ece", "brier", "confusion")  # built in: fedkd.maths.scores


class Schema:
    """Base of all schema classes: pydantic refuses unknown keys."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class DataConfig(Schema):
    name: str = "digits"  # a source of fedkd.data.sources
    root: str | None = None  # folder of the data sets, or path of own data; null: FEDKD_DATA, else the user's cache
    download: bool = False  # whether to fetch missing files with torchvision
    scaling: Literal["symmetric", "standard"] = "symmetric"  # pixels to [-1, 1], or to mean 0 and variance 1
    labels: list[str] | None = None  # own data: class names in the order of their numbers
    shape: list[Annotated[int, Ge(1)]] | None = None  # own data, of one sample: 3 numbers are an image's (docs/data.md)
    label: str | None = None  # own table: the column of the classes
    users: str | None = None  # own data: the column, or the array, that says whose a training sample is
    mean: list[float] | None = None  # own data, scaling=standard: mean per channel of pixels scaled to 0..1
    std: list[Annotated[float, Gt(0)]] | None = None  # own data, scaling=standard: standard deviation per channel
    resize: Literal["refuse", "fit"] = "refuse"  # images of another size on a device: an error, or resampled to `shape`
    test: str | None = None  # own data: path of the server's test images, in the same formats; null: no pooled test set
    test_share: Annotated[float, Ge(0), Lt(1)] = 0.2  # share of a device's samples held out if it has no test part
    min_samples: Annotated[int, Ge(1)] = 10  # training samples that a device needs to join


@dataclass(frozen=True, kw_only=True)
class StudentsConfig(Schema):
    name: str = "fedgen-cnn"  # a student of fedkd.models.students; in a mixture, the server's own student
    mix: dict[str, Annotated[float, Gt(0)]] | list[str] | None = None  # shares, or one per client; null: `name` for all
    assign: Literal["shuffled", "size"] = "shuffled"  # mixture by shares: at random, or in order of rising data size
    mixed: Literal["refuse", "groups"] = "refuse"  # averaging weights in a mixture: an error, or one group each
    common_init: bool = True  # clients of one architecture start from the same weights
    norm: Literal["batch", "group"] = "batch"  # normalisation layers, where the student has any
    train: str | list[str] = "all"  # what is trained: all, head, or entries by pattern: [layer4.*, head.*]
    weights: str | None = None  # safetensors file that all students start from; null: drawn from the seed
    stem: Literal["standard", "small"] = "standard"  # of torchvision and timm: small keeps small images large
    statistics: Literal["average", "local"] = "average"  # BatchNorm's: averaged with the weights, or kept per client


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Schema):
    batch: Annotated[int, Ge(1)] = 32  # images per step
    steps: Annotated[int, Ge(1)] | None = 20  # SGD steps per participation; null: whole epochs
    epochs: Annotated[int, Ge(1)] = 1  # passes per participation, if steps is null
    optimiser: Literal["sgd", "adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta"] = (
        "sgd"  # the clients' optimiser, as torch.optim has it
    )
    lr: Annotated[float, Gt(0)] = 0.01  # learning rate in the first round
    schedule: Literal["exponential", "constant", "cosine", "step"] = "exponential"  # of lr; cosine: to 0 at the end
    warmup: Annotated[int, Ge(0)] = 0  # first rounds, in which the rate rises in equal steps to lr
    lr_decay: Annotated[float, Gt(0), Le(1)] = 1.0  # factor on the rate per round (exponential) or per lr_step (step)
    lr_step: Annotated[int, Ge(1)] = 10  # schedule=step: rounds between two drops of the rate
    lr_clock: Literal["round", "participation"] = "round"  # decay counts to this round, or to the client's last round
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0  # for sgd, where it restarts in each participation, and rmsprop
    nesterov: bool = False  # sgd's momentum looks ahead
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9  # decay of the mean gradient in adam, adamw, adamax, nadam and radam
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999  # decay of their mean square; in adamax, of the largest gradient
    moments: Literal["reset", "keep"] = "reset"  # of all but sgd: reset in each participation, or kept by the client
    weight_decay: Annotated[float, Ge(0)] = 0.0  # L2, on all learnable entries; in adamw, times lr on the weights
    clip: Annotated[float, Gt(0)] | None = None  # largest norm of the gradient; null: not clipped
    augment: (
        Literal["none", "crop-flip", "flip", "cutout", "noise"]
        | list[Literal["none", "crop-flip", "flip", "cutout", "noise"]]
    ) = "none"  # random changes of training samples, one or a list in their order; only noise suits other than images
    cutout: Annotated[float, Gt(0), Lt(1)] = 0.5  # side of the square that cutout hides, as a share of the image's
    noise: Annotated[float, Ge(0)] = 0.1  # standard deviation of augment=noise, after scaling


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Schema):
    on: Literal["test", "validation"] = "test"  # validation: training data held out to choose settings; no test data
    validation: Annotated[float, Gt(0), Lt(1)] = 0.2  # share of training data held out if on=validation
    every: Annotated[int, Ge(1)] = 1  # rounds between evaluations on the clients' own test splits; the last always
    pooled_every: Annotated[int, Ge(1)] = 1  # rounds between evaluations on the pooled test set; the last always
    probe: Annotated[int, Ge(0)] = 64  # test images that measure function drift and local accuracy; 0: no measurement
    clients: Annotated[int, Ge(0)] = 0  # number of evaluated clients, drawn once for the whole run; 0: all
    common: Annotated[int, Ge(0)] = 1000  # pooled test images for the clients' own students if none is global; 0: none
    metrics: list[str] = field(default_factory=list)  # more measures of the global student on the pooled test set


@dataclass(frozen=True, kw_only=True)
class ProxyConfig(Schema):
    """A public set of samples, for the algorithms that need one; never the clients' or the test data."""

    name: str = "none"  # none, held-out, unused, noise, or a source of fedkd.data.sources
    size: Annotated[int, Ge(1)] = 1000  # number of images


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig(Schema):
    """What clients reveal about their data besides knowledge (docs/privacy.md)."""

    label_epsilon: Annotated[float, Ge(1e-6)] | None = None  # privacy budget of a client's label counts; null: exact
    size_step: Annotated[int, Ge(1), Le(1_000_000)] = 1  # clients report sizes in multiples of this; 1: exactly


@dataclass(frozen=True, kw_only=True)
class BorderConfig(Schema):
    """Limits of a reply, and when refused replies exclude a client (docs/runs.md)."""

    limit: Annotated[float, Ge(0)] = 1000.0  # largest value, relative to the others' median; 0: not compared
    max_examples: Annotated[int, Ge(1)] | None = None  # samples that a client may claim; null: see docs/runs.md
    quarantine_after: Annotated[int, Ge(0)] = 3  # refusals in a row that exclude a client; 0: never
    quarantine_rounds: Annotated[int, Ge(1)] | None = None  # rounds of an exclusion; null: to the end of the run


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Schema):
    name: Literal["auto", "inline", "ray"] = "auto"  # auto: ray if it is faster, else inline
    workers: Annotated[int, Ge(1)] | None = None  # ray: worker processes; null: one per core
    address: str | None = None  # ray: HOST:PORT of an existing cluster; null: a private one
    deadline: Annotated[float, Gt(0)] | None = None  # seconds that an exchange may take; later replies are failures


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Schema):
    every: Annotated[int, Ge(1)] = 10  # rounds between commits; the last round and Ctrl-C always commit
    keep: Annotated[int, Ge(1)] = 2  # newest commits to keep, besides the best


@dataclass(frozen=True, kw_only=True)
class TeacherPart(Schema):
    """Distillation from a frozen teacher (Tang et al. 2020; docs/parts.md)."""

    weight: Annotated[float, Ge(0)] = 1.0  # of the term; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = "broadcast"  # received student, own last one, or their moving average
    tau: Annotated[float, Gt(0)] = 4.0  # temperature of both; the term is multiplied by its square
    divergence: Literal["forward_kl", "reverse_kl", "js", "symmetric", "l1", "mse"] = (
        "forward_kl"  # between teacher and student; l1 and mse compare logits
    )
    view: Literal["full", "ls", "class", "sim", "instance", "topk"] = "full"  # what the term keeps of the teacher
    topk: Annotated[int, Ge(1)] | None = None  # view=topk: probabilities kept; null: a quarter of the classes


@dataclass(frozen=True, kw_only=True)
class MixupPart(Schema):
    """Distillation on a mixed share of the batch (Choi et al., WACV 2023; docs/parts.md)."""

    weight: Annotated[float, Ge(0)] = 1.0  # of both terms; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = "broadcast"  # teacher that predicts the mixed images
    fraction: Annotated[float, Ge(0), Le(1)] = 0.1  # share of the batch that is mixed; 0 = off
    beta: Annotated[float, Gt(0)] = 1.0  # an image's share of its mixture is drawn from Beta(beta, beta)
    gamma: Annotated[float, Ge(0)] = 0.1  # weight of cross entropy with the mixed labels; 0 = off
    alpha: Annotated[float, Ge(0)] = 0.9  # weight of the KL to the teacher; 0 = off
    draw: Literal["exact", "reference"] = "exact"  # reference: rows as the authors' code mixes them, about 41 %


@dataclass(frozen=True, kw_only=True)
class LayersPart(Schema):
    """Matches hidden layers to the frozen teacher's (Yu, Wen, Mou 2025; docs/parts.md)."""

    weight: Annotated[float, Ge(0)] = 1.0  # of the term; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = "broadcast"  # teacher whose layers are matched
    taps: list[str] | None = None  # blocks of the student; null: the last before the head
    mapping: Literal["all_to_one", "forward", "reverse", "random", "none"] = (
        "all_to_one"  # which of the teacher's taps is compared with which of the student's; none: off
    )


@dataclass(frozen=True, kw_only=True)
class GraphPart(Schema):
    """Matches relations between the positions of a feature map to the frozen teacher's (Zhang, Liu, He 2023)."""

    weight: Annotated[float, Ge(0)] = 100.0  # of the term, which falls with the square of the positions; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = "broadcast"  # teacher whose map is matched
    tap: str | None = None  # block that gives a feature map; null: the deepest with more than one position
    side: Annotated[int, Ge(2)] = 7  # larger maps are pooled to this many positions per side


@dataclass(frozen=True, kw_only=True)
class EmaPart(Schema):
    """A moving average of the client's own students as a teacher (Brahma, Rai, CVPR 2023; docs/parts.md)."""

    weight: Annotated[float, Ge(0)] = 0.5  # of cross entropy with its predictions; 0 = off
    decay: Annotated[float, Ge(0), Le(1)] = 0.999  # per step; also if another part uses `ema` as its teacher


@dataclass(frozen=True, kw_only=True)
class AnchorPart(Schema):
    """A pull towards the received weights (docs/strategies/fedprox.md, equation 1)."""

    weight: Annotated[float, Ge(0)] = 0.01  # rho: the term is rho / 2 times the squared distance; 0 = off


@dataclass(frozen=True, kw_only=True)
class PartsConfig(Schema):
    """Hyper-parameters of the parts; those of a part that `parts` does not name have no effect."""

    teacher: TeacherPart = field(default_factory=TeacherPart)
    mixup: MixupPart = field(default_factory=MixupPart)
    layers: LayersPart = field(default_factory=LayersPart)
    graph: GraphPart = field(default_factory=GraphPart)
    ema: EmaPart = field(default_factory=EmaPart)
    anchor: AnchorPart = field(default_factory=AnchorPart)


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(Schema):
    """The part of `strategy` that all algorithms share; its other keys belong to the two halves."""

    name: str  # the server half: a module of strategies
    client: str = "supervised"  # the client half: a module of clients
    variant: str | None = None  # a named set of switches, for papers that differ from their code
    setting: str | None = None  # the strategy's name, a file of conf/strategy; strategy=NAME chooses it


@dataclass(frozen=True, kw_only=True)
class RunConfig(Schema):
    """One run. The `name` of `partition` and of `strategy` chooses the schema that checks their other keys."""

    seed: Annotated[int, Ge(0)] = 0  # of every random stream
    rounds: Annotated[int, Ge(1)] = 50  # number of rounds
    clients: Annotated[int, Ge(1)] = 10  # number of clients in all
    clients_per_round: Annotated[int, Ge(1)] | None = None  # number of clients, redrawn each round; null: all
    quorum: Annotated[int, Ge(1)] = 1  # usable replies that an exchange needs
    data: DataConfig = field(default_factory=DataConfig)
    partition: dict[str, Any] = field(default_factory=lambda: {"name": "dirichlet"})
    students: StudentsConfig = field(default_factory=StudentsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    strategy: dict[str, Any] = field(default_factory=lambda: {"name": "fedgen", "client": "fedgen"})
    parts: list[Literal["teacher", "mixup", "layers", "graph", "ema", "anchor"]] = field(
        default_factory=list
    )  # terms added to any strategy's loss: docs/parts.md
    part: PartsConfig = field(default_factory=PartsConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    border: BorderConfig = field(default_factory=BorderConfig)
    track: list[Literal["tensorboard", "csv", "wandb", "mlflow"]] = field(
        default_factory=lambda: ["tensorboard"]
    )  # where curves go besides the ledger and rounds.csv (csv), which are always written: docs/runs.md
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
