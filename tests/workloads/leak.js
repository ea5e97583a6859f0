// Programs that leak or do not, in Node.js: `leak.js MODE [SPEED]`, as leak.c; `*` and 0 as in leak.py.
const { EventEmitter } = require('events');
const mode = process.argv[2];
const speed = Number(process.argv[3] || 1);
const start = process.hrtime.bigint();

function paced(rate, each) {
  let done = 0;
  setInterval(() => {
    const due = Number(process.hrtime.bigint() - start) / 1e9 * speed * rate;
    while (done < due) each(done++);
  }, 10);
}

const kept = [];
const emitter = new EventEmitter().setMaxListeners(0);
const cache = new Map();

const modes = {
  buffer() {
    console.log(`leaks * ${(8 * 16384 * speed).toFixed(0)}`);
    paced(8, () => kept.push(Buffer.alloc(16384)));
  },
  listeners() {
    console.log('leaks * 0');
    paced(100, (number) => {
      const context = new Array(128).fill(number);
      emitter.on('data', () => context);
    });
  },
  cache() {
    console.log('harmless');
    paced(100, (number) => {
      cache.set(number, Buffer.alloc(9000));
      if (cache.size > 1000) cache.delete(cache.keys().next().value);
    });
  },
};
modes[mode]();
