"""Numbers and names as a reader wants them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from limbeck.errors import shown
from limbeck.logs.records import is_share

METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "ap": "average precision",
    "ap50": "average precision at IoU 0.50",
    "ap75": "average precision at IoU 0.75",
    "ap_small": "average precision of small objects",
    "ap_medium": "average precision of medium objects",
    "ap_large": "average precision of large objects",
    "loss": "loss",
}
METHODS = {
    "alone": "the student trained on the labels alone, without a teacher",
    "kd": "the student also matches the teacher's softened logits",
    "projector": "the student also matches the teacher's feature through a learned projector",
    "projector+kd": "both, the feature through the projector and the logits",
    "stages": "the student also matches the teacher's features at the end of every stage through learned projectors",
    "stages+kd": "both, the features of every stage through projectors and the logits",
    "fitnet": "the student also matches a map of the teacher's through a convolution (FitNet hints)",
    "at": "the student also matches where the teacher's maps are active (attention transfer)",
    "nst": "the student also matches the distribution of the teacher's channels (neuron selectivity)",
    "sp": "the student also matches which images the teacher finds similar (similarity preserving)",
    "rkd": "the student also matches the teacher's distances and angles between images (relational)",
    "pkt": "the student also matches the teacher's probabilities of neighbors (probabilistic transfer)",
    "cc": "the student also matches the teacher's kernel between images (correlation congruence)",
    "vid": "the student also predicts the teacher's features with a learned variance (variational information)",
    "crd": "the student also tells the teacher's feature of its image from those of others (contrastive)",
    "fgd": "the student also matches the teacher's pyramid where objects are and where it looks (focal and global)",
    "pkd": "the student also matches the teacher's pyramid, normalized channel by channel (Pearson correlation)",
    "review": "the student also matches the teacher's stages, fused from deep to shallow (knowledge review)",
    "dkd": "the student also matches the teacher's logits, the labelled class apart from the others (DKD)",
    "dist": "the student also matches the correlations of the teacher's probabilities (DIST)",
    "projector+dkd": "both, the feature through the projector and the logits by DKD",
}
READINGS = {
    "correlation": "mean correlation, channel by channel, of the projected feature with the teacher's; 1 is a match",
    "log_mean": "LogSum less the log of its number of terms: free of batch size and width; lower is nearer",
    "agreement": "share of the training images for which student and teacher put the same class first",
}
STYLES = {"alone": "alone", "kd": "kd", "projector": "projector", "projector+kd": "both"}


@dataclass(frozen=True)
class Format:
    """Writes the values of one quantity.

    Attributes:
        scale: Factor before writing.
        unit: Written behind the number.
        digits: Decimals; None for four significant figures.
        signed: Always write the sign.

    Example:
        >>> Format(100, "%", 1)(0.9062), Format()(0.000123456), Format(100, "", 2, signed=True)(0.012)
        ('90.6%', '0.0001235', '+1.20')
    """

    scale: float = 1.0
    unit: str = ""
    digits: int | None = None
    signed: bool = False

    def __call__(self, value: float) -> str:
        """A value, at full precision of this quantity."""
        sign = "+" if self.signed else ""
        number = (
            f"{self.scale * value:{sign}.4g}" if self.digits is None else f"{self.scale * value:{sign}.{self.digits}f}"
        )
        return number.replace("-", "−") + self.unit

    def tick(self, value: float) -> str:
        """A value on an axis: no more digits than it needs."""
        sign = "+" if self.signed and value else ""
        return f"{self.scale * value:{sign}.6g}".replace("-", "−") + self.unit


PLAIN, PERCENT = Format(), Format(100.0, "%", 1)


def metric_name(metric: str) -> str:
    """A metric in words: ``top1`` is ``top-1 accuracy``."""
    return METRICS.get(metric, metric.replace("_", " "))


def metric_format(metric: str) -> Format:
    """Accuracies are shares on disk and percent on the page."""
    return Format(100.0, "%", 2) if is_share(metric) else Format()


def difference_format(metric: str) -> Format:
    """Differences of accuracies are in points, not in percent."""
    return Format(100.0, "", 2, signed=True) if is_share(metric) else Format(signed=True)


def duration(seconds: float) -> str:
    """A length of time in words.

    Example:
        >>> duration(4.26), duration(312), duration(7384)
        ('4.3 s', '5 min 12 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(value: float) -> str:
    """A large count in short.

    Example:
        >>> count(11_689_512), count(2_048), count(640)
        ('11.69 M', '2,048', '640')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:,.0f}"


def size(value: int) -> str:
    """Bytes in short.

    Example:
        >>> size(46_830_571), size(912)
        ('46.8 MB', '912 B')
    """
    for unit_size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit_size:
            return f"{value / unit_size:.1f} {unit}"
    return f"{value} B"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(shown, row))} |" for row in rows)])
