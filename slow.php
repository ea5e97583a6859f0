<?php
function fib($n){return $n<2?$n:fib($n-1)+fib($n-2);}
while(true){ fib(24); $s=''; for($i=0;$i<20000;$i++){$s.=md5($i);} usleep(1000);}
