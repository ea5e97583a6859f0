#!/usr/bin/env bash
# Installs what the tests need on Debian 12, as root: a C compiler, and the programs that the tests profile.
# A test whose program is missing is skipped, unless PROFILER_REQUIRE_KERNEL=1 is set.
set -euo pipefail

missing=()
for package in gcc g++ libc6-dev redis-server redis-tools postgresql nginx-light wrk nodejs python3 golang-go openjdk-17-jdk-headless \
    musl-tools libjemalloc2 libtcmalloc-minimal4 libmimalloc2.0 debuginfod dwz xz-utils; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
