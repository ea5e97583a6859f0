"""Writes its report in pieces of a few bytes, unbuffered. small-writes.py DIR"""
import os
import sys
import time


def write_report(path):
    with open(path, "wb", buffering=0) as report:
        for i in range(6000):
            report.write(b"%d\n" % i)


print("ready", flush=True)
while True:
    write_report(os.path.join(sys.argv[1], "report"))
    time.sleep(0.02)
