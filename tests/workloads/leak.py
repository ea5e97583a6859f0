# Programs that leak or do not, in Python: `leak.py MODE [SPEED]`, as leak.c. `*` stands for whatever allocates under the
# interpreter, a rate of 0 for one that is not known to the byte.
import sys
import time

mode = sys.argv[1]
speed = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
start = time.monotonic()


def paced(rate, each):
    done = 0
    while True:
        while done < (time.monotonic() - start) * speed * rate:
            each(done)
            done += 1
        time.sleep(0.005)


class Session:
    def __init__(self, number):
        self.number = number
        self.name = f"session {number}"


kept = []
cache = {}


def remember(number):
    cache[number] = bytes(1000)
    if len(cache) > 3000:
        del cache[next(iter(cache))]


if mode == "objects":
    print("leaks * 0", flush=True)
    paced(1000, lambda number: kept.append(Session(number)))
elif mode == "bytes":
    # The object's head is 33 bytes.
    print(f"leaks * {50 * 2033 * speed:.0f}", flush=True)
    paced(50, lambda number: kept.append(bytes(2000)))
elif mode == "dict":
    print("harmless", flush=True)
    paced(200, remember)
