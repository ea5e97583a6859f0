#!/bin/bash
# A sort that does not fit into work_mem and goes through temporary files. sort-spills.sh DIR
. "$(dirname "$0")/server.sh"
start -c work_mem=64kB
sql -c "create table events as select i as id, md5(i::text) as token from generate_series(1, 150000) i"
echo "select count(*) from (select token from events order by token offset 1) as sorted" > query
client report query 2
ready report
wait
