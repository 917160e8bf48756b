"""The paper's tables from a checkpoint: ``python -m uvar_tune.evaluate CHECKPOINT [--baseline CHECKPOINT] --suite table2``."""

from __future__ import annotations

from typing import Annotated

import typer

from uvar_tune.cli.common import run
from uvar_tune.errors import ConfigError, choose

SUITES = ("table2", "table3", "table5", "table7", "calibration")


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint directory, or the trial's directory (its newest one).")],
    suite: Annotated[str, typer.Option(help=f"{', '.join(SUITES)}, or all.")],
    baseline: Annotated[str | None, typer.Option(help="Checkpoint to stand beside it.")] = None,
    samples: Annotated[int | None, typer.Option(min=16, help="Generated images (default: evaluation.samples).")] = None,
    cfg_scale: Annotated[
        float | None,
        typer.Option(
            min=0, max=100, help="Default: the checkpoint's own best of inference.search_cfg_scales, on other seeds."
        ),
    ] = None,
    baseline_cfg_scale: Annotated[float | None, typer.Option(min=0, max=100, help="Likewise, the baseline's.")] = None,
    root: Annotated[str | None, typer.Option(help="Where studies and caches lie (run.root; default: runs).")] = None,
    out: Annotated[str | None, typer.Option(help="Directory for JSON and Markdown (default: below the root).")] = None,
    imagenet_c: Annotated[
        str | None, typer.Option(help="ImageNet-C, laid out KIND/SEVERITY/CLASS, in place of digits-c8.")
    ] = None,
    ood: Annotated[
        str | None, typer.Option(help="Out-of-distribution images, laid out CLASS/IMAGE (ImageNet-O).")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer, where it has moved.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    log: Annotated[bool, typer.Option(help="Log the numbers and files to MLflow.")] = True,
):
    """Measure, print and write the paper's tables: baseline beside ours, and the published figures, marked so."""
    suites = list(SUITES) if choose(suite, (*SUITES, "all"), "suite", "--suite") == "all" else [suite]
    from uvar_tune.io.outputs import check_directory, check_there

    for option, folder in (("--imagenet-c", imagenet_c), ("--ood", ood)):
        check_there(folder, option)
        if folder is not None and "table3" not in suites:
            raise ConfigError(f"{folder} is of use to table3, not to {suite}", where=option, nearest="--suite table3")
    check_there(tokenizer, "--tokenizer")
    if out is not None:
        check_directory(out)

    from uvar_tune.commands.evaluate import Request, run_evaluation

    request = Request(
        checkpoint=checkpoint,
        baseline=baseline,
        suites=suites,
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
    run_evaluation(request)


if __name__ == "__main__":
    run(evaluate)
