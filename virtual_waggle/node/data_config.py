# SPDX-License-Identifier: Apache-2.0
"""data-config.json: which address a plugin's ``Camera("bottom")`` has, as in 2020's virtual-waggle."""

import json
from pathlib import Path

from groundwork import files
from virtual_waggle.node.state import NodeState

OWN = "data-config.json"  # in the state folder: the user's, instead of the generated one


def make(state: NodeState, host: str, port: int) -> Path:
    """The user's file, or one made for a playback server at this address."""
    own = state.folder / OWN
    if own.is_file():
        return own
    path = state.folder / f"data-config.{host}.json"
    text = json.dumps([_section(*row, host, port) for row in _ROWS], indent=2) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
    return path


# id, orientation, kind, what of the playback server
_ROWS = [
    (name, side, kind, f"{side}/{what}")
    for side in ("bottom", "top")
    for name, kind, what in (
        (side, "video", "live.mp4"),
        (f"{side}_camera", "video", "live.mp4"),
        (f"{side}_video", "video", "live.mp4"),
        (f"{side}_image", "image", "image.jpg"),
    )
]


def _section(name: str, side: str, kind: str, place: str, host: str, port: int) -> dict[str, object]:
    return {
        "name": name,
        "match": {"id": name, "type": f"camera/{kind}", "orientation": side, "resolution": "800x600"},
        "handler": {"type": kind, "args": {"url": f"http://{host}:{port}/{place}"}},
    }
