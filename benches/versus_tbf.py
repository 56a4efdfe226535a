#!/usr/bin/env python3
"""The rate of celslm's link against the kernel's token bucket (tc tbf), on this machine.

Both carry one TCP transfer of iperf3 between two network namespaces, at the same rates, taking turns
(A B, B A, ...), so that a drift of the machine touches both alike. Goodput is converted to IP bytes
(1500 of which 1448 are payload), which is what either is told to let through. Packets and CPU are the
packet thread's, both ways together.

    apt-get install iperf3 iproute2
    cargo build && sudo python3 benches/versus_tbf.py

A kernel without sch_netem has no counterpart for the delay. The emulator Rattan accepts +-3% of the
rate, and 145 to 155 ms for 150 ms, in its own tests; the last line is what this link does there.

Exits with 3 when the link misses +-0.5% up to 300 Mbit/s or +-2% above.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IP_SHARE = 1500 / 1448
RTT_MS = 2.0


def sh(command):
    subprocess.run(command, shell=True, check=True, capture_output=True)


class Tbf:
    """Two namespaces, a veth pair, and a token bucket at the sender."""

    def __init__(self, rate):
        sh("ip netns add tbf-a && ip netns add tbf-b")
        sh("ip link add v0 netns tbf-a type veth peer name v0 netns tbf-b")
        for end, host in (("tbf-a", 1), ("tbf-b", 2)):
            sh(f"ip -n {end} addr add 10.78.0.{host}/24 dev v0 && ip -n {end} link set v0 up")
            sh(f"ip netns exec {end} ethtool -K v0 tso off gso off gro off || true")
        # A bucket of 2 ms, at least ten packets; a queue of 50 ms.
        burst = max(15_000, int(rate * 1e6 / 8 * 0.002))
        sh(f"ip netns exec tbf-a tc qdisc add dev v0 root tbf rate {rate}mbit burst {burst} latency 50ms overhead -14 || "
           f"ip netns exec tbf-a tc qdisc add dev v0 root tbf rate {rate}mbit burst {burst} latency 50ms")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run("ip netns del tbf-a; ip netns del tbf-b", shell=True, capture_output=True)


def goodput(report):
    return report["end"]["sum_received"]["bits_per_second"] / 1e6


def ours(celslm, rate, seconds, folder, costs):
    profile = Path(folder) / f"bench-{rate}.toml"
    way = f"rate_mbit = {rate}.0\ndelay_ms = {RTT_MS / 2}\n"
    profile.write_text(
        f'name = "bench-{rate}"\ndescription = "bench"\nsource = "bench"\n[uplink]\n{way}[downlink]\n{way}'
    )
    run = subprocess.run(
        [celslm, "link", "run", "--profile", str(profile), "--report", f"{folder}/report.json",
         "--cloud", "iperf3 -s -1 >/dev/null", "--",
         "iperf3", "-c", "{cloud}", "-t", str(seconds), "-O", "1", "-J"],
        capture_output=True, text=True, check=True)
    report = json.loads(Path(folder, "report.json").read_text())
    ways = report["counters"].values()
    packets = sum(way["delivered_packets"] for way in ways)
    gigabits = sum(way["delivered_bytes"] for way in ways) * 8 / 1e9
    costs.append((report["audit"]["cpu_s"] / gigabits, packets / (seconds + 1),
                  report["audit"]["lateness_p99_us"]))
    return goodput(json.loads(run.stdout))


def tbf(rate, seconds):
    with Tbf(rate):
        server = subprocess.Popen("ip netns exec tbf-b iperf3 -s -1", shell=True,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        run = subprocess.run(
            f"ip netns exec tbf-a iperf3 -c 10.78.0.2 -t {seconds} -O 1 -J -C cubic",
            shell=True, capture_output=True, text=True, check=True)
        server.wait(timeout=10)
    return goodput(json.loads(run.stdout))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--celslm", default="target/debug/celslm", help="the binary")
    parser.add_argument("--rates", default="10,100,300,1000", help="Mbit/s, comma separated")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    args = parser.parse_args()
    missed = False
    print("| rate, Mbit/s | celslm link, Mbit/s | off by | packets/s | CPU s per Gbit | lateness p99, us "
          "| tc tbf, Mbit/s | off by |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for rate in map(int, args.rates.split(",")):
            found = {"ours": [], "tbf": []}
            costs = []
            for turn in range(args.repeat):
                order = ["ours", "tbf"] if turn % 2 == 0 else ["tbf", "ours"]
                for who in order:
                    value = (ours(args.celslm, rate, args.seconds, folder, costs) if who == "ours"
                             else tbf(rate, args.seconds))
                    found[who].append(value * IP_SHARE)
                    print(f"{rate}: {who} {value * IP_SHARE:.2f}", file=sys.stderr)
            cells = []
            for who in ("ours", "tbf"):
                median = statistics.median(found[who])
                spread = f"{median:.2f} ({min(found[who]):.2f} to {max(found[who]):.2f})"
                cells.append(f"{spread} | {100 * (median / rate - 1):+.2f}%")
            tolerance = 0.005 if rate <= 300 else 0.02
            missed |= abs(statistics.median(found["ours"]) / rate - 1) > tolerance
            cpu, packets, late = (statistics.median(column) for column in zip(*costs))
            print(f"| {rate} | {cells[0]} | {packets:,.0f} | {cpu:.2f} | {late:.0f} | {cells[1]} |",
                  flush=True)
    check = subprocess.run([args.celslm, "link", "calibrate", "100/150", "--format", "json"],
                           capture_output=True, text=True)
    figure = json.loads(check.stdout)["calibrations"][0]["calibration"]["rtt_p50_ms"]
    print(f"\nRTT for 150 ms: {figure['measured']:.2f} ms (Rattan's own tests accept 145 to 155 ms and +-3% of the rate)")
    sys.exit(3 if missed else 0)


if __name__ == "__main__":
    main()
