#!/bin/bash
# Its upstream is not there: every request is answered with an error. refused.sh DIR
. "$(dirname "$0")/server.sh"
upstream=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
start "" "location / { proxy_pass http://127.0.0.1:$upstream; }"
echo "ready port=$port pid=$worker peer=$upstream"
wait
