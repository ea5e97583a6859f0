#!/bin/bash
# Its resolver takes 1.5 s: name look-ups, which occupy libuv's pool. In a network and mount namespace of its own.
# dns-slow.sh DIR
cd "$(dirname "$0")" || exit 1
exec unshare --net --mount -- bash -c '
ip link set lo up || ifconfig lo up || exit 1
echo "nameserver 127.0.0.1" > "$0/resolv.conf"
echo "hosts: dns" > "$0/nsswitch.conf"
mount --bind "$0/resolv.conf" /etc/resolv.conf && mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf || exit 1
exec node dns-slow.js' "$1"
