#!/usr/bin/env python3
"""One ONNX Runtime session in a process of its own, for measuring.

Reads one JSON command a line from stdin and answers each with one JSON line on stdout:

    {"do": "load"}              create the session
    {"do": "run", "times": N}   run it N times -> {"seconds": [...]}
    {"do": "memory"}            -> {"rss", "anonymous", "file", "peak"}, bytes
    {"do": "nodes"}             end profiling -> {"nodes": {"<provider>": {"<op type>": count}}}
    {"do": "save", "to": PATH}  write the outputs of the last run as .npz, keys o0, o1, ...

A command that fails is answered with {"error": message}. The session has default options; only the
library is registered, and profiling switched on, where asked for.

usage: session_worker.py MODEL INPUTS.npz [--library LIB] [--provider LIB [--option KEY=VALUE]...]
                         [--profile PREFIX] [--threads N]
"""

import argparse
import json
import os
import sys
import time

import numpy as np
import onnxruntime as ort


def memory():
    """Resident memory of this process in bytes: now, and the most there has been."""
    found = {}
    for name in ("smaps_rollup", "status"):
        with open(f"/proc/self/{name}") as file:
            for line in file:
                fields = line.split()
                if len(fields) == 3 and fields[2] == "kB":
                    found.setdefault(fields[0].rstrip(":"), int(fields[1]) * 1024)
    return {
        "rss": found["Rss"],
        "anonymous": found["Anonymous"],
        "file": found["Rss"] - found["Anonymous"],
        "peak": found["VmHWM"],
    }


def executed_nodes(profile):
    """How many nodes of each op type each execution provider ran, from ONNX Runtime's profile."""
    with open(profile) as file:
        events = json.load(file)
    seen = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            arguments = event["args"]
            key = arguments["provider"], arguments["op_name"]
            # Nodes need not have names of their own; the index tells them apart within a graph.
            seen.setdefault(key, set()).add((event["name"], arguments.get("node_index")))
    nodes = {}
    for (provider, op), names in sorted(seen.items()):
        nodes.setdefault(provider, {})[op] = len(names)
    return nodes


def arrays(value):
    """The arrays in an output, which may be a sequence of maps (what classifiers call probabilities)."""
    if isinstance(value, list):
        return [array for part in value for array in arrays(part)]
    if isinstance(value, dict):
        return [np.array([value[key] for key in sorted(value)])]
    # Strings come as objects, which .npz files do not hold.
    return [value.astype(str) if value.dtype == object else value]


class Worker:
    def __init__(self, arguments):
        self.arguments = arguments
        with np.load(arguments.inputs) as file:
            self.inputs = {name: file[name] for name in file.files}
        self.session = None
        self.outputs = None

    def load(self, _):
        options = ort.SessionOptions()
        if self.arguments.library:
            options.register_custom_ops_library(self.arguments.library)
        if self.arguments.profile:
            options.enable_profiling = True
            options.profile_file_prefix = self.arguments.profile
        if self.arguments.threads:
            options.intra_op_num_threads = self.arguments.threads
        if self.arguments.provider:
            ort.register_execution_provider_library("nz", self.arguments.provider)
            devices = [device for device in ort.get_ep_devices() if device.ep_name == "NzExecutionProvider"]
            options.add_provider_for_devices(devices, dict(self.arguments.option))
            # Or a provider that fails would be replaced by the CPU's without a word.
            self.session = ort.InferenceSession(self.arguments.model, options, enable_fallback=0)
        else:
            self.session = ort.InferenceSession(
                self.arguments.model, options, providers=["CPUExecutionProvider"]
            )
        return {}

    def run(self, command):
        seconds = []
        for _ in range(command["times"]):
            # The outputs of the run before must not count as memory of this one.
            self.outputs = None
            start = time.perf_counter()
            self.outputs = self.session.run(None, self.inputs)
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def memory(self, _):
        return memory()

    def nodes(self, _):
        profile = self.session.end_profiling()
        nodes = executed_nodes(profile)
        os.remove(profile)
        return {"nodes": nodes}

    def save(self, command):
        np.savez(command["to"], **{f"o{i}": value for i, value in enumerate(arrays(self.outputs))})
        return {}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("--library")
    parser.add_argument("--provider")
    parser.add_argument("--option", action="append", default=[], type=lambda text: text.split("=", 1))
    parser.add_argument("--profile")
    parser.add_argument("--threads", type=int)
    worker = Worker(parser.parse_args())
    actions = {name: getattr(worker, name) for name in ("load", "run", "memory", "nodes", "save")}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = actions[command["do"]](command)
        except Exception as error:  # the driver decides what to make of it
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
