"""Plans a training run: `python -m srsjax.plan --config ctr.py --topology v5e:2x4`.

Compiles the training step and the scoring step of a config for devices that need not be there, and prints what one
device holds against its memory, the collectives of the programs, and the shortest time that a step can take. Nothing is
trained. The data are prepared first where that has not been done, because the shapes of the batches depend on them.

    python -m srsjax.plan --config ctr.py                                 the devices of this machine
    python -m srsjax.plan --config ctr.py --topology cpu:8                eight CPU devices that share this machine
    python -m srsjax.plan --config ctr.py --topology v5e:4x4              sixteen TPU chips; pip install 'jax[tpu]'
    python -m srsjax.plan --config ctr.py --topology v5e:4x4 --auto       chooses mesh, remat and micro-batches itself

For a topology attention is plain XLA unless `--model.attention` names another: nothing can be timed there.
Exit code: 0 it fits, or the memory of the device is unknown (--memory says it); 1 it does not fit; 2 wrong input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from srsjax import cli
from srsjax.bounds import AnyFloat
from srsjax.config import Mesh, TrainConfig
from srsjax.console import main_console, say
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.errors import InputError
from srsjax.jax_version import check_jax
from srsjax.model.spec import encoder_config
from srsjax.planning import devices, search, show
from srsjax.planning.program import Plan, make_plan

TOO_LARGE = 1
"""Exit code: a program does not fit in the memory of a device."""


@dataclass(frozen=True)
class PlanArguments(cli.ConfigArgument):
    """What is planned, and for which devices."""

    topology: str = "local"
    """`local`, the devices here; `cpu:N`, N CPU devices; or a TPU slice by generation and shape (`v5e:2x4`,
    `v5p:2x2x1`, `v6e:4x4`), for which libtpu has the compiler."""
    memory: AnyFloat = 0.0
    """GiB of one device, instead of what is known of it; 0 leaves that as it is."""
    auto: bool = False
    """Choose mesh, model.remat and batch.micro_batches for batch.rows, and print the flags for `train`."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_config_and(PlanArguments, argv, "plan", __doc__)
    if arguments.memory < 0:
        raise InputError(f"--memory: found {arguments.memory:g}, expected GiB of one device")
    target = devices.find(arguments.topology, arguments.memory * 2**30)
    check_jax()
    # A program that is loaded instead of compiled no longer knows how much memory it needs.
    jax.config.update("jax_enable_compilation_cache", False)
    console = main_console()
    store = prepare(config, log=say)
    text = load_tokenizer(str(store.folder / "tokenizer"))
    if not arguments.auto:
        made = make_plan(config, target, store, text)
        show.plan(console, made)
        return verdict(made)

    if target.memory is None:
        raise InputError(f"--auto: the memory of {target.name} is not known; give --memory, GiB of one device")
    bert = encoder_config(config.model, text.vocab_size)
    found = search.find(config, bert, len(target.devices), lambda tried: make_plan(tried, target, store, text), say)
    if found is None:
        say("nothing that was tried fits: fewer --batch.rows or --batch.tokens, or more devices")
        return TOO_LARGE
    show.plan(console, found)
    return verdict(found)


def verdict(made: Plan) -> int:
    """Says whether a plan fits, and what to do where it does not; returns the exit code."""
    if made.fits is None:
        say("memory of the device: unknown; --memory GIB says whether this fits")
    elif not made.fits:
        say("does NOT fit; what makes it smaller (--auto tries them):")
        for line in show.advice(made):
            say(f"  {line}")
        return TOO_LARGE
    else:
        say("fits")
    say(f"train with: {search.flags(_sized(made))}")
    return 0


def _sized(made: Plan) -> TrainConfig:
    """The plan's config with the sizes of its mesh in place of -1."""
    return replace(made.config, mesh=Mesh(**made.session.mesh.shape))


if __name__ == "__main__":
    cli.run(main)
