import pytest
import torch
from torch.nn import functional

from limbeck.errors import UserError
from limbeck.models import InputSpec, InputTransform

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)


def test_normalizes_each_channel_and_leaves_the_right_size_alone():
    images = torch.rand(2, 3, 8, 8)
    out = InputTransform(InputSpec(MEAN, STD, 8))(images)
    for channel in range(3):
        torch.testing.assert_close(out[:, channel], (images[:, channel] - MEAN[channel]) / STD[channel])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 20])
def test_resizes_with_antialias(interpolation: str, size: int):
    images = torch.rand(1, 3, 12, 9)
    out = InputTransform(InputSpec((0.0,) * 3, (1.0,) * 3, size, interpolation))(images)
    wanted = functional.interpolate(images, (size, size), mode=interpolation, antialias=True).clamp(0, 1)
    torch.testing.assert_close(out, wanted)


def test_nearest_keeps_the_values():
    images = torch.rand(1, 3, 4, 4)
    out = InputTransform(InputSpec((0.0,) * 3, (1.0,) * 3, 8, "nearest"))(images)
    assert torch.equal(out[..., ::2, ::2], images)


def test_computes_in_float32():
    assert InputTransform(InputSpec(MEAN, STD, 4))(torch.ones(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.float32


def test_is_in_no_state_dict_but_moves():
    transform = InputTransform(InputSpec(MEAN, STD, 4))
    assert not transform.state_dict()
    assert transform.to("meta").mean.device.type == "meta"
    assert "size=4" in repr(transform)


def test_other_channels_and_interpolations_are_refused():
    with pytest.raises(UserError, match="1 channels, 3 are wanted"):
        InputTransform(InputSpec(MEAN, STD, 4))(torch.ones(1, 1, 4, 4))
    with pytest.raises(UserError, match='unknown interpolation "lanczos"'):
        InputTransform(InputSpec(MEAN, STD, 4, "lanczos"))
