"""An asyncio program under light load whose event loop stalls in known ways. Prints "ready", waits for a line, stalls
COUNT times in each way, GAP seconds apart, and ends with a line "WAY START LENGTH" for each (CLOCK_MONOTONIC, ns),
"measured NS,NS,...", the callbacks that asyncio's debug mode found slow, and "calm NS", the longest delay of a
timer when there was no stall.

stall.py GAP COUNT
"""

import asyncio
import json
import logging
import re
import sys
import time


def sleep_in_coroutine(_data):
    time.sleep(0.2)


def dump_something_big(data):
    json.dumps(data)


async def main(gap, count, data):
    stalls, calm = [], 0

    async def heart():
        nonlocal calm
        last = time.monotonic_ns()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic_ns()
            if not any(start < now and last < start + length for _, start, length in stalls):
                calm = max(calm, now - last)
            last = now

    beating = asyncio.create_task(heart())
    for _ in range(count):
        for stall in sleep_in_coroutine, dump_something_big:
            await asyncio.sleep(gap)
            start = time.monotonic_ns()
            stall(data)
            stalls.append((stall.__name__, start, time.monotonic_ns() - start))
    await asyncio.sleep(gap)
    beating.cancel()
    return stalls, calm


class Slow(logging.Handler):
    """Collects "Executing <...> took 0.203 seconds"."""

    found = []

    def emit(self, record):
        took = re.search(r"took ([\d.]+) seconds", record.getMessage())
        if took:
            self.found.append(round(float(took[1]) * 1e9))


data = [{"number": i, "text": "x" * 20, "list": [i, i + 1]} for i in range(200_000)]
logging.getLogger("asyncio").addHandler(Slow())
print("ready", flush=True)
sys.stdin.readline()
loop = asyncio.new_event_loop()
loop.set_debug(True)
loop.slow_callback_duration = 0.05
stalls, calm = loop.run_until_complete(main(float(sys.argv[1]), int(sys.argv[2]), data))
for stall in stalls:
    print(*stall)
print("measured", ",".join(map(str, Slow.found)))
print("calm", calm)
