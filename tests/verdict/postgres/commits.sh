#!/bin/bash
# One transaction for each row, every one made durable by itself. commits.sh DIR
. "$(dirname "$0")/server.sh"
start -c fsync=on
sql -c "create table events (id int, note text)"
echo "insert into events values (1, 'something happened')" > query
client ingest query
ready ingest
wait
