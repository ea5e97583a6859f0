#!/bin/bash
# A computation that shares one CPU with five others, which are not looked at.
cpu=$(( $(nproc) - 1 ))
program=${VERDICT_BUILD:?}/c/batch
for _ in 1 2 3 4 5; do taskset -c "$cpu" bash -c 'exec -a neighbour "$0"' "$program" > /dev/null & done
taskset -c "$cpu" "$program" > /dev/null &
echo "ready pid=$!"
wait
