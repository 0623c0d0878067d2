"""Makes the tables of the README from the results of loadtest/all.

usage: tables.py RESULTS [FILE...]

RESULTS has a line for each measurement: a key, and values that are separated by tabs. A FILE gets the tables between the lines
`<!-- NAME: written by loadtest/all -->` and `<!-- /NAME -->`. Without a FILE, they are printed.
"""

import sys

NOT_MEASURED = "–"


class Results:
    """The measurements by key."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as lines:
            rows = [line.rstrip("\n").split("\t") for line in lines]
        self.rows = {key: values for key, *values in rows}

    def number(self, key: str, place: int) -> float | None:
        """The value of a measurement; None if there is none."""
        try:
            return float(self.rows[key][place])
        except (KeyError, IndexError, ValueError):
            return None


def count(value: float | None) -> str:
    """A rate, with three significant digits."""
    if value is None:
        return NOT_MEASURED
    if value >= 999_500:
        return f"{value / 1e6:.2f} M"
    digits = len(str(round(value)))
    return f"{round(value, min(0, 3 - digits)):,.0f}"


def decimal(value: float | None) -> str:
    """A time, a ratio or a size."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def pair(p50: float | None, p99: float | None) -> str:
    """Two percentiles."""
    return NOT_MEASURED if p50 is None else f"{decimal(p50)} / {decimal(p99)}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine(results: Results) -> str:
    """When and where it was measured."""
    date, cores, kernel = results.rows["machine"]
    return f"Measured on {date}, on {cores} cores with Linux {kernel}.\n"


# The places of the values of `swarm compare`: sealwire, lean, stock, sealwire/stock, lean/stock.
SEALWIRE, LEAN, STOCK, RATIO = range(4)


def sockets(results: Results) -> str:
    """The table of `swarm compare`."""

    def row(label: str, key: str, form, cpu_key: str | None = None) -> list[str]:
        values = [results.number(f"compare: {key}", place) for place in (SEALWIRE, LEAN, STOCK, RATIO)]
        cpu = NOT_MEASURED
        if cpu_key:
            ours, theirs = (results.number(f"compare: {cpu_key}", place) for place in (SEALWIRE, STOCK))
            cpu = f"{decimal(ours)} / {decimal(theirs)} µs"
        return [label, *(form(value) for value in values[:3]), decimal(values[3]), cpu]

    def kib(value: float | None) -> str:
        return f"{decimal(value)} KiB"

    delivery = [
        pair(*(results.number(f"compare: delivery at half load, {part} ms", place) for part in ("p50", "p99"))) + " ms"
        for place in (SEALWIRE, LEAN, STOCK)
    ]
    open_sockets = count(results.number("compare: sockets open", SEALWIRE))
    return table(
        ["`swarm compare`", "Sealwire", "bare echo on its transport", "bare actix-ws echo", "Sealwire / actix-ws", "server CPU each, Sealwire / actix-ws"],
        [
            row(f"memory per socket, {open_sockets} idle authenticated sockets", "idle KiB a socket", kib),
            row("the same after a round trip on each", "KiB a socket after an answer", kib),
            row("the same half a minute after all were busy at once", "KiB a socket after a load", kib),
            row(f"reads (`keys.status`) per second over {open_sockets} sockets, or echoes", "plain reads a second", count, "server CPU µs a plain read"),
            row("round trips per second over 64 sockets, 16 in flight on each", "round trips a second", count, "server CPU µs a round trip"),
            row("connects per second; for Sealwire up to the welcome", "connects a second", count, "server CPU µs a connect"),
            [
                "delivery at half of Sealwire's maximum: stored and delivered, or echoed (p50 / p99)",
                *delivery,
                decimal(results.number("compare: delivery at half load, p50 ms", RATIO)),
                NOT_MEASURED,
            ],
        ],
    )


# The places of the values of a load: see load_row in loadtest/pgbench.sh.
RATE, LOAD_RATIO, CPU, P50, P99, HALF_P50, HALF_P99, ALONE_P50, ALONE_P99, FORTY = range(10)


def loads(results: Results) -> str:
    """The table of claims and messages."""

    def row(label: str, key: str) -> list[str]:
        def get(place: int) -> float | None:
            return results.number(key, place)

        return [
            label,
            count(get(RATE)),
            decimal(get(LOAD_RATIO)),
            f"{decimal(get(CPU))} µs" if get(CPU) is not None else NOT_MEASURED,
            pair(get(P50), get(P99)),
            pair(get(HALF_P50), get(HALF_P99)),
            pair(get(ALONE_P50), get(ALONE_P99)),
            decimal(get(FORTY)),
        ]

    rows = [
        row("claims: `UPDATE … SKIP LOCKED` by pgbench, 10⁵ stored keys", "claims-10^5-pgbench"),
        row("claims, one node on PostgreSQL, 10⁵ stored keys", "claims-10^5"),
        row("claims, four nodes on PostgreSQL and Redis, 10⁵ stored keys", "claims-10^5-many"),
        row("claims: `UPDATE … SKIP LOCKED` by pgbench, 10⁷ stored keys", "claims-10^7-pgbench"),
        row("claims, one node on PostgreSQL, 10⁷ stored keys", "claims-10^7"),
        row("claims, one node on SQLite, 10⁵ stored keys", "claims-sqlite"),
        row("messages: bare `INSERT`s by pgbench", "messages-pgbench"),
        row("messages, one node on PostgreSQL", "messages-1"),
        row("messages, two nodes on PostgreSQL and Redis", "messages-2"),
        row("messages, four nodes on PostgreSQL and Redis", "messages-4"),
        row("messages: bare `INSERT`s on SQLite, one by one", "messages-inserts"),
        row("messages, one node on SQLite", "messages-sqlite"),
    ]
    head = ["`loadtest/claims`, `loadtest/messages`", "per second", "ratio to the baseline", "server CPU each"]
    return table([*head, "p50 / p99 in ms at full load", "at half load", "one at a time", "p99, 40 devices"], rows)


def connects(results: Results) -> str:
    """The table of connects."""

    def row(label: str, key: str) -> list[str]:
        ours, theirs = ([results.number(key, place + start) for place in range(5)] for start in (0, 5))
        return [
            label,
            count(ours[0]),
            count(theirs[0]),
            decimal(results.number(key, 10)),
            f"{decimal(ours[3])} / {decimal(theirs[3])} µs",
            f"{pair(ours[1], ours[2])} ms",
            f"{decimal(ours[4])} / {decimal(theirs[4])} ms" if ours[4] is not None else NOT_MEASURED,
        ]

    head = ["`loadtest/connects`", "connects per second", "bare actix-ws upgrades per second", "ratio", "server CPU each, Sealwire / actix-ws"]
    return table(
        [*head, "p50 / p99, 64 at a time", "p50 one at a time, Sealwire / actix-ws"],
        [
            row("SQLite", "connects-sqlite"),
            row("PostgreSQL and Redis", "connects-postgres"),
            row("SQLite: all devices reconnect after a restart", "connects-restart"),
        ],
    )


def main(path: str, files: list[str]) -> None:
    """Prints the tables, or writes them into files."""
    results = Results(path)
    tables = {make.__name__: make(results) for make in (machine, sockets, loads, connects)}
    if not files:
        print("\n".join(tables.values()))
    for file in files:
        with open(file, encoding="utf-8") as lines:
            text = lines.read()
        for name, made in tables.items():
            begin, end = f"<!-- {name}: written by loadtest/all -->\n", f"<!-- /{name} -->"
            if begin in text:
                before, _, rest = text.partition(begin)
                _, end, after = rest.partition(end)
                if not end:
                    sys.exit(f"{file} has no line <!-- /{name} -->")
                text = f"{before}{begin}{made}{end}{after}"
        with open(file, "w", encoding="utf-8") as out:
            out.write(text)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
