"""The picture sheet: stimuli, and what every tier of a generator makes of 80 repetitions of them.

    python tools/picture_sheet.py SHEET.png                       # a simulated session of the full demo's subject
    python tools/picture_sheet.py SHEET.png --results FOLDER      # what `streamdec-train results --simulated` wrote

Everything is simulated: subject, stimuli, and small models. Captions stand below: what is true, and whoever said it.
"""

from __future__ import annotations

import argparse
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from offline.cli import main as train
from offline.judge import results
from offline.judge.truth import Truth, open_truth

SIMULATE = Path(__file__).parents[1] / "streamdec" / "simulate"
SIDE = 128  # pixels of a picture
GAP = 8
WORDS = 400  # pixels for the captions
HEAD = 24


def sheet(made: list[results.Made], truth: Truth) -> Image.Image:
    """Draw a row for each stimulus: pictures, then captions; a column for each maker of pictures."""
    keys = list(dict.fromkeys(one.key for one in made))
    drawers = list(dict.fromkeys(one.by for one in made if one.picture))
    writers = list(dict.fromkeys(one.by for one in made if one.caption is not None))
    of = {(one.by, one.key): one for one in made}
    columns = ["stimulus", *drawers]
    width = GAP + len(columns) * (SIDE + GAP) + WORDS
    page = Image.new("RGB", (width, HEAD + len(keys) * (SIDE + GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for i, name in enumerate(columns):
        pen.text((GAP + i * (SIDE + GAP), 4), name, "black", font)
    for row, key in enumerate(keys):
        top = HEAD + row * (SIDE + GAP)
        page.paste(_square(Image.fromarray(truth.image(key))), (GAP, top))
        for i, by in enumerate(drawers, 1):
            picture = of[by, key].picture
            if picture is not None:
                with Image.open(picture) as opened:
                    page.paste(_square(opened.convert("RGB")), (GAP + i * (SIDE + GAP), top))
        said = [("true", truth.references.get(key, truth.labels[key]))]
        said += [(by, of[by, key].caption or "") for by in writers]
        lines = [line for by, text in said for line in textwrap.wrap(f"{by}: {text}", 62)]
        pen.multiline_text((width - WORDS, top), "\n".join(lines), "black", font)
    return page


def _square(picture: Image.Image) -> Image.Image:
    return picture.resize((SIDE, SIDE), Image.Resampling.NEAREST if picture.width < SIDE else Image.Resampling.BICUBIC)


def main() -> None:
    """Make the results where there are none, and draw."""
    parser = argparse.ArgumentParser(description="Draw what every tier of a generator makes of simulated evidence.")
    parser.add_argument("out", type=Path, metavar="SHEET.png")
    parser.add_argument("--bundle", type=Path, default=SIMULATE / "demo_full.zip", help="default: the full demo's")
    parser.add_argument("--generator", type=Path, default=SIMULATE / "demo_generator", help="default: the full demo's")
    parser.add_argument("--results", type=Path, help="folder that streamdec-train results wrote")
    parser.add_argument("--stimuli", type=int, default=8, help="how many, of the 200 [%(default)s]")
    parser.add_argument("--repetitions", type=int, default=80, help="of each [%(default)s]")
    parser.add_argument("--steps", default="1,2,4", help="of diffusion [%(default)s]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streamdec-sheet-") as temporary:
        folder = args.results or Path(temporary) / "results"
        if not args.results:
            call = ["results", str(args.bundle), str(args.generator), str(folder), "--simulated", str(args.stimuli)]
            call += ["--repetitions", str(args.repetitions), "--steps", args.steps]
            if code := train(call):
                raise SystemExit(code)
        made = results.read(folder)
        keys = list(dict.fromkeys(one.key for one in made))
        n = min(args.stimuli, len(keys))
        shown = {keys[i * (len(keys) - 1) // max(1, n - 1)] for i in range(n)}  # from all over them
        sheet([one for one in made if one.key in shown], open_truth("world")).save(args.out)
    print(f"{args.out}: {len(shown)} stimuli")


if __name__ == "__main__":
    main()
