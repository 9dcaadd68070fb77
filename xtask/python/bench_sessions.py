"""ONNX Runtime sessions for measuring, and proof of what they run."""

import os
import time

import onnxruntime as ort

from session_worker import executed_nodes

CPU = "CPUExecutionProvider"
# Shorter runs are repeated until they last so long together, in seconds.
LEAST = 20e-3


def options(library=None, threads=None, profile=None):
    """Default session options but for the number of threads, the library, and profiling."""
    made = ort.SessionOptions()
    made.log_severity_level = 4
    if threads:
        made.intra_op_num_threads = threads
    if library:
        made.register_custom_ops_library(str(library))
    if profile:
        made.enable_profiling = True
        made.profile_file_prefix = str(profile)
    return made


class Session:
    """A session on the CPU provider, and its feeds."""

    def __init__(self, path, feeds, library=None, threads=None):
        made = options(library, threads)
        self.session = ort.InferenceSession(str(path), made, providers=[CPU])
        if self.session.get_providers() != [CPU]:
            raise RuntimeError(f"{path} runs on {self.session.get_providers()}, not on {CPU} alone")
        self.feeds = feeds

    def outputs(self):
        return self.session.run(None, self.feeds)

    def seconds(self):
        """Runs once, or a short run more often; the seconds that one took. A run before wakes the threads."""
        self.session.run(None, self.feeds)
        start, runs = time.perf_counter(), 0
        while True:
            self.session.run(None, self.feeds)
            runs += 1
            elapsed = time.perf_counter() - start
            if elapsed >= LEAST:
                return elapsed / runs


def executed(path, feeds, folder, library=None):
    """How many nodes of each op type ran, from ONNX Runtime's profile of one run: {op type: count}.

    Fails when a node ran elsewhere than on the CPU provider, or, with the library, when no op of ours ran."""
    session = ort.InferenceSession(
        str(path), options(library, profile=folder / "profile"), providers=[CPU]
    )
    session.run(None, feeds)
    profile = session.end_profiling()
    nodes = executed_nodes(profile)
    os.remove(profile)
    if set(nodes) != {CPU}:
        raise RuntimeError(f"{path} ran on {sorted(nodes)}, not on {CPU} alone")
    counts = nodes[CPU]
    if library and not any(op.startswith("Decode") for op in counts):
        raise RuntimeError(f"{path} ran without a single nz node: {counts}")
    return counts
