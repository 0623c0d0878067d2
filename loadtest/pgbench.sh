# Shared by the load tests that compare with pgbench. Source it after common.sh, with $seconds set. It sets $swarm.

need pgbench 'apt-get install -y postgresql'
need psql 'apt-get install -y postgresql-client'
swarm=${SWARM:-target/release/swarm}
[ -x "$swarm" ] || cargo build --release --locked -p swarm

# Prints the arguments that tell swarm about the servers.
servers_of_swarm() {
    printf -- '--url ws://127.0.0.1:%s/v1/socket ' "${ports[@]}"
    printf -- '--pid %s ' "${servers[@]}"
}

# Creates the table in which pgbench finds devices by number, from the ids on standard input.
number_devices() {
    sql -c 'CREATE TABLE loadtest_devices (n BIGINT PRIMARY KEY, device_id UUID NOT NULL)'
    awk '{ print NR "\t" $1 }' | sql -c 'COPY loadtest_devices FROM STDIN'
}

# Prints the device ids of the seed file.
device_ids() { sed -E 's/.*"device_id":"([^"]*)".*/\1/' "$tokens"; }

# Prints transactions per second, and p50 and p99 in milliseconds.
pgbench_round() { # pgbench_round SCRIPT [CLIENTS]
    local log=$dir/transactions rate clients=${2:-32}
    pgbench -n -c "$clients" -j "$((clients < 2 ? 1 : 2))" -M prepared -T "$seconds" -f "$1" --log --log-prefix="$log" "$url" >"$dir/pgbench.out" 2>&1 ||
        { cat "$dir/pgbench.out" >&2; exit 1; }
    rate=$(sed -nE 's/^tps = ([0-9.]+).*/\1/p' "$dir/pgbench.out")
    # The third column of the log is the latency in microseconds.
    cat "$log".* | awk '{ print $3 }' | sort -n |
        awk -v rate="$rate" '{ t[NR] = $1 } END { printf "%.0f %.2f %.2f\n", rate, t[int(NR / 2) + 1] / 1000, t[int(NR * 0.99) + 1] / 1000 }'
    rm -f "$log".*
}

# Prints a number from a line of JSON: the last with that name.
field() { # field NAME JSON
    sed -nE "s/.*\"$1\":([0-9.]+).*/\1/p" <<<"$2"
}

# Prints the line with the median rate from standard input.
median() { sort -n | awk '{ line[NR] = $0 } END { print line[int((NR + 1) / 2)] }'; }

ratio() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }

# Prints rate, p50, p99 and CPU time from a line of swarm's JSON.
figures() { # figures JSON
    printf '%.0f %.2f %.2f %.0f\n' "$(field per_second "$1")" "$(field p50_ms "$1")" "$(field p99_ms "$1")" \
        "$(field server_cpu_micros "$1")"
}

# Runs a command that prints the figures of a round, and adds them to the file, unless it is round 0, which warms the caches.
keep() { # keep ROUND FILE COMMAND…
    "${@:3}" >"$dir/line"
    [ "$1" = 0 ] || cat "$dir/line" >>"$dir/$2"
}

median_rate() { median <"$dir/$1" | cut -d' ' -f1; } # median_rate FILE

# Measures with swarm_round at half the rate of the rounds in FILE, and then one at a time, with the arguments for that.
half_and_alone() { # half_and_alone FILE ARGUMENT…
    swarm_round --rate "$(($(median_rate "$1") / 2))" >"$dir/$1.half"
    swarm_round "${@:2}" >"$dir/$1.alone"
}

# Measures pgbench with one client.
alone_of_pgbench() { pgbench_round "$2" 1 >"$dir/$1.alone"; } # alone_of_pgbench FILE SCRIPT

# Begins a table of loads.
load_table() { # load_table UNIT
    table=''
    load_line '' "$1" ratio 'CPU µs' 'p50 ms' 'p99 ms' 'half p50' 'half p99' 'alone p50' 'alone p99'
}

load_line() { table+=$(printf '%-24s %11s %6s %7s %9s %9s %9s %9s %9s %9s %s' "$@")$'\n'; }

# Adds the median of the rounds in FILE, what was measured at half load and alone, and further figures. BASELINE_RATE may be
# empty.
load_row() { # load_row KEY LABEL BASELINE_RATE FILE FIGURE…
    local rate p50 p99 cpu half=(- - - -) alone=(- - - -) ratio=-
    read -r rate p50 p99 cpu <<<"$(median <"$dir/$4")"
    [ ! -s "$dir/$4.half" ] || read -r -a half <"$dir/$4.half"
    [ ! -s "$dir/$4.alone" ] || read -r -a alone <"$dir/$4.alone"
    [ -z "$3" ] || ratio=$(ratio "$rate" "$3")
    set -- "$1" "$2" "$rate" "$ratio" "${cpu:--}" "$p50" "$p99" "${half[1]}" "${half[2]}" "${alone[1]}" "${alone[2]}" "${@:5}"
    load_line "${@:2}"
    note "$1" "${@:3}"
}
