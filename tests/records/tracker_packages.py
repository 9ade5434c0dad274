"""Packages of a tracker's name, written for `sys.path`: real modules that note how they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOTING = """
import json, os

def note(call, **values):
    with open(os.environ["TRACKER_NOTES"], "a") as file:
        file.write(json.dumps({"call": call, **values}) + "\\n")

note("import", mode=os.environ.get("WANDB_MODE"), nice=os.nice(0))
"""
TRACKIO = (
    NOTING
    + """
def init(project, name=None, resume="never", config=None):
    note("init", project=project, name=name, resume=resume, config=config)

def log(metrics, step=None):
    note("log", step=step, **metrics)

def finish():
    note("finish")
"""
)
WANDB = (
    NOTING
    + """
class Run:
    def log(self, metrics, step=None):
        note("log", step=step, **metrics)

    def finish(self):
        note("finish")

def init(project, name, id, resume, dir, config):
    note("init", project=project, name=name, id=id, resume=resume, config=config)
    assert os.path.isdir(dir)
    return Run()
"""
)
RAISING = NOTING + 'raise RuntimeError("no licence for this machine")\n'
HANGING = NOTING + "import time\ntime.sleep(600)\n"
CONNECTING = NOTING + 'import socket\nsocket.create_connection(("192.0.2.1", 443), timeout=5)\n'
# Python imports it at its start, in every process of the test: no connection leaves the machine unnoticed.
SITE = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["NETWORK_NOTES"], "a") as file:
            file.write(f"{event} {arguments[1:] if event.endswith(('connect', 'sendto')) else arguments}\\n")
        raise OSError("the network is blocked")

sys.addaudithook(refuse)
"""


def write_package(folder: Path, name: str, source: str) -> Path:
    """A package of this source; returns the folder to put on the path."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")
    return folder


def notes(path: Path) -> list[dict[str, Any]]:
    """What the packages noted."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
