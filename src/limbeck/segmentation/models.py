"""From a name to a model that gives logits at each place."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models import get_model, list_models, segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.mobilenetv3 import mobilenet_v3_small

from limbeck.errors import UserError, did_you_mean
from limbeck.models import own
from limbeck.models.built import IMAGENET_MEAN, IMAGENET_STD
from limbeck.models.probe import raw_output
from limbeck.models.spec import InputSpec, Model
from limbeck.models.stages import stages
from limbeck.models.weights import Weights, WeightsUnavailable, fit_weights, read_weights
from limbeck.segmentation.small import SmallFCN

USUAL = 512  # side of the literature's crops on Pascal VOC and ADE20K; where nothing else is asked for
PROBED = 64  # side of the images of the dry run
DIVISOR = 32
"""Height and width of every frame are multiples of it: the stride of the coarsest encoders."""

FAMILIES = ("torchvision", "smp", "small")
TRUNKS = ("backbone", "encoder")
SMALL_LRASPP = "lraspp_mobilenet_v3_small"
_IMAGENET = InputSpec(IMAGENET_MEAN, IMAGENET_STD, USUAL, "bilinear")
_HALF = InputSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), USUAL, "bilinear")


@dataclass(frozen=True)
class _Made:
    module: nn.Module
    name: str
    input: InputSpec
    notes: tuple[str, ...] = ()


def build_segmenter(
    name: str,
    *,
    num_classes: int,
    size: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    allow_new_head: bool = False,
    frozen_norms: bool = False,
) -> Model:
    """Build a segmentation model by its name.

    | name | model |
    |---|---|
    | `torchvision/NAME` | DeepLabV3, FCN or LR-ASPP of torchvision, as `torchvision/deeplabv3_resnet50`, without an
        auxiliary head; also `torchvision/lraspp_mobilenet_v3_small` |
    | `smp/ARCHITECTURE/ENCODER` | of segmentation-models-pytorch (extra `segmentation`), as `smp/unet/resnet18`; any
        timm encoder |
    | `small/fcn-4s-N`, `small/fcn-8s-N` | a small fully convolutional net of width N with logits at stride 4 or 8 |
    | `module:function` | `function(num_classes=...)` of a module in the current folder or on PYTHONPATH; it returns
        logits `(n, k, h, w)` at any stride, or a dict with them as `"out"` |

    The state dict is that of the plain model. The model is run once on two blank images.

    Args:
        name: See the table.
        num_classes: Classes, without void.
        size: Side of its images, for the record; it runs at any multiple of 32.
        weights: A file (safetensors, or a state dict of torch) or a run folder of this model, or of the classification
            model that is its trunk: then the rest stays random.
        pretrained: Load the weights of the trunk that its library publishes, or keep those that the function loads.
        allow_new_head: Accept weights whose classifier is for other classes.
        frozen_norms: Of detectors alone.

    Returns:
        The model, in training mode; its `penultimate` is the decoder's last feature.

    Raises:
        WeightsUnavailable: If no pretrained weights are available.
        UserError: If the name or the weights cannot be used.

    Example:
        >>> import torch
        >>> model = build_segmenter("small/fcn-4s-8", num_classes=3)
        >>> model.penultimate, tuple(model.module(torch.zeros(1, 3, 64, 32)).shape)
        ('head:input', (1, 3, 16, 8))
    """
    assert not frozen_norms  # of detectors alone: the recipe refuses it
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}: a segmentation model has 2 or more")
    if weights is not None and pretrained:
        raise UserError(f"{name}: give weights or pretrained, not both")
    loaded = read_weights(Path(weights)) if weights is not None else None
    made = _make(name, num_classes, pretrained)
    side = (size or USUAL) if ":" in made.name else PROBED
    heads = _heads(made, num_classes, side)
    origin, new_head = ("hub" if pretrained else "random"), pretrained
    if loaded is not None:
        origin, new_head = loaded.origin, _load(made, loaded, heads, allow_new_head)
    return Model(
        module=made.module,
        name=made.name,
        input=replace(made.input, size=size or USUAL),
        num_classes=num_classes,
        penultimate=f"{heads[-1]}:input",
        weights=origin,
        new_head=new_head,
        notes=made.notes,
    )


def stage_taps(model: Model) -> tuple[str, ...]:
    """The ends of the stages of a model's trunk, shallow to deep.

    `layer1` to `layer4` of a ResNet, also where the last ones are dilated and have one resolution; else what
    `limbeck.models.stages.stages` finds in the trunk by itself, for in the whole model an image has ways around it.

    Raises:
        UserError: None are found.

    Example:
        >>> stage_taps(build_segmenter("small/fcn-8s-8", num_classes=3))
        ('stage1', 'stage2', 'stage3')
    """
    module = model.module
    if isinstance(module, SmallFCN):
        return module.stage_taps
    name = _trunk(module)
    if name is None:
        return stages(model)
    trunk = module.get_submodule(name)
    layers = [f"layer{number}" for number in range(1, 5)]
    inner = next((path for path, part in trunk.named_modules() if all(hasattr(part, layer) for layer in layers)), None)
    if inner is not None:
        return tuple(".".join(filter(None, (name, inner, layer))) for layer in layers)
    alone = replace(model, module=_Deepest(trunk))
    return tuple(f"{name}.{tap.removeprefix('trunk.')}" for tap in stages(alone))


class _Deepest(nn.Module):
    """A trunk that gives its last map alone."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        found = self.trunk(images)
        return list(found.values() if isinstance(found, Mapping) else found)[-1]


def _trunk(module: nn.Module) -> str | None:
    return next((name for name in TRUNKS if isinstance(getattr(module, name, None), nn.Module)), None)


def _make(name: str, num_classes: int, pretrained: bool) -> _Made:
    family, _, rest = name.partition("/")
    if ":" in name and "/" not in name:
        built = own.from_function(name, num_classes=num_classes, pretrained=pretrained)
        return _Made(built.module, built.name, built.input, built.notes)
    match family.lower():
        case "torchvision":
            return _of_torchvision(rest, num_classes, pretrained)
        case "smp":
            return _of_smp(rest, num_classes, pretrained)
        case "small":
            if pretrained:
                raise WeightsUnavailable(f"no pretrained weights exist for {name}")
            return _small(rest, num_classes)
        case _:
            near = did_you_mean(family.lower(), FAMILIES)
            raise UserError(
                f'"{name}" is no segmentation model{near}: expected torchvision/NAME, smp/ARCHITECTURE/ENCODER, '
                "small/fcn-4s-N or module:function"
            )


def _small(name: str, num_classes: int) -> _Made:
    found = re.fullmatch(r"fcn-([48])s-(\d{1,4})", name.lower())
    if found is None or not int(found[2]):
        raise UserError(f'unknown model "small/{name}": expected small/fcn-4s-N or small/fcn-8s-N with a width N')
    stride, width = int(found[1]), int(found[2])
    return _Made(SmallFCN(width, stride=stride, num_classes=num_classes), f"small/fcn-{stride}s-{width}", _HALF)


def _of_torchvision(name: str, num_classes: int, pretrained: bool) -> _Made:
    known = [*list_models(module=segmentation), SMALL_LRASPP]
    wanted = name.lower().replace("-", "_")
    if wanted not in known:
        raise UserError(f'unknown model "torchvision/{name}"{did_you_mean(wanted, known)}: one of {", ".join(known)}')

    def make() -> nn.Module:
        if wanted == SMALL_LRASPP:
            return _small_lraspp(num_classes, pretrained)
        backbone = "DEFAULT" if pretrained else None
        options = {} if wanted.startswith("lraspp") else {"aux_loss": False}
        return get_model(wanted, weights=None, weights_backbone=backbone, num_classes=num_classes, **options)

    module = _fetched(make, f"torchvision/{wanted}", pretrained)
    module.register_forward_hook(_out)
    return _Made(module, f"torchvision/{wanted}", _IMAGENET)


def _small_lraspp(num_classes: int, pretrained: bool) -> nn.Module:
    """LR-ASPP on MobileNetV3-small, put together as torchvision does it on the large one, which alone it offers.

    References:
        A. Howard et al., "Searching for MobileNetV3", ICCV 2019, table 7.
    """
    layers: Any = mobilenet_v3_small(weights="DEFAULT" if pretrained else None, dilated=True).features
    strided = [place for place, layer in enumerate(layers) if getattr(layer, "_is_cn", False)]
    low, high = [0, *strided, len(layers) - 1][-4], len(layers) - 1
    low_width, high_width = (layers[place].out_channels for place in (low, high))
    backbone = IntermediateLayerGetter(layers, return_layers={str(low): "low", str(high): "high"})
    return segmentation.LRASPP(backbone, low_width, high_width, num_classes)


def _of_smp(name: str, num_classes: int, pretrained: bool) -> _Made:
    try:
        import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f'smp/{name} needs the package segmentation-models-pytorch: pip install "limbeck[segmentation]"'
        ) from None
    architecture, _, encoder = name.partition("/")
    known: list[str] = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if architecture.lower() not in known or not encoder:
        near = did_you_mean(architecture.lower(), known)
        raise UserError(f'"smp/{name}" is no model{near}: expected smp/ARCHITECTURE/ENCODER, one of {", ".join(known)}')
    full = f"smp/{architecture.lower()}/{encoder}"
    in_smp = encoder if encoder in smp.encoders.encoders else f"tu-{encoder}"

    def make() -> nn.Module:
        return smp.create_model(
            architecture.lower(), in_smp, encoder_weights="imagenet" if pretrained else None, classes=num_classes
        )

    try:
        module = _fetched(make, full, pretrained)
    except WeightsUnavailable:
        raise
    except Exception as error:  # of smp and timm, whatever they raise of a name or of a pair that does not fit
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{full} cannot be built: {reason}") from error
    return _Made(module, full, _input_of(in_smp))


def _input_of(encoder: str) -> InputSpec:
    """What an encoder of timm was trained with; of smp's own ones ImageNet's statistics."""
    config = timm.get_pretrained_cfg(encoder.removeprefix("tu-")) if encoder.startswith("tu-") else None
    return _IMAGENET if config is None else replace(_IMAGENET, mean=tuple(config.mean), std=tuple(config.std))


def _fetched(make: Callable[[], nn.Module], name: str, pretrained: bool) -> nn.Module:
    """A model, whose weights may have to be fetched."""
    try:
        return make()
    except Exception as error:  # each hub has errors of its own
        if not pretrained:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsUnavailable(f"pretrained weights of {name} cannot be fetched: {reason}") from error


def _out(_module: nn.Module, _inputs: object, output: Any) -> Any:
    """A forward hook, so that names and weights stay those of the plain model."""
    return output.get("out", output) if isinstance(output, Mapping) else output  # pyright: ignore


def _heads(made: _Made, num_classes: int, side: int) -> tuple[str, ...]:
    """The layers that give the logits, the one that reads the decoder's last feature last.

    Raises:
        UserError: The output is not (n, k, h, w), or no convolution gives it.
    """
    module, name = made.module, made.name
    output, calls = raw_output(module, name, side, training=True)
    if isinstance(output, Mapping) and "out" in output:
        module.register_forward_hook(_out)
        output = output["out"]
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[:2] != (2, num_classes):
        seen = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UserError(
            f"{name} returns {seen} for 2 images: expected logits (2, {num_classes}, height, width), or a dict with "
            'them as "out"'
        )
    if isinstance(module, segmentation.LRASPP):
        return "classifier.low_classifier", "classifier.high_classifier"
    giving = [path for path, value in calls if value.ndim == 4 and value.shape[1] == num_classes]
    if not giving:
        raise UserError(f"{name} has no convolution that gives {num_classes} channels, so its last feature is unknown")
    return (giving[-1],)


def _load(made: _Made, loaded: Weights, heads: tuple[str, ...], allow_new_head: bool) -> bool:
    """Load weights of the whole model, or of the classification model that is its trunk; whether the head is new."""
    trunk = _trunk(made.module)
    if trunk is None or any(key.partition(f"{trunk}.")[1] for key in loaded.state):
        return fit_weights(made.module, loaded, heads=heads, name=made.name, allow_new_head=allow_new_head)
    part = made.module.get_submodule(trunk)
    own_keys = part.state_dict()
    # What a library's classification model calls features.N is N of a trunk; timm's encoders are inside of smp's.
    for prefix, inner in (("", ""), ("features.", ""), ("", "model.")):
        state = {f"{inner}{key.removeprefix(prefix)}": value for key, value in loaded.state.items()}
        missing = [
            key
            for key, value in own_keys.items()
            if not key.endswith("num_batches_tracked") and (key not in state or state[key].shape != value.shape)
        ]
        if not missing:
            fitting = replace(loaded, state={key: value for key, value in state.items() if key in own_keys})
            fit_weights(part, fitting, heads=(), name=f"the trunk of {made.name}", allow_new_head=False)
            return True
    raise UserError(f"weights {loaded.origin} are neither of {made.name} nor of its trunk")
