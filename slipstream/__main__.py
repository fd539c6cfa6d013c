"""The command `slipstream`: every script of the checkout under one name.

slipstream make-shards ~/ucf101            as tools/make_shards.py ~/ucf101
slipstream train --objective dpc           on several GPUs: accelerate launch -m slipstream train …
slipstream evaluate linear --checkpoint runs/dpc
"""

import sys
from pathlib import Path
from types import ModuleType

import shards

ROOT = Path(shards.__file__).parents[1]  # the checkout, or the installed package


def scripts() -> dict[str, Path]:
    """Command → the script that it runs."""
    found = {name: ROOT / f"{name}.py" for name in ("train", "evaluate")}
    found |= {path.stem.replace("_", "-"): path for path in sorted((ROOT / "tools").glob("[a-z]*.py"))}
    found["bench"] = found.pop("bench-loader")
    return found


def main() -> None:
    known = scripts()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"{__doc__}\nCommands: {', '.join(known)}. Each has --help.")
        return
    if name not in known:
        sys.exit(f"error: {name}: there is no such command; choose one of {', '.join(known)}")
    sys.argv = [f"slipstream {name}", *sys.argv[2:]]
    # as runpy.run_path, which would put the script's path into sys.argv, and so into "usage: …"
    script = sys.modules["__main__"] = ModuleType("__main__")
    script.__file__ = str(known[name])
    exec(compile(known[name].read_bytes(), script.__file__, "exec"), script.__dict__)


if __name__ == "__main__":
    main()
