# Sourced: starts a server of its own in DIR (the first argument), and says how to talk to it. It ends with its shell.
# PostgreSQL refuses to run as root.
dir=$1
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
nobody() { setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }
sql() { nobody psql -qAtX -U me -h "$dir" "$@" postgres; }
start() {
    chown nobody:nogroup "$dir" && cd "$dir" || exit 1
    nobody "$bin/initdb" --auth=trust --username=me --no-sync -D data > /dev/null || exit 1
    nobody "$bin/postgres" -D data -k "$dir" -c listen_addresses= -c fsync=off -c autovacuum=off -c jit=off \
        -c max_parallel_workers_per_gather=0 "$@" > log 2>&1 &
    for _ in $(seq 600); do
        nobody "$bin/pg_isready" -q -h "$dir" && return
        sleep 0.1
    done
    exit 1
}
# ready NAME...: waits for the backends of the connections of these names, and says their process ids.
ready() {
    for _ in $(seq 300); do
        pids=$(for name; do sql -c "select pid from pg_stat_activity where application_name = '$name' limit 1"; done | paste -sd,)
        if [ "$(tr -cd , <<< "$pids" | wc -c)" = $(($# - 1)) ] && [ -n "$pids" ]; then
            echo "ready pid=$pids"
            return
        fi
        sleep 0.1
    done
    exit 1
}
# client NAME FILE: sends what FILE says, again and again. With a number of transactions a second as third argument.
client() {
    PGAPPNAME=$1 nobody "$bin/pgbench" -U me -h "$dir" -n -T 3600 ${3:+-R "$3"} -f "$2" postgres > /dev/null 2>&1 &
}
