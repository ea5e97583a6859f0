#!/bin/bash
# A computation that wants a CPU, in a cgroup that gives it a fifth of one. quota.sh DIR
group=$(mktemp -d /sys/fs/cgroup/cpu/verdict-XXXXXX) || exit 1
trap 'kill %1 2>/dev/null; sleep 0.1; rmdir "$group"' EXIT
trap 'exit' TERM INT HUP
echo 100000 > "$group/cpu.cfs_period_us" && echo 20000 > "$group/cpu.cfs_quota_us" || exit 1
(echo "$BASHPID" > "$group/cgroup.procs" && exec "${VERDICT_BUILD:?}/c/batch") > /dev/null &
echo "ready pid=$!"
wait
