"""Get a teacher that is worth learning from: given weights, the hub's, or trained here, and always said which."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck import models
from limbeck.assembly.build import CARD, batch_size_of, build_data, build_parts, is_run, student_size
from limbeck.assembly.tasks import AnyData, Parts, kind_of
from limbeck.distributed.processes import first_sees
from limbeck.errors import UserError
from limbeck.logs.records import figure
from limbeck.models import Model, WeightsUnavailable
from limbeck.models.weights import weights_digest
from limbeck.recipes.parsing import read_value
from limbeck.recipes.recipe import OF_STUDENT, ONES_OWN, Recipe, fields_of, without_unread
from limbeck.recipes.situations import SCRATCH, TUNED, by_row, situation_of
from limbeck.storage.untrusted import read_object

Train = Callable[[Recipe, Path], None]

TEACHER_EPOCHS = 30
"""Fewest epochs of a teacher that is trained from scratch, where nobody says how many."""

FINE_TUNING_EPOCHS = 10
"""Epochs of one that has weights."""


def teacher_recipe(recipe: Recipe, *, weights: str | None = None, pretrained: bool = False) -> Recipe:
    """The recipe by which the teacher is trained on these data, alone; what is only the student's is at its default.

    From scratch it is trained as a student from scratch is, for no fewer epochs than `TEACHER_EPOCHS`. With weights it
    is fine-tuned: for its own number of epochs, by its own optimizer, whatever the student's are.

    Args:
        recipe: The student's run.
        weights: A file or a run that the teacher starts from.
        pretrained: Whether it starts from the hub's weights.
    """
    given, kept = (_values_of(recipe, of_student=kept) for kept in (False, True))
    student: dict[str, Any] = (
        {name: getattr(recipe, name) for name in ONES_OWN} | {"milestones": recipe.milestones} | kept
    )
    tuned = (weights is not None or pretrained) and recipe.task == "classification"
    epochs = FINE_TUNING_EPOCHS if tuned else max(TEACHER_EPOCHS, student["epochs"])
    epochs = recipe.teacher_epochs or given.get("epochs", epochs)
    scale = epochs / student["epochs"]
    own = student | {
        "milestones": tuple(milestone * scale for milestone in student["milestones"]),
        "warmup_epochs": student["warmup_epochs"] * scale,
    }
    if tuned:
        own |= by_row(TUNED, {"epochs": epochs}) | {"schedule": "cosine", "milestones": (), "batch_size": 64}
        own |= {"augmentation": "none" if student["augmentation"] == "none" else "standard"}
    elif situation_of(vars(recipe)).optimizer != SCRATCH.optimizer:
        own |= by_row(SCRATCH, {"epochs": epochs})
    not_its_own = fields_of("science", "seed", of=("student", "teacher"))  # one teacher for the students of every seed
    values = without_unread(
        {
            **recipe.model_dump(),
            **{name: Recipe.model_fields[name].default for name in not_its_own},
            **own,
            **given,
            "name": "teacher",
            "method": "alone",
            "student": recipe.teacher,
            "student_weights": weights,
            "pretrained": pretrained,
            "size": recipe.teacher_size if recipe.teacher_size is not None else (own | given)["size"],
            "epochs": epochs,
            "lr": recipe.teacher_lr if recipe.teacher_lr is not None else (own | given)["lr"],
        },
        given=given,
    )
    return Recipe(**values)


def _values_of(recipe: Recipe, *, of_student: bool) -> dict[str, Any]:
    """The values of ``teacher_settings``: the teacher's own, or those of the student that it follows."""
    words = dict(word.split("=", 1) for word in recipe.teacher_settings or ())
    found = {name: text for name, text in words.items() if name.startswith(OF_STUDENT) == of_student}
    names = {name: name.removeprefix(OF_STUDENT) for name in found}
    return {names[name]: read_value(text, Recipe.model_fields[names[name]]) for name, text in found.items()}


def build_teacher(
    recipe: Recipe, data: AnyData, folder: Path, train: Train, say: Callable[[str], None]
) -> Model | None:
    """The recipe's teacher with weights; None where the method needs none.

    In this order: the weights that the recipe names, else those of the hub. Where there are none, or their head does
    not fit these labels although the method needs it, the teacher is first trained on these data, as a run of its own
    beside this one, which later runs find and use again. Never a teacher with random weights.

    Args:
        recipe: The recipe of the student's run.
        data: The opened data.
        folder: The student's run folder; trained teachers are kept in ``teachers/`` beside it.
        train: Trains a recipe in a folder.
        say: Tells the user one line.

    Raises:
        UserError: If the teacher has to be trained but there are no labels to train it on.
    """
    if recipe.teacher is None:
        return None
    kind = kind_of(recipe.task)
    size = recipe.teacher_size or recipe.size or data.size
    classes = teacher_classes(recipe, data)
    teacher = None
    try:
        teacher = kind.build_model(
            recipe.teacher,
            num_classes=classes,
            size=size,
            weights=recipe.teacher_weights,
            pretrained=recipe.teacher_weights is None,
            allow_new_head=True,
        )
        reason = "its head does not fit these labels"
    except WeightsUnavailable as unavailable:
        reason = str(unavailable)
    needs_head = recipe.uses_logits or recipe.fit_teacher or not kind.teaches_headless
    if teacher is not None and not (teacher.new_head and needs_head):
        say(f"teacher {recipe.teacher}: weights {teacher.weights}")
        return teacher
    if not recipe.labels:
        raise UserError(
            f"teacher {recipe.teacher}: {reason}, and without labels it cannot be trained here; give --teacher-weights"
        )
    from_hub = teacher is not None and recipe.teacher_weights is None
    own = teacher_recipe(recipe, weights=recipe.teacher_weights, pretrained=from_hub)
    key = _key(own, _images_of(own, recipe, data), start=teacher.weights if teacher is not None else "")
    run = folder.parent / "teachers" / f"{slug(recipe.teacher)}-{key}"
    if first_sees(is_run(run)):
        say(f"teacher {recipe.teacher}: {reason}; using the one trained before in {run}")
    else:
        how = "fine-tuning" if teacher is not None else "training"
        say(f"teacher {recipe.teacher}: {reason}; {how} it first, for {own.epochs} epochs, in {run}")
        train(own, run)
    say(f"teacher {recipe.teacher}: {_came_to(run, own, data)}")
    return kind.build_model(recipe.teacher, num_classes=classes, size=size, weights=str(run))


def _came_to(run: Path, own: Recipe, data: AnyData) -> str:
    """What the training of a teacher came to, and whether that is plausible."""
    summary = read_object(run / "summary.json", "last", "metric")
    metric = summary["metric"]
    judged, fault = kind_of(own.task).judge_teacher(summary["last"], data)
    probe = (summary.get("linear_probe") or {}).get(metric)
    if probe is None:
        return f"{judged}{f': {fault}' if fault else ''}"
    text = f"{judged}, a linear probe of its frozen features {figure(metric, probe)}"
    if not fault and summary["last"][metric] < probe:
        fault = "fine-tuning made it worse; lower its learning rate (--teacher-lr) or train it for longer"
    return f"{text}{f': {fault}' if fault else ''}"


def teacher_classes(recipe: Recipe, data: AnyData) -> int:
    """How many logits the teacher has: the data's classes; without labels its own, or none where none are used."""
    assert recipe.teacher is not None
    if recipe.labels:
        return len(data.classes)
    if not recipe.uses_logits:
        return 0
    card = Path(recipe.teacher_weights or "") / CARD
    if card.is_file():
        return int(read_object(card, "num_classes")["num_classes"])
    return models.own_classes(recipe.teacher)


def slug(name: str) -> str:
    """A model's name as a part of a folder's name."""
    return name.replace("/", "-").replace(":", "-")


def _key(recipe: Recipe, images: AnyData, *, start: str) -> str:
    """Short hash of what decides a teacher: its settings, the weights that it starts from, the images."""
    # Not the arithmetic: "auto" in a first start would be another teacher than what it was settled to.
    decided = recipe.model_dump(mode="json", include=set(fields_of("science", "data")))
    if recipe.student_weights is not None:  # a path says nothing of what lies there
        decided["student_weights"] = weights_digest(Path(recipe.student_weights))
    words = [decided, images.fingerprint]
    if recipe.pretrained:  # a name without a tag follows the library's default
        words.append(start)
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:10]


def _images_of(own: Recipe, recipe: Recipe, data: AnyData) -> AnyData:
    """The images that a teacher is trained on: the student's, unless that one gets only some of them."""
    return data if (own.subset, own.train_limit) == (recipe.subset, recipe.train_limit) else build_data(own)


def rehearse(recipe: Recipe, data: AnyData) -> Parts:
    """Build everything with a teacher of random weights: a wrong name, tap or width is told before a teacher trains."""
    teacher = None
    if recipe.teacher is not None:
        size = recipe.teacher_size or student_size(recipe, data)
        build = kind_of(recipe.task).build_model
        teacher = build(recipe.teacher, num_classes=teacher_classes(recipe, data), size=size)
        if recipe.labels:
            teacher_recipe(recipe)
    data.train_loader(batch_size=batch_size_of(recipe, data), seed=recipe.seed)
    return build_parts(recipe, data, teacher)
