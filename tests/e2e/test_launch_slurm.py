"""`launch/slurm.sbatch`, with stand-ins for SLURM: what it submits, what the job runs, and when it is requeued."""

from __future__ import annotations

import re

import pytest
from launch_cases import CHECKOUT, TRICKY, Cluster, undocumented

# SLURM runs a copy of the script, in the folder of --chdir; a requeued job starts again from its beginning.
SBATCH = """
cp "${script:=$FAKE/a checkout/launch/slurm.sbatch}" "$FAKE/slurm_script"
while [[ $1 == --* ]]; do
  [[ $1 != --chdir=* ]] || cd "${1#--chdir=}"
  shift
done
[[ $1 == "$script" ]] || exit 99
shift
while :; do
  code=0
  SLURM_JOB_ID=7 bash "$FAKE/slurm_script" "$@" || code=$?
  rm "$FAKE/requeued" 2>/dev/null || break
done
exit $code
"""
SRUN = """
while [[ $1 == --* ]]; do shift; done
python=$1 module=$3
shift 3
exec bash "$FAKE/a checkout/launch/local.sh" "${module#srsjax.}" "$@"
"""
TRAIN = ("train", "--config", "ctr.py", "--title", TRICKY)

# https://slurm.schedmd.com/sbatch.html, srun.html, scontrol.html
RESOURCES = {"--nodes", "--gpus-per-node", "--ntasks-per-node", "--cpus-per-task", "--time", "--partition", "--account"}
DOCUMENTED = {
    "sbatch": RESOURCES | {"--job-name", "--output", "--open-mode", "--requeue", "--signal", "--chdir", "--export"},
    "srun": RESOURCES | {"--gpu-bind", "--kill-on-bad-exit", "--wait"},
    "scontrol requeue": set(),
}


@pytest.fixture
def slurm(tmp_path):
    return Cluster(tmp_path, sbatch=SBATCH, srun=SRUN, scontrol='touch "$FAKE/requeued"')


def own_options(line: str) -> str:
    """A line of the job without the words of the program, which has options of its own."""
    return re.split(r" /\S*(?:\\ \S*)*/(?:bin/python|slurm.sbatch) ", line)[0]


def test_a_job_runs_what_the_dry_run_printed(slurm):
    given = ("--nodes=2", "--time=01:00:00", *TRAIN)
    code, planned, _ = slurm.run("slurm.sbatch", "--dry-run", *given)
    assert code == 0 and slurm.calls() == []
    slurm.codes(0)
    assert slurm.run("slurm.sbatch", *given)[0] == 0
    calls = slurm.calls()
    assert calls == [line for line in planned.splitlines() if line.startswith(("sbatch ", "srun "))]
    assert undocumented([own_options(line) for line in calls], DOCUMENTED) == []
    assert undocumented([own_options(calls[1].replace("--wait", "--waits"))], DOCUMENTED) == ["--waits"]
    assert slurm.programs() == [str(slurm.root), "cuda", *TRAIN]
    assert (slurm.folder / "installs").read_text() == "cuda\n"


def test_a_job_that_saved_is_requeued_and_goes_on(slurm):
    slurm.codes(75, 75, 0)
    assert slurm.run("slurm.sbatch", *TRAIN)[0] == 0
    assert slurm.programs() == [str(slurm.root), "cuda", *TRAIN] * 3
    assert slurm.calls("scontrol") == ["scontrol requeue 7"] * 2


@pytest.mark.parametrize("ended", [2, 1, 137])
def test_any_other_end_is_the_end(slurm, ended):
    slurm.codes(ended, 0)
    assert slurm.run("slurm.sbatch", *TRAIN)[0] == ended
    assert slurm.calls("scontrol") == []


def test_the_options_in_the_script():
    text = (CHECKOUT / "launch" / "slurm.sbatch").read_text()
    options = re.findall(r"^#SBATCH (--.*)$", text, re.M)
    assert undocumented([f"sbatch {' '.join(options)}"], DOCUMENTED) == []
    # sbatch reads no further than the first command.
    assert text.index("set -euo") > text.rindex("#SBATCH ")
    values = dict(option.partition("=")[::2] for option in options)
    assert values["--gpus-per-node"] == values["--ntasks-per-node"]
    assert values["--open-mode"] == "append" and "--requeue" in values
    # Without B: the tasks are signalled and not the script.
    assert re.fullmatch(r"TERM@\d+", values["--signal"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("trian",), "no command trian, expected train"),
        (("--nodes", "2", "train"), "--nodes: expected an option of sbatch as --NAME=VALUE"),
        (("--gpus-per-task=1", "train"), "--gpus-per-task=1: expected none"),
    ],
)
def test_wrong_arguments_are_one_line(slurm, arguments, said):
    code, output, errors = slurm.run("slurm.sbatch", *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"srsjax: {said}")
    assert slurm.calls() == []


def test_a_script_submitted_without_its_wrapper_says_how(slurm):
    copy = slurm.folder / "slurm_script"
    copy.write_text((slurm.root / "launch" / "slurm.sbatch").read_text())
    code, _, errors = slurm.run("../../slurm_script", *TRAIN, SLURM_JOB_ID="7")
    assert code == 2 and "submit with bash launch/slurm.sbatch" in errors and errors.count("\n") == 1


def test_help_needs_nothing(slurm):
    code, output, errors = slurm.run("slurm.sbatch", "--help")
    assert code == 0 and "--nodes=2 train --config ctr.py" in output and errors == ""
