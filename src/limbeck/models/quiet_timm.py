"""timm, imported without wandb.

timm imports wandb wherever it is installed, and wandb then makes temporary folders, which a killed run leaves behind.
timm also imports torchvision and TorchDynamo, which takes four seconds: import this module only where a model needs it.
"""

import sys

if "wandb" in sys.modules:
    import timm
else:
    sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType]
    import timm

    del sys.modules["wandb"]

__all__ = ["timm"]
