"""Sample images from a checkpoint: ``python -m uvar_tune.generate CHECKPOINT --label L --count N --cfg-scale S --out F.png``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import CfgRamp, CfgScale, Temperature, TopK, TopP, echo, run
from uvar_tune.errors import ConfigError

_IMAGES, _PIXELS = 10_000, 100_000_000  # at most, in one picture: about 3 GB on the way to it


def generate(
    out: Annotated[str, typer.Option(help="PNG file to write, a grid with one row a label.")],
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint directory, or the trial's directory (its newest one); left out with --vae and --var."
        ),
    ] = None,
    label: Annotated[
        list[int] | None, typer.Option(min=0, help="Class to sample; repeat for several (default: all).")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=_IMAGES, help="Images per label.")] = 10,
    cfg_scale: CfgScale = 1.5,
    cfg_ramp: CfgRamp = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 0.0,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(help="Image i is drawn from seed + i.")] = 0,
    vae: Annotated[str | None, typer.Option(help="Official tokenizer file (.pth), with --var.")] = None,
    var: Annotated[str | None, typer.Option(help="Official VAR file (.pth), with --vae.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer, where it has moved.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
):
    """Write a grid of samples; the same seeds give the same images in any number and order."""
    from uvar_tune.io.outputs import check_picture, check_there

    check_room(len(label or [0]), count)
    check_picture(out, [checkpoint, vae, var, tokenizer])
    check_there(tokenizer, "--tokenizer")

    import torch

    from uvar_tune.console import progress_callback
    from uvar_tune.evaluation.image_grid import save_grid
    from uvar_tune.model.sampling import Inference, as_option, sample
    from uvar_tune.pipeline import open_networks

    transformer, vqvae, about = open_networks(checkpoint, vae=vae, var=var, tokenizer=tokenizer, device=device)
    inference = Inference(cfg_scale, top_k, top_p, temperature, cfg_ramp)
    inference.check(transformer.vocab_size, as_option)
    labels = label or list(range(transformer.num_classes))
    wrong = [one for one in labels if one >= transformer.num_classes]
    if wrong:
        raise ConfigError(
            f"label {wrong[0]} is not one of 0 … {transformer.num_classes - 1}",
            where="--label",
            nearest=str(transformer.num_classes - 1),
        )
    check_room(len(labels), count, vqvae.image_size)
    labels_B = torch.tensor(labels).repeat_interleave(count)
    images, _ = sample(
        transformer,
        vqvae,
        labels_B.to(device),
        inference,
        seeds=[seed + i for i in range(len(labels_B))],
        chunk=None,
        progress=progress_callback("images", len(labels_B)),
    )
    save_grid(images.cpu(), out, columns=count)
    echo(f"{out}: {len(labels_B)} images, labels {labels}, {inference.about()}, checkpoint {about}")


def check_room(labels: int, count: int, size: int = 1) -> None:
    """ConfigError for a grid of more images, of ``size`` pixels a side, than one picture takes."""
    most = min(_IMAGES, _PIXELS // size**2)
    if labels * count > most:
        total = f"{labels * count:,} images" + (f" of {size}x{size} px" if size > 1 else "")
        raise ConfigError(
            f"{count} of each of {labels:,} labels are {total}; one picture takes at most {most:,}",
            where="--count" if labels <= most else "--label",
            nearest=str(most // labels) if labels <= most else None,
        )


if __name__ == "__main__":
    run(generate)
