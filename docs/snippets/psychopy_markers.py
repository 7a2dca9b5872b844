"""Markers from PsychoPy: one JSON text for each image, stamped at its flip.

    python psychopy_markers.py IMAGE IMAGE ...

Needs psychopy and pylsl. The stream is what `streamdec serve --markers name=psychopy` reads.
"""

import json
import sys

from psychopy import core, event, visual
from pylsl import StreamInfo, StreamOutlet, local_clock

ON, OFF = 0.1, 0.1  # seconds; whole numbers of the screen's frames

outlet = StreamOutlet(StreamInfo("psychopy", "Markers", 1, 0, "string", "psychopy-markers"))
window = visual.Window(fullscr=True, color="grey", units="height")
# Everything is loaded before anything is shown.
images = {path: visual.ImageStim(window, path, size=0.5) for path in sys.argv[1:]}
rate = window.getActualFrameRate() or 60.0
sent = 0


def mark(key):
    """Send a marker; PsychoPy calls this right after the flip, so this is when the image is on."""
    global sent
    sent += 1  # numbered: what is lost on the way is noticed
    outlet.push_sample([json.dumps({"id": key, "seq": sent})], local_clock())


visual.TextStim(window, "press a key when the recorder runs", height=0.04).draw()
window.flip()
event.waitKeys()
for path, image in images.items():
    window.callOnFlip(mark, path)
    for _ in range(round(ON * rate)):
        image.draw()
        window.flip()
    for _ in range(round(OFF * rate)):
        window.flip()
core.wait(1.0)  # the last epoch wants its second of EEG
window.close()
