"""The command line of the benchmarks. On a shared machine, run it under a lock."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from benchmarks import algebra as algebra_benchmark
from benchmarks import compile_time as compile_time_benchmark
from benchmarks import dynamic as dynamic_benchmark
from benchmarks import dynamic_peers as dynamic_peers_benchmark
from benchmarks import kernels as kernels_benchmark
from benchmarks import low_rank as low_rank_benchmark
from benchmarks import low_rank_peers as low_rank_peers_benchmark
from benchmarks import memory as memory_benchmark
from benchmarks import mixed as mixed_benchmark
from benchmarks import networks as networks_benchmark
from benchmarks import overhead as overhead_benchmark
from benchmarks import per_sample as per_sample_benchmark
from benchmarks import siblings as siblings_benchmark
from benchmarks import steps as steps_benchmark
from benchmarks import transformers as transformers_benchmark
from benchmarks import zoo as zoo_benchmark

app = typer.Typer(help="Benchmarks of regraft; each writes JSON into benchmarks/results.")

Rounds = Annotated[int, typer.Option(min=20, help="Interleaved rounds.")]
Patience = Annotated[float, typer.Option(help="Seconds to spend on repeating rounds that others disturbed.")]


@app.callback(invoke_without_command=True)
def everything(context: typer.Context) -> None:
    """Without a command: all of them."""
    if context.invoked_subcommand is None:
        transformers_benchmark.run()
        networks_benchmark.run()
        overhead_benchmark.run()
        memory_benchmark.run()
        compile_time_benchmark.run()
        low_rank_benchmark.run()
        low_rank_peers_benchmark.run()
        algebra_benchmark.run()
        dynamic_benchmark.run()
        per_sample_benchmark.run()
        kernels_benchmark.run()
        mixed_benchmark.run()
        siblings_benchmark.run()
        steps_benchmark.run()
        zoo_benchmark.run()


@app.command()
def transformers(
    models: Annotated[
        list[str] | None, typer.Argument(help="bert, gpt2, llama, vit; all by default.")
    ] = None,
    rounds: Rounds = 30,
    patience: Patience = 120.0,
) -> None:
    """regraft against each peer on whole transformers."""
    transformers_benchmark.run(models or transformers_benchmark.MODELS, rounds, patience)


@app.command()
def networks(
    names: Annotated[
        list[str] | None, typer.Argument(help="resnet50, unet_bilinear, tagger...; all by default.")
    ] = None,
    rounds: Rounds = 30,
    patience: Patience = 120.0,
    bf16: Annotated[bool, typer.Option(help="The networks in bf16, not in f32.")] = False,
) -> None:
    """regraft against eager torch and torch.onnx on convolutional, recurrent and encoder-decoder networks."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    networks_benchmark.run(names or tuple(networks_benchmark.NETWORKS), rounds, patience, dtype)


@app.command()
def dynamic(
    names: Annotated[
        list[str] | None, typer.Argument(help="early_exit_encoder, skipping_decoder...; all by default.")
    ] = None,
    rounds: Rounds = 20,
    patience: Annotated[float, typer.Option(help="As above, a path.")] = 10.0,
    backends: Annotated[
        list[str] | None,
        typer.Option(help="Back ends as in tvm,ort; repeat it to race several lists. By default ort."),
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="static, inductor (long to build); by default static alone.")
    ] = None,
    paths: Annotated[int, typer.Option(min=1, help="How many paths of each network.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="With 1, by CPU time: for a machine in use.")] = 2,
) -> None:
    """regraft against eager torch, inductor and the path alone, on networks that branch on data."""
    lists, others = tuple(backends or ("ort",)), tuple(peers or (dynamic_benchmark.STATIC,))
    settings = dynamic_benchmark.Settings(rounds, patience, lists, others, paths, threads)
    dynamic_benchmark.run(names or dynamic_benchmark.NAMES, settings)


@app.command()
def per_sample(
    rounds: Rounds = 20, patience: Annotated[float, typer.Option(help="As above.")] = 60.0
) -> None:
    """A batch of 64 whose samples leave an early-exit encoder each at its own exit."""
    per_sample_benchmark.run(rounds, patience)


@app.command()
def dynamic_peers(
    timeout: Annotated[float, typer.Option(help="Seconds for one tool and one network.")] = 60.0,
) -> None:
    """How many of the networks that branch on data each tool takes, and gets right on every path."""
    dynamic_peers_benchmark.run(timeout=timeout)


@app.command()
def overhead(rounds: Rounds = 30) -> None:
    """What a call costs beside the work."""
    overhead_benchmark.run(rounds)


@app.command()
def low_rank(
    rounds: Rounds = 20, patience: Annotated[float, typer.Option(help="As above, a race.")] = 10.0
) -> None:
    """Low-rank layers and LoRA: the chosen form against each form."""
    low_rank_benchmark.run(rounds=rounds, patience=patience)


@app.command()
def low_rank_peers(
    rounds: Rounds = 20, patience: Annotated[float, typer.Option(help="As above, a race.")] = 5.0
) -> None:
    """Low-rank, LoRA and block-shuffle networks on our own kernels, against ONNX Runtime and OpenVINO."""
    low_rank_peers_benchmark.run(rounds=rounds, patience=patience)


@app.command()
def algebra(
    rounds: Rounds = 20, patience: Annotated[float, typer.Option(help="As above, a race.")] = 30.0
) -> None:
    """SOFT, block-shuffle and streamed low-rank FFNs against ONNX Runtime."""
    algebra_benchmark.run(rounds, patience)


@app.command()
def kernels(
    rows: Annotated[list[int] | None, typer.Option(help="Numbers of rows; all by default.")] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(help="plain, bias_gelu, gate, residual, swiglu, bf16; all by default.")
    ] = None,
    rounds: Rounds = 20,
    patience: Annotated[float, typer.Option(help="As above, a race.")] = 5.0,
    tuned: Annotated[bool, typer.Option(help="Measure configs first, not the defaults.")] = False,
    name: Annotated[str, typer.Option(help="Name of the file of results.")] = "kernels",
) -> None:
    """Kernels of the TVM back end's templates against ONNX Runtime, OpenVINO and oneDNN."""
    kernels_benchmark.run(
        rows or kernels_benchmark.ROWS,
        kinds or kernels_benchmark.ALL_KINDS,
        rounds,
        patience,
        tuned,
        name,
    )


@app.command()
def mixed(
    models: Annotated[list[str] | None, typer.Argument(help="bert, llama; both by default.")] = None,
    rounds: Rounds = 20,
    patience: Annotated[float, typer.Option(help="As above.")] = 60.0,
    budget: Annotated[str, typer.Option(help="Time to measure what goes where in one model.")] = "5min",
    threads: Annotated[int, typer.Option(min=1, help="With 1, by CPU time: for a machine in use.")] = 2,
) -> None:
    """Transformers on ONNX Runtime, on our kernels, and on both, against OpenVINO."""
    mixed_benchmark.run(models or mixed_benchmark.MODELS, rounds, patience, budget, threads)


@app.command()
def siblings(
    rounds: Rounds = 30, patience: Annotated[float, typer.Option(help="As above, a race.")] = 10.0
) -> None:
    """Linear layers over one input: separate, or one layer cut into theirs."""
    siblings_benchmark.run(rounds, patience)


@app.command()
def steps(
    rounds: Rounds = 20,
    patience: Annotated[float, typer.Option(help="As above.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="With 1, by CPU time: for a machine in use.")] = 2,
) -> None:
    """A diffusion transformer over 50 steps, with and without step caching."""
    steps_benchmark.run(rounds, patience, threads)


@app.command()
def zoo(
    only: Annotated[
        list[str] | None, typer.Argument(help="low rank 64, soft, bert...; all by default.")
    ] = None,
    rounds: Rounds = 20,
    patience: Annotated[float, typer.Option(help="As above, a race.")] = 10.0,
    budget: Annotated[str, typer.Option(help="Time to measure the forms of one model.")] = "20s",
) -> None:
    """Models of linear algebra, with the rewrites for it against without: none may be slower."""
    zoo_benchmark.run(only or (), rounds, patience, budget)


@app.command()
def memory() -> None:
    """Peak memory of a compile and ten calls."""
    memory_benchmark.run()


@app.command()
def compile_time(repeats: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Seconds of a compile by phase."""
    compile_time_benchmark.run(repeats)


if __name__ == "__main__":
    app()
