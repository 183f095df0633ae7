"""The recipes that have a name, one function each; its docstring is the recipe's record.

A record says where the recipe comes from, the number to expect, the command, what it costs, what we got, and each
difference to its source. "The paper" is Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge
Distillation", AAAI 2024 (arXiv 2303.11098); its table numbers are those of the AAAI version. "The published code" is
github.com/roymiles/Simple-Recipe-Distillation at 31e8477 (2024-02-13). "CRD protocol" is the training of Tian et al.,
"Contrastive Representation Distillation", ICLR 2020 (github.com/HobbitLong/RepDistiller), continued by mdistiller
(github.com/megvii-research/mdistiller).
"""

from collections.abc import Callable

from limbeck.errors import UserError, did_you_mean
from limbeck.recipes.published.cifar100 import CIFAR100
from limbeck.recipes.published.detection import DETECTION
from limbeck.recipes.published.imagenet import IMAGENET
from limbeck.recipes.published.label_free import LABEL_FREE
from limbeck.recipes.published.segmentation import SEGMENTATION
from limbeck.recipes.published.small import NO_FOLDER, SMALL, digits
from limbeck.recipes.published.transformers import TRANSFORMERS
from limbeck.recipes.recipe import Recipe

__all__ = ["NAMED", "NO_FOLDER", "digits", "named"]

NAMED: dict[str, Callable[[], Recipe]] = {
    **SMALL, **CIFAR100, **IMAGENET, **TRANSFORMERS, **LABEL_FREE, **DETECTION, **SEGMENTATION,
}  # fmt: skip
"""The one table of names: what ``--recipe NAME`` and ``limbeck recipes`` know."""


def named(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: There is none.

    Example:
        >>> named("digits").student
        'small/cnn-2'
    """
    if name not in NAMED:
        hint = did_you_mean(name, NAMED)
        raise UserError(f"no recipe {name!r}{hint}; `limbeck recipes` lists them, and FILE.yaml is read as one")
    return NAMED[name]()
