"""Ask OSV what is known to be vulnerable of the packages that are installed beside the given interpreter.

    python .ci/audit.py BIN    # BIN holds its python; pip-audit is installed there if it is missing

Exits with 1 if something is known, and prints it. Where OSV cannot be reached, or does not answer in time, that is
said, and nothing fails: a check that needs the network must not stop work without one (docs/decisions/0026).
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

OSV = "https://api.osv.dev/v1/query"
PATIENCE = 5.0  # seconds for a first answer
LIMIT = float(os.environ.get("AUDIT_SECONDS", "240"))  # for all packages, one question each
SKIPPED = "audit: skipped, nothing was checked"


def answers(url: str) -> bool:
    """Whether a server says anything, be it an error."""
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def lines_of(report: str) -> list[str] | None:
    """What is known, a line for each package and vulnerability; None where this is no report of pip-audit."""
    try:
        packages = json.loads(report)["dependencies"]
        return [
            f"{package['name']} {package['version']}: {found['id']}, "
            + (f"mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "not mended yet")
            for package in packages
            for found in package.get("vulns", ())
        ]
    except (ValueError, KeyError, TypeError):
        return None


def main(folder: Path, url: str = OSV) -> int:
    if not answers(url):
        print(f"{SKIPPED}: OSV is not reachable from here")
        return 0
    if not (folder / "pip-audit").is_file():
        install = [folder / "python", "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt"]
        if subprocess.run([*install, "--editable", ".[audit]"], check=False).returncode:
            print(f"{SKIPPED}: pip-audit cannot be installed")
            return 0
    command = [folder / "pip-audit", "--vulnerability-service", "osv", "--local", "--skip-editable"]
    options = ["--progress-spinner", "off", "--format", "json", "--timeout", str(int(PATIENCE))]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        print(f"{SKIPPED}: no answer for all packages within {LIMIT:.0f} seconds")
        return 0
    found = lines_of(done.stdout)
    if found is None:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"{SKIPPED}: pip-audit gave no report ({last})")
        return 0
    print("\n".join(found) if found else "audit: nothing is known of the installed packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
