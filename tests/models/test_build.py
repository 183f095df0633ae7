import json
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from limbeck.assembly.features import tap_pool
from limbeck.errors import UserError
from limbeck.features.taps import Taps
from limbeck.models import InputSpec, Model, WeightsUnavailable, build, library, own_classes, unused_parameters
from limbeck.models.probe import classifiers, run_once

# name, size, penultimate, width of the penultimate feature
FAMILIES = [
    ("timm/resnet18", 32, "fc:input", 512),
    ("timm/vit_tiny_patch16_224", 32, "head:input", 192),
    ("timm/deit_tiny_distilled_patch16_224", 32, "head:input", 192),
    ("timm/convnext_atto", 32, "head.fc:input", 320),
    ("timm/mobilenetv3_small_050", 32, "classifier:input", 1024),
    ("timm/resnetv2_18", 32, "head.fc:input", 512),
    ("timm/levit_128s", 64, "head.linear:input", 384),
    ("timm/pvt_v2_b0", 64, "head:input", 256),  # its patches overlap, so any size will do
    ("timm/caformer_s18", 64, "head.fc:input", 512),  # what goes into the MLP of its head
    ("torchvision/resnet18", 32, "fc:input", 512),
    ("torchvision/mobilenet_v3_small", 32, "classifier.3:input", 1024),
    ("torchvision/squeezenet1_1", 32, "classifier.1:input", 512),
    ("torchvision/swin_t", 32, "head:input", 768),
    ("torchvision/googlenet", 32, "fc:input", 1024),
    ("cifar/resnet8", None, "fc:input", 64),
    ("cifar/mobilenetv2", None, "classifier.0:input", 1280),
    ("small/cnn-3", None, "fc:input", 6),
]


def classifier_input(module: nn.Module, penultimate: str, images: torch.Tensor) -> torch.Tensor:
    path, suffix = penultimate.split(":")
    assert suffix == "input"
    seen: list[torch.Tensor] = []
    handle = module.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("name", "size", "penultimate", "width"), FAMILIES)
@torch.no_grad()
def test_every_family_builds_and_headless_gives_its_penultimate_feature(name, size, penultimate, width):
    model = build(name, num_classes=7, size=size)
    headless = build(name, num_classes=0, size=size)
    assert (model.name, model.num_classes, model.penultimate) == (name, 7, penultimate)
    assert (headless.num_classes, headless.penultimate) == (0, "output")
    assert (model.weights, model.new_head) == (headless.weights, headless.new_head) == ("random", False)
    assert model.module.training
    assert size in (None, model.input.size)

    images = torch.rand(2, 3, model.input.size, model.input.size)
    own = model.module.eval().state_dict()
    headless.module.load_state_dict({key: own[key] for key in headless.module.state_dict()}, strict=True)
    output = headless.module.eval()(images)
    assert model.module(images).shape == (2, 7)
    assert output.shape == (2, width)
    feature = classifier_input(model.module, penultimate, images)
    if "distilled" in name:  # the mean of the features of both tokens
        assert feature.shape == output.shape
    elif "squeezenet" in name:  # pooled after the place of its convolutional classifier
        torch.testing.assert_close(output, feature.relu().mean((2, 3)))
    else:
        torch.testing.assert_close(output, feature.flatten(1))


def test_building_leaves_running_statistics_and_the_random_state_alone():
    torch.manual_seed(0)
    model = build("cifar/resnet8", num_classes=2)
    after = torch.rand(1)
    assert model.module.state_dict()["bn1.num_batches_tracked"] == 0
    assert torch.equal(model.module.state_dict()["bn1.running_mean"], torch.zeros(16))
    torch.manual_seed(0)
    twin = build("cifar/resnet8", num_classes=2)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(twin.module.state_dict()["fc.weight"], model.module.state_dict()["fc.weight"])


def test_input_statistics_are_the_models_own():
    with torch.device("meta"):
        vit, resnet = build("timm/vit_tiny_patch16_224", num_classes=2), build("torchvision/resnet18", num_classes=2)
    assert (vit.input.mean, vit.input.std, vit.input.size) == ((0.5,) * 3, (0.5,) * 3, 224)
    assert (resnet.input.mean, resnet.input.interpolation) == ((0.485, 0.456, 0.406), "bilinear")
    assert build("cifar/resnet8", num_classes=2).input.mean == (0.5071, 0.4867, 0.4408)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cifar/WRN-16-1", "cifar/wrn_16_1"),
        ("cifar/wrn16-1", "cifar/wrn_16_1"),
        ("cifar/resnet-8x4", "cifar/resnet8x4"),
        ("CIFAR/ShuffleNet_V1", "cifar/shufflenetv1"),
        ("small/cnn4", "small/cnn-4"),
        ("small/CNN_4", "small/cnn-4"),
        ("timm/ResNet-18", "timm/resnet18"),
        ("torchvision/ResNet18", "torchvision/resnet18"),
    ],
)
def test_case_and_separators_do_not_matter(written: str, meant: str):
    with torch.device("meta"):
        assert build(written, num_classes=2).name == meant


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", r'"resnet18" has no prefix: did you mean "timm/resnet18" or "torchvision/resnet18"\?'),
        ("wrn-40-2", r'did you mean "cifar/wrn_40_2"\?'),
        ("cnn-5", r'did you mean "small/cnn-5"\?'),
        ("resnt18", r'has no prefix \(did you mean "timm/resnet18"\?\)'),
        ("zzzzz", r"has no prefix: one of timm, torchvision, hub, cifar, small, deit, or module:function"),
        ("tim/resnet18", r'unknown family "tim" in "tim/resnet18" \(did you mean "timm"\?\)'),
        ("timm/", r"unknown family|has no prefix|unknown model"),
        ("timm/resnt18", r'unknown model "timm/resnt18" \(did you mean "timm/resnet18"\?\)'),
        ("timm/resnet18.a1_in1", r'did you mean "timm/resnet18.a1_in1k"'),
        ("torchvision/resnet19", r'unknown model "torchvision/resnet19" \(did you mean "torchvision/resnet'),
        ("cifar/wrn_40_3", r'unknown model "cifar/wrn_40_3" \(did you mean "cifar/wrn_40_'),
        ("small/cnn-0", r"with a width N"),
        ("small/net", r"small/cnn-N"),
        ("hub/alone", r"hub/OWNER/NAME is wanted"),
    ],
)
def test_misspelt_names_get_one_line_with_the_nearest(name: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        build(name, num_classes=2)
    assert "\n" not in str(caught.value)


def test_a_torchvision_vit_is_built_for_the_size_of_its_weights():
    with torch.device("meta"):
        assert build("torchvision/vit_h_14", num_classes=2).input.size == 518


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm/vit_tiny_patch16_224", 50, "patches of 16x16, which do not tile 50x50: 48 and 64 would fit"),
        ("timm/vit_tiny_patch16_224", 8, "do not tile 8x8: 16 would fit"),
        ("torchvision/vit_b_32", 50, "do not tile 50x50: 32 and 64 would fit"),
        ("timm/inception_v3", 32, "does not run on images of 32x32"),
        ("torchvision/maxvit_t", 64, "cannot be built for 64x64"),
        ("cifar/vgg8", 4, "does not run on images of 4x4"),
        ("cifar/resnet8", 0, "size is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_told(name: str, size: int, message: str):
    with pytest.raises(UserError, match=message):
        build(name, num_classes=2, size=size)


def test_a_vit_is_built_for_the_size():
    model = build("timm/vit_tiny_patch16_224", num_classes=2, size=48)
    assert model.module.get_parameter("pos_embed").shape[1] == 1 + 3 * 3
    assert model.input.size == 48


def test_classifiers_that_are_containers():
    with torch.device("meta"):
        assert build("timm/crossvit_tiny_240", num_classes=2).penultimate == "head.1:input"
        assert build("timm/efficientvim_m1_dist", num_classes=2).penultimate == "heads.3:input"
        with pytest.raises(UserError, match="efficientvim_m1_dist without its classifier does not run"):
            build("timm/efficientvim_m1_dist", num_classes=0)
        with pytest.raises(UserError, match="deepseek_vit_412m_enc is no classifier"):
            build("timm/deepseek_vit_412m_enc", num_classes=2)


def test_wrong_arguments():
    with pytest.raises(UserError, match="num_classes is -1"):
        build("cifar/resnet8", num_classes=-1)
    with pytest.raises(UserError, match="not both"):
        build("cifar/resnet8", num_classes=2, weights="x.pt", pretrained=True)


FUNCTIONS = """
import types
import torch
from torch import nn
from limbeck.models import InputSpec

class Net(nn.Module):
    def __init__(self, num_classes, tuple_in_training=False, after=None):
        super().__init__()
        self.body = nn.Linear(12, 5)
        self.top = nn.Linear(5, num_classes)
        self.tuple_in_training, self.after = tuple_in_training, after
        self.input_spec = InputSpec((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 2)
    def forward(self, x):
        y = self.top(self.body(x.flatten(1)))
        y = self.after(y) if self.after else y
        return (y, y) if self.tuple_in_training and self.training else y

def good(num_classes): return Net(num_classes)
def pair(num_classes): return Net(num_classes, tuple_in_training=True)
def soft(num_classes): return Net(num_classes, after=nn.Softmax(1))
def fixed(num_classes): return Net(3)
def none(num_classes): return "a net"
def other(classes): return Net(classes)
def conv(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def without(): return Net(3)
def loaded(num_classes):
    net = Net(num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net.load_state_dict(Net(num_classes).state_dict())
    return net
def trunk(num_classes):
    net = Net(num_classes)
    net.body.load_state_dict(loaded(num_classes).body.state_dict())
    return net
def half(num_classes): return good(num_classes).half()
def fails(num_classes): raise OSError("no such file")
def breaks(num_classes): return Net(num_classes, after=lambda y: {}["key"])
def named(num_classes): return Net(num_classes, after=lambda y: {"boxes": None, "logits": y})
def unnamed(num_classes): return Net(num_classes, after=lambda y: {"scores": y})
def holder(num_classes):
    return Net(num_classes, after=lambda y: types.SimpleNamespace(features=None, logits=y))
def configured(num_classes):
    net = good(num_classes)
    del net.input_spec
    net.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "input_size": (3, 2, 2)}
    return net
def extra(num_classes):
    class Scaled(nn.Linear):
        def get_extra_state(self): return {"scale": 2}
    net = good(num_classes)
    net.body = Scaled(12, 5)
    return net
def odd(num_classes):
    net = good(num_classes)
    net.input_spec = 32
    return net
def compiled(num_classes):
    net = good(num_classes)
    net.body = torch.compile(net.body)
    net.top.compile()
    return torch.compile(net)
number = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"functions_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    (tmp_path / f"{name}_broken.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_what_comes_compiled_is_the_model_inside(functions: str):
    """Compiled it would run no hooks, and be compiled anew for each look, which takes minutes."""
    found = build(f"{functions}:compiled", num_classes=4).module
    assert found.state_dict().keys() == build(f"{functions}:good", num_classes=4).module.state_dict().keys()
    assert all(part._compiled_call_impl is None for part in found.modules())
    assert {type(part).__name__ for part in found.modules()} == {"Net", "Linear"}


def test_a_function_of_the_current_folder(functions: str):
    model = build(f"{functions}:good", num_classes=4)
    assert (model.penultimate, model.input.size) == ("top:input", 2)
    headless = build(f"{functions}:good", num_classes=0)
    assert headless.module(torch.rand(2, 3, 2, 2)).shape == (2, 5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (":unnamed", "returns a dict with the keys scores in training mode"),
        (":fails", "failed: OSError: no such file"),
        (":breaks", "does not run on images of 2x2: 'key'"),
        (":extra", "body._extra_state in its state dict is a dict, and a tensor is wanted"),
        (":without", "returns 3 columns, 4 are wanted"),
        (":soft", 'no linear layer whose output is the model\'s output .*"top"'),
        (":fixed", "returns 3 columns, 4 are wanted"),
        (":none", "returned a str: a torch.nn.Module is wanted"),
        (":other", "called with num_classes=4 alone: missing a required argument"),
        (":odd", "input_spec is a int"),
        (":number", 'no function "number"'),
        (":god", r'no function "god" .*\(did you mean "good"\?\)'),
        ("_broken:f", "failed: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("s:f", r"no module .* in the current folder or on PYTHONPATH \(did you mean"),
    ],
)
def test_functions_that_cannot_be_used_are_told(functions: str, function: str, message: str):
    with pytest.raises(UserError, match=message):
        build(f"{functions}{function}", num_classes=4)


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (":pair", "it returns a tuple: the first item is its output"),
        (":named", 'it returns a dict: "logits" is its output'),
        (":holder", 'it returns a SimpleNamespace: "logits" is its output'),
        (":half", "its weights are float16: it runs in float32"),
        (":without", "it takes no num_classes, and is called without"),
    ],
)
def test_what_a_function_returns_is_made_to_fit_and_said(functions: str, function: str, note: str):
    model = build(f"{functions}{function}", num_classes=3)
    assert model.notes == (note,)
    assert model.penultimate == "top:input"
    plain = build(f"{functions}:good", num_classes=3).module
    plain.load_state_dict(model.module.state_dict(), strict=True)  # no name of another module around it
    images = torch.rand(2, 3, 2, 2)
    for mode in (True, False):
        assert torch.equal(model.module.train(mode)(images), plain.train(mode)(images))


def test_a_function_says_its_input_as_timm_does(functions: str):
    model = build(f"{functions}:configured", num_classes=3)
    assert (model.input.mean, model.input.size, model.notes) == ((0.1, 0.2, 0.3), 2, ())


def test_weights_that_a_function_loads_are_kept_and_random_ones_are_not_taken_for_them(functions: str):
    """They were trained over: the teacher that came of it was another one."""
    torch.manual_seed(0)
    model = build(f"{functions}:loaded", num_classes=3, pretrained=True)
    assert (model.weights, model.new_head) == ("function", False)
    torch.manual_seed(1)
    again = build(f"{functions}:loaded", num_classes=3)
    assert torch.equal(model.module.body.weight, again.module.body.weight)
    assert build(f"{functions}:trunk", num_classes=3, pretrained=True, allow_new_head=True).new_head
    with pytest.raises(WeightsUnavailable, match=r"the weights that .*:good returns are random"):
        build(f"{functions}:good", num_classes=3, pretrained=True)


def test_the_classes_of_a_function_are_asked_for_only_where_it_says_them(functions: str):
    assert own_classes(f"{functions}:without") == 3
    with pytest.raises(UserError, match="its classes are not known"):
        own_classes(f"{functions}:good")


# ---- pretrained weights, without a network ----


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_answers", lambda url: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


@pytest.mark.parametrize(
    "name", ["timm/resnet18", "torchvision/resnet18", "hub/timm/resnet18.a1_in1k", "cifar/resnet8", "timm/resnet8"]
)
@pytest.mark.usefixtures("no_network")
def test_pretrained_weights_that_cannot_be_had_are_told_at_once(name: str):
    if name == "timm/resnet8":  # a model of timm without published weights
        name = "timm/" + next(
            one
            for one in timm.list_models("resnet*")
            if timm.get_pretrained_cfg(one) is None or not timm.get_pretrained_cfg(one).has_weights
        )
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        build(name, num_classes=2, pretrained=True)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_a_server_that_does_not_exist_does_not_answer():
    start = time.monotonic()
    assert not library._answers("http://limbeck.invalid")
    assert time.monotonic() - start < 10


def cache(folder: Path, repository: str, files: dict[str, object]) -> None:
    """Put files where the hub's client keeps what it has downloaded."""
    root = folder / "cache" / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        if name.endswith(".json"):
            (snapshot / name).write_text(json.dumps(content))
        else:
            save_file(content, snapshot / name)


CONFIG = {
    "architecture": "resnet10t",
    "num_classes": 3,
    "pretrained_cfg": {"input_size": [3, 40, 40], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "num_classes": 3,
                       "interpolation": "bilinear", "classifier": "fc", "first_conv": "conv1.0", "pool_size": [2, 2]},
}  # fmt: skip


@pytest.mark.usefixtures("no_network")
def test_a_hub_repository_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = timm.create_model("resnet10t", num_classes=3)
    cache(tmp_path, "me/net", {"config.json": CONFIG, "model.safetensors": source.state_dict()})
    model = build("hub/me/net", num_classes=3, pretrained=True)
    assert (model.weights, model.new_head, model.input.size, model.input.mean) == ("hub", False, 40, (0.1, 0.2, 0.3))
    assert all(torch.equal(value, model.module.state_dict()[key]) for key, value in source.state_dict().items())

    with pytest.raises(UserError, match="no classifier for 5 classes"):
        build("hub/me/net", num_classes=5, pretrained=True)
    other = build("hub/me/net", num_classes=5, pretrained=True, allow_new_head=True)
    assert other.new_head
    assert torch.equal(other.module.state_dict()["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    headless = build("hub/me/net", num_classes=0, pretrained=True)
    assert (headless.weights, headless.new_head) == ("hub", False)


@pytest.mark.usefixtures("no_network")
def test_a_hub_repository_without_safetensors_or_of_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache(tmp_path, "me/pickled", {"config.json": CONFIG})
    cache(tmp_path, "me/bert", {"config.json": {"model_type": "bert"}})
    assert build("hub/me/pickled", num_classes=3).weights == "random"
    with pytest.raises(WeightsUnavailable, match=r"no model.safetensors for hub/me/pickled: HF_HUB_OFFLINE is set"):
        build("hub/me/pickled", num_classes=3, pretrained=True)
    with pytest.raises(UserError, match=r"hub/me/bert is a model of transformers \(bert\), not one in timm's form"):
        build("hub/me/bert", num_classes=3)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("more", [{}, CONFIG])
def test_a_hub_repository_that_brings_code_is_refused_and_its_code_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object]
):
    """Also where its config would do for timm: whoever wrote it meant the code."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = {**more, "model_type": "odd", "auto_map": {"AutoModelForImageClassification": "modeling_odd.Odd"}}
    cache(tmp_path, "me/odd", {"config.json": config})
    (snapshot,) = (tmp_path / "cache" / "models--me--odd" / "snapshots").iterdir()
    (snapshot / "modeling_odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    for pretrained in (False, True):
        with pytest.raises(UserError, match=r"hub/me/odd is built by code of its own \(auto_map .* is never run"):
            build("hub/me/odd", num_classes=3, pretrained=pretrained)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_network")
def test_timm_weights_from_the_cache(tmp_path: Path):
    source = timm.create_model("resnet10t", num_classes=1000)
    cache(tmp_path, timm.get_pretrained_cfg("resnet10t").hf_hub_id, {"model.safetensors": source.state_dict()})
    model = build("timm/resnet10t", num_classes=1000, pretrained=True)
    assert (model.weights, model.new_head) == ("hub:c3_in1k", False)  # of a name without a tag, timm's default
    assert torch.equal(model.module.state_dict()["fc.weight"], source.state_dict()["fc.weight"])
    assert build("timm/resnet10t", num_classes=4, pretrained=True, allow_new_head=True).new_head


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision_weights_from_the_cache(tmp_path: Path, name: str):
    source = torchvision.models.get_model(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(source.state_dict(), tmp_path / "torch" / "checkpoints" / Path(weights.url).name)
    model = build(f"torchvision/{name}", num_classes=1000, pretrained=True)
    assert (model.weights, model.new_head) == (f"hub:{weights}", False)
    assert model.weights.endswith("_Weights.IMAGENET1K_V1")
    assert all(torch.equal(value, model.module.state_dict()[key]) for key, value in source.state_dict().items())
    other = build(f"torchvision/{name}", num_classes=4, pretrained=True, allow_new_head=True)
    assert other.new_head
    assert other.module.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 4)


@pytest.mark.usefixtures("no_network")
def test_googlenet_reads_its_published_weights_and_its_input_as_torchvision_does(tmp_path: Path):
    """Without its early classifiers, with its own transform of the input; also from a file with a prefix."""
    source = torchvision.models.get_model("googlenet", init_weights=False, transform_input=True).eval()
    file = Path(torchvision.models.get_model_weights("googlenet").DEFAULT.url).name
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(source.state_dict(), tmp_path / "torch" / "checkpoints" / file)
    torch.save({f"module.{key}": value for key, value in source.state_dict().items()}, tmp_path / "wrapped.th")
    images = torch.randn(1, 3, 64, 64)
    for options in ({"pretrained": True}, {"weights": tmp_path / "wrapped.th"}):
        model = build("torchvision/googlenet", num_classes=1000, size=64, **options).module.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(images), source(images))
        assert not any(key.startswith("aux") for key in model.state_dict())


@pytest.mark.usefixtures("no_network")
def test_weights_that_are_there_and_cannot_be_loaded_are_no_reason_to_train_without(tmp_path: Path):
    file = Path(torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url).name
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    torch.save({"other": torch.zeros(1)}, tmp_path / "torch" / "checkpoints" / file)
    with pytest.raises(
        UserError, match="the pretrained weights of torchvision/squeezenet1_1 cannot be loaded"
    ) as caught:
        build("torchvision/squeezenet1_1", num_classes=1000, pretrained=True)
    assert not isinstance(caught.value, WeightsUnavailable)


def test_small_vit_has_patches_of_four_and_loads_into_timms_class() -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = build("small/vit-64", num_classes=5, size=16)
    plain = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=64,
        depth=6,
        num_heads=2,
        class_token=False,
        global_pool="avg",
        num_classes=5,
    )
    plain.load_state_dict(model.module.state_dict(), strict=True)
    assert model.penultimate == "head:input"
    with pytest.raises(UserError, match="multiple of 32"):
        build("small/vit-50", num_classes=5)
    with pytest.raises(UserError, match="28 and 32 would fit"):
        build("small/vit-64", num_classes=5, size=30)


class Logits(nn.Module):
    """A classifier of transformers as a user's function wraps it."""

    def __init__(self, name: str, **settings: object) -> None:
        super().__init__()
        library = pytest.importorskip("transformers")
        vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, **settings}
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        if name == "CLIP":
            vision = {"vision_config": {**vision, "patch_size": 14}, "text_config": text}
        kind = "WithTeacher" if name == "DeiT" else ""
        config = getattr(library, f"{name}Config")(**vision, num_labels=3)
        self.model = getattr(library, f"{name}ForImageClassification{kind}")(config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("Dinov2", ["model.dinov2.embeddings.mask_token"]),
        ("CLIP", [f"model.vision_model.post_layernorm.{part}" for part in ("weight", "bias")]),
    ],
)
def test_parameters_that_the_forward_pass_does_not_use(name: str, unused: list[str]) -> None:
    model = Model(Logits(name), name, InputSpec((0.5,) * 3, (0.5,) * 3, 28), 3, "model.classifier:input", "random")
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    assert unused_parameters(model) == unused
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
    assert {p.grad for p in model.module.parameters()} == {None}
    if name == "CLIP":
        assert unused_parameters(model, ["model.vision_model.post_layernorm"]) == []


def test_a_parameter_that_is_used_without_a_gradient_is_not_called_unused() -> None:
    class Detached(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.flatten(1)) + self.bias.detach() * self.weight.detach().sum()

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.fc = nn.Parameter(torch.ones(1)), Detached(12, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(images) * self.scale.detach()

    assert unused_parameters(Model(Odd(), "odd", InputSpec((0.5,) * 3, (0.5,) * 3, 2), 2, "fc:input", "random")) == []


def test_two_heads_whose_mean_is_returned() -> None:
    module = Logits("DeiT", patch_size=14)
    heads = classifiers("DeiT", *run_once(module, "DeiT", 28))
    assert heads == ("model.cls_classifier", "model.distillation_classifier")


def test_the_attention_pooling_of_clip_reads_the_first_token() -> None:
    model = build("timm/resnet50_clip", num_classes=3, size=64)
    assert model.penultimate == "head.proj:input"
    pool = tap_pool("automatic", model, model.penultimate)
    read = Taps(model.module.eval(), ["head.proj:input"])(torch.rand(2, 3, 64, 64))
    head = model.module.get_submodule("head.proj")
    torch.testing.assert_close(head(pool(read.features["head.proj:input"])), read.output)
