"""Prints each decision of a feed: python decisions.py [tcp://HOST:PORT [FOLDER_OF_KEYS]]."""

import sys

from streamdec.feed.schema import Retrieval
from streamdec.feed.subscriber import Subscriber


def main(endpoint: str = "tcp://127.0.0.1:5650", keys: str | None = None) -> None:
    """Print until the session ends."""
    with Subscriber(endpoint, topics=("retrieval",), timeout=None, keys=keys) as feed:
        for received in feed:
            decision = received.message
            assert isinstance(decision, Retrieval)
            best = decision.candidates[0]
            about = f"{best.label} ({best.probability:.2f}), {1e3 * decision.timing.latency:.1f} ms"
            print(f"{decision.key} rank {decision.rank or '-'}: {about}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
