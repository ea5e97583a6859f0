#!/bin/bash
# Healthy: the master of a server that is used. master.sh DIR
. "$(dirname "$0")/server.sh"
echo hello > "$dir/index.html"
start "" ""
echo "ready port=$port pid=$master"
wait
