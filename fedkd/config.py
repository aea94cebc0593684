"""The schema of a run: types, ranges, defaults and reference in one. Free of torch, so that errors appear at once."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

_FORBID = {"extra": "forbid"}  # pydantic: an unknown key is an error


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    __pydantic_config__: ClassVar[Any] = _FORBID
    name: str = "digits"  # a source of fedkd.data.sources
    root: str | None = None  # folder of the data sets; null: FEDKD_DATA, else a cache of the user; of own: its path
    download: bool = False  # fetch with torchvision what is missing
    scaling: Literal["symmetric", "standard"] = "symmetric"  # pixels to [-1, 1], or to mean 0 and variance 1
    labels: list[str] | None = None  # of own: names of the classes in the order of their numbers
    shape: list[Annotated[int, Ge(1)]] | None = None  # of own: channels (1 grey, 3 colour), height, width
    mean: list[float] | None = None  # of own, for scaling=standard: per channel, of pixels scaled to 0..1
    std: list[Annotated[float, Gt(0)]] | None = None  # of own, for scaling=standard, likewise
    resize: Literal["refuse", "fit"] = "refuse"  # a device's image of another size: an error, or resampled to `shape`
    test: str | None = None  # of own: the server's own test images, a path in the same formats; null: none are pooled
    test_share: Annotated[float, Ge(0), Lt(1)] = 0.2  # of a device's samples held out, if they bring no test part
    min_samples: Annotated[int, Ge(1)] = 10  # a device with fewer training samples may not join


@dataclass(frozen=True, kw_only=True)
class StudentsConfig:
    __pydantic_config__: ClassVar[Any] = _FORBID
    name: str = "fedgen-cnn"  # a student of fedkd.models.students; in a mixture, the server's own student
    mix: dict[str, float] | list[str] | None = (
        None  # a mixture: shares by architecture, or one per client; null: one architecture for all
    )
    assign: Literal["shuffled", "size"] = "shuffled"  # of shares: at random, or in order of rising data size
    mixed: Literal["refuse", "groups"] = (
        "refuse"  # for strategies that average weights: an error, or one federation per architecture
    )
    common_init: bool = True  # clients of one architecture start from the same weights
    norm: Literal["batch", "group"] = "batch"  # normalisation layers, where the student has any
    statistics: Literal["average", "local"] = "average"  # BatchNorm's: averaged with the weights, or each client's own


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    __pydantic_config__: ClassVar[Any] = _FORBID
    batch: Annotated[int, Ge(1)] = 32  # images per step
    steps: Annotated[int, Ge(1)] | None = 20  # SGD steps per participation; null: whole epochs
    epochs: Annotated[int, Ge(1)] = 1  # passes per participation, if steps is null
    optimiser: Literal["sgd", "adam"] = "sgd"  # of the clients
    lr: Annotated[float, Gt(0)] = 0.01  # in the first round
    lr_decay: Annotated[float, Gt(0), Le(1)] = 1.0  # factor per round
    lr_clock: Literal["round", "participation"] = "round"  # participation: decay counts to the client's last round
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0  # of sgd; starts afresh each participation
    moments: Literal["reset", "keep"] = "reset"  # adam's: reset each participation, or kept by the client
    weight_decay: Annotated[float, Ge(0)] = 0.0  # L2, on all learnable entries
    clip: Annotated[float, Gt(0)] | None = None  # largest norm of the gradient; null: not clipped


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    __pydantic_config__: ClassVar[Any] = _FORBID
    on: Literal["test", "validation"] = (
        "test"  # validation: a share of each client's training data replaces all test data; for choosing settings
    )
    validation: Annotated[float, Gt(0), Lt(1)] = 0.2  # that share; with on=test nothing is held out
    every: Annotated[int, Ge(1)] = 1  # rounds between evaluations on the clients' own test splits; the last always
    pooled_every: Annotated[int, Ge(1)] = 1  # rounds between evaluations on the pooled test set; the last always
    probe: Annotated[int, Ge(0)] = 64  # test images that measure function drift and local accuracy; 0: no measurement
    clients: Annotated[int, Ge(0)] = 0  # how many clients are evaluated, drawn once for the whole run; 0: all
    common: Annotated[int, Ge(0)] = (
        1000  # pooled test images for each client's own student, if there is no global one; 0: none
    )


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """A public set of images, for the algorithms that need one; never the clients' or the test data."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    name: str = "none"  # none, held-out, unused, noise, or a source of fedkd.data.sources
    size: Annotated[int, Ge(1)] = 1000  # images


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What clients reveal about their data besides knowledge (docs/privacy.md)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    label_epsilon: Annotated[float, Ge(1e-6)] | None = (
        None  # of differential privacy of the label counts, spent once by each client; null: exact counts
    )
    size_step: Annotated[int, Ge(1), Le(1_000_000)] = 1  # clients report sizes in multiples of it; 1: exactly


@dataclass(frozen=True, kw_only=True)
class BorderConfig:
    """Limits of a reply, and when refused replies exclude a client (docs/runs.md)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    limit: Annotated[float, Ge(0)] = 1000.0  # largest value, relative to the others' median; 0: not compared
    max_examples: Annotated[int, Ge(1)] | None = (
        None  # samples that a client may claim; null: those of its partition; on devices, relative to the others
    )
    quarantine_after: Annotated[int, Ge(0)] = 3  # refusals in a row that exclude a client; 0: never
    quarantine_rounds: Annotated[int, Ge(1)] | None = None  # rounds of an exclusion; null: to the end of the run


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    __pydantic_config__: ClassVar[Any] = _FORBID
    name: Literal["auto", "inline", "ray"] = "auto"  # auto: ray if it is faster, else inline
    workers: Annotated[int, Ge(1)] | None = None  # ray: worker processes; null: one per core
    address: str | None = None  # ray: HOST:PORT of an existing cluster; null: a private one
    deadline: Annotated[float, Gt(0)] | None = None  # seconds that an exchange may take; later clients are failures


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    __pydantic_config__: ClassVar[Any] = _FORBID
    every: Annotated[int, Ge(1)] = 10  # rounds between commits; the last round and Ctrl-C always commit
    keep: Annotated[int, Ge(1)] = 2  # newest commits to keep, besides the best


@dataclass(frozen=True, kw_only=True)
class TeacherPart:
    """Distillation from a frozen teacher (Tang et al. 2020; docs/parts.md)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    weight: Annotated[float, Ge(0)] = 1.0  # of the term; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = (
        "broadcast"  # the received student, the client's own last student, or the moving average of these
    )
    tau: Annotated[float, Gt(0)] = 4.0  # temperature of both; the term is multiplied by its square
    divergence: Literal["forward_kl", "reverse_kl", "js", "symmetric", "l1", "mse"] = (
        "forward_kl"  # of teacher and student; l1 and mse are of logits
    )
    view: Literal["full", "ls", "class", "sim", "instance", "topk"] = "full"  # what the term keeps of the teacher
    topk: Annotated[int, Ge(1)] | None = None  # of view topk: probabilities kept; null: a quarter of the classes


@dataclass(frozen=True, kw_only=True)
class MixupPart:
    """Distillation on a mixed share of the batch (Choi et al., WACV 2023; docs/parts.md)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    weight: Annotated[float, Ge(0)] = 1.0  # of both terms; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = "broadcast"  # predicts the mixed images
    fraction: Annotated[float, Ge(0), Le(1)] = 0.1  # of the batch that is mixed; 0 = off
    beta: Annotated[float, Gt(0)] = 1.0  # an image's share of its mixture is drawn from Beta(beta, beta)
    gamma: Annotated[float, Ge(0)] = 0.1  # weight of cross entropy with the mixed labels; 0 = off
    alpha: Annotated[float, Ge(0)] = 0.9  # weight of the KL to the teacher; 0 = off
    draw: Literal["exact", "reference"] = "exact"  # reference: rows as the authors' code mixes them, about 41 %


@dataclass(frozen=True, kw_only=True)
class LayersPart:
    """Matches hidden layers to the frozen teacher's (Yu, Wen, Mou 2025; docs/parts.md)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    weight: Annotated[float, Ge(0)] = 1.0  # of the term; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = "broadcast"  # whose layers
    taps: list[str] | None = None  # blocks of the student; null: the last before the head
    mapping: Literal["all_to_one", "forward", "reverse", "random", "none"] = (
        "all_to_one"  # which of the teacher's taps is compared with which of the student's; none: off
    )


@dataclass(frozen=True, kw_only=True)
class GraphPart:
    """Matches relations between the positions of a feature map to the frozen teacher's (Zhang, Liu, He 2023)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    weight: Annotated[float, Ge(0)] = 100.0  # of the term, which falls with the square of the positions; 0 = off
    teacher: Literal["broadcast", "own", "ema"] = "broadcast"  # whose map
    tap: str | None = None  # a block that gives a feature map; null: the deepest with more than one position
    side: Annotated[int, Ge(2)] = 7  # larger maps are pooled to this many positions per side


@dataclass(frozen=True, kw_only=True)
class EmaPart:
    """A moving average of the client's own students as a teacher (Brahma, Rai, CVPR 2023; docs/parts.md)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    weight: Annotated[float, Ge(0)] = 0.5  # of cross entropy with its predictions; 0 = off
    decay: Annotated[float, Ge(0), Le(1)] = 0.999  # per step; also if another part uses `ema` as its teacher


@dataclass(frozen=True, kw_only=True)
class AnchorPart:
    """A pull towards the received weights (docs/strategies/fedprox.md, equation 1)."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    weight: Annotated[float, Ge(0)] = 0.01  # rho: the term is rho / 2 times the squared distance; 0 = off


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """Hyper-parameters of the parts; those of a part that `parts` does not name have no effect."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    teacher: TeacherPart = field(default_factory=TeacherPart)
    mixup: MixupPart = field(default_factory=MixupPart)
    layers: LayersPart = field(default_factory=LayersPart)
    graph: GraphPart = field(default_factory=GraphPart)
    ema: EmaPart = field(default_factory=EmaPart)
    anchor: AnchorPart = field(default_factory=AnchorPart)


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """The part of `strategy` that all algorithms share; its other keys belong to the two halves."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    name: str  # the server half: a module of strategies
    client: str = "supervised"  # the client half: a module of clients
    variant: str | None = None  # a named set of switches, for papers that differ from their code
    setting: str | None = None  # its name, a file of conf/strategy; chosen by strategy=NAME


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. The `name` of `partition` and of `strategy` chooses the schema that checks their other keys."""

    __pydantic_config__: ClassVar[Any] = _FORBID
    seed: Annotated[int, Ge(0)] = 0  # of every random stream
    rounds: Annotated[int, Ge(1)] = 50
    clients: Annotated[int, Ge(1)] = 10  # in all
    clients_per_round: Annotated[int, Ge(1)] | None = None  # drawn anew each round; null: all
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
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
