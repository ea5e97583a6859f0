#!/bin/bash
# KEYS over a million names stops all other clients each time. keys.sh DIR
. "$(dirname "$0")/server.sh"
start
cli debug populate 1000000 > /dev/null
redis-benchmark -s "$dir/redis.sock" -q -c 2 -n 100000000 eval 'return 1' 0 > /dev/null 2>&1 &
echo "ready pid=$server"
while sleep 0.4; do cli keys 'key:99999*' > /dev/null; done
