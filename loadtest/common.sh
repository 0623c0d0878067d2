# What the load tests that compare with a database share. To be sourced; wants $name, and leaves $dir, $database and $admin.

# Where Debian keeps pgbench out of the path.
PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)
for command in pgbench psql curl; do
    command -v "$command" >/dev/null || { echo "loadtest/$name needs $command" >&2; exit 1; }
done
sealwire=${SEALWIRE:-target/release/sealwire} swarm=${SWARM:-target/release/swarm}
if [ ! -x "$sealwire" ] || [ ! -x "$swarm" ]; then
    cargo build --release --locked --workspace --bins
fi

say() { echo "$name: $*" >&2; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/sealwire-$name.XXXXXX")
database=sealwire_${name}_$$
admin=$DATABASE_URL
servers=() ports=()
finish() {
    for server in "${servers[@]}"; do
        { kill "$server" && wait "$server"; } 2>/dev/null || true
    done
    psql -q "$admin" -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" 2>/dev/null || true
    rm -rf "$dir"
}
trap finish EXIT

export SEALWIRE__MAILER__URL=file:$dir/mail SEALWIRE__ADMIN__BIND=127.0.0.1:0
export SEALWIRE__LIMITS__CLAIM_BURST=0 SEALWIRE__LIMITS__SENDS_PER_DEVICE_SECOND=0
# All clients are of one network and busier than people are.
export SEALWIRE__LIMITS__CONNECTIONS_PER_NETWORK=0 SEALWIRE__LIMITS__HTTP_CONNECTIONS_PER_NETWORK=0
export SEALWIRE__LIMITS__CONNECTS_PER_NETWORK_SECOND=0 SEALWIRE__LIMITS__REQUESTS_PER_CONNECTION_SECOND=0
SEALWIRE__AUTH__SECRET=$(head -c 32 /dev/urandom | base64)
export SEALWIRE__AUTH__SECRET

sql() { psql -qAtX -v ON_ERROR_STOP=1 "$url" "$@"; }

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}

start_servers() { # start_servers COUNT
    servers=() ports=()
    local n port
    for n in $(seq "$1"); do
        port=$(free_port)
        SEALWIRE__SERVER__BIND=127.0.0.1:$port "$sealwire" serve >"$dir/server$n.log" 2>&1 &
        servers+=($!) ports+=("$port")
        until curl -fs "http://127.0.0.1:$port/readyz" >/dev/null; do
            kill -0 "${servers[-1]}" 2>/dev/null || { cat "$dir/server$n.log" >&2; exit 1; }
            sleep 0.1
        done
    done
}

stop_servers() {
    local server
    for server in "${servers[@]}"; do
        kill "$server"
        wait "$server" || say "a server ended with an error"
    done
    servers=() ports=()
}

# The arguments by which swarm finds the servers.
servers_of_swarm() {
    printf -- '--url ws://127.0.0.1:%s/v1/socket ' "${ports[@]}"
    printf -- '--pid %s ' "${servers[@]}"
}

seed() { # seed DEVICES KEYS_EACH
    "$sealwire" seed --users "$1" --devices 1 --prekeys "$2" --out "$dir/tokens.jsonl" 2>"$dir/seed.log" ||
        { cat "$dir/seed.log" >&2; exit 1; }
}

fresh_database() { # fresh_database DEVICES KEYS_EACH
    url=$admin
    sql -c 'SET client_min_messages = warning' -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" -c "CREATE DATABASE $database"
    # The same URL with another path.
    url=$(sed -E "s#^([a-z]+://[^/]*)/[^?]*#\1/$database#" <<<"$admin")
    export SEALWIRE__DATABASE__URL=$url SEALWIRE__BUS__URL=$REDIS_URL
    "$sealwire" migrate
    seed "$1" "$2"
}

# Makes the table in which pgbench finds devices by number, out of the ids on standard input.
number_devices() {
    sql -c 'CREATE TABLE loadtest_devices (n BIGINT PRIMARY KEY, device_id UUID NOT NULL)'
    awk '{ print NR "\t" $1 }' | sql -c 'COPY loadtest_devices FROM STDIN'
}

# The device ids of the seed file.
device_ids() { sed -E 's/.*"device_id":"([^"]*)".*/\1/' "$dir/tokens.jsonl"; }

# Prints: transactions a second, p50 and p99 in milliseconds.
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

# A number out of one line of JSON; of several of that name the last.
field() { # field NAME JSON
    sed -nE "s/.*\"$1\":([0-9.]+).*/\1/p" <<<"$2"
}

# The line of the middle rate among those on standard input.
median() { sort -n | awk '{ line[NR] = $0 } END { print line[int((NR + 1) / 2)] }'; }

ratio() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }
