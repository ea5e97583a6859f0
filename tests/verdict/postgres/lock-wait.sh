#!/bin/bash
# A session waits for a row that another one has locked, which is idle in its transaction for 2 s at a time. lock-wait.sh DIR
. "$(dirname "$0")/server.sh"
start
sql -c "create table stock (id int primary key, amount int); insert into stock values (1, 1000)"
printf 'begin;\nupdate stock set amount = amount - 1 where id = 1;\n\\sleep 2 s\ncommit;\n' > holder
echo "update stock set amount = amount + 1 where id = 1" > waiter
client holder holder
client waiter waiter
ready waiter
wait
