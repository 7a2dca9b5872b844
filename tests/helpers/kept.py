"""A program for a keeper: says something, and ends as it is told, or when its stdin does."""

from __future__ import annotations

import json
import os
import sys


def main() -> int:
    told = json.loads(sys.argv[1])
    for line in told["says"]:
        os.write(2, f"{line}\n".encode())
    if told["status"] < 0:
        os.kill(os.getpid(), -told["status"])
    if told["status"] != 100:
        return int(told["status"])
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
