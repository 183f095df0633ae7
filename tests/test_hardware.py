import pytest
import torch

import tiny
from limbeck import hardware, models
from limbeck.hardware import Settings, apply_settings, bf16_is_native, choose

CPU = torch.device("cpu")


def settle(precision: str = "auto", memory_format: str = "auto") -> hardware.Settings:
    batch = tiny.Batch(*tiny.images(4))
    return choose(tiny.distiller(), batch, precision=precision, memory_format=memory_format, device=CPU)


def test_what_the_recipe_says_is_taken() -> None:
    settings = settle("bf16", "channels_last")
    assert (settings.precision, settings.memory_format) == ("bf16", "channels_last")
    assert "as the recipe says" in settings.reason


def test_small_models_stay_in_float32_on_one_thread() -> None:
    settings = settle()
    assert (settings.precision, settings.memory_format, settings.single_thread) == ("float32", "contiguous", True)
    assert "GFLOP" in settings.reason


@pytest.mark.parametrize("native", [True, False])
def test_large_models_take_bf16_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(hardware, "SMALL", 1.0)
    monkeypatch.setattr(hardware, "bf16_is_native", lambda _: native)
    settings = settle()
    assert settings.precision == ("bf16" if native else "float32")
    assert settings.memory_format == "channels_last"
    assert not settings.single_thread


def test_one_forced_setting_leaves_the_other_to_the_rule() -> None:
    assert (settle("bf16").precision, settle("bf16").memory_format) == ("bf16", "contiguous")
    assert settle(memory_format="channels_last").memory_format == "channels_last"


def test_every_precision_has_a_dtype_and_no_other_device_is_said_to_be_native() -> None:
    assert set(hardware.PRECISIONS) == {"float32", "bf16", "fp16"}
    assert not bf16_is_native(torch.device("meta"))


def test_choosing_changes_neither_models_nor_randomness() -> None:
    distiller = tiny.distiller(norm=True)
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    state = torch.get_rng_state()
    batch = tiny.Batch(*tiny.images(4))
    choose(distiller, batch, precision="auto", memory_format="auto", device=CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert tiny.same_bytes(before, distiller.state_dict())
    assert distiller.student.training


def test_memory_format_moves_convolutions_and_no_value() -> None:
    net = tiny.Net(4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    apply_settings(net, Settings("float32", "contiguous", False, ""), CPU)
    assert net.conv2.weight.is_contiguous()
    apply_settings(net, Settings("bf16", "channels_last", False, ""), CPU)
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert tiny.same_bytes(before, net.state_dict())


def test_attention_is_written_out_for_bf16_on_a_cpu_only() -> None:
    net = models.build("small/vit-32", num_classes=3, size=16).module
    images = torch.rand(2, 3, 16, 16)
    before = net.eval()(images)
    apply_settings(net, Settings("float32", "contiguous", False, ""), CPU)
    assert all(block.attn.fused_attn for block in net.blocks)
    apply_settings(net, Settings("bf16", "contiguous", False, ""), CPU)
    assert not any(block.attn.fused_attn for block in net.blocks)
    torch.testing.assert_close(net(images), before)
