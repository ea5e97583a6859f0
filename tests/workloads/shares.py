# Python code whose shares of CPU time are known; unless the argument is "alone", also a thread in which C code calls
# Python functions, and one that waits. Prints "ready", and goes on until its input ends; then prints how many rounds
# it has made, one for each ms of work.
import random
import sys
import threading
import time


def spin(until):
    x = 0
    while time.thread_time_ns() < until:
        for i in range(40):
            x = (x * 31 + i) % 65521
    return x


def work_fifty(ns):
    spin(time.thread_time_ns() + ns)


def work_thirty(ns):
    spin(time.thread_time_ns() + ns)


def work_twenty(ns):
    spin(time.thread_time_ns() + ns)


def handle(request, ns):
    request(ns * SHARES[request])


SHARES = {work_fifty: 0.5, work_thirty: 0.3, work_twenty: 0.2}


rounds = 0.0


def serve():
    global rounds
    requests = list(SHARES)
    while True:
        ns = random.uniform(0.2e6, 5e6)
        random.shuffle(requests)
        for request in requests:
            handle(request, ns)
        rounds += ns / 1e6


def by_key(n):
    for i in range(20):
        n = (n * 31 + i) % 65521
    return n


def sorts():
    while True:
        # C code calls back into Python.
        sorted(range(1000), key=by_key)


def waits_for_reply():
    time.sleep(0.02)


def polls():
    while True:
        waits_for_reply()


for function in [serve] if "alone" in sys.argv else [serve, sorts, polls]:
    threading.Thread(target=function, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
print(rounds)
