# SPDX-License-Identifier: Apache-2.0
"""The demo script: a signal reaches the step under way and sets the exit status."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Stands for rfjax where only its signals matter: it saves for a moment, and notes them.
STAND_IN = """#!/usr/bin/env bash
saved() { sleep 0.3; echo "$1" >> noted; exit 143; }
trap 'saved TERM' TERM
trap 'saved INT' INT
touch started
for i in $(seq 100); do sleep 0.1; done
"""


@pytest.mark.parametrize("to_group", [False, True], ids=["script", "group"])
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_the_demo_after_its_step(tmp_path, number, status, to_group):
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "demo.sh", tmp_path / "launch")
    (tmp_path / "rfjax").write_text(STAND_IN)
    (tmp_path / "rfjax").chmod(0o755)
    process = subprocess.Popen(
        # The tests themselves may run under nohup.
        ["env", "--default-signal=HUP,INT", "bash", "launch/demo.sh"],
        cwd=tmp_path, start_new_session=True, env=os.environ | {"RFJAX": "./rfjax"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while not (tmp_path / "started").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        if to_group:  # as a terminal does
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(timeout=20) == status
    finally:
        process.kill()
    if not (to_group and number == signal.SIGHUP):  # the stand-in has no handler of it
        assert (tmp_path / "noted").read_text() in ("TERM\n", "INT\n")
