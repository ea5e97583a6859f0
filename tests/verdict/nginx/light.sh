#!/bin/bash
# Healthy: a worker that serves a small file. light.sh DIR
. "$(dirname "$0")/server.sh"
echo hello > "$dir/index.html"
start "" ""
echo "ready port=$port pid=$worker"
wait
