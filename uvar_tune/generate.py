"""Sample images from a checkpoint: ``python -m uvar_tune.generate CHECKPOINT --label L --count N --cfg-scale S --out F.png``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune import door
from uvar_tune.errors import ConfigError


def generate(
    out: Annotated[str, typer.Option(help="PNG file to write, a grid with one row a label.")],
    checkpoint: Annotated[str | None, typer.Argument(help="Checkpoint directory, or the trial's directory (its newest one); "
                                                          "left out with --vae and --var.")] = None,
    label: Annotated[list[int] | None, typer.Option(help="Class to sample; repeat for several (default: all).")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images per label.")] = 10,
    cfg_scale: Annotated[float, typer.Option(help="Guidance at the last scale; 0 = off.")] = 1.5,
    cfg_ramp: Annotated[float, typer.Option(help="How guidance grows: t_k = cfg·(k/(K−1))^ramp.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 = off.")] = 0,
    top_p: Annotated[float, typer.Option(help="0 = off.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of the logits.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Image i is drawn from seed + i.")] = 0,
    vae: Annotated[str | None, typer.Option(help="Official tokenizer file (.pth), with --var.")] = None,
    var: Annotated[str | None, typer.Option(help="Official VAR file (.pth), with --vae.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer, where it has moved.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
):
    """Write a grid of samples; the same seeds give the same images in any number and order."""
    import torch

    from uvar_tune.evaluation.pictures import save_grid
    from uvar_tune.model import CFG_CONVENTION
    from uvar_tune.model import generate as sample
    from uvar_tune.orchestration.counting import counting
    from uvar_tune.orchestration.restore import open_networks

    transformer, vqvae, about = open_networks(checkpoint, vae=vae, var=var, tokenizer=tokenizer, device=device)
    labels = label or list(range(transformer.num_classes))
    wrong = [one for one in labels if not 0 <= one < transformer.num_classes]
    if wrong:
        raise ConfigError(f"label {wrong[0]} is not one of 0 … {transformer.num_classes - 1}", where="--label")
    labels_B = torch.tensor(labels).repeat_interleave(count)
    images = sample(transformer, vqvae, labels_B.to(device), cfg_scale=cfg_scale, cfg_ramp=cfg_ramp, top_k=top_k, top_p=top_p,
                    temperature=temperature, seeds=[seed + i for i in range(len(labels_B))],
                    progress=counting("images", len(labels_B), door.say))
    save_grid(images.cpu(), out, columns=count)
    door.say(f"{out}: {len(labels_B)} images, labels {labels}, CFG {cfg_scale:g} ({CFG_CONVENTION}, ramp {cfg_ramp:g}), "
             f"checkpoint {about}")


if __name__ == "__main__":
    door.run(generate)
