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
device_ids() { sed -E 's/.*"device_id":"([^"]*)".*/\1/' "$dir/tokens.jsonl"; }

# Prints transactions per second, and p50 and p99 in milliseconds.
pgbench_round() { # pgbench_round SCRIPT
    local log=$dir/transactions rate
    pgbench -n -c 32 -j 2 -M prepared -T "$seconds" -f "$1" --log --log-prefix="$log" "$url" >"$dir/pgbench.out" 2>&1 ||
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
