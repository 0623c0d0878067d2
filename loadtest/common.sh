# What load tests share: a folder, sealwire's binary, seeds, servers. To be sourced; wants $name, and leaves $dir, $sealwire,
# and, while servers run, $servers (their pids) and $ports. What is started and made here goes when the script ends: servers
# and databases here, and whatever is left, even of a script that is killed, by scripts/contained.

# Where Debian keeps what belongs to PostgreSQL.
PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)

say() { echo "$name: $*" >&2; }

need() { # need COMMAND HOW-TO-GET-IT
    command -v "$1" >/dev/null || { say "$1 is missing: $2"; exit 1; }
}
need curl 'apt-get install -y curl'

sealwire=${SEALWIRE:-target/release/sealwire}
[ -x "$sealwire" ] || cargo build --release --locked

dir=$(mktemp -d "${TMPDIR:-/tmp}/sealwire-$name.XXXXXX")
database=sealwire_${name}_$$ url=
servers=() ports=()
finish() {
    for server in "${servers[@]}"; do
        { kill "$server" && wait "$server"; } 2>/dev/null || true
    done
    if [ -n "$url" ]; then
        psql -q "$DATABASE_URL" -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" 2>/dev/null || true
    fi
    rm -rf "$dir"
}
trap finish EXIT

export SEALWIRE__MAILER__URL=file:$dir/mail SEALWIRE__ADMIN__BIND=127.0.0.1:0
SEALWIRE__AUTH__SECRET=$(head -c 32 /dev/urandom | base64)
export SEALWIRE__AUTH__SECRET
# Limits are there to keep one client from what these tests do: all are off, but for those that are times.
for limit in $(sed -n '/^\[limits\]/,/^\[[^l]/s/^\([a-z_]*\) =.*/\1/p' config/default.toml); do
    case "$limit" in
    *_s) ;;
    *) export "SEALWIRE__LIMITS__${limit^^}=0" ;;
    esac
done

sql() { psql -qAtX -v ON_ERROR_STOP=1 "$url" "$@"; }

start_servers() { # start_servers COUNT
    servers=() ports=()
    local n port
    for n in $(seq "$1"); do
        : >"$dir/server$n.log" # it is read at once: it must be there before the server is
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

# Fails if one of them had failed or does not stop as it should.
stop_servers() {
    local server failed=0
    for server in "${servers[@]}"; do
        kill "$server" || failed=1
        wait "$server" || failed=1
    done
    servers=() ports=()
    [ "$failed" = 0 ] || { say 'a server ended with an error'; return 1; }
}

# Makes one line for each device in $dir/tokens.jsonl.
seed() { # seed DEVICES KEYS_EACH
    "$sealwire" seed --users "$1" --devices 1 --prekeys "$2" --out "$dir/tokens.jsonl" 2>"$dir/seed.log" ||
        { cat "$dir/seed.log" >&2; exit 1; }
}

# A database of its own in the PostgreSQL of DATABASE_URL, seeded, for servers that share the Redis of REDIS_URL.
fresh_database() { # fresh_database DEVICES KEYS_EACH
    need psql 'apt-get install -y postgresql-client'
    url=$DATABASE_URL
    sql -c 'SET client_min_messages = warning' -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" -c "CREATE DATABASE $database"
    # The same URL with another path.
    url=$(sed -E "s#^([a-z]+://[^/]*)/[^?]*#\1/$database#" <<<"$DATABASE_URL")
    export SEALWIRE__DATABASE__URL=$url SEALWIRE__BUS__URL=$REDIS_URL
    "$sealwire" migrate
    seed "$1" "$2"
}
