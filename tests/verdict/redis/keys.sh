#!/bin/bash
# KEYS over 400,000 names stops all other clients each time. keys.sh DIR
. "$(dirname "$0")/server.sh"
start
cli eval 'for i = 1, 400000 do redis.call("set", "key:" .. i, i) end' 0 > /dev/null
redis-benchmark -s "$dir/redis.sock" -q -c 2 -n 100000000 eval 'return 1' 0 > /dev/null 2>&1 &
echo "ready pid=$server"
while sleep 0.4; do cli keys 'key:39999*' > /dev/null; done
