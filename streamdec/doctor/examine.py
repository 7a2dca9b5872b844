"""The whole examination, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from ..acquire.lsl.inlet import LslInlet
from ..acquire.lsl.link import find
from ..config import Config
from ..errors import StreamdecError, StreamError
from ..serve import open_bundle
from ..types import StreamInfo
from .finding import Finding
from .machine import disk, network, processor
from .rehearsal import generation, retrieval
from .rig import describe, listen


def examine(config: Config, seconds: float, photodiode: str = "") -> Iterator[Finding]:
    """Look at network, processor and streams, listen for ``seconds``, rehearse the decoder, look at the disk.

    Parameters
    ----------
    config : Config
        What ``serve`` would run with; without a bundle only the streams are judged.
    seconds : float
        How long to listen.
    photodiode : str
        Channel of the EEG stream with a light sensor on the screen, "" for none.
    """
    yield from network(config)
    yield processor()
    bundle = None
    if config.bundle:
        try:
            bundle = open_bundle(config)
        except StreamdecError as error:
            yield Finding("bundle", "fatal", str(error))
            return
        manifest = bundle.manifest
        about = f"{bundle.path.name}: {manifest.method}, {len(bundle.gallery)} candidates"
        yield Finding("bundle", "ok", about + (", simulated" if manifest.simulated else ""))
        if manifest.calibrated is not None:
            yield Finding("bundle", "ok", f"{bundle.path.name} is {manifest.calibrated.line()}")
    eeg: StreamInfo | None = None
    visible = find(1.0)
    for info in visible:
        yield Finding("streams", "ok", f"stream {describe(info)}")
    if not visible:
        do = "start the amplifier's LSL outlet, check LSLAPICFG and the firewall"
        yield Finding("streams", "fatal", "no LSL stream in sight", do)
    else:
        markers = None if config.intake.trigger else config.inlet.markers
        with closing(LslInlet(config.inlet.eeg, markers, stall=config.inlet.stall)) as inlet:
            try:
                inlet.open(max(seconds, 1.0))
                eeg = inlet.eeg
                yield Finding("streams", "ok", f"reading EEG {describe(eeg)}")
                yield from listen(inlet, bundle, config, seconds, photodiode)
            except StreamError as error:
                yield Finding("streams", "fatal", str(error))
    if bundle is not None:
        yield from retrieval(bundle, config, eeg)
        yield from generation(bundle, config)
    if config.record and eeg is not None:
        yield from disk(config, eeg)
