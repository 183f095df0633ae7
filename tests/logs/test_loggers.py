"""The loggers: what each has is what the log has, once, also of a run that was killed and resumed."""

import importlib.util
import json
import os
import struct
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import planted
from limbeck.assembly.teacher import teacher_recipe
from limbeck.cli import main
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.logs.backends import Backend
from limbeck.logs.loggers import IDENTITIES, PACKAGES, Logger, attach_loggers, require_loggers
from limbeck.logs.runlog import RunLog
from limbeck.logs.sinks import PASSED_ON, Sink, histograms, scalars
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.values import LoggerName
from limbeck.runs.run import run
from limbeck.storage.checkpoint import Checkpoints
from tiny import records

_trackio = tempfile.TemporaryDirectory(prefix="limbeck-tests-")
os.environ["TRACKIO_DIR"] = _trackio.name  # read once, when it is imported; never the user's own

Points = dict[tuple[str, int], list[float]]
"""Tag and step -> every value that is kept for them; more than one is a double point."""

ALL = ("tensorboard", "wandb", "mlflow", "trackio")


def present(name: str) -> Any:
    """A parameter that is skipped where the logger's package is missing."""
    spec = importlib.util.find_spec(name)
    is_there = spec is not None and spec.origin is not None
    return pytest.param(name, marks=pytest.mark.skipif(not is_there, reason=f"{PACKAGES[name]} is not installed"))


LOGGERS = [present(name) for name in ALL]


def recipe(*loggers: LoggerName) -> Recipe:
    return Recipe(data="digits", student="small/cnn-2", method="alone", loggers=loggers)


# --- What each of them has, read without Limbeck ---


def of_tensorboard(folder: Path) -> tuple[Points, Points]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    reader.Reload()
    single, many = defaultdict(list), defaultdict(list)
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            single[tag, event.step].append(event.value)
    for tag in reader.Tags()["histograms"]:
        for event in reader.Histograms(tag):
            value = event.histogram_value
            many[tag, event.step] += [value.num, value.min, value.max, value.sum]
    return dict(single), dict(many)


def blocks(path: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: a log in the format of LevelDB behind seven bytes of its own."""
    content = path.read_bytes()
    at, record = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_records(path: Path) -> list[Any]:
    """The records of a run that has ended: a service writes them, a moment after the run was told to finish."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: list[Any] = []
    last = time.monotonic() + 30
    while not any(record.HasField("exit") for record in found) and time.monotonic() < last:
        found = [Record.FromString(block) for block in blocks(path)]
    return found


def of_wandb(folder: Path) -> tuple[Points, Points]:
    single, many = defaultdict(list), defaultdict(list)
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            step = record.history.step.num
            for item in record.history.item:
                tag, *field = item.nested_key or [item.key]
                if field == ["values"]:  # of a distribution: how many are in each bin
                    many[tag, step] += [sum(json.loads(item.value_json))]
                elif not field and not tag.startswith("_"):
                    single[tag, step].append(float(json.loads(item.value_json)))
    return dict(single), dict(many)


def of_mlflow(folder: Path) -> tuple[Points, Points]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder.parent / "mlruns").as_uri())
    identity = json.loads((folder / IDENTITIES).read_text())["mlflow"]
    single, many = defaultdict(list), defaultdict(list)
    for tag in client.get_run(identity).data.metrics:
        for metric in client.get_metric_history(identity, tag):
            single[tag, metric.step].append(metric.value)
    place = Path(client.get_run(identity).info.artifact_uri.removeprefix("file://"))
    for path in place.rglob("*.json"):
        kept = json.loads(path.read_text())
        assert kept["step"] == int(path.stem)
        values = kept["values"]
        many[path.parent.relative_to(place).as_posix(), kept["step"]] += [
            len(values),
            min(values),
            max(values),
            sum(values),
        ]
    return dict(single), dict(many)


def of_trackio(folder: Path) -> tuple[Points, Points]:
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((folder / IDENTITIES).read_text())["trackio"]
    single, many = defaultdict(list), defaultdict(list)
    for row in SQLiteStorage.get_logs("limbeck", name):
        for tag, value in row.items():
            if isinstance(value, Mapping):
                many[tag, row["step"]] += [sum(value["values"])]
            elif "/" in tag:
                single[tag, row["step"]].append(float(value))
    return dict(single), dict(many)


READERS: dict[str, Callable[[Path], tuple[Points, Points]]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}


def check(name: str, folder: Path) -> int:
    """Compare what a logger has with the log, number by number; how many numbers there are."""
    passed_on = [record for record in records(folder) if record["kind"] in PASSED_ON]
    single: dict[tuple[str, int], float] = {}
    many: dict[tuple[str, int], Tensor] = {}
    for record in passed_on:
        rename = (lambda tag: tag.replace("|", "-")) if name == "mlflow" else str
        single |= {(rename(tag), record["step"]): value for tag, value in scalars(record).items()}
        many |= {(rename(tag), record["step"]): values for tag, values in histograms(record).items()}
    found, distributions = READERS[name](folder)
    assert found == {key: [pytest.approx(value, rel=1e-6, nan_ok=True)] for key, value in single.items()}
    assert distributions.keys() == many.keys()
    for key, values in many.items():
        x = values.double()
        whole = [len(x), float(x.min()), float(x.max()), float(x.sum())]
        assert distributions[key] == pytest.approx(whole if name in ("tensorboard", "mlflow") else whole[:1])
    return len(single)


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent anywhere, and nothing is written outside of the test's folder."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


# --- A logger as a sink ---


class Fake:
    def __init__(self, problem: Exception | None = None) -> None:
        self.sent: list[tuple[int, dict[str, float], list[str]]] = []
        self.ends: list[bool] = []
        self.problem = problem
        self.backend = Backend("fake", self.send, self.finish, "nowhere")

    def send(self, step: int, single: Mapping[str, float], many: Mapping[str, Tensor]) -> None:
        if self.problem is not None:
            raise self.problem
        self.sent.append((step, dict(single), list(many)))

    def finish(self, failed: bool) -> None:
        self.ends.append(failed)
        if self.problem is not None:
            raise self.problem


def test_a_record_is_sent_as_a_whole() -> None:
    fake = Fake()
    logger = Logger("fake", fake.backend)
    assert isinstance(logger, Sink)
    with RunLog(sinks=[logger]) as log:
        log.write(**planted.step(20))
        log.write(**planted.probe(20))
        log.write("note", text="not a number")
    assert [step for step, _, _ in fake.sent] == [20, 20]
    assert fake.sent[0][1] == scalars(planted.step(20))
    assert fake.sent[1][2] == list(histograms(planted.probe(20)))
    assert fake.ends == [False]


def test_what_was_sent_is_not_sent_again_kind_by_kind() -> None:
    fake = Fake()
    log = RunLog(sinks=[Logger("fake", fake.backend, sent={"step": 40, "epoch": 20})])
    for at in (20, 40):
        log.write(**planted.step(at))
        log.write(**planted.epoch(at // 20, at))
    log.write(**planted.step(60))
    # Killed between the step at 40 and the epoch that ends there: the epoch is new.
    assert [(step, next(iter(single)).split("/")[0]) for step, single, _ in fake.sent] == [(40, "epoch"), (60, "step")]


class Broken:
    """A sink of the user's own that raises whatever it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.asked += 1
        raise KeyError(tag)

    add_histogram = add_scalar

    def flush(self) -> None:
        raise OSError("flush")

    close = flush


def test_a_failure_is_said_once_and_the_training_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    fake, broken = Fake(ConnectionError("no route\nto host")), Broken()
    with RunLog(sinks=[Logger("fake", fake.backend), broken]) as log:
        for at in (20, 40):
            log.write(**planted.step(at))
    assert capfd.readouterr().err.splitlines() == [
        "warning: fake failed, and gets no more records (ConnectionError: no route)",
        "warning: Broken failed, and gets no more records (KeyError: 'step/epoch')",
    ]
    assert fake.ends == [False]
    assert broken.asked == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("not finite")])
def test_an_error_ends_it_as_failed(error: BaseException) -> None:
    fake = Fake()

    def train() -> None:
        with RunLog(sinks=[Logger("fake", fake.backend)]):
            raise error

    with pytest.raises(type(error)):
        train()
    assert fake.ends == [True]


# --- Which of them there are ---


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in PACKAGES.items():
        with pytest.raises(UserError, match=f"loggers: {name} is not installed; pip install {package}$"):
            require_loggers([name])
    words = ["train", "--model", "small/cnn-2", "--data", "digits", "--loggers", "mlflow", "--out", str(tmp_path / "a")]
    assert main(words) == 2
    assert "pip install mlflow-skinny" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_folder_of_its_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if (spec := importlib.util.find_spec("trackio")) is not None and spec.origin is not None:
        pytest.skip("trackio is installed")
    with pytest.raises(UserError, match="trackio is not installed"):
        require_loggers(["trackio"])


def test_without_loggers_nothing_is_written_and_no_other_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_loggers(recipe(), tmp_path, RunLog(tmp_path))
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    attach_loggers(recipe("tensorboard"), tmp_path, RunLog(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_begin_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(UserError, match=r"^loggers: tensorboard cannot begin: .+$"):
        attach_loggers(recipe("tensorboard"), tmp_path, RunLog(tmp_path))


def test_loggers_are_a_setting_that_changes_no_teacher(small: Recipe) -> None:
    from limbeck.assembly.build import build_data
    from limbeck.assembly.teacher import _key

    data = build_data(small)
    keys = {
        _key(teacher_recipe(small.changed({"loggers": loggers})), data, start="") for loggers in ((), ("wandb",), ALL)
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("loggers", "problem"),
    [
        (["wandb", "wandb"], "loggers: expected each once, got wandb wandb"),
        (["tensorbord"], "got 'tensorbord' as value 1 .did you mean \"tensorboard\""),
    ],
)
def test_wrong_loggers_are_told(small: Recipe, loggers: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        small.changed({"loggers": loggers})


# --- The real ones ---


@pytest.mark.parametrize("name", LOGGERS)
def test_it_has_what_the_log_has_also_after_a_kill(name: LoggerName, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    chosen = recipe(name)
    log = RunLog(folder)
    log.write(**planted.start())
    attach_loggers(chosen, folder, log)
    first = json.loads((folder / IDENTITIES).read_text())
    for record in (planted.probe(0), planted.step(20), planted.epoch(1, 20), planted.probe(20), planted.step(40)):
        log.write(**record)
    log.close()  # what a kill would cost of the last record is not the question here
    state = Checkpoints(folder / "checkpoint").folder / "step-000000020"
    state.mkdir(parents=True)
    (state / "counters.json").write_text("{}")
    check(name, folder)

    resumed = RunLog(folder)
    attach_loggers(chosen, folder, resumed)
    assert json.loads((folder / IDENTITIES).read_text()) == first
    resumed.rewind(20)
    for record in (planted.step(40), planted.epoch(2, 40, top1=0.5), planted.probe(60), planted.step(60)):
        resumed.write(**record)
    resumed.close()
    assert check(name, folder) == 87  # three probes of 18 numbers, three steps of 7, two epochs of 6


@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_that_was_killed_in_its_first_epoch_begins_again(name: LoggerName, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    for last in (20, 40):
        log = RunLog(folder)
        log.write(**planted.start())
        attach_loggers(recipe(name), folder, log)
        log.rewind(0)
        for record in (planted.probe(0), *(planted.step(at) for at in range(20, last + 1, 20))):
            log.write(**record)
        log.close()
    check(name, folder)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_in_full(name: LoggerName, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing: stopped before the checkpoint of its second epoch is kept, and resumed."""
    chosen = small.changed({"method": "alone", "teacher": None, "epochs": 3, "loggers": (name,)})
    folder = tmp_path / "runs" / "first"
    save = Checkpoints.save

    def stop(self: Checkpoints, modules: Any, trainer: Any, counters: Any, device: Any) -> Path:
        if counters.epoch == 2:
            raise KeyboardInterrupt
        return save(self, modules, trainer, counters, device)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(chosen, folder)
    assert check(name, folder) > 0
    assert records(folder)[-1] == {"kind": "stop", "reason": "Ctrl-C"}
    run(chosen, folder, resume=True)
    kinds = [record["kind"] for record in records(folder)]
    assert kinds.count("epoch") == 3
    assert kinds[-1] == "end"
    if name == "tensorboard":  # the others keep the first of the two speeds of the second epoch
        check(name, folder)
    found = READERS[name](folder)[0]
    assert found.keys() == {
        (tag, record["step"]) for record in records(folder) if record["kind"] in PASSED_ON for tag in scalars(record)
    }
    assert {len(values) for values in found.values()} == {1}


def test_another_logger_may_join_a_run_that_goes_on(small: Recipe, tmp_path: Path) -> None:
    chosen = small.changed({"method": "alone", "teacher": None, "epochs": 1})
    run(chosen, tmp_path / "run")
    joined = chosen.changed({"loggers": ("tensorboard",)})
    assert run(joined, tmp_path / "run", resume=True)["metric"] == "top1"  # not "a run of another recipe"
    with pytest.raises(UserError, match=r"another recipe: seed: 0 -> 1$"):
        run(joined.changed({"seed": 1}), tmp_path / "run", resume=True)


def test_mlflow_has_the_recipe_and_the_state(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    folder = tmp_path / "runs" / "first"
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "runs" / "mlruns").as_uri())

    def state(*, failing: bool) -> Any:
        def train() -> None:
            with RunLog(folder) as log:
                log.write(**planted.start())
                attach_loggers(recipe("mlflow"), folder, log)
                seen.append(client.get_run(json.loads((folder / IDENTITIES).read_text())["mlflow"]).info.status)
                if failing:
                    raise ValueError("not finite")

        if failing:
            with pytest.raises(ValueError, match="not finite"):
                train()
        else:
            train()
        return client.get_run(json.loads((folder / IDENTITIES).read_text())["mlflow"])

    seen: list[str] = []
    assert state(failing=True).info.status == "FAILED"
    found = state(failing=False)
    assert found.info.status == "FINISHED"
    assert seen == ["RUNNING", "RUNNING"]
    assert found.info.run_name == "first"
    assert found.data.params["student"] == "small/cnn-2"
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_tensorboard_has_the_recipe(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        with RunLog(tmp_path) as log:
            log.write(**planted.start())
            attach_loggers(recipe("tensorboard"), tmp_path, log)
    reader = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    reader.Reload()
    (event,) = reader.Tensors("recipe/text_summary")
    (text,) = event.tensor_proto.string_val
    assert Recipe.from_yaml(text.decode().replace("    ", "")) == recipe("tensorboard")
