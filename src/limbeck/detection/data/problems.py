"""What can be wrong with annotations of boxes; `limbeck.data.problems.Problems` collects it."""

from enum import StrEnum


class Fault(StrEnum):
    """The kinds of faults; the value is what the report says of one."""

    NEGATIVE = "box with negative width or height"
    EMPTY = "box without area"
    OUTSIDE = "box wholly outside of its image"
    OVER_EDGE = "box that reaches over the edge of its image"
    NOT_FINITE = "box with a number that is not finite"
    NO_BOX = "box that is not four numbers"
    TWICE = "box that is there twice"
    CATEGORY = "unknown category"
    CATEGORY_TWICE = "category that is there twice"
    CATEGORY_ENTRY = "category without a number or a name"
    IMAGE = "box of an unknown image"
    IMAGE_MISSING = "image that is missing"
    IMAGE_ID_TWICE = "two images of one number"
    IMAGE_TWICE = "image that is listed twice"
    IMAGE_ENTRY = "image without a number or a file name"
    IMAGE_SIZE = "image whose size is missing or wrong"
    IMAGE_TURNED = "image whose EXIF orientation leaves open which way its boxes lie (store its pixels upright)"
    IMAGE_UNREADABLE = "image that cannot be read"
    IMAGE_ELSEWHERE = "image outside of the folder of images"
    ID_TWICE = "two boxes of one number"
    ENTRY = "box without image or category"
    CROWD = "crowd mark that is neither 0 nor 1"
    FIELDS = "line that is not a class and four numbers, or an outline"
    RANGE = "coordinate outside of 0 to 1"
    NO_IMAGE = "labels without an image"
    FILE = "annotation file that cannot be read"


class Remark(StrEnum):
    """What is no fault, but was read in another way than it stands there; the value is what the log says."""

    OUTLINE = "outlines of objects: their boxes are used"
    KEYPOINTS = "lines with key points: their boxes are used"
    RENAMED = "images found under another folder, ending or case than the annotations name"
    TURNED = "images turned by their EXIF orientation: their boxes are turned with them"
    BACKGROUND = "images without a label file: used as images without objects"
    SAME_NAME = "categories whose name occurs twice, without boxes: skipped"
    LEFT_OUT = "images skipped, because one of their boxes was"
