#!/bin/bash
# Passes requests on to a service that takes 300 ms. slow-upstream.sh DIR
. "$(dirname "$0")/server.sh"
upstream=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
python3 - "$upstream" <<'END' &
import http.server, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.3)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Slow).serve_forever()
END
start "" "location / { proxy_pass http://127.0.0.1:$upstream; }"
echo "ready port=$port pid=$worker peer=$upstream"
wait
