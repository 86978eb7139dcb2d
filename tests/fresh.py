# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Fresh Python processes that do not import torch and Transformers anew, which takes seconds.

A server imports both, and nothing of csc_hf. It forks for each program, which then runs as by `python -c`: its output,
its status and how Python ends are its own.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess]


@contextlib.contextmanager
def server(modules: Path) -> Iterator[Run]:
    """Within, a function that runs programs. Remote code is copied to the folder `modules`."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"HF_MODULES_CACHE": str(modules)},
        ) as process,
    ):
        theirs.close()

        def run(code: str, *args: object, env: dict[str, str] | None = None, cwd=None, stdout: int | None = None):
            """Run a program.

            Args:
                code: what `python -c` would take.
                args: its arguments.
                env: variables beside those of this process. What Transformers reads when it is imported stays.
                cwd: its folder.
                stdout: a file descriptor; without, the output is returned.
            """
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
                job = {"code": code, "args": list(map(str, args)), "cwd": str(cwd or Path.cwd())}
                job["env"] = os.environ | (env or {})
                socket.send_fds(ours, [json.dumps(job).encode() + b"\n"], [stdout or out.fileno(), err.fileno()])
                status = os.waitstatus_to_exitcode(int(ours.makefile("r").readline()))
                out.seek(0)
                err.seek(0)
                return subprocess.CompletedProcess(code, status, out.read(), err.read())

        ours.settimeout(300)
        yield run
        ours.close()  # which ends it
        process.wait(60)


def serve(connection: socket.socket) -> str:
    """Fork for each job that arrives. Returns, in the child, the program to be run."""
    while True:
        message, descriptors, *_ = socket.recv_fds(connection, 2**20, 2)
        while message and not message.endswith(b"\n"):
            message += connection.recv(2**20)
        if not message:
            sys.exit()
        child = os.fork()
        if child == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{status}\n".encode())
    connection.close()
    job = json.loads(message)
    for descriptor, standard in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    # The streams that were opened with this process believe that they can be sought in.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(job["env"])
    tempfile.tempdir = None  # which depends on them
    os.chdir(job["cwd"])
    sys.argv[:] = ["-c", *job["args"]]
    sys.path[0] = ""
    return job["code"]


if __name__ == "__main__":
    import torch  # noqa: F401
    from transformers import AutoFeatureExtractor, AutoModelForPreTraining, PreTrainedModel, pipeline  # noqa: F401

    assert "csc_hf" not in sys.modules
    exec(compile(serve(socket.socket(fileno=int(sys.argv[1]))), "<string>", "exec"), {"__name__": "__main__"})
