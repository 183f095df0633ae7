"""From a name to a model with everything that Limbeck needs to know about it."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from limbeck.errors import UserError, did_you_mean
from limbeck.models import own
from limbeck.models.built import Built, nearest, same_name
from limbeck.models.cifar import NETS
from limbeck.models.probe import classifiers, entrance, run_once, weighted
from limbeck.models.spec import Model
from limbeck.models.weights import Weights, WeightsUnavailable, fit_weights, read_weights

LIBRARIES = ("timm", "torchvision", "hub")
FAMILIES = (*LIBRARIES, "cifar", "small", "deit")


def build(
    name: str,
    *,
    num_classes: int,
    size: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    allow_new_head: bool = False,
) -> Model:
    """Build a model by its name.

    | name | model |
    |---|---|
    | `timm/NAME`, `timm/NAME.TAG` | of timm |
    | `torchvision/NAME` | of torchvision |
    | `hub/OWNER/NAME` | a repository of the Hugging Face hub that timm can read |
    | `cifar/NAME` | the nets of the CIFAR distillation literature, `limbeck.models.cifar.NETS` |
    | `small/cnn-N` | three convolutions of widths N, 2N and 2N |
    | `small/vit-N` | a ViT of width N with patches of 4x4 and six blocks |
    | `deit/conv-stem-tiny`, `-small` | DeiT-Ti and -S behind a convolutional stem; `...-distilled` has two heads |
    | `module:function` | `function(num_classes=...)` of a module in the current folder or on PYTHONPATH, see
        `limbeck.models.own.from_function` |

    Case and separators do not matter: `cifar/WRN-40-2` is `cifar/wrn_40_2`. The model is run once on two blank images,
    so that a size that it cannot take, or an output that is not one tensor of logits, is told here.

    Args:
        name: see the table.
        num_classes: columns of the output; 0 builds a headless model whose output is the pooled feature.
        size: height and width of its images; None = its own.
        weights: a file (safetensors, or a state dict of torch) or a run folder to load.
        pretrained: load the weights that the library publishes, or keep those that the function loads.
        allow_new_head: accept weights whose classifier does not fit; `Model.new_head` says whether it did not.

    Returns:
        The model, in training mode.

    Raises:
        WeightsUnavailable: if pretrained weights cannot be had, within seconds.
        UserError: if the name, the size or the weights cannot be used.

    Example:
        >>> model = build("cifar/resnet-20", num_classes=10)
        >>> model.name, model.penultimate, model.input.size
        ('cifar/resnet20', 'fc:input', 32)
    """
    if num_classes < 0:
        raise UserError(f"num_classes is {num_classes}: 0 (headless) or more is wanted")
    if size is not None and size < 1:
        raise UserError(f"size is {size}: at least 1 is wanted")
    if weights is not None and pretrained:
        raise UserError(f"{name}: give weights or pretrained, not both")
    loaded = read_weights(Path(weights)) if weights is not None else None
    # A headless model is a model of one class whose classifier is then cut off: so every family can make one, and
    # weights are loaded the same way.
    built = _make(name, num_classes=num_classes or 1, size=size, pretrained=pretrained)
    if built.origin == own.FUNCTION:
        built = own.with_one_output(built, size or built.input.size)
    output, calls = run_once(built.module, built.name, size or built.input.size)
    if built.heads is None:
        heads = classifiers(built.name, output, calls)
        cut = heads
    else:
        heads = tuple(layer for head in built.heads for layer in weighted(built.module, head, calls))
        first = entrance(built.module, built.heads[0], calls)
        # Of an MLP the feature is what goes into it, and all of it is cut off.
        cut = built.heads if first not in (built.heads[0], *heads) else heads
    if not heads:
        raise UserError(f"{built.name} has no linear classifier, so its penultimate feature is unknown")
    if output.shape[1] != (num_classes or 1):
        raise UserError(f"{built.name} returns {output.shape[1]} columns, {num_classes or 1} are wanted")
    return _finish(built, heads, cut, loaded, num_classes=num_classes, size=size, allow_new_head=allow_new_head)


def _finish(
    built: Built,
    heads: tuple[str, ...],
    cut: tuple[str, ...],
    loaded: Weights | None,
    *,
    num_classes: int,
    size: int | None,
    allow_new_head: bool,
) -> Model:
    """Load weights from a file, judge the head, cut it off if none is wanted."""
    module, name = built.module, built.name
    origin, new_head = (built.origin if built.pretrained else "random"), built.new_head
    if loaded is not None:
        if built.rename is not None:
            loaded = replace(loaded, state=built.rename(loaded.state))
        origin = loaded.origin
        new_head = fit_weights(module, loaded, heads=heads, name=name, allow_new_head=allow_new_head or not num_classes)
    elif new_head and num_classes and not allow_new_head:
        raise UserError(f"the pretrained {name} has no classifier for {num_classes} classes: it has to be fine-tuned")
    spec = replace(built.input, size=size or built.input.size)
    if not num_classes:
        for head in cut:
            module.set_submodule(head, nn.Identity())
        run_once(module, f"{name} without its classifier", spec.size)
    return Model(
        module=module,
        name=name,
        input=spec,
        num_classes=num_classes,
        penultimate=f"{cut[0]}:input" if num_classes else "output",
        weights=origin,
        new_head=new_head and num_classes > 0,
        notes=built.notes,
    )


def _make(name: str, *, num_classes: int, size: int | None, pretrained: bool) -> Built:
    family, slash, rest = name.partition("/")
    if slash and rest and family.lower() in LIBRARIES:
        # Imported when used: timm and torchvision take seconds, and the other families do not need them.
        from limbeck.models import library

        make = {"timm": library.from_timm, "torchvision": library.from_torchvision, "hub": library.from_hub}
        return make[family.lower()](rest, num_classes=num_classes, size=size, pretrained=pretrained)
    if slash and rest and family.lower() == "cifar":
        built = own.cifar_net(rest, num_classes=num_classes)
    elif slash and rest and family.lower() == "small":
        built = own.small_net(rest, num_classes=num_classes, size=size)
    elif slash and rest and family.lower() == "deit":
        built = own.conv_stem_net(rest, num_classes=num_classes, size=size)
    elif ":" in name and not slash:
        return own.from_function(name, num_classes=num_classes, pretrained=pretrained)
    else:
        raise UserError(_unknown(name, family if slash else None))
    if pretrained:
        raise WeightsUnavailable(f"no pretrained weights exist for {built.name}")
    return built


def own_classes(name: str) -> int:
    """How many classes the weights have that a model's library publishes: the head of a teacher as it comes.

    Raises:
        UserError: if nothing is published for that model.
    """
    family, _, rest = name.partition("/")
    if rest and family.lower() in LIBRARIES:
        from limbeck.models import library

        if found := library.own_classes(family.lower(), rest):
            return found
    elif ":" in name and (found := own.function_classes(name)):
        return found
    raise UserError(f"no pretrained weights exist for {name}, so its classes are not known: give --teacher-weights RUN")


def _unknown(name: str, family: str | None) -> str:
    """The message for a name without a prefix that is known; suggests the prefixes under which the name is."""
    if family is not None:
        near = did_you_mean(family, FAMILIES)
        return f'unknown family "{family}" in "{name}"{near}: one of {", ".join(FAMILIES)}, or module:function'
    from limbeck.models import library

    known = {"timm": library.timm_names(), "torchvision": library.torchvision_names(), "cifar": list(NETS)}
    found = [f'"{prefix}/{same}"' for prefix, names in known.items() if (same := same_name(name, names))]
    if name.lower().startswith(("cnn", "vit-")):
        found.append(f'"small/{name}"')
    if found:
        return f'model "{name}" has no prefix: did you mean {" or ".join(found)}?'
    near = next((hint for prefix, names in known.items() if (hint := nearest(name, names, family=prefix))), "")
    return f'model "{name}" has no prefix{near}: one of {", ".join(FAMILIES)}, or module:function'
