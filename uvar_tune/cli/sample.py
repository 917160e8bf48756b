"""Commands that draw images from a checkpoint: generate, edit."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.options import CfgRamp, CfgScale, Device, Temperature, Tokenizer, TopK, TopP, Vae, Var, echo
from uvar_tune.errors import ConfigError

_MAX_IMAGES, _MAX_PIXELS = 10_000, 100_000_000  # in one picture: about 3 GB of memory


def generate(
    out: Annotated[str, typer.Option(metavar="FILE.png", help="PNG file to write: a grid, one row per label.")],
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="Directory of a checkpoint or of a trial (newest checkpoint); omit it with --vae and --var.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Name or number of the class to sample; repeat it for several (default: all)."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=_MAX_IMAGES, help="Images per label.")] = 10,
    cfg_scale: CfgScale = 1.5,
    cfg_ramp: CfgRamp = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 0.0,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(help="Image i is drawn with seed + i.")] = 0,
    vae: Vae = None,
    var: Var = None,
    tokenizer: Tokenizer = None,
    device: Device = "auto",
):
    """Write a grid of samples. A seed gives the same image in any grid."""
    from uvar_tune.io.outputs import check_exists, check_picture

    check_grid(len(label or [0]), count)
    check_picture(out, [checkpoint, vae, var, tokenizer])
    check_exists(tokenizer, "--tokenizer")

    import torch

    from uvar_tune.console import progress_callback
    from uvar_tune.data import resolve_label
    from uvar_tune.evaluation.image_grid import save_grid
    from uvar_tune.model.sampling import SamplingSettings, as_option
    from uvar_tune.model.sampling import generate as sample_images
    from uvar_tune.pipeline import open_networks, resolve_device

    device = resolve_device(device)
    transformer, vqvae, description = open_networks(checkpoint, vae=vae, var=var, tokenizer=tokenizer, device=device)
    settings = SamplingSettings(cfg_scale, top_k, top_p, temperature, cfg_ramp)
    settings.validate(transformer.vocab_size, as_option)
    labels = [resolve_label(text, transformer.class_names, transformer.num_classes) for text in label or ()]
    labels = labels or list(range(transformer.num_classes))
    check_grid(len(labels), count, vqvae.image_size)
    labels_B = torch.tensor(labels).repeat_interleave(count)
    images, _ = sample_images(
        transformer,
        vqvae,
        labels_B.to(device),
        settings,
        seeds=[seed + i for i in range(len(labels_B))],
        progress=progress_callback("images", len(labels_B)),
    )
    save_grid(images.cpu(), out, columns=count)
    names = transformer.class_names
    shown = ", ".join(f"{label} = {names[label]}" if names else str(label) for label in labels)
    echo(f"{out}: {len(labels_B)} images, labels {shown}, {settings.describe_guidance()}, checkpoint {description}")


def edit(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="inpaint: sample the hidden part; outpaint: sample everything around the box; "
            "relabel: inpaint with another class.",
        ),
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[CHECKPOINT] IMAGE",
            help="Directory of a checkpoint or of a trial (omit it with --vae and --var), and image file. "
            "An image of another size than the model's is shrunk and centre-cropped.",
        ),
    ],
    out: Annotated[str, typer.Option(metavar="FILE.png", help="PNG file to write: original, known part, completions.")],
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Image file of IMAGE's size or the model's: white is filled in, black is kept."
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="x0,y0,x1,y1",
            help="Pixels of the model's image, x1 and y1 exclusive: sampled inside (outpaint: kept inside).",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Name or number of the class to sample (default: unconditional; relabel requires it)."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=256, help="Completions.")] = 4,
    cfg_scale: CfgScale = 1.5,
    cfg_ramp: CfgRamp = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 0.0,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(help="Completion i is drawn with seed + i.")] = 0,
    baseline: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Checkpoint whose completions form a second row.")
    ] = None,
    vae: Vae = None,
    var: Var = None,
    tokenizer: Tokenizer = None,
    device: Device = "auto",
):
    """Complete the hidden part of an image. The known part passes through the tokenizer."""
    official = vae is not None or var is not None
    if len(files) != (1 if official else 2):
        raise ConfigError(
            f"expected {'only IMAGE with --vae and --var' if official else 'CHECKPOINT IMAGE'}, got {files}",
            where="command line",
        )
    from uvar_tune.io.outputs import check_exists, check_picture

    check_picture(out, [*files, mask, baseline, vae, var, tokenizer])
    check_exists(tokenizer, "--tokenizer")

    from uvar_tune.commands.edit import Request, run_edit
    from uvar_tune.pipeline import resolve_device

    sampling = {
        "cfg_scale": cfg_scale,
        "cfg_ramp": cfg_ramp,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
    }
    run_edit(
        Request(
            task=task,
            checkpoint=None if official else files[0],
            image=files[-1],
            out=out,
            mask=mask,
            box=box,
            label=label,
            count=count,
            seed=seed,
            baseline=baseline,
            sampling=sampling,
            networks={"vae": vae, "var": var, "tokenizer": tokenizer, "device": resolve_device(device)},
        ),
    )


def check_grid(labels: int, count: int, size: int = 1) -> None:
    """ConfigError for a grid of more images, of ``size`` pixels a side, than one picture takes."""
    most = min(_MAX_IMAGES, _MAX_PIXELS // size**2)
    if labels * count > most:
        total = f"{labels * count:,} images" + (f" of {size}x{size} px" if size > 1 else "")
        raise ConfigError(
            f"{count} of each of {labels:,} labels are {total}; one picture takes at most {most:,}",
            where="--count" if labels <= most else "--label",
            nearest=str(most // labels) if labels <= most else None,
        )
