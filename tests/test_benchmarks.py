"""Measurements that are made elsewhere must not fail there for a silly reason: they are rehearsed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ENVIRONMENT, ROOT


def test_the_measurements_on_a_gpu_are_rehearsed_on_a_cpu(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = ENVIRONMENT | {"OUT": str(tmp_path), "PATH": path}
    command = ["bash", "benchmarks/gpu.sh", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=500)
    results = json.loads((tmp_path / "results.json").read_text())
    assert done.returncode == 0, done.stdout
    parts = ["tests", "training", "peer", "fp16", "memory", "resume", "labels", "profile"]
    assert list(results) == ["device", "torch", *parts]
    assert results["resume"]["largest difference of a weight"] == 0
    assert "skipped" in results["tests"]["pytest"] or "passed" in results["tests"]["pytest"]
    assert results["peer"]["16"]["ratio of pairs"] > 0 and "Name" in (tmp_path / "profile.txt").read_text()
    assert "| resume largest difference of a weight | 0 " in (tmp_path / "results.md").read_text()
