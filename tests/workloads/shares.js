// JavaScript whose shares of CPU time are known: serve > handle > workFifty, workThirty, workTwenty > spin, in chunks of random
// length. Prints "ready"; answers each line of its input with what it has done so far: the CPU time of each function, us, by
// its own clock, and the turns of all loops. Ends with its input.
'use strict'

const used = { workFifty: 0, workThirty: 0, workTwenty: 0 }
let turns = 0

function cpuUs() {
  const { user, system } = process.cpuUsage()
  return user + system
}

function spin(count) {
  let x = 1
  for (let i = 0; i < count; i++) x = (x * 31 + i) % 65521
  turns += count
  return x
}

function workFifty(count) {
  return spin(count) + 1
}

function workThirty(count) {
  return spin(count) + 2
}

function workTwenty(count) {
  return spin(count) + 3
}

const SHARES = [[workFifty, 0.5], [workThirty, 0.3], [workTwenty, 0.2]]

function handle([work, share], count) {
  const before = cpuUs()
  const result = work(Math.round(count * share))
  used[work.name] += cpuUs() - before
  return result
}

function serve() {
  for (let round = 0; round < 8; round++) {
    const count = 2e5 + Math.random() * 2e6
    for (const request of SHARES) handle(request, count)
  }
  setImmediate(serve)
}

const warm = cpuUs()
while (cpuUs() - warm < 1e6) for (const request of SHARES) handle(request, 1e5)
process.stdin.on('data', () => console.log(JSON.stringify({ used, turns, cpu: cpuUs() })))
process.stdin.on('end', () => process.exit(0))
console.log('ready')
serve()
