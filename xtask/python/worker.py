"""Drives session_worker.py: an ONNX Runtime session in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).with_name("session_worker.py")


class WorkerError(RuntimeError):
    """ONNX Runtime refused something in the worker process; the text is its message."""


class Worker:
    """A context manager; leaving it ends the process."""

    def __init__(
        self,
        model,
        inputs,
        library=None,
        profile=False,
        threads=None,
        python=None,
        environment=None,
        provider=None,
        options=(),
    ):
        """`inputs` is the path of an .npz file; `python` another interpreter than this one; `environment` has
        further variables; `provider` is a library whose NzExecutionProvider the session gets, with `options`."""
        command = [str(python or sys.executable), str(SCRIPT), str(model), str(inputs)]
        self.folder = tempfile.TemporaryDirectory(prefix="nz-worker-")
        if library:
            command += ["--library", str(library)]
        if provider:
            command += ["--provider", str(provider)]
            for key, value in dict(options).items():
                command += ["--option", f"{key}={value}"]
        if profile:
            command += ["--profile", str(Path(self.folder.name) / "profile")]
        if threads:
            command += ["--threads", str(threads)]
        self.model = model
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder.name,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def call(self, do, **arguments):
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait(timeout=60)
            raise RuntimeError(f"the process with {self.model} ended with {code} during '{do}'")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def load(self):
        """Creates the session."""
        self.call("load")

    def run(self, times=1):
        """Runs the session; the seconds that each run took."""
        return self.call("run", times=times)["seconds"]

    def memory(self):
        """Resident memory in bytes: rss, anonymous, file, and peak."""
        return self.call("memory")

    def outputs(self):
        """The outputs of the last run."""
        import numpy as np

        path = Path(self.folder.name) / "outputs.npz"
        self.call("save", to=str(path))
        with np.load(path) as file:
            return [file[f"o{i}"] for i in range(len(file.files))]

    def nodes(self):
        """How many nodes of each op type ran, by execution provider. Needs `profile=True`."""
        return self.call("nodes")["nodes"]


def nz_nodes(executed):
    """The ops of domain nz among the executed nodes, as {op type: count}."""
    provider = executed.get("CPUExecutionProvider", {})
    return {op: count for op, count in provider.items() if op.startswith("Decode")}
