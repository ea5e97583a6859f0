#!/bin/bash
# Healthy: a session that nobody uses. idle.sh DIR
. "$(dirname "$0")/server.sh"
start
printf '\\sleep 600 s\nselect 1;\n' > query
client pool query
ready pool
wait
