"""Runs a load test and reports the processor time of all who took part, for loadtest/parts.

    cpu_parts.py run --label NAME --out FILE --server PID [--units N] [--database URL --redis URL] -- COMMAND
    cpu_parts.py table FILE

`run` appends one line of JSON to FILE. The times are divided by N, or by the units that the command reports. `table` prints the
medians of the lines with the same label.
"""

import argparse
import collections
import json
import os
import re
import resource
import statistics
import subprocess
import sys

TICK = os.sysconf("SC_CLK_TCK")

# Names of the server's threads and what they run.
THREADS = [
    (r"sealwire-batch", "server: batch workers"),
    (r"sealwire-store", "server: use cases, bus"),
    (r"sqlx-sqlite", "server: SQLite"),
    (r"", "server: sockets"),
]


def nanoseconds(task):
    """The processor time of a thread, from its schedstat."""
    try:
        with open(f"{task}/schedstat") as file:
            return int(file.read().split()[0])
    except OSError:
        return 0


def threads_of(pid):
    """Processor time of the threads of a process, by part."""
    parts = collections.Counter()
    for task in os.listdir(f"/proc/{pid}/task"):
        path = f"/proc/{pid}/task/{task}"
        try:
            with open(f"{path}/comm") as file:
                comm = file.read().strip()
        except OSError:
            continue
        part = next(part for pattern, part in THREADS if re.match(pattern, comm))
        parts[part] += nanoseconds(path)
    return parts


def stat_of(pid):
    """Parent of a process, and clock ticks of its finished children."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[1]), int(fields[13]) + int(fields[14])


def family_of(pid):
    """Nanoseconds of a process and its children, running and finished."""
    total = nanoseconds(f"/proc/{pid}/task/{pid}")
    for child in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent, _ = stat_of(child)
        except OSError:
            continue
        if parent == pid:
            total += nanoseconds(f"/proc/{child}/task/{child}")
    _, finished = stat_of(pid)
    return total + finished * 1_000_000_000 // TICK


def psql(url, text):
    return subprocess.run(["psql", "-qAtX", "-F", "\t", url, "-c", text], check=True, capture_output=True, text=True).stdout


def postmaster_of(url):
    child = psql(url, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").strip()
    return stat_of(child)[0]


def redis_of(url):
    port = url.rsplit(":", 1)[1].split("/")[0]
    info = subprocess.run(["redis-cli", "-p", port, "info", "server"], check=True, capture_output=True, text=True).stdout
    return int(re.search(r"process_id:(\d+)", info)[1])


def statements_of(url):
    """Microseconds and calls of each statement since the reset."""
    rows = psql(url, "SELECT calls, total_exec_time * 1000, regexp_replace(query, '\\s+', ' ', 'g') FROM pg_stat_statements"
                     " JOIN pg_database ON pg_database.oid = dbid WHERE datname = current_database()")
    found = collections.defaultdict(lambda: [0.0, 0])
    for line in rows.splitlines():
        calls, micros, text = line.split("\t", 2)
        found[text[:72]][0] += float(micros)
        found[text[:72]][1] += int(calls)
    return found


def run(options):
    def snapshot():
        parts = collections.Counter()
        for pid in options.server:
            parts += threads_of(pid)
        if options.database:
            parts["PostgreSQL"] += family_of(postmaster)
            parts["Redis"] += nanoseconds(f"/proc/{redis}/task/{redis}")
        return parts

    def of_children():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    if options.database:
        postmaster, redis = postmaster_of(options.database), redis_of(options.redis)
    before = snapshot()
    earlier = of_children()
    done = subprocess.run(options.command, check=True, capture_output=True, text=True)
    client = of_children() - earlier
    after = snapshot()
    report = json.loads(done.stdout)
    print(done.stdout.strip(), file=sys.stderr)
    if report.get("errors") or report.get("duplicates") or report.get("misplaced") \
            or report.get("accepted") != report.get("arrived"):
        sys.exit("loadtest/parts: something was refused, lost, changed or came twice")
    units = options.units or report.get("arrived") or report.get("claimed")
    parts = {part: (after[part] - before[part]) / 1000 / units for part in after}
    parts["client"] = client * 1e6 / units
    result = {"label": options.label, "rate": report["per_second"], "parts": parts, "statements": {}}
    if options.database:
        result["statements"] = {text: [micros / units, units / calls] for text, (micros, calls)
                                in statements_of(options.database).items()}
    with open(options.out, "a") as file:
        file.write(json.dumps(result) + "\n")


def table(path):
    by_label = collections.defaultdict(list)
    with open(path) as file:
        for line in file:
            result = json.loads(line)
            by_label[result["label"]].append(result)
    median = statistics.median
    for label, results in by_label.items():
        print(f"\n{label}: {median(one['rate'] for one in results):,.0f} a second")
        names = sorted({name for one in results for name in one["parts"]})
        values = {name: median(one["parts"].get(name, 0) for one in results) for name in names}
        for name, value in values.items():
            if value >= 0.05:
                print(f"  {name:<28} {value:7.1f}")
        print(f"  {'together':<28} {sum(values.values()):7.1f}")
        texts = {text for one in results for text in one["statements"]}
        rows = []
        for text in texts:
            found = [one["statements"][text] for one in results if text in one["statements"]]
            rows.append((median(micros for micros, _ in found), median(each for _, each in found), text))
        for micros, each, text in sorted(rows, reverse=True)[:12]:
            if micros >= 0.1:
                print(f"    {micros:6.1f} µs, one for {each:6.1f}: {text}")


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="name", required=True)
    running = commands.add_parser("run")
    running.add_argument("--label", required=True)
    running.add_argument("--out", required=True)
    running.add_argument("--server", type=int, action="append")
    running.add_argument("--units", type=int)
    running.add_argument("--database")
    running.add_argument("--redis")
    running.add_argument("command", nargs="+")
    commands.add_parser("table").add_argument("path")
    options = parser.parse_args()
    if options.name == "run":
        run(options)
    else:
        table(options.path)


main()
