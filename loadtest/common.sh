# Shared by the load tests: a folder, the sealwire binary, seeding, servers. Source it with $name set. It sets $dir, $sealwire,
# $tokens and, while servers run, $servers (their pids) and $ports. When the script ends, it stops the servers and drops its
# databases; if the script is killed, scripts/contained cleans up.

# Debian installs PostgreSQL's programs here.
PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)

say() { echo "$name: $*" >&2; }

need() { # need COMMAND HOW-TO-GET-IT
    command -v "$1" >/dev/null || { say "$1 is missing: $2"; exit 1; }
}
need curl 'apt-get install -y curl'

sealwire=${SEALWIRE:-target/release/sealwire}
[ -x "$sealwire" ] || cargo build --release --locked

dir=$(mktemp -d "${TMPDIR:-/tmp}/sealwire-$name.XXXXXX")
url= tokens=$dir/tokens.jsonl databases=()
servers=() ports=()
finish() {
    for server in "${servers[@]}"; do
        { kill "$server" && wait "$server"; } 2>/dev/null || true
    done
    for database in "${databases[@]}"; do
        psql -q "$DATABASE_URL" -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" 2>/dev/null || true
    done
    rm -rf "$dir"
}
trap finish EXIT

export SEALWIRE__MAILER__URL=file:$dir/mail SEALWIRE__ADMIN__BIND=127.0.0.1:0
SEALWIRE__AUTH__SECRET=$(head -c 32 /dev/urandom | base64)
export SEALWIRE__AUTH__SECRET
# The tests are far above the limits for one client, so turn all of them off. Settings that end in _s are times, not limits.
for limit in $(sed -n '/^\[limits\]/,/^\[[^l]/s/^\([a-z_]*\) =.*/\1/p' config/default.toml); do
    case "$limit" in
    *_s) ;;
    *) export "SEALWIRE__LIMITS__${limit^^}=0" ;;
    esac
done
# The accounts are new, so all of them are strangers to each other, and would share a part of each mailbox.
export SEALWIRE__MAILBOX__STRANGER_SHARE=0

sql() { psql -qAtX -v ON_ERROR_STOP=1 "$url" "$@"; }

start_servers() { # start_servers COUNT
    servers=() ports=()
    local n port
    for n in $(seq "$1"); do
        : >"$dir/server$n.log" # it is read before the server creates it
        RUST_LOG=info SEALWIRE__SERVER__BIND=127.0.0.1:0 "$sealwire" serve >"$dir/server$n.log" 2>&1 &
        servers+=($!) port=''
        until [ -n "$port" ] && curl -fs "http://127.0.0.1:$port/readyz" >/dev/null; do
            kill -0 "${servers[-1]}" 2>/dev/null || { cat "$dir/server$n.log" >&2; exit 1; }
            sleep 0.1
            port=$(sed -nE 's/.*"message":"listening",.*"port":([0-9]+).*/\1/p' "$dir/server$n.log")
        done
        ports+=("$port")
    done
}

# Stops the servers. Fails if one has failed, or does not stop with exit code 0.
stop_servers() {
    local server failed=0
    for server in "${servers[@]}"; do
        kill "$server" || failed=1
        wait "$server" || failed=1
    done
    servers=() ports=()
    [ "$failed" = 0 ] || { say 'a server ended with an error'; return 1; }
}

# Seeds the store, and writes one line per device to $tokens.
seed() { # seed DEVICES KEYS_EACH
    "$sealwire" seed --users "$1" --devices 1 --prekeys "$2" --out "$tokens" 2>"$dir/seed.log" ||
        { cat "$dir/seed.log" >&2; exit 1; }
}

# Creates and seeds a database in the PostgreSQL of DATABASE_URL, and configures servers for it and for the Redis of REDIS_URL.
fresh_database() { # fresh_database DEVICES KEYS_EACH [NAME]
    local database=sealwire_${name}_$$${3:+_$3}
    need psql 'apt-get install -y postgresql-client'
    databases+=("$database")
    url=$DATABASE_URL
    sql -c 'SET client_min_messages = warning' -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" -c "CREATE DATABASE $database"
    # The same URL with another path.
    url=$(sed -E "s#^([a-z]+://[^/]*)/[^?]*#\1/$database#" <<<"$DATABASE_URL")
    use_database
    "$sealwire" migrate
    seed "$1" "$2"
}

# Configures servers for the database $url.
use_database() { export SEALWIRE__DATABASE__URL=$url SEALWIRE__BUS__URL=$REDIS_URL; }

# Configures servers for a new SQLite database, and seeds it.
fresh_sqlite() { # fresh_sqlite DEVICES KEYS_EACH
    rm -f "$dir"/x.db*
    export SEALWIRE__DATABASE__URL=sqlite://$dir/x.db SEALWIRE__BUS__URL=local
    seed "$1" "$2"
}

# Adds a line to the file $RESULTS, if it is set, from which loadtest/tables.py makes the tables of the README.
note() { # note KEY VALUE…
    [ -z "${RESULTS:-}" ] || printf '%s\n' "$(IFS=$'\t' && echo "$*")" >>"$RESULTS"
}
