"""From a browser to LSL: serves a folder with your experiment, and sends what its pages mark as an LSL marker stream.

    python marker_bridge.py FOLDER [--port 8765]

Then open http://127.0.0.1:8765/ in a browser on this machine. Needs aiohttp and pylsl. Pages use markers.js. Only this
machine can reach it, and only pages that it served itself may mark.
"""

import argparse
import json
import math
from pathlib import Path

from aiohttp import WSMsgType, web
from pylsl import StreamInfo, StreamOutlet, local_clock

MOST = 4096  # bytes of a message


def bridge(folder, name):
    """Make the server."""
    outlet = StreamOutlet(StreamInfo(name, "Markers", 1, 0, "string", f"{name}-markers"))

    async def markers(request):
        if request.headers.get("Origin") != f"http://{request.host}":
            raise web.HTTPForbidden(text="only pages of this server may mark")
        socket = web.WebSocketResponse(max_msg_size=MOST)
        await socket.prepare(request)
        async for message in socket:
            if message.type != WSMsgType.TEXT:
                continue
            received = local_clock()
            try:
                said = json.loads(message.data)
                if "ping" in said:  # the page measures how its clock and LSL's differ
                    await socket.send_json({"ping": said["ping"], "clock": received})
                elif math.isfinite(said["clock"]):
                    outlet.push_sample([json.dumps(said["marker"])], float(said["clock"]))
            except (ValueError, TypeError, KeyError) as error:
                await socket.send_json({"error": repr(error)})
        return socket

    async def start(request):
        raise web.HTTPFound("/index.html")

    server = web.Application()
    server.add_routes([web.get("/", start), web.get("/markers", markers), web.static("/", folder)])
    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with index.html")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--name", default="browser", help="of the LSL stream")
    options = parser.parse_args()
    web.run_app(bridge(options.folder, options.name), host="127.0.0.1", port=options.port)
