"""The commands of docs/performance.md run and print their table."""

from __future__ import annotations

import subprocess
import sys


def test_the_scaling_bench_prints_a_row_a_case(checkout):
    command = [sys.executable, "-m", "bench.scaling", "--engines", "single", "--processes", "1", "--steps", "1"]
    command += ["--width", "64", "--layers", "2", "--batch", "2", "--tokens", "16", "adapter.prompts.layers=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1].split(" | ")
    assert row[:3] == ["| single", "1", "1.00"] and float(row[3]) > 0
