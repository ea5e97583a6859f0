#!/bin/bash
# A query by a column without an index: the whole table is read each time. seq-scan.sh DIR
. "$(dirname "$0")/server.sh"
start
sql -c "create table orders as select i as id, i % 5000 as customer, repeat('x', 60) as note from generate_series(1, 400000) i"
echo "select count(*) from orders where customer = 17" > query
client shop query 12
ready shop
wait
