"""An asyncio program under light load whose event loop stalls in known ways. Prints "ready", waits for a line, stalls
COUNT times in each way, GAP seconds apart, and ends with a line "WAY START LENGTH" for each (CLOCK_MONOTONIC, ns), and
"calm NS": no other iteration of the loop can have taken longer.

stall.py GAP COUNT
"""

import asyncio
import json
import sys
import time


def sleep_in_coroutine(_data):
    time.sleep(0.2)


def dump_something_big(data):
    json.dumps(data)


async def main(gap, count, data):
    stalls, calm = [], 0

    # The heart beats once in an iteration at most: it is shorter than the time from the last beat before it to the
    # second one after.
    before = last = time.monotonic_ns()

    async def heart():
        nonlocal calm, before, last
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic_ns()
            calm, before, last = max(calm, now - before), last, now

    beating = asyncio.create_task(heart())
    for _ in range(count):
        for stall in sleep_in_coroutine, dump_something_big:
            await asyncio.sleep(gap)
            start = time.monotonic_ns()
            stall(data)
            end = time.monotonic_ns()
            stalls.append((stall.__name__, start, end - start))
            # Other iterations ended before it, or begin after it.
            calm, before, last = max(calm, start - before), end, end
    await asyncio.sleep(gap)
    beating.cancel()
    return stalls, calm


data = [{"number": i, "text": "x" * 20, "list": [i, i + 1]} for i in range(200_000)]
print("ready", flush=True)
sys.stdin.readline()
stalls, calm = asyncio.run(main(float(sys.argv[1]), int(sys.argv[2]), data))
for stall in stalls:
    print(*stall)
print("calm", calm)
