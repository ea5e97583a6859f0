#!/bin/bash
# Healthy: queries of some 20 ms, five a second. light.sh DIR
. "$(dirname "$0")/server.sh"
start
sql -c "create table items as select i as id, i % 1000 as kind from generate_series(1, 130000) i"
echo "select kind, count(*) from items where id < 60000 group by kind" > query
client shop query 5
ready shop
wait
