// An HTTP server under light load whose event loop stalls in known ways. Prints "ready", waits for a line, stalls
// COUNT times, GAP milliseconds apart, and ends with a line "stall START LENGTH" for each (CLOCK_MONOTONIC, ns), and
// "calm NS": no other iteration of the loop can have taken longer.
//
// stall.js spin GAP COUNT        200 ms of computing
// stall.js read GAP COUNT FIFO   a file that is slow to read
// stall.js child GAP COUNT       a command that takes 200 ms: libuv waits for it in a loop of its own
// stall.js none GAP COUNT        none: only the measurements
"use strict";
const [kind, gap, count, fifo] = process.argv.slice(2);
const { spawn, spawnSync } = require("child_process");
const { readFileSync } = require("fs");
const http = require("http");

const now = () => process.hrtime.bigint();

function busyLoop(ms) {
    const end = now() + BigInt(ms) * 1000000n;
    let x = 0;
    while (now() < end) for (let i = 0; i < 1e5; i++) x = (x * 31 + i) | 0;
    return x;
}

// Answers one reader of the FIFO for each line, 200 ms late.
const writer = kind === "read" &&
    spawn("sh", ["-c", 'while read go; do { sleep 0.2; echo slow; } > "$0"; done', fifo], { stdio: ["pipe", "ignore", "inherit"] });

const stall = {
    spin: () => busyLoop(200),
    read: () => readFileSync(fifo),
    child: () => spawnSync("sleep", ["0.2"]),
    none: () => {},
};

const stalls = [];

// A timer of a millisecond looks at the clock. Several looks fall into one iteration when it is long: the loop has not
// been idle between them. An iteration is shorter than the time from the last look before it to the first one after.
let calm = 0;
let before, last, idle = 0;
const longer = (time) => { if (time > calm) calm = Number(time); };

function look() {
    const time = now(), slept = performance.nodeTiming.idleTime;
    if (slept !== idle) {
        longer(time - before);
        [before, idle] = [last, slept];
    }
    last = time;
}

function once() {
    look();
    if (writer) writer.stdin.write("go\n");
    const start = now();
    stall[kind]();
    const end = now();
    stalls.push(`stall ${start} ${end - start}`);
    // Other iterations ended before it, or begin after it.
    longer(start - before);
    before = last = end;
    setTimeout(() => {
        if (stalls.length < count) return;
        look();
        clearInterval(timer);
        console.log(`${stalls.join("\n")}\ncalm ${calm}`);
        process.exit();
    }, 5);
}

let timer;
const server = http.createServer((request, response) => response.end("hello\n"));
server.listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    before = last = now();
    setInterval(look, 1);
    process.stdin.once("data", () => {
        setInterval(() => http.get({ port, agent: false }, (response) => response.resume()), 20);
        timer = setInterval(once, Number(gap));
    });
    console.log("ready");
});
