from pathlib import Path

import pytest

from limbeck.runlog import RunLog, Sink
from tiny import records


class Recorder:
    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.closed = 0

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag, global_step] = scalar_value

    def close(self) -> None:
        self.closed += 1


def step(log: RunLog, number: int) -> None:
    log.write(
        "step", step=number, epoch=1, loss=1.5, parts={"task": 1.0}, readings={"feature/correlation": 0.5}, lr=0.1
    )


def epoch(log: RunLog, number: int, at: int) -> None:
    log.epoch_ends(number, 3, {"step": at, "train": {"loss": 2.0}, "val": {"top1": 0.25, "loss": 1.0}, "seconds": 3.0})


def test_records_are_one_json_object_a_line(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.write("start", recipe="näme")
        step(log, 20)
        epoch(log, 1, 20)
        log.note("two\nlines")
    kinds = [record["kind"] for record in records(tmp_path / "run")]
    assert kinds == ["start", "step", "epoch", "note"]
    assert records(tmp_path / "run")[0]["recipe"] == "näme"
    assert records(tmp_path / "run")[2]["epoch"] == 1


def test_rewind_drops_later_steps_and_an_end_and_keeps_the_rest(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("start", recipe="a")
    for number in (10, 20, 30, 40):
        step(log, number)
        epoch(log, number // 10, number)
    log.write("end", summary={})
    log.write("start", recipe="a, resumed")  # written before the loop knows where it goes on
    log.rewind(20)
    kept = [(record["kind"], record.get("step", record.get("recipe"))) for record in records(tmp_path)]
    assert kept == [("start", "a"), ("step", 10), ("epoch", 10), ("step", 20), ("epoch", 20), ("start", "a, resumed")]
    log.rewind(0)
    assert [record["kind"] for record in records(tmp_path)] == ["start", "start"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_rewind_without_a_log_does_nothing(tmp_path: Path) -> None:
    RunLog().rewind(3)
    RunLog(tmp_path).rewind(3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", ["write", "rewind"])
def test_the_line_that_a_kill_cut_off_goes_and_nothing_else(tmp_path: Path, first: str) -> None:
    log = RunLog(tmp_path)
    step(log, 10)
    step(log, 20)
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(whole[:-7])
    resumed = RunLog(tmp_path)
    if first == "rewind":
        resumed.rewind(20)
    step(resumed, 21)
    assert [record["step"] for record in records(tmp_path)] == [10, 21]


def test_sinks_receive_the_scalars_of_steps_and_epochs() -> None:
    sink = Recorder()
    assert isinstance(sink, Sink)
    with RunLog(sinks=[sink]) as log:
        log.write("start", seconds=1.0)
        step(log, 20)
        epoch(log, 1, 20)
        log.pause()
        assert sink.closed == 0
    assert sink.closed == 1
    assert sink.scalars == {
        ("step/epoch", 20): 1.0,
        ("step/loss", 20): 1.5,
        ("step/parts/task", 20): 1.0,
        ("step/readings/feature/correlation", 20): 0.5,
        ("step/lr", 20): 0.1,
        ("epoch/epoch", 20): 1.0,
        ("epoch/train/loss", 20): 2.0,
        ("epoch/val/top1", 20): 0.25,
        ("epoch/val/loss", 20): 1.0,
        ("epoch/seconds", 20): 3.0,
    }


def test_it_is_quiet_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with RunLog() as log:
        log.epoch_begins(1, 3, 5)
        log.advance(4, 1.0)
        epoch(log, 1, 5)
    assert capfd.readouterr() == ("", "")
    with RunLog() as log:
        log.note("a note [bold]is[/bold] said as it is")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "a note [bold]is[/bold] said as it is\n"


def test_with_progress_an_epoch_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with RunLog(progress=True) as log:
        for number in (1, 2):
            log.epoch_begins(number, 3, 5)
            log.advance(4, 1.0)
            log.advance(4, None)
            epoch(log, number, 5 * number)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "epoch 2/3" in captured.err
    assert "top1 25.00%" in captured.err
