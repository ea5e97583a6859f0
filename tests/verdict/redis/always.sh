#!/bin/bash
# Every write is made durable before it is answered: appendfsync always. always.sh DIR
. "$(dirname "$0")/server.sh"
start --appendonly yes --appendfsync always
redis-benchmark -s "$dir/redis.sock" -q -c 2 -n 100000000 -t set > /dev/null 2>&1 &
echo "ready pid=$server"
wait
