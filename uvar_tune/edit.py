"""Edit an image: ``python -m uvar_tune.edit inpaint|outpaint|relabel CHECKPOINT IMAGE --box x0,y0,x1,y1 --out FILE.png``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import CfgRamp, CfgScale, Temperature, TopK, TopP, run
from uvar_tune.errors import ConfigError


def edit(
    task: Annotated[
        str,
        typer.Argument(
            help="inpaint: the hidden part is made anew; outpaint: everything around the box; "
            "relabel: as inpaint, under another class."
        ),
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[CHECKPOINT] IMAGE",
            help="Checkpoint directory, or the trial's "
            "(left out with --vae and --var); image file. One that has not the model's "
            "size is shrunk and cut to its centre.",
        ),
    ],
    out: Annotated[
        str, typer.Option(help="PNG file to write: original, known part, completions; a row for the baseline.")
    ],
    mask: Annotated[
        str | None,
        typer.Option(help="Image file, as large as IMAGE or as the model's: white is made anew, black is kept."),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            help="x0,y0,x1,y1 in the model's pixels, x1 and y1 exclusive: made anew inside (outpaint: kept inside)."
        ),
    ] = None,
    label: Annotated[
        int | None, typer.Option(min=0, help="Class to sample (default: none, unconditional; relabel needs one).")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=256, help="Completions.")] = 4,
    cfg_scale: CfgScale = 1.5,
    cfg_ramp: CfgRamp = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 0.0,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(help="Completion i is drawn from seed + i.")] = 0,
    baseline: Annotated[str | None, typer.Option(help="Checkpoint whose completions stand in the second row.")] = None,
    vae: Annotated[str | None, typer.Option(help="Official tokenizer file (.pth), with --var.")] = None,
    var: Annotated[str | None, typer.Option(help="Official VAR file (.pth), with --vae.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer, where it has moved.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
):
    """Complete what is hidden of an image; what is known comes back as the tokenizer reconstructs it."""
    official = vae is not None or var is not None
    if len(files) != (1 if official else 2):
        raise ConfigError(
            f"expected {'IMAGE alone beside --vae and --var' if official else 'CHECKPOINT IMAGE'}, got {files}",
            where="command line",
        )
    from uvar_tune.io.outputs import check_picture, check_there

    check_picture(out, [*files, mask, baseline, vae, var, tokenizer])
    check_there(tokenizer, "--tokenizer")

    from uvar_tune.commands.edit import Request, run_edit

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
            networks={"vae": vae, "var": var, "tokenizer": tokenizer, "device": device},
        ),
    )


if __name__ == "__main__":
    run(edit)
