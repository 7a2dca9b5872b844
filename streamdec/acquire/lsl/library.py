"""liblsl itself: its clock, its configuration, and the calls that pylsl makes slowly or not at all."""

from __future__ import annotations

import ctypes
import zlib
from typing import Any, NamedTuple

from pylsl.lib import lib

LOST = -2  # liblsl's error code
_FIRST_PORT, _PORTS, _SLOTS = 17000, 64, 200  # of the sessions on this machine, below the ephemeral ports


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    """Bind a function of liblsl anew: the ones pylsl holds are shared, and its argument types open."""
    function = lib[name]
    function.restype, function.argtypes = restype, argtypes
    return function


_pointer, _ulong, _double, _int = ctypes.c_void_p, ctypes.c_ulong, ctypes.c_double, ctypes.c_int
_local_clock = _function("lsl_local_clock", _double)
samples_available = _function("lsl_samples_available", ctypes.c_uint32, _pointer)
pull_samples = _function("lsl_pull_chunk_f", _ulong, _pointer, _pointer, _pointer, _ulong, _ulong, _double, _pointer)
_correction = _function("lsl_time_correction_ex", _double, _pointer, _pointer, _pointer, _double, _pointer)


def local_clock() -> float:
    """LSL clock of this machine, seconds."""
    return float(_local_clock())


def loopback(session_id: str) -> str:
    """Write the configuration (lsl_api.cfg) that keeps liblsl to this machine, and to processes of the same session.

    liblsl reads the file that ``LSLAPICFG`` names, once, at its first call in a process. Waves of 50 ms instead of 500
    find the second and third outlet at once. Ports of its own, because an outlet that finds all of a range taken by
    other sessions goes where nobody looks for it; and a query waits for answers no longer than 1 s, because each of
    those under way takes a port: 13 for one stream that is looked for with the usual 3 and 5 s, so 4.
    """
    return f"""[log]
level = -3
[ports]
IPv6 = disable
BasePort = {_FIRST_PORT + _PORTS * (zlib.crc32(session_id.encode()) % _SLOTS)}
PortRange = {_PORTS}
[multicast]
ResolveScope = machine
Interfaces = {{127.0.0.1}}
ListenAddress = 127.0.0.1
[lab]
SessionID = {session_id}
KnownPeers = {{127.0.0.1}}
[tuning]
MulticastMinRTT = 0.05
MulticastMaxRTT = 1.0
UnicastMinRTT = 0.05
UnicastMaxRTT = 1.0
"""


class Offset(NamedTuple):
    """``value``, ``uncertainty`` and ``measured`` in seconds; the latter on the sender's clock."""

    value: float
    uncertainty: float
    measured: float


def measured_offset(inlet: Any, timeout: float) -> Offset | None:
    """Clock offset of a stream; None where it is not known yet. With ``timeout`` 0 it takes 30 microseconds."""
    measured, round_trip, code = _double(), _double(), _int()
    byref = ctypes.byref
    value = _correction(inlet.obj, byref(measured), byref(round_trip), timeout, byref(code))
    return None if code.value else Offset(value, round_trip.value / 2, measured.value)
