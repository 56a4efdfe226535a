#!/usr/bin/env python3
"""Prefill and decode speed of celslm's engine against llama.cpp, on this machine.

Both engines read the same GGUF files, use the same number of threads, and take turns: one fresh
process measures one engine once, then the other, there and back (A B, B A, ...), so that a drift
of the machine touches both alike. Medians over the repetitions are compared.

    python3 -m venv .bench && . .bench/bin/activate
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
    cargo build && python3 benches/versus_llama_cpp.py

Exits with 3 when a target is missed: prefill 2x (edge) or 1.5x (cloud), decode 1x, peak memory
1.5 times the model file plus the KV cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = {
    "edge": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "cloud": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
}
PREFILL_TARGET = {"edge": 2.0, "cloud": 1.5}
DECODE_TARGET = 1.0
MEMORY_TARGET = 1.5


def llama_once(path, threads, prefill, decode):
    """One measurement of llama.cpp in this process, as a dict; see `--worker`."""
    import llama_cpp

    model = llama_cpp.Llama(
        model_path=path,
        n_ctx=prefill + decode + 64,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    tokens = [1000 + i * 7 % 5000 for i in range(prefill)]
    model.eval(tokens[:64])  # touches the mapped file and starts the threads
    model.reset()
    model.eval(tokens)
    model.reset()
    start = time.perf_counter()
    model.eval(tokens)
    prefill_s = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(decode):
        model.eval([1000 + i])
    decode_s = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "prefill_tok_s": prefill / prefill_s,
        "decode_tok_s": decode / decode_s,
        "peak_rss_bytes": int(peak.split()[1]) * 1024,
        "version": llama_cpp.__version__,
    }


def celslm_once(binary, path, threads, prefill, decode):
    command = [binary, "device", "measure", "--model", path, "--threads", str(threads)]
    command += ["--prefill", str(prefill), "--decode", str(decode), "--format", "json"]
    command += ["--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr}")
    return json.loads(done.stdout)


def worker(path, threads, prefill, decode):
    """llama.cpp in a process of its own, so that memory and threads are its own too."""
    command = [sys.executable, __file__, "--worker", path, str(threads), str(prefill), str(decode)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"llama.cpp failed ({done.returncode}):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--celslm", default="target/debug/celslm", help="the binary")
    store = os.environ.get("CELSLM_MODELS") or Path.home() / ".local/share/celslm/models"
    parser.add_argument("--models", default=str(store), help="folder with the GGUF files")
    parser.add_argument("--threads", default="1,2", help="thread counts, comma separated")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--json", help="also write every measurement to this file")
    arguments = parser.parse_args()

    raw, missed, rows = [], [], []
    for threads in map(int, arguments.threads.split(",")):
        for role, file in MODELS.items():
            path = str(Path(arguments.models) / file)
            ours, theirs = [], []
            sizes = (threads, arguments.prefill, arguments.decode)
            for turn in range(arguments.repeat):
                engines = [
                    (ours, lambda: celslm_once(arguments.celslm, path, *sizes)),
                    (theirs, lambda: worker(path, *sizes)),
                ]
                for results, measure in engines if turn % 2 == 0 else reversed(engines):
                    results.append(measure())
                print(
                    f"{role}, {threads} threads, {turn + 1}/{arguments.repeat}: "
                    f"celslm {ours[-1]['prefill_tok_s']:.0f}/{ours[-1]['decode_tok_s']:.1f}, "
                    f"llama.cpp {theirs[-1]['prefill_tok_s']:.0f}/{theirs[-1]['decode_tok_s']:.1f}",
                    file=sys.stderr,
                )
            raw.append({"role": role, "threads": threads, "celslm": ours, "llama_cpp": theirs})
            cells = [role, str(threads)]
            for field, target in [
                ("prefill_tok_s", PREFILL_TARGET[role]),
                ("decode_tok_s", DECODE_TARGET),
            ]:
                a = [result[field] for result in ours]
                b = [result[field] for result in theirs]
                ratio = statistics.median(a) / statistics.median(b)
                cells += [spread(a), spread(b), f"{ratio:.2f}"]
                if ratio < target:
                    missed.append(f"{role}, {threads} threads, {field}: {ratio:.2f} < {target}")
            peak = max(result["peak_rss_bytes"] for result in ours)
            file_bytes = Path(path).stat().st_size
            memory = (peak - ours[-1]["kv_bytes"]) / file_bytes
            cells += [f"{peak / 1e6:.0f}", f"{memory:.2f}"]
            if memory > MEMORY_TARGET:
                missed.append(f"{role}, {threads} threads: memory {memory:.2f} x file")
            rows.append(cells)

    print(
        "| model | threads | prefill, tok/s | llama.cpp | ratio | decode, tok/s | llama.cpp | ratio "
        "| peak RSS, MB | (RSS - KV) / file |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")
    print(
        f"\nMedian (lowest to highest) of {arguments.repeat} processes each, taking turns; "
        f"prefill of {arguments.prefill} tokens, decode of {arguments.decode} tokens after them; "
        f"llama-cpp-python {raw[0]['llama_cpp'][0]['version']}."
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(raw, indent=1))
    for line in missed:
        print(f"MISSED {line}")
    return 3 if missed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        model, *numbers = sys.argv[2:]
        print(json.dumps(llama_once(model, *map(int, numbers))))
    else:
        sys.exit(main())
