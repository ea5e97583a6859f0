#!/bin/bash
# A script that loops for 150 ms or so stops all other clients. lua.sh DIR
. "$(dirname "$0")/server.sh"
start
echo "ready pid=$server"
while sleep 0.4; do cli eval 'local s = 0; for i = 1, 6000000 do s = s + i % 7 end; return s' 0 > /dev/null; done
