import io
import math
import time
from pathlib import Path

import pytest
from rich.console import Console
from torch import Tensor

import planted
from limbeck.logs.live import BLOCKS, MOST_VALUES, Curve, LatestFigures, Screen, sparkline, table
from limbeck.logs.runlog import RunLog
from limbeck.logs.sinks import Sink
from tiny import records


class Recorder:
    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.histograms: dict[tuple[str, int], list[float]] = {}
        self.flushed = 0
        self.closed = 0

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag, global_step] = scalar_value

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> None:
        self.histograms[tag, global_step] = values.tolist()

    def flush(self) -> None:
        self.flushed += 1

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
    assert sink.flushed == 2  # one a record, so that what the log has they have
    assert sink.histograms == {}
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


def test_sinks_receive_a_probe_as_scalars_and_distributions() -> None:
    sink = Recorder()
    with RunLog() as log:
        log.attach(sink)
        record = planted.probe(40)
        log.write(**record)
    assert sink.closed == 1
    assert sink.scalars["probe/feature/spectrum/stable_rank", 40] == pytest.approx((16 + 4 + 1) / 16)
    assert sink.scalars["probe/feature/spectrum_normalized/norm", 40] == 4.5
    assert sink.scalars["probe/feature/fit/correlation/mean", 40] == 0.62
    assert sink.scalars["probe/student/agreement", 40] == 0.8125
    assert sink.scalars["probe/balance/cosines/task|feature", 40] == -0.25
    assert sink.scalars["probe/seconds", 40] == 0.08
    assert not [tag for tag, _ in sink.scalars if "quantiles" in tag or "terms" in tag or "widths" in tag]
    assert sink.histograms == {
        ("probe/feature/spectrum", 40): [4.0, 2.0, 1.0],
        ("probe/feature/spectrum_normalized", 40): [1.5, 1.0, 0.5],
        ("probe/feature/correlation", 40): [0.25, 0.75, 0.75],  # one in the first bin, two in the second
    }


def test_a_probe_of_a_term_without_a_projector_has_no_distributions() -> None:
    sink = Recorder()
    log = RunLog(sinks=[sink])
    log.write("probe", step=3, terms={"logit": {"cka": 0.5}}, teacher=None)
    assert (sink.scalars, sink.histograms) == ({("probe/logit/cka", 3): 0.5}, {})


def test_rewind_drops_probes_and_a_stop(tmp_path: Path) -> None:
    log = RunLog(planted.write(tmp_path, planted.probe(0), planted.step(20), planted.probe(20), planted.probe(25)))
    log.write("stop", reason="Ctrl-C")
    log.rewind(20)
    assert [(record["kind"], record["step"]) for record in records(tmp_path)] == [
        ("probe", 0),
        ("step", 20),
        ("probe", 20),
    ]
    log.rewind(0)  # what begins again looks again at what it begins with
    assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "Ctrl-C"),
        (ValueError("the loss is not finite\nat step 3"), "the loss is not finite"),
        (ZeroDivisionError(), "ZeroDivisionError()"),
    ],
)
def test_an_error_ends_the_log_and_the_sinks(tmp_path: Path, error: BaseException, reason: str) -> None:
    sink = Recorder()

    def train() -> None:
        with RunLog(tmp_path, sinks=[sink]) as log:
            step(log, 1)
            raise error

    with pytest.raises(type(error)):
        train()
    assert records(tmp_path)[-1] == {"kind": "stop", "reason": reason}
    assert sink.closed == 1


def test_a_run_that_did_not_begin_leaves_no_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), RunLog(tmp_path / "run"):
        raise ValueError("wrong")
    assert not (tmp_path / "run").exists()


def latest(*more: planted.Record) -> LatestFigures:
    found = LatestFigures()
    for record in (
        planted.start(),
        *(planted.step(20 * n, epoch=1 + (n - 1) // 2, loss=4.0 / n) for n in range(1, 5)),
        planted.epoch(1, 40, top1=0.5),
        planted.epoch(2, 80, top1=0.4, seconds=6.0),
        planted.probe(60),
        *more,
    ):
        found.take(record)
    return found


def drawn(found: LatestFigures, width: int, *, curves: bool = False) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    shown = table(found, width=width, curves=curves)
    assert shown is not None
    console.print(shown)
    return console.export_text().splitlines()


def test_the_table_shows_parts_rates_validation_and_the_last_probe() -> None:
    rows = [" ".join(row.split()) for row in drawn(latest(), 80)]
    assert rows == [
        "training, step 80 validation, epoch 2",
        "loss 1 top1 40.00%",
        "task 1 loss 1",
        "feature -3.25 best (epoch 1) 50.00%",
        "feature/correlation 0.5 probe, step 60",
        "learning rate 0.05 stable rank 1.312",
        "images/s 1,234 correlation 0.62",
        "agreement 81.25%",
    ]


@pytest.mark.parametrize("curves", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_of_the_table_is_longer_than_the_terminal(width: int, curves: bool) -> None:
    huge = planted.step(123_456_789, epoch=9999, loss=-1.2345e-17)
    huge["parts"] = {"a part with a name that is far too long for the table [bold]": 1e-300}
    probe = planted.probe(123_456_789, terms=("first", "second"))
    rows = drawn(latest(huge, planted.epoch(9999, 123_456_789), probe), width, curves=curves)
    assert max(map(len, rows)) <= min(width, 80)
    text = " ".join(" ".join(rows).split())
    assert "first stable rank 1.312" in text
    assert "second correlation 0.62" in text
    assert "best (epoch 1) 50.00%" in text
    assert "-1.235e-17" in text
    assert "123456789" in text


def test_curves_stand_beside_their_figures() -> None:
    rows = drawn(latest(), 80, curves=True)
    assert "loss                         1 █▃▂▁" in rows[1]  # 4, 2, 4/3, 1
    assert "top1                    40.00% █▁" in rows[1]


def test_sparkline_means_what_does_not_fit_and_leaves_out_what_is_not_finite() -> None:
    assert sparkline([]) == sparkline([math.nan]) == ""
    assert sparkline([math.inf, 1.0, 2.0, math.nan]) == BLOCKS[0] + BLOCKS[-1]
    assert sparkline([3.0] * 20, width=4) == BLOCKS[0] * 4
    values = [math.sin(n / 9) for n in range(40)]
    means = [sum(values[5 * n : 5 * n + 5]) / 5 for n in range(8)]
    low, high = min(means), max(means)
    assert sparkline(values, width=8) == "".join(BLOCKS[round(7 * (mean - low) / (high - low))] for mean in means)


def test_a_curve_is_thinned_evenly() -> None:
    curve = Curve()
    for value in range(1, 4 * MOST_VALUES + 1):
        curve.add(float(value))
    assert len(curve.values) < MOST_VALUES
    assert {b - a for a, b in zip(curve.values, curve.values[1:], strict=False)} == {8.0}
    assert curve.values[-1] > 4 * MOST_VALUES - 8


def test_the_time_left_is_that_of_the_epochs_so_far() -> None:
    found = LatestFigures()
    assert found.seconds_left(10) is None
    found.take(planted.start(images=1000))
    found.take(planted.step(20))
    assert found.seconds_left(10) == pytest.approx(10 * 1000 / 1234.5)  # from the speed, before an epoch has ended
    found.take(planted.epoch(2, 80, seconds=6.0))
    assert found.seconds_left(10) == pytest.approx(8 * 3.0)
    found.take(planted.step(100, epoch=3))  # half of an epoch of 40 steps
    assert found.seconds_left(10) == pytest.approx(7.5 * 3.0)
    assert found.seconds_left(2) == 0.0


def test_records_of_an_own_loop_may_have_less() -> None:
    found = LatestFigures()
    for kind in ("start", "step", "epoch", "probe", "preflight", "something else"):
        found.take({"kind": kind})
    assert table(found) is None
    found.take({"kind": "step", "step": 3, "loss": 0.5})
    assert [" ".join(row.split()) for row in drawn(found, 80)] == ["training, step 3", "loss 0.5"]


def test_the_best_epoch_is_that_of_the_lowest_loss_where_there_is_no_accuracy() -> None:
    found = LatestFigures()
    for number, loss in enumerate((3.0, 1.0, 2.0), start=1):
        found.take({**planted.epoch(number, number), "val": {"loss": loss}})
    assert (found.last, found.best) == ("2", "1")
    assert found.validation["best (epoch 2)"] == "1"


@pytest.mark.parametrize(("height", "is_shown"), [(24, True), (11, True), (10, False)])
def test_a_screen_shows_the_table_where_the_bar_fits_too(height: int, is_shown: bool) -> None:
    console = Console(width=80, height=height, force_terminal=True, record=True, file=io.StringIO())
    screen = Screen(console)
    screen.begin("epoch 3/4", 20)
    screen.advance(12.0, 0.5)
    screen.show(latest())  # eight lines
    time.sleep(0.3)  # drawn by a thread of its own
    screen.stop()
    text = console.export_text()
    assert "epoch 3/4" in text
    assert "12 images/s" in text
    assert ("stable rank" in text) == is_shown


def test_a_resumed_run_shows_what_came_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    planted.write(tmp_path, planted.step(20), planted.epoch(1, 20), planted.probe(20))
    with RunLog(tmp_path, progress=True) as log:
        log.rewind(20)
        log.epoch_begins(2, 3, 5)
        step(log, 40)
        epoch(log, 2, 40)
    assert "epoch 2/3" in capfd.readouterr().err
    assert log._latest.probed == 20
    assert log._latest.validation["best (epoch 1)"] == "25.00%"


def test_a_damaged_line_is_passed_over_when_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"kind": "note", "text": "a"}\n{"kind": "st\x00p", \n{"kind": "step", "step": null}\n', encoding="utf-8"
    )
    RunLog(tmp_path).rewind(5)
    assert path.read_text(encoding="utf-8") == '{"kind": "note", "text": "a"}\n'


def test_without_a_terminal_an_epoch_is_a_line_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with RunLog(tmp_path, progress=False) as log:
        for number, at in enumerate((110.0, 135.0, 150.0, 165.0), start=1):
            now[0] = at
            epoch(log, number, 20)
    lines = [line.split("  ")[0] for line in capfd.readouterr().err.splitlines()]
    assert lines == ["epoch 2/3", "epoch 4/3"]
