"""Where messages and pages go: no or a full stderr, an encoding without letters, hostile names, pipes as files."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from limbeck import cli
from limbeck.cli import running, watch
from limbeck.errors import UserError, shown
from limbeck.logs.runlog import RunLog
from limbeck.report.page import write_page
from limbeck.storage.files import save_text

HOSTILE = "a\x1b[2Jb\nc\u202ed\udcff"
SHOWN = r"a\x1b[2Jb\nc\u202ed\udcff"


def shell(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = f"exec {sys.executable} -m limbeck.cli {words}"
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stderr_and_an_encoding_without_letters_end_no_training(tmp_path: Path) -> None:
    flags = "--recipe digits --model small/cnn-2 --train-limit 60 --batch-size 30 --epochs 1 --probe off --device cpu"
    done = shell(f"train {flags} --out n\u00e9 2>/dev/full", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "run folder: n\\xe9" in done.stdout
    assert (tmp_path / "n\u00e9" / "summary.json").is_file()


def test_a_missing_stderr_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = shell("recipes digits 2>&-", tmp_path)
    assert done.returncode == 0
    assert "student:" in done.stdout
    assert shell("recipes nothing 2>&-", tmp_path).returncode == 2
    monkeypatch.setattr(sys, "stderr", None)
    with RunLog(tmp_path) as log:
        log.note("kept")
    assert "kept" in (tmp_path / "log.jsonl").read_text()


def test_a_stderr_that_breaks_later_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    with RunLog(tmp_path) as log:
        log.note("kept")
    assert "kept" in (tmp_path / "log.jsonl").read_text()


def test_a_name_is_shown_as_one_line_everywhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(HOSTILE) == SHOWN
    running.say(f"student: {HOSTILE}")
    assert capfd.readouterr().out == f"student: {SHOWN}\n"
    assert cli.main(["report", HOSTILE.replace("\udcff", "")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert SHOWN.replace(r"\udcff", "") in line

    def refuse(words: list[str]) -> int:
        raise UserError(f"weights {HOSTILE}", [f"  {HOSTILE} 3", "  head 4"])

    monkeypatch.setattr(cli, "_dispatch", refuse)
    assert cli.main(["distill"]) == 2
    assert capfd.readouterr().err.splitlines() == [f"limbeck: error: weights {SHOWN}", f"  {SHOWN} 3", "  head 4"]
    with RunLog(tmp_path, progress=False) as log:
        log.note(f"skipped {HOSTILE}")
    assert capfd.readouterr().err == f"skipped {SHOWN}\n"
    run = tmp_path / "a\x1b[2Jb\nc"
    run.mkdir()
    (run / "log.jsonl").write_text('{"kind": "note", "text": "odd \\u001b[2J"}\n')
    console = Console(file=io.StringIO(), width=200)
    console.print(watch.view(run, watch.watched(run), console))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[2J" not in console.file.getvalue()
    assert r"a\x1b[2Jb\nc" in console.file.getvalue()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_page_goes_into_a_pipe_and_no_file_takes_the_place_of_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    view = dict.fromkeys(("kind", "title", "headline", "command", "layout", "in_common"), "") | {
        "notes": [],
        "charts": [],
        "tables": [],
    }
    assert write_page("charts.html.j2", pipe, view) == pipe
    reader.join(10)
    assert pipe.is_fifo()
    assert read[0].startswith("<!doctype html>")
    with pytest.raises(UserError, match="is a folder, a pipe or a device; expected a file"):
        save_text("text", pipe)
    assert pipe.is_fifo()


def test_what_no_run_asked_for_is_not_imported(tmp_path: Path) -> None:
    """wandb, which timm imports, leaves temporary folders behind when a run is killed; the others take seconds."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("raise SystemExit(3)")
    code = (
        "import sys; sys.path.insert(0, '.'); import limbeck.runs.run; "
        "from limbeck.data import arrays; arrays.digits(); "
        "print(*[name for name in ('timm', 'torchvision', 'sklearn', 'torch._dynamo') if name in sys.modules]); "
        "import limbeck.models.library; print('wandb' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\nFalse True\n"), done.stderr[-500:]
