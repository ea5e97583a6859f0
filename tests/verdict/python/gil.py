"""Four threads that compute: the interpreter's lock lets one of them run at a time."""
import threading


def score(n):
    total = 0
    for i in range(n):
        total = (total * 31 + i) & 0xFFFFFFFF
    return total


def work():
    while True:
        score(100_000)


for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
