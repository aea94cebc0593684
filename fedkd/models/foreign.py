"""Students of other libraries, by their names there: `torchvision:resnet18`, `timm:convnext_atto`."""

import importlib
from typing import Any, Literal, cast

from torch import nn

from fedkd.errors import ConfigError
from fedkd.models import wrapped

_WHERE = "students"


def make(name: str, shape: tuple[int, ...], classes: int, stem: Literal["standard", "small"]) -> wrapped.Wrapped:
    """A student of torchvision.models or timm, without pretrained weights, for images of `shape`.

    Its first convolution takes the images' channels. stem="small" keeps small images large: that convolution becomes
    3x3 with stride 1, and a max pooling right after it is left out (He et al., CVPR 2016, section 4.2, for CIFAR-10).
    Raises ConfigError: unknown name, library not installed, samples that are no images, no such stem.
    """
    library, _, architecture = name.partition(":")
    if len(shape) != 3:
        raise ConfigError(f"student '{name}' takes images, these samples have shape {list(shape)}", where=_WHERE)
    net = _torchvision(architecture, classes) if library == "torchvision" else _timm(architecture, classes, shape)
    first = next((at for at, module in net.named_modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ConfigError(f"student '{name}' has no convolution to adapt to the images", where=_WHERE)
    _adapt(net, first, shape[0], stem == "small", name)
    return wrapped.make(net, shape, _head(net, library))


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(f"torchvision:{name}", known)
    return cast(nn.Module, models.get_model(name, weights=None, num_classes=classes))


def _timm(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        what, mend = f"student 'timm:{name}' needs timm, which is not installed", "pip install timm"
        raise ConfigError(what, where=_WHERE, mend=mend) from None
    known = timm.list_models()
    if name not in known:
        raise _unknown(f"timm:{name}", known)
    return cast(nn.Module, timm.create_model(name, pretrained=False, num_classes=classes, in_chans=shape[0]))


def _unknown(name: str, known: list[str]) -> ConfigError:
    import difflib

    library = name.partition(":")[0]
    near = difflib.get_close_matches(name.partition(":")[2], known, n=3)
    meant = f"did you mean {' or '.join(f'{library}:{other}' for other in near)}? " if near else ""
    return ConfigError(f"there is no student '{name}'", where=_WHERE, mend=f"{meant}{library} has {len(known)} models")


def _adapt(net: nn.Module, first: str, channels: int, is_small: bool, name: str) -> None:
    old = cast(nn.Conv2d, net.get_submodule(first))
    if is_small and old.stride == (1, 1):
        mend = "it replaces a first convolution with a stride; leave students.stem out"
        raise ConfigError(f"student '{name}' has no stem to make small", where="students.stem", mend=mend)
    if channels == old.in_channels and not is_small:
        return
    size: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    if is_small:
        size = {"kernel_size": 3, "stride": 1, "padding": 1}
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **size)
    parent, _, last = first.rpartition(".")
    setattr(net.get_submodule(parent), last, new)
    layers = [(at, module) for at, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    behind = [at for at, _ in layers].index(first) + 1
    if is_small and behind < len(layers) and isinstance(layers[behind][1], nn.MaxPool2d):
        parent, _, last = layers[behind][0].rpartition(".")
        setattr(net.get_submodule(parent), last, nn.Identity())


def _head(net: nn.Module, library: str) -> str | None:
    """timm says which layer is the classifier; torchvision's is the last linear layer."""
    if library != "timm":
        return None
    head: Any = net.get_classifier()  # type: ignore[operator]
    return next((at for at, module in net.named_modules() if module is head), None)
