# Sourced: starts a server in DIR (the first argument) on a free port. It ends with its shell.
# start "HTTP DIRECTIVES" "SERVER DIRECTIVES"
dir=$1
start() {
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat > "$dir/conf" <<END
daemon off; user root; worker_processes 1; pid pid; error_log stderr crit;
events { worker_connections 256; }
http {
    access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
    $1
    server { listen 127.0.0.1:$port; root .; $2 }
}
END
    nginx -p "$dir" -c conf > /dev/null 2>&1 &
    master=$!
    for _ in $(seq 300); do
        worker=$(pgrep -P "$master" | head -1)
        [ -n "$worker" ] && (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null && return
        sleep 0.1
    done
    exit 1
}
