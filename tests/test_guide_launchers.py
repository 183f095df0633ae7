"""What the guide shows of launchers is what they, and we, can read; ``test_torchrun`` runs the same flags."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

import test_torchrun
from limbeck.cli.flags import RunFlags, all_fields, make_recipe, parse_recipe
from test_readme import blocks

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide.md"


def slurm() -> str:
    return next(text for text in blocks(GUIDE, "bash") if "#SBATCH" in text)


def kubernetes() -> dict[str, Any]:
    return {part["kind"]: part for part in yaml.safe_load_all(blocks(GUIDE, "yaml")[0])}


def commands() -> dict[str, list[str]]:
    """Where from to the words of its torchrun."""
    single = next(text for text in blocks(GUIDE, "sh") if text.startswith("torchrun"))
    line = slurm().replace("\\\n", " ").split("srun ")[1].splitlines()[0]
    pod = kubernetes()["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    return {"one machine": shlex.split(single.replace("\\\n", " ")), "slurm": shlex.split(line), "kubernetes": pod}


@pytest.mark.parametrize("where", ["one machine", "slurm", "kubernetes"])
def test_torchrun_and_limbeck_read_their_flags(where: str) -> None:
    words = commands()[where]
    assert words[0] == "torchrun"
    read = get_args_parser().parse_args(words[1:])
    assert read.module
    assert read.training_script == "limbeck.cli"
    assert int(read.max_restarts) == 3
    command, *flags = read.training_script_args
    values, options = parse_recipe(flags, RunFlags(), command=command, description="", fields=all_fields(), fallback={})
    recipe = make_recipe(values, all_fields(), words)
    assert recipe.batch_size % (int(read.nproc_per_node) * int(read.nnodes.split(":")[0])) == 0
    assert options.resume_if_begun
    assert options.out == "runs/first"
    assert recipe.checkpoint_every == 500


def test_what_is_run_by_torchrun_here_is_what_the_guide_shows() -> None:
    assert "--resume-if-begun" in test_torchrun.FLAGS
    source = Path(test_torchrun.__file__).read_text(encoding="utf-8")
    for flag in ("--standalone", "--nproc-per-node", "--max-restarts"):
        assert flag in source
        assert flag in commands()["one machine"]


def test_several_machines_have_a_store_for_each_start() -> None:
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert f"export {name}=1" in slurm()
    container = kubernetes()["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert {"name": name, "value": "1"} in container["env"]


def test_there_is_time_for_a_checkpoint() -> None:
    pod = kubernetes()["Job"]["spec"]["template"]["spec"]
    grace = {"slurm": int(re.findall(r"--signal=TERM@(\d+)", slurm())[0])}
    grace["kubernetes"] = int(pod["terminationGracePeriodSeconds"])
    for where, seconds in grace.items():
        assert int(get_args_parser().parse_args(commands()[where][1:]).shutdown_timeout) < seconds


def test_the_pods_find_the_first_one() -> None:
    parts = kubernetes()
    pod, service = parts["Job"]["spec"]["template"]["spec"], parts["Service"]
    assert parts["Job"]["spec"]["completionMode"] == "Indexed"
    assert parts["Job"]["spec"]["completions"] == parts["Job"]["spec"]["parallelism"]
    assert service["spec"]["selector"] == {"job-name": parts["Job"]["metadata"]["name"]}
    host = get_args_parser().parse_args(commands()["kubernetes"][1:]).rdzv_endpoint.split(":")[0]
    assert host == f"{parts['Job']['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("is_done", [True, False])
def test_the_slurm_script_asks_to_be_queued_again_until_the_run_is_done(tmp_path: Path, is_done: bool) -> None:
    """Under a stand-in of Slurm, with what it calls written down."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash")
    for name, body in {
        "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> calls; fi',
        "srun": 'printf "%s\\n" "$@" > srun.words; env > srun.env; exit 1',
    }.items():
        (tmp_path / name).write_text(f"#!{bash}\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    if is_done:
        (tmp_path / "runs" / "first").mkdir(parents=True)
        (tmp_path / "runs" / "first" / "summary.json").write_text(json.dumps({}), encoding="utf-8")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    subprocess.run([bash], input=slurm(), text=True, cwd=tmp_path, env=environment, check=False, timeout=30)
    words = (tmp_path / "srun.words").read_text(encoding="utf-8").splitlines()
    assert words[words.index("--rdzv-endpoint") + 1] == "node1:29500"
    assert words[words.index("--rdzv-id") + 1] == "7"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in (tmp_path / "srun.env").read_text(encoding="utf-8")
    calls = (tmp_path / "calls").read_text(encoding="utf-8") if (tmp_path / "calls").exists() else ""
    assert calls == ("" if is_done else "requeue 7\n")
