"""``limbeck watch``: a log that grows, is cut off, rewound or missing; what is shown; how it ends."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import planted
from limbeck.cli import main, watch
from limbeck.cli.watch import Tail, Watched, have_ended, view, watched
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog

SOURCE = Path(__file__).resolve().parents[2] / "src"


def recipe(folder: Path, epochs: int = 4) -> None:
    (folder / "recipe.yaml").write_text(f"name: planted\ndata: digits\nepochs: {epochs}\n", encoding="utf-8")


def steps(tail: Tail) -> tuple[list[int], bool]:
    records, is_anew = tail.read()
    return [record["step"] for record in records], is_anew


def shown(folder: Path, *, lines: int | None = None, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view(folder, watched(folder), console, lines=lines))
    return console.export_text().splitlines()


def words(rows: list[str]) -> list[str]:
    return [" ".join(row.split()) for row in rows]


def test_each_record_is_read_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log.jsonl")
    assert steps(tail) == ([], False)  # the run has not begun to write
    planted.write(tmp_path, planted.step(1), planted.step(2))
    assert steps(tail) == ([1, 2], False)
    assert steps(tail) == ([], False)
    planted.add(tmp_path, planted.step(3))
    assert steps(tail) == ([3], False)


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.write(tmp_path, *(planted.step(number) for number in range(1000)))
    tail = Tail(tmp_path / "log.jsonl")
    assert len(tail.read()[0]) == 1000
    planted.add(tmp_path, planted.step(1000))
    parsed: list[bytes] = []
    monkeypatch.setattr(watch, "_record", lambda line: parsed.append(line) or json.loads(line))
    assert steps(tail) == ([1000], False)
    assert len(parsed) == 1


def test_a_half_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    tail = Tail(planted.write(tmp_path, planted.step(1)) / "log.jsonl")
    line = (json.dumps({**planted.step(2), "text": "näh"}, ensure_ascii=False) + "\n").encode()
    for cut in (1, line.index("ä".encode()) + 1, len(line) - 1):  # also in the middle of a letter
        planted.write(tmp_path, planted.step(1))
        tail = Tail(tmp_path / "log.jsonl")
        with (tmp_path / "log.jsonl").open("ab") as file:
            file.write(line[:cut])
        assert steps(tail) == ([1], False)
        with (tmp_path / "log.jsonl").open("ab") as file:
            file.write(line[cut:])
        assert steps(tail) == ([2], False)


def test_a_half_line_that_a_resumed_run_cuts_off_is_never_seen(tmp_path: Path) -> None:
    planted.write(tmp_path, planted.step(1))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    tail = Tail(tmp_path / "log.jsonl")
    assert steps(tail) == ([1], False)
    RunLog(tmp_path).write(**planted.step(5))
    assert steps(tail) == ([5], False)


@pytest.mark.parametrize("more", [0, 1, 40])
def test_a_log_that_was_rewound_is_read_from_its_beginning(tmp_path: Path, more: int) -> None:
    planted.write(tmp_path, *(planted.step(number) for number in (10, 20, 30, 40)))
    tail = Tail(tmp_path / "log.jsonl")
    assert steps(tail)[0] == [10, 20, 30, 40]
    log = RunLog(tmp_path)
    log.rewind(20)
    written = [21 + number for number in range(more)]  # 40 of them make it longer than it was
    for number in written:
        log.write(**planted.step(number))
    assert steps(tail) == ([10, 20, *written], True)


def test_a_rewind_to_nothing_and_a_log_that_goes_away(tmp_path: Path) -> None:
    planted.write(tmp_path, planted.step(10))
    tail = Tail(tmp_path / "log.jsonl")
    assert steps(tail) == ([10], False)
    (tmp_path / "log.jsonl").write_text("")
    assert steps(tail) == ([], True)
    planted.add(tmp_path, planted.step(1))
    assert steps(tail) == ([1], False)
    (tmp_path / "log.jsonl").unlink()
    assert steps(tail) == ([], True)
    assert steps(tail) == ([], False)


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(
        b'{"kind": "step", "step": 1}\n\x00\x00\xff\n[1]\n{"kind": "step", "step": 2}\n'
    )
    assert steps(Tail(tmp_path / "log.jsonl")) == ([1, 2], False)


def test_one_run_with_its_figures_curves_and_time_left(tmp_path: Path) -> None:
    folder = planted.write(
        tmp_path / "first",
        planted.start(),
        planted.step(20, loss=4.0),
        planted.step(40, loss=2.0),
        planted.epoch(1, 40, seconds=120.0),
        planted.probe(40),
        planted.step(60, epoch=2, loss=1.0),
    )
    recipe(folder)
    rows = shown(folder)
    assert max(map(len, rows)) <= 80
    assert words(rows)[1:4] == [
        "epoch 2/4, step 60, about 5 min left, running",
        "training, step 60 validation, epoch 1",
        "loss 1 █▃▁ top1 25.00% ▁",
    ]
    assert rows[0].strip() == str(folder)[:80]
    assert [row for row in words(rows) if row.endswith("stable rank 1.312 ▁")] != []


def test_a_rewind_takes_back_what_was_shown(tmp_path: Path) -> None:
    run = Watched(
        planted.write(tmp_path, planted.start(), planted.epoch(1, 40, top1=0.5), planted.epoch(2, 80, top1=0.9))
    )
    run.look()
    assert (run.latest.epochs_done, run.latest.best) == (2, "90.00%")
    RunLog(tmp_path).rewind(40)
    run.look()
    assert (run.latest.epochs_done, run.latest.best) == (1, "50.00%")


def test_before_the_first_record_it_says_what_the_run_said(tmp_path: Path) -> None:
    folder = planted.write(tmp_path / "run", {"kind": "note", "text": "teacher: training it first"})
    recipe(folder)
    assert words(shown(folder))[1:] == ["running", "teacher: training it first"]


def test_what_ended_how_and_what_may_have_been_killed(tmp_path: Path) -> None:
    folder = planted.write(tmp_path / "run", planted.start(), planted.step(20))
    old = time.time() - 3600
    os.utime(folder / "log.jsonl", (old, old))
    assert words(shown(folder))[1] == "epoch 1, step 20, no record for 60 min"
    planted.add(folder, {"kind": "stop", "reason": "the loss is not finite"})
    assert words(shown(folder))[1] == "epoch 1, step 20, stopped: the loss is not finite"
    planted.add(folder, {"kind": "note", "text": "continuing from the end of epoch 1"})
    assert words(shown(folder))[1] == "epoch 1, step 20, running"
    planted.add(folder, {"kind": "end", "summary": {}})
    assert words(shown(folder))[1] == "epoch 1, step 20, finished"


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    folder = tmp_path / "compare"
    folder.mkdir()
    record = {"methods": ["alone", "kd"], "seeds": [0, 1]}
    (folder / "comparison.json").write_text(json.dumps(record))
    end = {"kind": "end", "summary": {}}
    planted.write(folder / "teachers" / "small-cnn", planted.start(), planted.epoch(4, 40), end)
    recipe(folder / "teachers" / "small-cnn")
    planted.write(folder / "alone-seed0", planted.start(), planted.epoch(4, 40, top1=0.5), end)
    planted.write(folder / "kd-seed0", planted.start(), planted.epoch(1, 10, top1=0.5, seconds=20.0))
    for name in ("alone-seed0", "kd-seed0"):
        recipe(folder / name)
    return folder


def test_a_comparison_has_one_row_a_run(comparison: Path) -> None:
    rows = shown(comparison)
    assert max(map(len, rows)) <= 80
    assert words(rows)[1:] == [
        "5 runs: 2 finished, 1 running, 2 not started",
        "run epoch last best left state",
        "small-cnn 4/4 25.00% 25.00% finished",
        "alone-seed0 4/4 50.00% 50.00% finished",
        "kd-seed0 1/4 50.00% 50.00% 60 s running",
        "alone-seed1 not started",
        "kd-seed1 not started",
    ]


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (9, ["small-cnn", "alone-seed0", "kd-seed0", "alone-seed1", "kd-seed1"]),
        (8, ["kd-seed0", "alone-seed1", "kd-seed1"]),
        (6, ["kd-seed0"]),
    ],
)
def test_a_comparison_with_more_rows_than_lines_shows_what_goes_on(
    comparison: Path, lines: int, names: list[str]
) -> None:
    rows = shown(comparison, lines=lines)
    assert [row.split()[0] for row in rows[3:]] == names
    assert "2 finished" in rows[1]


def test_a_comparison_has_ended_with_its_last_run_or_with_one_that_was_stopped(comparison: Path) -> None:
    assert not have_ended(comparison, watched(comparison))
    planted.add(comparison / "kd-seed0", {"kind": "end", "summary": {}})
    assert not have_ended(comparison, watched(comparison))  # the next one has not begun yet
    planted.write(comparison / "alone-seed1", planted.start(), {"kind": "stop", "reason": "Ctrl-C"})
    assert have_ended(comparison, watched(comparison))
    planted.add(comparison / "alone-seed1", {"kind": "end", "summary": {}})
    planted.write(comparison / "kd-seed1", {"kind": "end", "summary": {}})
    assert have_ended(comparison, watched(comparison))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """What ``limbeck reproduce`` fills: runs below ``runs/``, whose number is not known, teachers below that."""
    folder = tmp_path / "reproduce"
    end = {"kind": "end", "summary": {}}
    places = [folder / "runs" / "teachers" / "small-cnn-32-881640ba02", folder / "runs" / "a-to-b--kd-1234567890-seed0"]
    for place in places:
        planted.write(place, planted.start(), planted.epoch(4, 40, top1=0.5), end)
        recipe(place)
    (folder / "alpha-small").mkdir()
    (folder / "alpha-small" / "plan.json").write_text("{}")
    planted.write(folder / "runs" / "a-to-b--projector-0123456789-seed0", planted.start(), planted.step(20))
    return folder


def age(folder: Path, seconds: float) -> None:
    old = time.time() - seconds
    os.utime(folder / "log.jsonl", (old, old))


def test_a_folder_of_runs_has_one_row_a_run(table: Path) -> None:
    rows = shown(table)
    assert words(rows)[1:3] == ["3 runs: 2 finished, 1 running", "run epoch last best left state"]
    assert [row.split()[0] for row in rows[3:]] == [
        "a-to-b--kd-1234567890-seed0", "a-to-b--projector-0123456789-seed0", "small-cnn-32-881640ba02"
    ]  # fmt: skip
    assert [row.split()[0] for row in shown(table, lines=6)[3:]] == ["a-to-b--projector-0123456789-seed0"]
    assert shown(table, width=70)[4].split()[0] == "a-to-b--pro…456789-seed0"
    assert [row.split()[0] for row in shown(table / "runs")[3:]] == [row.split()[0] for row in rows[3:]]


def test_a_folder_of_runs_has_ended_when_nothing_has_come_for_a_while(table: Path) -> None:
    kd, projector, teacher = (run.folder for run in watched(table))
    for folder in (kd, teacher):
        age(folder, 90)
    assert not have_ended(table, watched(table))
    age(projector, 90)
    assert not have_ended(table, watched(table))  # it may be at a long step
    age(projector, 900)
    assert "1 no record" in shown(table)[1]
    (table / "runs" / "killed-early").mkdir()
    recipe(table / "runs" / "killed-early")  # before its first record
    assert have_ended(table, watched(table))  # it was killed
    age(kd, 30)
    assert not have_ended(table, watched(table))  # the next one may begin


def test_what_was_read_is_kept_from_look_to_look(comparison: Path) -> None:
    first = watched(comparison)
    second = watched(comparison, first)
    assert [id(run) for run in first] == [id(run) for run in second]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("nowhere", "no such run folder"), ("photos", "holds no run: expected log.jsonl"), ("file", "no such run folder")],
)
def test_a_folder_without_a_run_is_one_line(
    tmp_path: Path, name: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    (tmp_path / "file").write_text("x")
    assert main(["watch", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"limbeck: error: {tmp_path / name}")
    assert problem in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    with pytest.raises(UserError, match=problem):
        watched(tmp_path / name)


@pytest.mark.parametrize("locked", ["b", "b/log.jsonl", "b/recipe.yaml"])
def test_one_run_that_cannot_be_read_leaves_the_others_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    for name in "abc":
        recipe(planted.write(tmp_path / name, planted.start(), planted.step(20), {"kind": "end", "summary": {}}))
    planted.lock(monkeypatch, tmp_path / locked)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "3 runs: 2 finished, 1 cannot be read" in captured.out
    (row,) = [line for line in captured.out.splitlines() if line.startswith("b ")]
    assert str(tmp_path / locked) in row
    assert "ermission denied" in row
    runs = watched(tmp_path)
    assert not have_ended(tmp_path, runs)
    for name in "ac":
        age(tmp_path / name, 100)
    assert have_ended(tmp_path, runs)
    assert main(["watch", str(tmp_path / "b"), "--once"]) == 2
    assert re.fullmatch(r"limbeck: error: .*ermission denied.*\n", capsys.readouterr().err)


def test_once_prints_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = planted.write(tmp_path / "run", planted.start(), planted.step(20))
    assert main(["watch", str(folder), "--once"]) == 0
    assert "epoch 1, step 20, running" in capsys.readouterr().out


def test_where_the_output_is_no_terminal_it_waits_for_the_end_and_prints_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(watch, "EVERY", 0.02)
    folder = planted.write(tmp_path / "run", planted.start(), planted.step(20))

    def train() -> None:
        time.sleep(0.2)
        planted.add(folder, planted.step(40), {"kind": "end", "summary": {}})

    thread = threading.Thread(target=train)
    thread.start()
    assert main(["watch", str(folder)]) == 0
    thread.join()
    out = capsys.readouterr().out
    assert out.count("step 40, finished") == 1
    assert "step 20, running" not in out


class Terminal:
    """``limbeck watch`` in a pseudo terminal of 80 columns."""

    def __init__(self, folder: Path) -> None:
        self.master, slave = pty.openpty()
        # A test run in the background ignores Ctrl-C, and hands that down.
        hears = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code = hears + "from limbeck.cli import main; sys.exit(main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "watch", str(folder)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def until(self, is_reached: Callable[[str], bool], seconds: float = 60.0) -> None:
        """Read until the text is as wanted."""
        last = time.monotonic() + seconds
        while not is_reached(self.text):
            assert time.monotonic() < last, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    got = os.read(self.master, 65536)
                except OSError:  # the other end is closed
                    got = b""
                self.text += got.decode()
                if not got:
                    assert is_reached(self.text), self.text
                    return

    def ended(self) -> int:
        """Read the rest, and wait for the exit code."""
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            try:
                self.text += os.read(self.master, 65536).decode()
            except OSError:
                break
        code = self.process.wait(timeout=60)
        os.close(self.master)
        return code


@pytest.mark.processes
def test_in_a_terminal_it_follows_the_run_and_ends_with_it(tmp_path: Path) -> None:
    folder = planted.write(tmp_path / "run", planted.start(), planted.step(20))
    terminal = Terminal(folder)
    terminal.until(lambda text: "step 20, running" in text)
    planted.add(folder, planted.step(40), planted.epoch(1, 40))
    terminal.until(lambda text: "step 40, running" in text and "25.00%" in text)
    RunLog(folder).rewind(0)
    planted.add(folder, planted.step(7))
    terminal.until(lambda text: "step 7, running" in text)
    planted.add(folder, {"kind": "end", "summary": {}})
    terminal.until(lambda text: "step 7, finished" in text)
    assert terminal.ended() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
    assert max(len(row) for row in re.split(r"[\r\n]+", plain)) <= 80
    assert "Traceback" not in plain


@pytest.mark.processes
def test_ctrl_c_ends_the_watching_quietly(tmp_path: Path) -> None:
    folder = planted.write(tmp_path / "run", planted.start(), planted.step(20))
    before = (folder / "log.jsonl").read_bytes()
    terminal = Terminal(folder)
    terminal.until(lambda text: "step 20, running" in text)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 0
    assert "Traceback" not in terminal.text
    assert "stopped" not in terminal.text
    assert (folder / "log.jsonl").read_bytes() == before


def test_it_starts_without_torch() -> None:
    code = "import sys, limbeck.cli.watch; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCE)}
    )
    assert done.stdout == "False\n"
