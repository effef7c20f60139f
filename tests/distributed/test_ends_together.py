"""Real launchers: no rank outlives another one that was killed, and nothing of launch.processes listens outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.several import free_port
from tests.distributed.test_start import wait_until_gone

CHECKOUT = Path(__file__).parents[2]
RANK = """
import os, sys, time
from mmadapter.distributed.deepspeed import load_deepspeed
from mmadapter.distributed.ranks import connected

with connected("cpu") as ranks:
    if sys.argv[1] == "DeepSpeed":
        load_deepspeed("cpu")
    ranks.sum([1.0])
    os.write(1, f"{ranks.rank} {os.getpid()}\\n".encode())
    while True:
        time.sleep(1) if sys.argv[1] == "Python" else ranks.sum([1.0])
"""
STARTER = """
import os, sys
from mmadapter.distributed.start import start_ranks

sys.exit(start_ranks([sys.executable, *sys.argv[1:]], 2, os.environ))
"""


def start(launcher: str, where: str, folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """The launcher, and the process of each of its two ranks, which are in a collective or in Python."""
    (folder / "rank.py").write_text(RANK)
    command = {
        "launch.processes": [sys.executable, "-c", STARTER],
        "torchrun": [
            str(Path(sys.executable).parent / "torchrun"),
            "--nproc-per-node=2",
            f"--master-port={free_port()}",
        ],
    }[launcher]
    process = subprocess.Popen(
        [*command, str(folder / "rank.py"), where],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    while len(lines) < 2 and (line := process.stdout.readline()):
        lines += [line.split()] if line[:1] in "01" else []
    assert len(lines) == 2, process.stderr.read()
    return process, [int(number) for _, number in sorted(lines)]


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize(
    "launcher,where",
    [("launch.processes", "a collective"), ("launch.processes", "Python"), ("torchrun", "a collective")],
)
def test_kill_9_of_one_rank_ends_the_other_and_the_command_within_30_seconds(launcher, where, killed, tmp_path):
    process, numbers = start(launcher, where, tmp_path)
    began = time.monotonic()
    os.kill(numbers[killed], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 30, said
    wait_until_gone(numbers)
    assert process.returncode == (137 if launcher == "launch.processes" else 1), said
    if (launcher, where) == ("launch.processes", "a collective"):  # torchrun ends the other before that can speak
        assert f"stopped: rank {1 - killed} of 2 has lost the connection to another rank in rank.py, line" in said, said


def test_the_ranks_of_launch_processes_use_the_loopback_interface_alone(tmp_path):
    """/proc/net says of every TCP socket of theirs, listening or not, which address it has."""
    process, numbers = start("launch.processes", "DeepSpeed", tmp_path)
    try:
        sockets = {link for pid in [process.pid, *numbers] for link in links(pid) if link.startswith("socket:[")}
        addresses = [
            words[1].split(":")[0]
            for table in ("tcp", "tcp6", "udp", "udp6")
            for words in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
            if f"socket:[{words[9]}]" in sockets
        ]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until_gone(numbers)
    assert len(addresses) >= 4, "both ranks listen for gloo and are connected"
    assert set(addresses) <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def links(pid: int) -> list[str]:
    """What the open files of a process are."""
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(file))
        except FileNotFoundError:  # closed in the meantime
            continue
    return found
