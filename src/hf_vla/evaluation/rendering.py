"""Choose how MuJoCo renders without a display: with EGL on a GPU, else with OSMesa on the CPU."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from types import ModuleType

__all__ = ["select_mujoco_backend"]

logger = logging.getLogger(__name__)

_EGL_EXTENSIONS = 0x3055
_EGL_PLATFORM_DEVICE = 0x313F
_NO_BACKEND = (
    "MuJoCo cannot render on this machine: there is neither an EGL device nor the OSMesa library. "
    "Install the Debian package libosmesa6 (apt-get install libosmesa6), or set MUJOCO_GL to a backend that works."
)
_NEEDS_DISPLAY = (
    "MuJoCo cannot render here: MUJOCO_GL is glfw, which needs a display; install the Debian package libosmesa6 and set "
    "MUJOCO_GL=osmesa, or MUJOCO_GL=egl if there is a GPU, before mujoco is imported"
)
_IMPORTED_TOO_EARLY = (
    "mujoco was imported before MUJOCO_GL was set, and would render by GLFW, which needs a display; here it would end the "
    "process. Make the environment before anything imports mujoco, or set MUJOCO_GL=osmesa (or egl) before Python starts."
)


def select_mujoco_backend() -> str:
    """Set `MUJOCO_GL`, unless the user has, to a backend that works here; call before `mujoco` is first imported.

    A GPU's EGL comes first, then OSMesa, then EGL's software device. Nothing changes on systems other than Linux, nor if
    `mujoco` is already imported, since it reads the variable only at import: it must then be able to render.

    Returns:
        The value of `MUJOCO_GL`, empty if MuJoCo uses its own default.

    Raises:
        OSError: no backend works, and the message names the package to install; or `mujoco` was imported without one.
    """
    if sys.platform == "linux" and _renders_by_glfw(sys.modules.get("mujoco")) and not _has_display():
        raise OSError(_NEEDS_DISPLAY if os.environ.get("MUJOCO_GL") == "glfw" else _IMPORTED_TOO_EARLY)
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux" or "mujoco" in sys.modules:
        return os.environ.get("MUJOCO_GL", "")
    egl = _usable_egl_devices()
    if "gpu" in egl:
        backend = "egl"
    elif _can_load("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        backend = "osmesa"
        # At a policy's image sizes Mesa's worker threads cost more than they save, and every process starts its own.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    elif egl:
        backend = "egl"
    else:
        raise OSError(_NO_BACKEND)
    os.environ["MUJOCO_GL"] = backend
    logger.info("MuJoCo renders with MUJOCO_GL=%s", backend)
    return backend


def _renders_by_glfw(mujoco: ModuleType | None) -> bool:
    return getattr(getattr(mujoco, "GLContext", None), "__module__", None) == "mujoco.glfw"


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _can_load(*names: str) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _usable_egl_devices() -> set[str]:
    """Return the kinds of EGL device ("gpu", "software") that can be initialised in this process.

    The presence of a library or device file proves little: containers often lack the driver's EGL part.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return set()
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    query_devices = _egl_function(egl, b"eglQueryDevicesEXT", integer, integer, pointer, pointer)
    query_string = _egl_function(egl, b"eglQueryDeviceStringEXT", ctypes.c_char_p, pointer, integer)
    get_display = _egl_function(egl, b"eglGetPlatformDisplayEXT", pointer, integer, pointer, pointer)
    if query_devices is None or query_string is None or get_display is None:
        return set()
    devices = (pointer * 16)()
    count = integer()
    if not query_devices(16, ctypes.addressof(devices), ctypes.addressof(count)):
        return set()
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    egl.eglTerminate.argtypes = [pointer]
    usable = set()
    for device in devices[: count.value]:
        extensions = query_string(device, _EGL_EXTENSIONS) or b""
        display = get_display(_EGL_PLATFORM_DEVICE, device, None)
        if display and egl.eglInitialize(display, None, None):
            usable.add("software" if b"EGL_MESA_device_software" in extensions else "gpu")
            egl.eglTerminate(display)
    return usable


def _egl_function(egl: ctypes.CDLL, name: bytes, *signature):
    address = egl.eglGetProcAddress(name)
    return ctypes.CFUNCTYPE(*signature)(address) if address else None
