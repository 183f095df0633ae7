"""What can be wrong with masks; `limbeck.data.problems.Problems` collects it."""

from enum import StrEnum


class Fault(StrEnum):
    """The kinds of faults; the value is what the report says of one."""

    MISSING = "image without a mask"
    NO_IMAGE = "mask without an image"
    TWICE = "image with two masks"
    IMAGE_TWICE = "two images of one mask"
    SIZE = "mask of another size than its image"
    UNKNOWN = "mask with a number that is no class (list it with --void, or in classes.txt)"
    ALL_VOID = "mask that is void everywhere"
    UNREADABLE = "mask that cannot be read"
    LOSSY = "mask in a lossy format, whose numbers are not the ones that were drawn (store PNG)"
    COLORED = "mask in colors, without a table of colors (class_dict.csv: name,r,g,b)"
    COLOR = "mask with a color that is not in the table"
    DEEP = "mask of fractions or of numbers above 65535"
    TRANSPARENT = "mask with transparent pixels, whose class is not known"
    PAGES = "mask of several pages"
    TURNED = "mask of an image that its EXIF orientation turns (store the image upright)"
    IMAGE_UNREADABLE = "image that cannot be read"


class Remark(StrEnum):
    """What is no fault, but was read in another way than it stands there; the value is what the log says."""

    LEFT_OUT = "images skipped, because of their masks"
