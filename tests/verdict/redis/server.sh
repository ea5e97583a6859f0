# Sourced: starts a server of its own in DIR (the first argument). It ends with its shell.
dir=$1
cli() { redis-cli -s "$dir/redis.sock" "$@"; }
start() {
    redis-server --port 0 --save "" --unixsocket "$dir/redis.sock" --dir "$dir" "$@" > "$dir/log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        [ "$(cli ping 2>/dev/null)" = PONG ] && return
        sleep 0.1
    done
    exit 1
}
