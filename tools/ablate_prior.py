"""What the Fusion Prior gains on the simulated subject, and which features it should fuse: line 3 of the seed's table.

    python tools/ablate_prior.py FOLDER [--models FOLDER] [--images N] [--steps N]

FOLDER is that of tools/make_demo_full.py, of which the stages up to "features" are run. Every row has a Fusion Prior
(or a plain IP-Adapter) of its own and a brain encoder of HVF, and draws what the subject saw from the mean of all 80
repetitions; `streamdec-train judge` then looks at the pictures. Rows:

- all, both, semantic, pixel: features of CLIP, of the autoencoder and of sentences; without the sentences, as is
  published; of CLIP; of the autoencoder;
- past-phi: the prior of both, drawn as the reference draws;
- without: HVF trained for retrieval, its fused features fed as they are into an IP-Adapter that knows CLIP's;
- mapped: the same by way of a linear map to CLIP's features.

The figures are simulated ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from make_demo_full import GUIDANCE, MODELS, N_DIMS, PRIOR_STEPS, ROLES, STAGES, run, train_hvf, train_prior, work

GENERATOR = """\
run = "hvf"
inside = false
[diffusion]
model = "{model}"
prior = "{prior}"
features = {{ {features} }}
size = 64
guidance = {guidance}
brain_through_adapter = {through}
bridge = {bridge}
"""
FUSED = {"all": ROLES, "both": ROLES[:2], "semantic": ROLES[:1], "pixel": ROLES[1:2]}


def made(
    root: Path, models: Path, name: str, roles: Sequence[str], n_steps: int, *, through_prior: bool = True
) -> Path:
    """Train a row's prior and brain encoder where they are not there yet; return their folder."""
    folder = root / "ablation" / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "prior" / "prior.json").exists():
        given = roles if through_prior else ROLES[:1]
        train_prior(root, models, folder / "prior", given, fuse=through_prior, n_steps=n_steps)
    if not (folder / "bundle.zip").exists():
        train_hvf(
            root, folder / "hvf", roles, folder / "prior" if through_prior else None, N_DIMS if through_prior else 128
        )
        run("export", folder / "hvf", folder / "bundle.zip")
    return folder


def judged(folder: Path, models: Path, row: str, settings: dict[str, str], n_images: int) -> Path:
    """Make a row's generator, let it draw, and judge the pictures."""
    verdict = folder / f"{row}.json"
    if not verdict.exists():
        config, generator, results = (folder / f"{row}-{what}" for what in ("config.toml", "generator", "results"))
        text = GENERATOR.format(model=models / "diffusion", prior=folder / "prior", guidance=GUIDANCE, **settings)
        config.write_text(text, encoding="utf-8")
        if not generator.exists():
            run("generator", config, generator)
        if not results.exists():
            run("results", folder / "bundle.zip", generator, results, "--simulated", str(n_images))
        run("judge", results, "--truth", "world", "--out", verdict)
    return verdict


def main() -> None:
    """Run the rows, print where their figures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--images", type=int, default=200, help="test images drawn (default: all 200)")
    parser.add_argument("--steps", type=int, default=PRIOR_STEPS, help="each prior is trained (default: as the demo's)")
    args = parser.parse_args()
    root, models = args.folder.resolve(), args.models.resolve()
    work(root, models, STAGES[: STAGES.index("features") + 1])
    found = {}
    for name, roles in FUSED.items():
        folder = made(root, models, name, roles, args.steps)
        features = ", ".join(f'{role} = "{root / "features" / role}"' for role in roles)
        for row, through in ((name, "true"), *([("past-phi", "false")] if name == "both" else [])):
            settings = {"features": features, "through": through, "bridge": "true"}
            found[row] = judged(folder, models, row, settings, args.images)
    folder = made(root, models, "without", FUSED["both"], args.steps, through_prior=False)
    for row, bridge in (("without", "false"), ("mapped", "true")):
        settings = {"features": f'clip = "{root / "features" / "clip"}"', "through": "true", "bridge": bridge}
        found[row] = judged(folder, models, row, settings, args.images)
    for row, path in found.items():
        print(row, json.dumps(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
