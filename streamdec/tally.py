"""What a feed amounts to where the truth is known: the figures of the demo's summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .errors import StreamError
from .feed.schema import AnyMessage, Caption, Counts, Dropped, Gallery, Reconstruction, Retrieval, Session, Stats
from .simulate.captions import ATTRIBUTES, Attributes, attributes, parse
from .simulate.world import World


class Tally:
    """Collects the final messages of one session.

    Attributes
    ----------
    decisions : list of Retrieval
        Final ones.
    made : dict of str to list
        Captions and reconstructions that ended their requests, by kind.
    dropped : dict of str to Counter
        Reasons why there is none, by kind.
    """

    def __init__(self) -> None:
        self.decisions: list[Retrieval] = []
        self.made: dict[str, list[Caption | Reconstruction]] = {"caption": [], "reconstruction": []}
        self.dropped: dict[str, Counter[str]] = {kind: Counter() for kind in self.made}
        self._n_gallery = 0
        self._counts: Counts | None = None

    def add(self, message: AnyMessage) -> None:
        """Take a message.

        Raises
        ------
        StreamError
            The session has refused its stream.
        """
        match message:
            case Retrieval(final=True):
                self.decisions.append(message)
            case Caption(partial=False) | Reconstruction(partial=False):
                self.made[message.topic].append(message)
            case Dropped() if message.what in self.dropped:
                self.dropped[message.what][message.reason] += 1
            case Gallery():
                self._n_gallery = len(message.entries)
            case Session(state="refused"):
                raise StreamError("the demo's own stream was refused", got=message.reason)
            case Stats():
                self._counts = message.counts

    def retrieval(self) -> tuple[list[str], bool]:
        """Give the lines on the decisions, and whether images were found far above chance."""
        n = self._n_gallery
        ranks = np.array([decision.rank for decision in self.decisions if decision.rank is not None])
        latency = 1e3 * np.array([decision.timing.latency for decision in self.decisions])
        budget = 1e3 * self.decisions[0].timing.budget
        met = sum(decision.timing.deadline_met for decision in self.decisions)
        first, five = np.mean(ranks == 1), np.mean(ranks <= 5)
        most = max(decision.repetitions for decision in self.decisions)
        p50, p99 = np.percentile(latency, (50, 99))
        lines = [
            f"{len(self.decisions)} decisions on simulated EEG, up to {most} repetitions of an image behind one",
            f"shown image first of {n}: {100 * first:.0f} % (chance {100 / n:.1f} %)",
            f"shown image among the first five: {100 * five:.0f} % (chance {500 / n:.1f} %)",
            f"latency beyond the epoch's end, packet's wait included: median {p50:.1f} ms, p99 {p99:.1f} ms",
            f"{met} of {len(self.decisions)} within the budget of {budget:.0f} ms",
        ]
        if self._counts is not None:
            counts = self._counts
            other = counts.onsets - counts.decided - counts.open
            lines.append(f"{counts.onsets} onsets: {counts.decided} decided, {counts.open} open, {other} otherwise")
        return lines, bool(five > 15 / n)

    def generated(self, kind: str) -> list[str]:
        """Give the lines on one kind: how many, by which tier, how soon."""
        made, dropped = self.made[kind], self.dropped[kind]
        if not made:
            return [f"{kind}: none was made"]
        latency = 1e3 * np.array([message.timing.latency for message in made])
        p50, p99 = np.percentile(latency, (50, 99))
        shares = Counter(_tier(message) for message in made)
        met = sum(message.timing.deadline_met for message in made)
        superseded = dropped["superseded"]
        others = sum(dropped.values()) - superseded
        asked = len(made) + others
        parts = ", ".join(f"{tier} {100 * n / len(made):.0f} %" for tier, n in shares.most_common())
        return [
            f"{kind}: {len(made)} made, {superseded} superseded by a newer repetition, {others} dropped otherwise",
            f"  by tier: {parts}",
            f"  by their deadline of {1e3 * made[0].timing.budget:.0f} ms: {100 * met / asked:.1f} %; "
            f"latency median {p50:.0f} ms, p99 {p99:.0f} ms",
        ]

    def captions(self, world: World) -> tuple[list[str], bool]:
        """Give the lines on what the captions say, against the truth and two controls, and whether it is the EEG's.

        *Label only* says what the best candidate's label says. *Shuffled EEG* sets each caption against the other
        images that were shown: all of them, so there is no chance in it.
        """
        said = [message for message in self.made["caption"] if isinstance(message, Caption)]
        truth = {
            id_: attributes(world.concept("test", i), world.look("test", i)) for i, id_ in enumerate(world.ids("test"))
        }
        best = {
            (decision.key, decision.onset_time): decision.candidates[0].label
            for decision in self.decisions
            if decision.candidates
        }
        said = [caption for caption in said if (caption.key, caption.onset_time) in best and caption.key in truth]
        if not said:
            return ["caption: nothing to compare"], False
        keys = sorted({caption.key for caption in said})
        words = [(caption.key, parse(caption.text)) for caption in said]
        labels = [(caption.key, parse(best[caption.key, caption.onset_time].replace("_", " "))) for caption in said]
        table = {
            name: (_right(words, truth, name), _right(labels, truth, name), _shuffled(words, truth, name, keys))
            for name in ATTRIBUTES
        }
        means = np.mean(list(table.values()), axis=0)
        lines = ["  what captions say, right in %     captions  label only  shuffled EEG"]
        for name, row in (*table.items(), ("mean", means)):
            lines.append("  {:32}{:10.0f}{:12.0f}{:14.0f}".format(name, *(100 * figure for figure in row)))
        return lines, bool(means[0] > 1.2 * means[2])


def _tier(message: Caption | Reconstruction) -> str:
    return f"diffusion ({message.units} steps)" if message.tier == "diffusion" else message.tier


def _right(said: Sequence[tuple[str, Attributes]], truth: Mapping[str, Attributes], name: str) -> float:
    return float(np.mean([getattr(words, name) == getattr(truth[key], name) for key, words in said]))


def _shuffled(
    said: Sequence[tuple[str, Attributes]], truth: Mapping[str, Attributes], name: str, keys: Sequence[str]
) -> float:
    """Share that is right of another image that was shown, the mean over all others."""
    return float(
        np.mean(
            [
                getattr(words, name) == getattr(truth[other], name)
                for key, words in said
                for other in keys
                if other != key
            ]
            or [0.0]
        )
    )
