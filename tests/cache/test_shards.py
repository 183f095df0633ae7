"""Shards: whole or not there, and every damage is found."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.cache.shards import open_shard, shard_bytes, verify_shard, write_shard
from limbeck.errors import UserError

TENSORS = {
    "index": torch.arange(5, dtype=torch.int32),
    "output": torch.arange(30, dtype=torch.float16).view(5, 6),
    "b": torch.ones(5, 2, dtype=torch.bfloat16),
}


def test_a_shard_comes_back_mapped_and_verified(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(TENSORS, path)
    verify_shard(path)
    got = open_shard(path)
    assert got.keys() == TENSORS.keys()
    assert all(torch.equal(got[name], TENSORS[name]) for name in TENSORS)
    assert path.stat().st_size == shard_bytes(TENSORS)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_equal_tensors_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_shard(dict(reversed(TENSORS.items())), here)
    code = (
        "import sys, torch; from pathlib import Path; from limbeck.cache.shards import write_shard; "
        "write_shard({'index': torch.arange(5, dtype=torch.int32), 'b': torch.ones(5, 2, dtype=torch.bfloat16), "
        "'output': torch.arange(30, dtype=torch.float16).view(5, 6)}, Path(sys.argv[1]))"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    subprocess.run([sys.executable, "-c", code, str(there)], check=True, env={"PYTHONPATH": str(source)})
    assert here.read_bytes() == there.read_bytes()


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(TENSORS, path)
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(UserError, match=r"a.safetensors is damaged \(.*\); delete that file") as raised:
            verify_shard(path)
        assert "\n" not in str(raised.value)
    path.write_bytes(content)
    verify_shard(path)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_truncated_file_is_found_when_it_is_opened(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(TENSORS, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        open_shard(path)


def test_a_missing_and_a_foreign_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is gone"):
        open_shard(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(UserError, match="its checksum differs"):
        verify_shard(tmp_path / "foreign")
