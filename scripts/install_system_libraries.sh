#!/usr/bin/env bash
# MuJoCo renders on a GPU through EGL, on a CPU through OSMesa. Bring OSMesa where neither is there, or say how to.
#   usage: install_system_libraries.sh PYTHON
set -euo pipefail
python=${1:?usage: install_system_libraries.sh PYTHON}

can_render() {
    MUJOCO_GL=$1 "$python" - <<'EOF' >/dev/null 2>&1
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.Renderer(model, 16, 16).close()
EOF
}

if can_render egl || can_render osmesa; then
    exit 0
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    as_root="sudo -n"
fi
if command -v apt-get >/dev/null && ${as_root} true 2>/dev/null; then
    echo "MuJoCo can't render here yet; installing libosmesa6"
    ${as_root} apt-get update -qq
    ${as_root} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libosmesa6
fi
if ! can_render osmesa; then
    echo "MuJoCo can't render: install OSMesa (Debian and Ubuntu: apt-get install libosmesa6; Fedora: dnf install" \
        "mesa-libOSMesa) or a GPU driver with EGL, then run make install again" >&2
    exit 1
fi
