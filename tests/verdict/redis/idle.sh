#!/bin/bash
# Healthy: nobody asks. idle.sh DIR
. "$(dirname "$0")/server.sh"
start
echo "ready pid=$server"
wait
