"""What data a run uses, as one typed value that needs no torch."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.errors import UserError, did_you_mean

Augmentation = Literal["none", "standard", "randaugment", "strong"] | Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]

NAMED_SOURCES = ("digits", "fashion-mnist", "cifar10", "cifar100")
"""Sources that are a word; all but `digits` also as `NAME:FOLDER`, to read them from there and never download."""

PREFIXED_SOURCES = ("imagenet:FOLDER", "hf/NAME", "shards:PATTERN")


class DataSpec(BaseModel):
    """Which images a run trains and is validated on, and what is done to them.

    Attributes:
        source: A folder, or `digits`, `fashion-mnist`, `cifar10`, `cifar100`, `imagenet:FOLDER`, `hf/NAME` (or
            `hf/NAME:CONFIG`), `shards:PATTERN`. A folder whose name is one of these words is written `./digits`.
        val: A second folder (for shards a second pattern) to validate on. None: the source's own validation part, or a
            share of the training images.
        val_share: The share of each class that is held back where the source has no validation part. Chosen by a hash
            of the file name, so the seed does not change it.
        size: Side of the square images in pixels. None: the source's own; for folders the median shorter side of a
            sample of images, at most 224.
        augmentation: `none`; `standard` (random crop and flip); `randaugment` (RandAugment, too); `strong` (the DeiT
            recipe's); or `module:function` of one's own (:mod:`limbeck.data.own`).
        subset: Use this share of each training class. Chosen by hash: a smaller share is a part of a larger one.
        train_limit: Use this many training images, spread evenly over the classes.
        labels: False reads images only; a folder then needs no class folders, and batches have no target.
        label_file: A CSV file with a row for each image of the folder, FILE,CLASS; class folders are then not needed.
        on_missing_classes: Of class folders without images, and of a validation part whose classes are not those of
            the training images: `refuse` them, or `skip` what does not fit and continue with the classes there are.
        skip_bad_images: Tolerate this many unreadable images, and list them.
        workers: Threads that decode, or processes for a set that does not fit into memory. None: one for each
            processor, at most 16.
        flip: Whether mirror images are allowed in augmentation. None: the source knows (digits: no, the
            others: yes). Say False for text and other images whose mirror image means something else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1)
    val: str | None = Field(default=None, min_length=1)
    val_share: float = Field(default=0.1, gt=0, lt=1)
    size: int | None = Field(default=None, ge=4, le=4096)
    augmentation: Augmentation = "standard"
    subset: float = Field(default=1.0, gt=0, le=1)
    train_limit: int | None = Field(default=None, ge=1)
    labels: bool = True
    label_file: str | None = Field(default=None, min_length=1)
    on_missing_classes: Literal["refuse", "skip"] = "refuse"
    skip_bad_images: int = Field(default=0, ge=0)
    workers: int | None = Field(default=None, ge=0)
    flip: bool | None = None

    if not TYPE_CHECKING:  # type checkers keep the constructor that pydantic's fields describe

        def __init__(self, **fields: Any) -> None:
            """Validate the fields.

            Raises:
                UserError: A field is unknown or its value is out of range, in one line.
            """
            try:
                super().__init__(**fields)
            except ValidationError as error:
                found = error.errors()
                first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a typo explains the rest
                name = str(first["loc"][0])
                if first["type"] == "extra_forbidden":
                    hint = did_you_mean(name, type(self).model_fields)
                    raise UserError(f'the data spec has no field "{name}"{hint}') from None
                got = "" if first["type"] == "missing" else f", got {first['input']!r}"
                raise UserError(f'data spec, "{name}": {first["msg"].lower()}{got}') from None
