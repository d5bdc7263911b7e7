"""unreadable.py and limits.py in one guest, one after the other: prints one JSON object.

    trouble.py MODEL LARGE_MODEL EXT4_DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import limits
import unreadable


def main(model: Path, large: Path, directory: Path) -> dict[str, object]:
    return {"unreadable": unreadable.main(model, directory), "limits": limits.main(large, directory)}


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:4]))), flush=True)
    os._exit(0)
