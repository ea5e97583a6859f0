// A heap that grows: each turn adds so many listeners, each a closure over an object of a class and an array of 20 numbers.
// Arguments: SECONDS, and listeners each 10 ms. After so many seconds it prints how many there are and the bytes of the heap,
// as V8 says, and adds no more. Run it with --expose-gc: then none of them is young any more.
const { EventEmitter } = require('events');

class Subscription {
    constructor(id) {
        this.id = id;
        this.values = new Array(20).fill(id);
    }
}

const bus = new EventEmitter();
bus.setMaxListeners(0);
let added = 0;

function subscribe() {
    const subscription = new Subscription(added);
    bus.on('update', function onUpdate() {
        return subscription.values.length;
    });
    added += 1;
}

const turns = setInterval(() => {
    for (let i = 0; i < Number(process.argv[3]); i++) subscribe();
}, 10);
setTimeout(() => {
    clearInterval(turns);
    gc();
    gc();
    console.log(JSON.stringify({ added, used: process.memoryUsage().heapUsed }));
    setInterval(() => {}, 1e6);
}, 1000 * Number(process.argv[2]));
