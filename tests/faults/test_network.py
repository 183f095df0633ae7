"""Nothing reaches for the network that was not asked to: the demo and what follows a run, under an audit of sockets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

# Every connection and every look-up of a name goes through these events of the interpreter, whatever library makes it.
AUDITED = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        if event == "socket.connect" and not isinstance(arguments[1], tuple):
            return  # a socket of this machine's own files
        with open(sys.argv[1], "a", encoding="utf-8") as log:
            log.write(f"{event} {arguments[1:]}\\n")
        raise OSError(f"no network in this test: {event}")

sys.addaudithook(refuse)
from limbeck.cli import main
sys.exit(main(sys.argv[2:]))
"""


def limbeck(folder: Path, *words: str) -> tuple[int, str]:
    """Exit code of a command, and what reached for the network."""
    offline = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")  # set by the other tests; a user has them not
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    log = folder / "network.log"
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(log), *words],
        env={**environment, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, log.read_text(encoding="utf-8") if log.is_file() else ""


@pytest.mark.processes
@pytest.mark.long
def test_the_demo_and_its_report_reach_for_nothing(tmp_path: Path) -> None:
    short = ["--epochs", "1", "--teacher-epochs", "1", "--train-limit", "100", "--device", "cpu"]
    demo = ["compare", "--recipe", "digits", "--methods", "alone", "projector", "--seeds", "1", "--out", "demo", *short]
    assert limbeck(tmp_path, *demo) == (0, "")
    (run,) = (tmp_path / "demo").glob("projector*")
    for words in (["report", str(run)], ["evaluate", str(run)], ["export", str(run)]):
        assert limbeck(tmp_path, *words) == (0, ""), words


@pytest.mark.processes
@pytest.mark.long
def test_the_audit_sees_what_does_reach(tmp_path: Path) -> None:
    """Weights that were asked for by name: one line of error, and the attempt is in the log."""
    code, tried = limbeck(
        tmp_path, "distill", "--student", "hub/me/net", "--teacher", "small/cnn-2", "--data", "digits"
    )
    assert code == 2
    assert "urllib.Request" in tried or "socket." in tried
