"""Launch sweeps and die by SIGKILL at a chosen step of each submission.

    python killed_launch.py ORDERS

ORDERS is a JSON list of {"directory", "arguments", "die_before", "environment"}. A step is whatever
changes a file below the directory's ``multirun``, takes a lock there, or calls another program
than git.
``die_before`` is the number of one; null launches undisturbed. The imports are paid for once: every
launch is a fork of this process. Prints a JSON list with, for each order, the exit code (-9 after
SIGKILL) and the steps that were taken or reached.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import submitit  # noqa: F401 - imported once, not once a launch
from hydra.core.plugins import Plugins

import launch
from rundir import exit_code_of

CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.chmod", "fcntl.flock"}


def step_of(event: str, arguments: tuple) -> str | None:
    """Return the name of a step, or None for an event that is none."""
    if event == "subprocess.Popen":
        words = [Path(word).name for word in arguments[1]]
        return None if words[0] == "git" else "call " + " ".join(words[:3])
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
    elif event in CHANGES:
        path = arguments[0]
        if isinstance(path, int):  # a descriptor
            path = os.readlink(f"/proc/self/fd/{path}")
    else:
        return None
    path = os.path.relpath(os.fspath(path))
    if event == "os.mkdir" and (Path(path).is_dir() or not Path(path).parent.is_dir()):
        return None
    return f"{event} {_timeless(path)}" if path.startswith("multirun") else None


def _timeless(path: str) -> str:
    """Return a path of a sweep without what differs between two launches."""
    home = path.partition("/.sweep/")[2] or path
    home = re.sub(r"code/\.new-[^/]+(/.+)?", lambda m: "code/NEW" + ("/FILE" * bool(m[1])), home)
    home = re.sub(r"[0-9a-f]{32}", "UUID", home)
    home = re.sub(r"(submissions|code)/[0-9a-f]{8,16}", r"\1/ID", home)
    return re.sub(r"(json)\.\w+", r"\1.TEMPORARY", re.sub(r"ID/\d+", "ID/JOB", home))


def carry_out(order: dict, steps: Path) -> None:
    """Be the launch: never return."""
    os.chdir(order["directory"])
    sys.argv = ["launch.py", *order["arguments"]]
    os.environ["LAUNCHER"] = str(os.getpid())
    os.environ.update(order.get("environment", {}))
    log = os.open("launch.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    taken = steps.open("w", buffering=1)
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        name = step_of(event, arguments)
        if name is None:
            return
        print(name, file=taken)
        if count == order["die_before"]:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(watch)
    code = 1
    try:
        code = exit_code_of(launch.launch)
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    Plugins.instance()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, order in enumerate(json.loads(sys.argv[1])):
            steps = Path(folder) / str(number)
            child = os.fork()
            if child == 0:
                carry_out(order, steps)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            found.append({"code": code, "steps": steps.read_text().splitlines()})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
