"""Make one run: teacher, preflight, training, the run folder."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import joblib
import torch
from accelerate import PartialState
from torch import nn

from limbeck.assembly.arithmetic import settle
from limbeck.assembly.build import (
    CARD,
    batch_size_of,
    build_data,
    build_optimizer,
    build_parts,
    build_rate,
    build_skip,
    is_run,
)
from limbeck.assembly.caching import cached_loader
from limbeck.assembly.head import fit_head
from limbeck.assembly.tasks import AnyData, Parts, kind_of
from limbeck.assembly.teacher import build_teacher, rehearse
from limbeck.data.folders import some
from limbeck.distributed import collectives
from limbeck.distributed.processes import first_sees, meet
from limbeck.distributed.sharding import shard_frozen
from limbeck.errors import UserError
from limbeck.logs.loggers import attach_loggers, require_loggers
from limbeck.logs.runlog import RunLog
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.situations import training_in_words
from limbeck.runs.claim import claim, give_up
from limbeck.runs.comparable import together
from limbeck.runs.images import keep_or_compare
from limbeck.runs.lock import only_run_in
from limbeck.runs.preflight import Finding, Preflight, first_batch, preflight
from limbeck.runs.summary import (
    Summary,
    changes_since_start,
    commit,
    device_name,
    forget_peak_memory,
    origins_of,
    parameter_counts,
    peak_memory,
    summarize,
    versions,
)
from limbeck.storage.checkpoint import Checkpoints
from limbeck.storage.files import save_json, save_text, save_weights
from limbeck.storage.untrusted import read_object
from limbeck.training.compiling import explaining
from limbeck.training.fit import fit
from limbeck.training.loading import ShardedLoader
from limbeck.training.precision import PRECISIONS, apply_arithmetic

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Receives the number of epochs that are done, and the validation figures of the last one."""


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    if_begun: bool = False,
    said: set[str] | None = None,
    shared: bool = False,
    on_epoch: OnEpoch | None = None,
) -> Summary:
    """Train a recipe's student in a run folder.

    Opens the data, gets the teacher (training it first where there are no fitting weights), checks everything, trains,
    and writes ``recipe.yaml``, ``data.json`` (which images), ``log.jsonl``, ``checkpoint/``, ``student.safetensors``
    (last epoch), ``student_best.safetensors`` (best epoch), ``student.json`` (how to load it), ``terms.safetensors``,
    ``samples.json`` (where student and teacher disagree) or ``boxes.json`` (what detectors find), and ``summary.json``.

    Args:
        recipe: What to do; its "auto" fields are settled here, once, and kept in ``recipe.yaml``.
        folder: An empty or new folder, or with ``resume`` one that holds this recipe's unfinished run.
        resume: Go on from the last checkpoint.
        if_begun: Do so where the folder holds a run, else begin it.
        said: Notes that were printed for other runs and need not be printed again.
        shared: The folder is that of a teacher which other runs may need as well: what is there is gone on with, and a
            run that is training it is waited for.
        on_epoch: Called behind each epoch's checkpoint; what it raises ends the run, which ``resume`` goes on with.

    Returns:
        The summary.

    Raises:
        UserError: If anything of the input is wrong; also if the folder holds another run, or one that
            another process is writing.
    """
    require_loggers(recipe.loggers)
    # Before anything else: what follows asks which process this is.
    here = meet(on_cpu=recipe.device == "cpu", timeout=recipe.process_timeout)
    wanted = None if if_begun or shared else resume
    if not shared:
        claim(recipe, folder, wanted)
    said = said if said is not None else set()
    waiting = RunLog(said=said).note if shared else None
    if wanted is not False and first_sees(is_run(folder)):
        return read_object(folder / "summary.json", "metric", "last", "best")
    with only_run_in(folder, here, waiting=waiting):
        # Again: until now another process may have taken it, or come to its end.
        recipe = claim(recipe, folder, wanted)
        if wanted is None and first_sees(is_run(folder)):
            return read_object(folder / "summary.json", "metric", "last", "best")
        return _run(recipe, folder, said, on_epoch)


def _run(recipe: Recipe, folder: Path, said: set[str], on_epoch: OnEpoch | None) -> Summary:
    """Train in a folder that this run holds, from the beginning or from where it was stopped."""
    began_here = not (folder / "recipe.yaml").is_file()
    collectives.barrier()
    if collectives.rank() == 0:
        for half in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):  # of a killed run: nobody else writes here
            half.unlink(missing_ok=True)
        if began_here:
            save_text(recipe.to_yaml(), folder / "recipe.yaml")
    threads = torch.get_num_threads()
    with RunLog(folder, said=said) as log, contextlib.ExitStack() as restored, explaining():
        restored.callback(torch.set_num_threads, threads)
        if (cores := joblib.cpu_count()) < threads:  # torch knows the affinity, and not a container's limit
            torch.set_num_threads(cores)
            log.note(f"threads: {cores} of {threads}, as many as the container may use")
        device = device_of(recipe)
        try:
            parts, checked, recipe = prepare(recipe, folder, log, device, said)
            optimizer = build_optimizer(recipe, parts.distiller)
            kind = kind_of(recipe.task)
            with log.guarded("the check of images and inputs"):
                kind.record_checks(recipe, parts, log, device)
            probe = find = None
            with log.guarded("the probe"):
                step, steps = checked.step_seconds / collectives.world_size(), recipe.epochs * _steps(parts)
                # It asks the teacher, who may be released below.
                probe = kind.build_probe(recipe, parts, optimizer, log, step, steps)
            with log.guarded(f"the choice of {kind.samples_file}"):
                find = kind.find_samples(recipe, parts, device)
            loader = _train_loader(recipe, parts, folder, log, device)
            attach_loggers(recipe, folder, log)
        except UserError:
            if began_here:
                give_up(folder)
            raise
        if collectives.rank() == 0:
            save_text(recipe.to_yaml(), folder / "recipe.yaml")
        distiller, data = parts.distiller, parts.data
        origins = origins_of(parts)
        if not began_here and (changed := changes_since_start(folder, device_name(device))):
            log.note(f"resumed with other versions or on another device: {changed}")
        log.write(
            "start",
            recipe=recipe.name,
            images=data.train_count,
            counts=parameter_counts(parts),
            versions=versions(),
            commit=commit(),
            device=device_name(device),
            origins=origins,
        )

        def on_end(student: nn.Module) -> None:
            save_weights(student.state_dict(), folder / "student.safetensors")
            if len(distiller.term_modules) > 0:
                save_weights(distiller.term_modules.state_dict(), folder / "terms.safetensors")

        torch.manual_seed(recipe.seed + collectives.rank())
        is_own = forget_peak_memory(device)  # of the runs, the tuning and the teacher's training before
        if collectives.rank() == 0:
            save_student_card(folder, recipe, parts.student, data)
        result = fit(
            distiller,
            loader,
            data.val_loader(batch_size=recipe.batch_size).to(device) if data.val_count else None,
            epochs=recipe.epochs,
            optimizer=functools.partial(build_optimizer, recipe) if recipe.shard else optimizer,
            rate=build_rate(recipe),
            precision=PRECISIONS[recipe.precision],
            clip=recipe.clip,
            accumulate=recipe.accumulate,
            ema_decay=recipe.ema,
            on_bad_numbers=build_skip(recipe),
            log=log,
            checkpoints=Checkpoints(folder / "checkpoint", every=recipe.checkpoint_every),
            on_best=lambda student: save_weights(student.state_dict(), folder / "student_best.safetensors"),
            on_epoch=on_epoch,
            on_end=on_end,
            probe=probe,
            shard=recipe.shard,
            cpu=device.type == "cpu",
        )
        summary = summarize(
            parts, checked, result, log, device, origins, memory=peak_memory(device) if is_own else None
        )
        with log.guarded(kind.samples_file):
            if find is not None and (samples := find(result.student)) is not None:
                save_json(samples, folder / kind.samples_file)
        if collectives.rank() == 0:
            log.write("end", summary=summary)
            save_json(summary, folder / "summary.json")  # last: what says that the run is done
    collectives.barrier()
    return summary


def _train_loader(recipe: Recipe, parts: Parts, folder: Path, log: RunLog, device: torch.device) -> ShardedLoader:
    """The training images, with the teacher's outputs where they are kept."""
    if recipe.cache_views is None:
        return parts.data.train_loader(batch_size=batch_size_of(recipe, parts.data), seed=recipe.seed).to(device)
    loader = cached_loader(recipe, parts, folder, device, log.note)
    if recipe.labels and parts.teacher is not None:  # without labels validation asks the teacher
        parts.distiller.release_teacher()
        parts.teacher.module.to("cpu")
    return loader


def prepare(
    recipe: Recipe, folder: Path, log: RunLog, device: torch.device, said: set[str] | None = None
) -> tuple[Parts, Preflight, Recipe]:
    """Data, teacher, student, checks, and the settings of this machine; what was said is not said for the teacher."""
    data = build_data(recipe)
    classes = f", {len(data.classes)} classes: {some(data.classes)}" if data.classes else ""
    log.note(f"data {data.name}: {data.train_count} train, {data.val_count} val, {data.size} pixels{classes}")
    opened = data.notes
    for note in opened:
        log.note(f"data {data.name}: {note}")
    if (fits := batch_size_of(recipe, data)) < recipe.batch_size:
        log.note(f"batch size {recipe.batch_size}: there are {data.train_count} training images; each batch has {fits}")
    rehearse(recipe, data)
    if (folder / "recipe.yaml").is_file():  # a run's folder, and not that of a cache
        keep_or_compare(folder, data)
    teacher = build_teacher(recipe, data, folder, lambda own, at: train_teacher(own, at, said=said), log.note)
    parts = build_parts(recipe, data, teacher)
    if parts.student.weights != "random":
        head = ", with a new head for these labels" if parts.student.new_head else ""
        log.note(f"student {recipe.student}: weights {parts.student.weights}{head}")
    log.note(f"training: {training_in_words(vars(recipe))}")
    if parts.distiller.terms:
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in parts.distiller.current_weights().items())
        log.note(f"method {recipe.method}, weights: {weights}")
        pairs = {name: (*term.student_taps, *term.teacher_taps) for name, term in parts.distiller.terms.items()}
        taken = ", ".join(f"{name} {' and '.join(taps)}" for name, taps in pairs.items() if taps)
        if taken:
            log.note(f"layers, the student's first: {taken}")
    if recipe.shard and teacher is not None and collectives.world_size() > 1:
        shard_frozen(teacher.module, device)  # before anything moves all of it there
    parts.distiller.to(device)
    linear_probe = fit_head(parts, device)
    if linear_probe:
        text, _ = kind_of(recipe.task).judge_teacher(linear_probe, data)
        log.note(f"new head of {recipe.student}: a linear probe of its frozen features, {text}")
    checked = replace(preflight(parts, build_optimizer(recipe, parts.distiller), device), linear_probe=linear_probe)
    _report(checked.findings, log)
    for note in data.notes[len(opened) :]:
        log.note(f"data {data.name}: {note}")
    for skipped in data.skipped:
        log.note(f"skipped {skipped}")
    batch = first_batch(parts, device)
    steps = recipe.epochs * _steps(parts)
    settled = together(
        folder.parent, recipe, device, lambda mine: settle(mine, parts.distiller, batch, device, steps=steps)
    )
    for line in settled.lines:
        log.note(line)
    arithmetic = settled.arithmetic
    if arithmetic.single_thread:
        torch.set_num_threads(1)
    apply_arithmetic(parts.distiller, arithmetic, device)
    if settled.compiles:
        parts.distiller.compile_parts(batch)
    compiles = "on" if settled.compiles else "off"
    changes = {"precision": arithmetic.precision, "memory_format": arithmetic.memory_format, "compile": compiles}
    return parts, checked, recipe.changed(changes)


def _steps(parts: Parts) -> int:
    """Batches an epoch."""
    return len(parts.data.train_loader(batch_size=batch_size_of(parts.recipe, parts.data), seed=parts.recipe.seed))


def train_teacher(recipe: Recipe, folder: Path, *, said: set[str] | None = None) -> None:
    """Train a teacher in a folder, go on where its training was stopped, or wait for a run that trains it."""
    run(recipe, folder, said=said, shared=True)


def _report(findings: list[Finding], log: RunLog) -> None:
    """Keep every finding in the log, say what is not plain ok, and stop at an error."""
    log.write("preflight", findings=[vars(finding) for finding in findings])
    for finding in findings:
        if finding.level in ("note", "warning"):
            advice = f"; {finding.advice}" if finding.advice else ""
            log.note(f"{finding.level}: {finding.name}: {finding.message}{advice}")
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        first = errors[0]
        raise UserError(f"{first.name}: {first.message}" + (f"; {first.advice}" if first.advice else ""))


def save_student_card(folder: Path, recipe: Recipe, student: Model, data: AnyData) -> None:
    """Write ``student.json``: what is needed to build the student and feed it, without Limbeck."""
    mean, std = list(student.input.mean), list(student.input.std)
    card = {
        "model": recipe.student,
        "task": recipe.task,
        "num_classes": student.num_classes,
        "classes": list(data.classes),
        "input": {"size": student.input.size, "mean": mean, "std": std, "interpolation": student.input.interpolation},
        "weights": "student.safetensors",
    }
    save_json(card, folder / CARD)


def device_of(recipe: Recipe) -> torch.device:
    """Where a recipe is run; UserError when the device that it asks for is not there."""
    if recipe.device != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available[recipe.device]:
            raise UserError(f"device {recipe.device} is not available here; use --device auto or cpu")
        return torch.device(recipe.device)
    return torch.device(PartialState().device or "cpu")
