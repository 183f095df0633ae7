"""Settings of a recipe that contradict each other, found before anything is built."""

from collections.abc import Mapping

from limbeck.recipes.fields import Settings

TEACHER_SETTINGS = (
    "teacher", "teacher_weights", "teacher_epochs", "teacher_lr", "teacher_settings", "teacher_size", "teacher_tap",
    "student_logit_tap", "cache_views", "cache_seed", "cache_top_k", "cache_folder",
)  # fmt: skip
"""What a model that is trained alone has none of: all of these are None."""

ARCHITECTURES = ("fasterrcnn", "retinanet", "fcos", "ssdlite", "rtdetr")
"""First words of the names of detectors; the module that builds them, which imports torch, has the same."""


def problem_of(recipe: Settings) -> str | None:
    """What contradicts what, in one line that begins with a setting; None where all agree."""
    checks = (_check_models, _check_terms, _check_data, _check_schedule, _check_task, _check_shards)
    return next((problem for check in checks if (problem := check(recipe)) is not None), None)


def plain(value: object) -> str:
    """A setting in words; the items of a list with spaces between them."""
    if not isinstance(value, tuple):
        return str(value)
    return " ".join(item if isinstance(item, str) else f"{item:g}" for item in value) or "()"


def in_words(arithmetic: Mapping[str, object]) -> str:
    """Precision, layout, and whether models are compiled.

    Example:
        >>> in_words({"precision": "bf16", "memory_format": "contiguous", "compile": "on"})
        'bf16, contiguous, compiled'
    """
    compiled = "compiled" if arithmetic.get("compile") == "on" else "not compiled"
    return f"{arithmetic.get('precision')}, {arithmetic.get('memory_format')}, {compiled}"


def _check_models(recipe: Settings) -> str | None:
    if recipe.student is None:
        return "student: missing; name the model to train, for example timm/resnet18"
    if recipe.method == "alone" and recipe.teacher is not None:
        return f"method: alone uses no teacher, got teacher {recipe.teacher!r}; `limbeck train` trains a model alone"
    if recipe.method != "alone" and recipe.teacher is None:
        return f"teacher: missing; method {recipe.method} needs one (method alone does not)"
    if recipe.pretrained and recipe.student_weights is not None:
        return (
            f"pretrained: the student starts from student_weights {recipe.student_weights!r} or from the hub, not both"
        )
    if recipe.cache_views is not None and recipe.uses_stages:
        return (
            f"cache_views: method {recipe.method} reads whole maps, which are too large to keep; "
            "expected none, or method projector+kd"
        )
    return None


def _check_terms(recipe: Settings) -> str | None:
    norms = {"student_norm": recipe.student_norm, "teacher_norm": recipe.teacher_norm}
    if recipe.uses_features and recipe.feature_loss in ("log_correlation", "correlation_power"):
        for name, norm in norms.items():
            if norm != "batch":
                return (
                    f"{name}: feature_loss {recipe.feature_loss} is defined on batch norm on both sides, got {norm!r}"
                )
    if recipe.has_logit_term and recipe.logit_loss in ("dkd", "nkd") and not recipe.labels:
        return f"logit_loss: {recipe.logit_loss} needs labels (it treats the true class apart); kl does without"
    if recipe.rival == "dkd" and not recipe.labels:
        return "labels: method dkd treats the true class apart, so it needs them; kd and dist do without"
    if recipe.uses_features and recipe.feature_loss == "gaussian_wasserstein":
        for name, pool in {"student_pool": recipe.student_pool, "teacher_pool": recipe.teacher_pool}.items():
            if pool not in ("spatial_positions", "token_positions"):
                return (
                    f"{name}: feature_loss gaussian_wasserstein compares positions; use spatial_positions, got {pool!r}"
                )
    if recipe.uses_stages and recipe.feature_loss == "gaussian_wasserstein":
        return f"feature_loss: gaussian_wasserstein compares positions; method {recipe.method} has vectors too"
    if recipe.method == "alone" and not recipe.labels:
        return "labels: method alone learns from the labels only; without them choose kd or projector"
    weights = {
        "task_weight": recipe.task_weight if recipe.labels else 0.0,
        "feature_weight": recipe.full_feature_weight if recipe.uses_features else 0.0,
        "logit_weight": recipe.full_logit_weight if recipe.has_logit_term else 0.0,
        "rival_weight": (1.0 if recipe.rival_weight is None else recipe.rival_weight) if recipe.rival else 0.0,
    }
    if not any(weights.values()):
        return f"method: every weight of {recipe.method} is zero, so nothing would be learned"
    return None


def _check_data(recipe: Settings) -> str | None:
    if recipe.train_limit is not None and recipe.subset < 1:
        return f"train_limit: give either train_limit ({recipe.train_limit}) or subset ({recipe.subset}), not both"
    if recipe.precision == "fp16" and recipe.device == "cpu":
        return "precision: fp16 is for a GPU, got device cpu; expected auto, bf16 or float32"
    if len(set(recipe.loggers)) < len(recipe.loggers):
        return f"loggers: expected each once, got {plain(recipe.loggers)}"
    return None


def _check_schedule(recipe: Settings) -> str | None:
    marks = recipe.milestones
    if recipe.schedule == "step" and not marks:
        return "milestones: schedule step needs the epochs of its steps, for example 30 60 90"
    if list(marks) != sorted(set(marks)) or (marks and marks[-1] >= recipe.epochs):
        return f"milestones: expected rising epochs below epochs ({recipe.epochs}), got {plain(marks)}"
    if recipe.warmup_epochs >= recipe.epochs:
        return f"warmup_epochs: expected less than epochs ({recipe.epochs}), got {recipe.warmup_epochs:g}"
    return None


def _check_shards(recipe: Settings) -> str | None:
    """What cannot be combined with shards; None where nothing is wrong."""
    if not recipe.shard:
        return None
    unfit = {
        "task": (recipe.task != "classification", "expected classification"),
        "precision": (recipe.precision == "fp16", "expected auto, bf16 or float32: the loss is not scaled in shards"),
        "accumulate": (recipe.accumulate > 1, "expected 1: the share of a batch is smaller already"),
        "cache_views": (recipe.cache_views is not None, "expected none: with a cache no device holds the teacher"),
        "probe": (isinstance(recipe.probe, int), "expected auto or off: no process has the whole models"),
        "memory_format": (recipe.memory_format == "channels_last", "expected auto or contiguous"),
        "compile": (recipe.compile == "on", "expected auto or off"),
    }
    for name, (is_unfit, expected) in unfit.items():
        if is_unfit:
            return f"{name}: with shard {expected}, got {getattr(recipe, name)}"
    return None


DETECTION_METHODS = ("alone", "kd", "projector", "projector+kd", "fitnet", "review", "fgd", "pkd")
SEGMENTATION_METHODS = ("alone", "kd", "projector", "projector+kd", "stages", "stages+kd", "cwd", "at")


def _check_task(recipe: Settings) -> str | None:
    detectors = [name for name in ("student", "teacher") if _names_detector(getattr(recipe, name))]
    if len(recipe.scales) == 1 or list(recipe.scales) != sorted(recipe.scales):
        return f"scales: expected a smallest and a largest factor, got {plain(recipe.scales)}"
    if recipe.task != "classification" and recipe.augmentation not in ("none", "standard"):
        return f"augmentation: for {recipe.task} expected none or standard, got {recipe.augmentation}"
    if recipe.task == "detection":
        return _check_detection(recipe, detectors)
    if detectors:
        return f"task: {detectors[0]} {getattr(recipe, detectors[0])!r} is a detector; expected task detection"
    if recipe.method in ("fgd", "pkd"):
        return f"method: {recipe.method} compares the pyramids of detectors; expected task detection"
    if recipe.task == "segmentation" and recipe.frozen_norms:
        return "frozen_norms: of a classifier or a detector; for segmentation expected false, got true"
    if recipe.task == "segmentation" and recipe.method not in SEGMENTATION_METHODS:
        return f"method: for segmentation expected one of {', '.join(SEGMENTATION_METHODS)}, got {recipe.method}"
    if recipe.task == "classification" and recipe.method == "cwd":
        return "method: cwd compares logits at each place; expected task segmentation"
    return None


def _check_detection(recipe: Settings, detectors: list[str]) -> str | None:
    for name in ("student", "teacher"):
        if getattr(recipe, name) is not None and name not in detectors:
            return (
                f"{name}: expected a detector, ARCHITECTURE/FAMILY/MODEL as in fcos/timm/resnet18, "
                f"got {getattr(recipe, name)!r}"
            )
    if recipe.method not in DETECTION_METHODS:
        return f"method: for detection expected one of {', '.join(DETECTION_METHODS)}, got {recipe.method}"
    if (recipe.student_tap is None) != (recipe.teacher_tap is None) and recipe.teacher is not None:
        return "student_tap: for detection give both taps or none, then all levels are paired by their strides"
    if recipe.longest is not None and (recipe.size is None or recipe.longest < recipe.size):
        return f"longest: expected at least size, the shorter side, got {recipe.longest} and size {recipe.size}"
    if recipe.accumulate > 1 and recipe.method != "alone":
        return "accumulate: with a teacher, detection takes one batch a step (its second stage and frames differ)"
    return None


def _names_detector(name: str | None) -> bool:
    return name is not None and name.partition("/")[0].lower().partition("-")[0] in ARCHITECTURES
