"""The command evaluate: the paper's tables from a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.options import Device, Root, Tokenizer
from uvar_tune.console import print_table
from uvar_tune.errors import ConfigError, choose

TABLES = ("table2", "table3", "table5", "table7", "calibration")
_CfgScale = Annotated[
    float | None,
    typer.Option(
        min=0, max=100, help="Default: the checkpoint's own best of inference.search_cfg_scales, on selection seeds."
    ),
]


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Directory of a checkpoint or of a trial (newest checkpoint).")
    ],
    tables: Annotated[str, typer.Option(help=f"{', '.join(TABLES)}, or all.")],
    baseline: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="Checkpoint to compare with.")] = None,
    samples: Annotated[int | None, typer.Option(min=16, help="Generated images (default: evaluation.samples).")] = None,
    cfg_scale: _CfgScale = None,
    baseline_cfg_scale: Annotated[float | None, typer.Option(min=0, max=100, help="The same for the baseline.")] = None,
    root: Root = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="For JSON and Markdown (default: in the root).")
    ] = None,
    imagenet_c: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="ImageNet-C images: KIND/SEVERITY/CLASS (default: eight corruptions)."),
    ] = None,
    ood: Annotated[
        str | None, typer.Option(metavar="DIR", help="Out-of-distribution images, CLASS/IMAGE (ImageNet-O).")
    ] = None,
    tokenizer: Tokenizer = None,
    device: Device = "auto",
    log: Annotated[bool, typer.Option(help="Log numbers and files to MLflow.")] = True,
):
    """Compute the paper's tables for a checkpoint. Baseline, this checkpoint and the published figures side by side."""
    names = list(TABLES) if choose(tables, (*TABLES, "all"), "table", "--tables") == "all" else [tables]
    from uvar_tune.io.outputs import check_directory, check_exists

    for option, folder in (("--imagenet-c", imagenet_c), ("--ood", ood)):
        check_exists(folder, option)
        if folder is not None and "table3" not in names:
            raise ConfigError(f"{folder} is used by table3, not by {tables}", where=option, nearest="--tables table3")
    check_exists(tokenizer, "--tokenizer")
    if out is not None:
        check_directory(out)

    from uvar_tune.commands.evaluate import Request, run_evaluation

    request = Request(
        checkpoint=checkpoint,
        baseline=baseline,
        tables=names,
        samples=samples,
        cfg_scale=cfg_scale,
        baseline_cfg_scale=baseline_cfg_scale,
        root=root,
        out=out,
        imagenet_c=imagenet_c,
        ood=ood,
        tokenizer=tokenizer,
        device=device,
        log=log,
    )
    for table in run_evaluation(request):
        print_table(table.rich(), width=160)
