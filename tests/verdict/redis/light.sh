#!/bin/bash
# Healthy: bursts of a thousand commands, ten a second. light.sh DIR
. "$(dirname "$0")/server.sh"
start
echo "ready pid=$server"
while sleep 0.1; do redis-benchmark -s "$dir/redis.sock" -q -c 4 -n 1000 -t get > /dev/null 2>&1; done
