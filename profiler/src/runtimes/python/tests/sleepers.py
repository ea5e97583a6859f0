# Threads that sleep in all sorts of places. Prints each one's stack as the interpreter itself sees it: a line each,
# innermost first, "name file:line" separated by tabs.
import os
import sys
import threading
import time


def sleeps():
    time.sleep(
        # What counts is the line of the call that has begun.
        600
    )


class Ärger:
    def method(self):
        class 嵦:
            @staticmethod
            def inner():
                return sleeps()

        return 嵦.inner()


def generator():
    yield 1
    sleeps()
    yield 2


def in_generator():
    return sum(
        value for value in generator()
    )


def by_key(_):
    sleeps()


def in_sort():
    return sorted(
        [1, 2],
        key=by_key,
    )


def after_exception():
    try:
        raise ValueError
    except ValueError:
        try:
            pass
        finally:
            sleeps()


def deep(n):
    if n == 0:
        return sleeps()
    return deep(n - 1)


def in_comprehension():
    return [deep(i) for i in (3,)]


# A function so long that its tables need their long forms.
LONG = "def long_function():\n x = 0\n" + " x = x + 1\n" * 300 + "\n" * 200 + " for i in (1,):\n  with open('/dev/null'):\n   sleeps()\n"
exec(compile(LONG, "long.py", "exec"))


def in_lambda():
    return (lambda: deep(1))()


FUNCTIONS = [Ärger().method, in_generator, in_sort, after_exception, in_comprehension, long_function, in_lambda]  # noqa: F821
threads = [threading.Thread(target=function, daemon=True) for function in FUNCTIONS]
for thread in threads:
    thread.start()


def stack(frame):
    frames = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        frames.append("%s %s:%d" % (name, os.path.basename(code.co_filename), frame.f_lineno))
        frame = frame.f_back
    return frames


def asleep(thread):
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code is sleeps.__code__


while not all(asleep(thread) for thread in threads):
    time.sleep(0.01)
frames = sys._current_frames()
for thread in threads:
    print("\t".join(stack(frames[thread.ident])))
print("ready", flush=True)
time.sleep(600)
