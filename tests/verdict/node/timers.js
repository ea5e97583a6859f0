// Healthy: periodic work that takes a millisecond or so.
"use strict";
const counters = new Map();
setInterval(() => { for (let i = 0; i < 2000; i++) counters.set(i % 100, (counters.get(i % 100) ?? 0) + 1); }, 20);
setInterval(() => JSON.stringify([...counters]), 500);
console.log("ready");
