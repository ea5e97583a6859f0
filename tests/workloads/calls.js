// A known tree of calls, for as long as standard input is open: serve -> route -> parse -> scan, and serve -> route -> render. Each
// request also reads a slow file: serve -> readConfig -> readFileSync. Prints "ready".
//
// calls.js [FIFO]
"use strict";
const { readFileSync } = require("fs");
const fifo = process.argv[2];

function scan(seed) {
    let x = seed;
    for (let i = 0; i < 2e5; i++) x = (x * 31 + i) | 0;
    return x;
}

function parse(seed) {
    return scan(seed) + 1;
}

function render(seed) {
    let x = seed;
    for (let i = 0; i < 1e5; i++) x = (x * 17 + i) | 0;
    return x;
}

function route(seed) {
    return parse(seed) + render(seed);
}

function readConfig() {
    return readFileSync(fifo);
}

let total = 0;

function serve() {
    const end = Date.now() + 20;
    while (Date.now() < end) total += route(total);
    if (fifo) readConfig();
    setImmediate(serve);
}

process.stdin.on("end", () => process.exit()).resume();
console.log("ready");
serve();
