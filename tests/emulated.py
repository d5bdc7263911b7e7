"""Builds the wide kernels for a processor that lacks their instructions (wide.h, wide.c, tiles.c), for LD_PRELOAD."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CYEXT = HERE.parent / "cyext"
KERNELS = CYEXT / "kernels"
# As cyext/CMakeLists.txt has them, less speed.
OPTIONS = [
    "-std=gnu11", "-O1", "-w", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
    "-mavx2", "-mfma", "-mf16c", "-mbmi2",
]  # fmt: skip
# A preloaded library sees no symbols but its own.
SHARED = ("act_c.c", "gemm_panel.c", "grids.c", "types.c")


def compiler() -> str | None:
    return shutil.which("cc")


def tiles(folder: Path) -> Path:
    """The library that executes tile instructions."""
    made = folder / "tiles.so"
    subprocess.run([str(compiler()), "-O2", "-shared", "-fPIC", HERE / "tiles.c", "-o", made, "-ldl"], check=True)
    return made


def wide(folder: Path) -> Path:
    """The library of the AVX-512 and AMX kernels without AVX-512's instructions."""
    sources = [*sorted(KERNELS.glob("*_avx512.c")), KERNELS / "gemm_amx.c", *(KERNELS / name for name in SHARED)]
    paths = [f"-I{CYEXT}", f"-I{KERNELS}", "-include", str(HERE / "wide.h")]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        subprocess.run([str(compiler()), *OPTIONS, *paths, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    made = folder / "wide.so"
    link = ["-shared", "-fPIC", "-Wl,-z,defs", HERE / "wide.c", "-lm"]
    subprocess.run([str(compiler()), *objects, *link, "-o", made], check=True)
    return made
