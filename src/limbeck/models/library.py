"""Models of timm, of the Hugging Face hub in timm's form, and of torchvision."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import torchvision
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.built import IMAGENET_MEAN, IMAGENET_STD, Built, check_size, find_name, input_of
from limbeck.models.probe import classifiers, name_of, run_once
from limbeck.models.quiet_timm import timm
from limbeck.models.spec import InputSpec
from limbeck.models.weights import WeightsUnavailable
from limbeck.storage.untrusted import read_object

SAFETENSORS = "model.safetensors"
IMAGENET_CLASSES = 1000
_PATIENCE = 5.0
_AUXILIARY = {"aux1", "aux2", "AuxLogits"}  # classifiers of googlenet and inception_v3 for training from the start


def timm_names() -> list[str]:
    """Every model of timm, without and with a tag of pretrained weights."""
    return [*timm.list_models(), *timm.list_models(pretrained=True)]


def torchvision_names() -> list[str]:
    """Every classification model of torchvision."""
    return torchvision.models.list_models(module=torchvision.models)


def own_classes(family: str, name: str) -> int | None:
    """How many classes the published weights of `timm/NAME`, `torchvision/NAME` or `hub/OWNER/NAME` have."""
    if family == "timm":
        config = timm.get_pretrained_cfg(find_name(name, timm_names(), family="timm"))
        return config.num_classes if config is not None else None
    if family == "torchvision":
        return IMAGENET_CLASSES
    _fetch(name, "config.json", f"hub/{name}")
    settings, _, _ = timm.models.load_model_config_from_hf(name)
    return settings.get("num_classes")


def from_timm(name: str, *, num_classes: int, size: int | None, pretrained: bool) -> Built:
    """`timm/NAME` or `timm/NAME.TAG`."""
    found = find_name(name, timm_names(), family="timm")
    config = timm.get_pretrained_cfg(found)
    settings = config.to_dict() if config is not None else {}
    overlay: dict[str, str] = {}
    if pretrained:
        overlay = _timm_weights(f"timm/{found}", settings)
    return _create(found, f"timm/{found}", settings, overlay, num_classes, size, pretrained)


def from_hub(repository: str, *, num_classes: int, size: int | None, pretrained: bool) -> Built:
    """`hub/OWNER/NAME`: a repository that timm can read. It holds a config and weights, never code."""
    name = f"hub/{repository}"
    if repository.count("/") != 1:
        raise UserError(f'"{name}" is no repository of the hub: hub/OWNER/NAME is wanted')
    _refuse_code(Path(_fetch(repository, "config.json", name)), name)
    try:
        settings, architecture, _ = timm.models.load_model_config_from_hf(repository)
    except Exception as error:  # a config of another library: the keys that timm asks for are absent
        raise UserError(f"{name} is not in timm's form ({_first_line(error)})") from error
    if not architecture or not timm.is_model(architecture):
        raise UserError(f'{name} names the architecture "{architecture}", which timm does not have')
    overlay = {"file": _fetch(repository, SAFETENSORS, name)} if pretrained else {}
    return _create(f"hf-hub:{repository}", name, settings, overlay, num_classes, size, pretrained)


def _refuse_code(config: Path, name: str) -> None:
    """Refuse a repository whose model is code that it brings along, and one whose model is one of transformers."""
    found = read_object(config)
    own = "name a function of yours that loads it, as module:function"
    if "auto_map" in found:
        raise UserError(f"{name} is built by code of its own (auto_map in its config.json), which is never run; {own}")
    if "architecture" not in found and "model_type" in found:
        raise UserError(f"{name} is a model of transformers ({found['model_type']}), not one in timm's form; {own}")


def from_torchvision(name: str, *, num_classes: int, size: int | None, pretrained: bool) -> Built:
    """`torchvision/NAME`, with the statistics and the size of its default weights."""
    found = find_name(name, torchvision_names(), family="torchvision")
    full = f"torchvision/{found}"
    weights = torchvision.models.get_model_weights(found).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    preset = weights.transforms()
    own_size = int(preset.crop_size[0])
    spec = InputSpec(IMAGENET_MEAN, IMAGENET_STD, size or own_size, preset.interpolation.value)
    # Two return a tuple in training, for losses on early classifiers: these are left out. Their published weights are
    # of a model that transforms its input; so it always does, and what is saved and built again reads the same.
    auxiliary = found in {"googlenet", "inception_v3"}
    options: dict[str, Any] = {"transform_input": True} if auxiliary else {}
    rename = _without_auxiliary if auxiliary else None
    fixed = _torchvision_size(found, full, spec.size)
    if not pretrained:
        options |= {"init_weights": True, "aux_logits": False} if auxiliary else {}
        make = partial(torchvision.models.get_model, found, weights=None, num_classes=num_classes, **options, **fixed)
        return Built(_guard(make, full, spec.size), full, spec, rename=rename)
    if fixed and spec.size != own_size:
        raise UserError(f"the pretrained {full} runs at {own_size}x{own_size} only; timm's can be resized")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not cached.is_file() and not _answers(weights.url):
        raise WeightsUnavailable(f"no pretrained weights for {full}: download.pytorch.org cannot be reached")
    module = _download(partial(torchvision.models.get_model, found, weights=weights, **options), full)
    if auxiliary:
        for name in {"aux_logits", *_AUXILIARY & dict(module.named_children()).keys()}:
            setattr(module, name, None)
    if num_classes == IMAGENET_CLASSES:
        return Built(module, full, spec, pretrained=True, origin=f"hub:{weights}")
    head = classifiers(full, *run_once(module, full, spec.size))[0]
    module.set_submodule(head, _resized(module.get_submodule(head), num_classes))
    return Built(module, full, spec, (head,), pretrained=True, origin=f"hub:{weights}", new_head=True)


def _without_auxiliary(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if _AUXILIARY.isdisjoint(key.split("."))}


def _create(
    identifier: str,
    name: str,
    settings: dict[str, Any],
    overlay: dict[str, str],
    num_classes: int,
    size: int | None,
    pretrained: bool,
) -> Built:
    """A timm model at the wanted size, with the heads that it names itself."""
    own_size = int(settings.get("input_size", (3, 224, 224))[-1])
    resized = size is not None and size != own_size and bool(settings.get("fixed_input_size"))
    options: dict[str, Any] = {"img_size": size} if resized else {}
    if overlay:
        options["pretrained_cfg_overlay"] = overlay

    def make() -> nn.Module:
        return timm.create_model(identifier, pretrained=pretrained, num_classes=num_classes, **options)

    try:
        module = _download(make, name) if pretrained else _guard(make, name, size or own_size)
    except TypeError as error:
        raise UserError(f"{name} runs at its own size {own_size} only, not at {size}") from error
    _check_patches(module, name, size or own_size)
    get_classifier = getattr(module, "get_classifier", None)
    heads = get_classifier() if get_classifier else None
    # Distilled ViTs have one for the class token and one for the distillation token; the first is the labels'.
    layers = heads if isinstance(heads, tuple) else (heads,)
    paths = tuple(path for layer in layers if isinstance(layer, nn.Module) and (path := name_of(module, layer)))
    if not paths:
        raise UserError(f"{name} is no classifier")
    spec = input_of(name, settings, size or own_size)
    new_head = pretrained and settings.get("num_classes") != num_classes
    tag = settings.get("tag")  # of a name without one, timm's default
    origin = f"hub:{tag}" if tag else "hub"
    return Built(module, name, spec, paths, pretrained=pretrained, origin=origin, new_head=new_head)


def _check_patches(module: nn.Module, name: str, size: int) -> None:
    embedding: Any = getattr(module, "patch_embed", None)
    patch: Any = getattr(embedding, "patch_size", None)
    projection: Any = getattr(embedding, "proj", None)
    overlaps = isinstance(projection, nn.Conv2d) and projection.stride != projection.kernel_size  # no tiling (PVTv2)
    if patch is not None and not overlaps:
        check_size(name, size, int(patch[0] if isinstance(patch, tuple | list) else patch))


def _torchvision_size(found: str, name: str, size: int) -> dict[str, Any]:
    """The argument that a model of fixed size takes; the others run at any."""
    if found.startswith("vit_"):
        check_size(name, size, int(found.rsplit("_", 1)[1]))
        return {"image_size": size}
    return {"input_size": (size, size)} if found.startswith("maxvit") else {}


def _resized(head: nn.Module, num_classes: int) -> nn.Module:
    """A fresh classifier of the same kind with another number of classes."""
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    assert isinstance(head, nn.Conv2d)
    return nn.Conv2d(head.in_channels, num_classes, 1, bias=head.bias is not None)


def _timm_weights(name: str, settings: dict[str, Any]) -> dict[str, str]:
    """Where timm shall read the weights: a safetensors file of the hub, or (an empty answer) its own other source."""
    repository, url = settings.get("hf_hub_id"), settings.get("url")
    if not repository and not url:
        raise WeightsUnavailable(f"timm publishes no pretrained weights for {name}")
    if repository and not settings.get("hf_hub_filename") and not settings.get("custom_load"):
        return {"file": _fetch(repository, SAFETENSORS, name)}
    server = str(huggingface_hub.constants.ENDPOINT if repository else url)
    if not _answers(server):
        raise WeightsUnavailable(f"no pretrained weights for {name}: the hub cannot be reached")
    return {}


def _fetch(repository: str, file: str, name: str) -> str:
    """A file of a hub repository, from the cache or, if the hub answers at once, downloaded."""
    cached = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return cached
    offline, server = huggingface_hub.constants.HF_HUB_OFFLINE, str(huggingface_hub.constants.ENDPOINT)
    if offline or not _answers(server):
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise WeightsUnavailable(f"no {file} for {name}: {why} and no copy is in the cache")
    try:
        return huggingface_hub.hf_hub_download(repository, file)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise UserError(f'no repository "{repository}" on the hub (or it needs a login)') from error
    except huggingface_hub.errors.EntryNotFoundError as error:
        raise WeightsUnavailable(f"{name} has no {file} (pickled weights of the hub are not read)") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsUnavailable(f"downloading {file} for {name} failed: {_first_line(error)}") from error


def _download(make: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return make()
    except OSError as error:  # URLError and the hub's errors are OSErrors
        raise WeightsUnavailable(f"loading the pretrained weights of {name} failed: {_first_line(error)}") from error
    except (RuntimeError, ValueError) as error:  # they are there, and cannot be used: no reason to train without them
        raise UserError(
            f"the pretrained weights of {name} cannot be loaded: {_first_line(error)}; give weights as a file or a run"
        ) from error


def _guard(make: Callable[[], nn.Module], name: str, size: int) -> nn.Module:
    try:
        return make()
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} cannot be built for {size}x{size}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _answers(url: str) -> bool:
    """Whether a server answers within a few seconds, whatever it says.

    The hub's own client tries for three quarters of a minute where there is no network. In a thread, because looking a
    name up has no time limit of its own; proxies of the environment are used.
    """
    heard = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE):
                heard.set()
        except urllib.error.HTTPError:
            heard.set()
        except OSError:
            pass
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    done.wait(_PATIENCE + 1)
    return heard.is_set()
