"""`launch/tpu_pod.sh` with a stand-in for gcloud that runs what is sent to the workers here, each in its own home."""

from __future__ import annotations

import re

import pytest
from launch_cases import TRICKY, Cluster, undocumented

# Every worker is a folder; a slice that is not ACTIVE cannot be reached. A new slice has new disks.
GCLOUD = """
words=" $* "
for one in "$@"; do
  case $one in
    --command=*) line=${one#--command=} ;;
    --worker=*) workers=${one#--worker=} ;;
  esac
done
case $words in
  *" describe "*) cat "$FAKE/state" 2>/dev/null || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; } ;;
  *" create "*) rm -rf "$FAKE"/worker-*; mkdir "$FAKE"/worker-{0,1}; echo ACTIVE >"$FAKE/state" ;;
  *" delete "*) rm "$FAKE/state" ;;
  *" scp "*) for one in 0 1; do cp "$5" "$FAKE/worker-$one/"; done ;;
  *" ssh "*)
    grep -q -e ACTIVE -e READY "$FAKE/state" || exit 255
    [[ $workers == all ]] && workers="0 1"
    failed=0
    for one in $workers; do
      (cd "$FAKE/worker-$one" && WORKER=$one HOME=$PWD SRSJAX_SHARED=$FAKE/shared bash -c "$line") || failed=$?
    done
    exit $failed
    ;;
esac
"""
# Tools of a worker.
TOOLS = {
    "gcloud": GCLOUD,
    "sudo": '"$@"',
    "mountpoint": "[[ -f $HOME/mounted ]]",
    "gcsfuse": 'touch "$HOME/mounted"',
    "mount": 'touch "$HOME/mounted"',
    "mount.nfs": "",
    "uv": "",
}

# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/create (ssh, scp, describe, delete),
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create (describe, delete),
# https://cloud.google.com/sdk/gcloud/reference/alpha/compute/tpus/queued-resources/create, looked up in 2026-11.
WIDE = {"--project", "--quiet", "--format", "--zone"}
VM, QUEUED = "compute tpus tpu-vm", "compute tpus queued-resources"
CREATE = {"--node-id", "--accelerator-type", "--runtime-version", "--spot", "--reserved", "--async"}
DOCUMENTED = {
    f"gcloud {VM} create": WIDE | {"--accelerator-type", "--version", "--spot", "--reserved", "--async"},
    f"gcloud {VM} describe": WIDE,
    f"gcloud {VM} delete": WIDE | {"--async"},
    f"gcloud {VM} ssh": WIDE | {"--worker", "--command", "--internal-ip", "--ssh-flag"},
    f"gcloud {VM} scp": WIDE | {"--worker", "--recurse", "--compress"},
    f"gcloud {QUEUED} create": WIDE | CREATE,
    f"gcloud {QUEUED} describe": WIDE,
    f"gcloud {QUEUED} delete": WIDE | {"--force", "--async"},
    f"gcloud alpha {QUEUED} create": WIDE | CREATE | {"--provisioning-model", "--max-run-duration"},
    f"gcloud alpha {QUEUED} describe": WIDE,
    f"gcloud alpha {QUEUED} delete": WIDE | {"--force", "--async"},
    f"gcloud alpha {VM} ssh": WIDE | {"--worker", "--command", "--batch-size"},
    f"gcloud alpha {VM} scp": WIDE | {"--worker", "--recurse", "--batch-size"},
}
TRAIN = ("train", "--config", "ctr.py", "--title", TRICKY)


@pytest.fixture
def pod(tmp_path):
    cluster = Cluster(tmp_path, **TOOLS)
    (tmp_path / "shared").mkdir()
    cluster.environment |= {
        "SRSJAX_TPU": "ctr",
        "SRSJAX_ZONE": "us-east5-a",
        "SRSJAX_TPU_TYPE": "v6e-16",
        "SRSJAX_TPU_VERSION": "v2-alpha-tpuv6e",
        "SRSJAX_STORAGE": "gs://bucket/some/where",
        "SRSJAX_PROVISIONING": "spot",
    }
    return cluster


def commands(lines: list[str]) -> list[str]:
    """The calls of gcloud, with the name of the temporary folder taken out."""
    return [re.sub(r"\S+/srsjax.tar.gz", "srsjax.tar.gz", line) for line in lines if line.startswith("gcloud ")]


@pytest.mark.parametrize("provisioning", ["on-demand", "queued", "spot", "reserved", "flex"])
@pytest.mark.parametrize("what", [("loop", *TRAIN), ("down",), ("stop",), ("status",)])
def test_every_option_of_gcloud_is_documented(pod, provisioning, what):
    code, output, _ = pod.run("tpu_pod.sh", "--dry-run", *what, SRSJAX_PROVISIONING=provisioning, SRSJAX_PROJECT="p")
    lines = [line for line in output.splitlines() if not line.startswith(("#", "tar "))]
    assert code == 0 and lines
    assert undocumented(lines, DOCUMENTED) == []
    assert pod.calls() == []
    # That a misspelt one would be seen:
    assert undocumented([lines[0].replace("--zone", "--zones")], DOCUMENTED) == ["--zones"]


def test_a_loop_calls_what_the_dry_run_printed(pod):
    _, planned, _ = pod.run("tpu_pod.sh", "--dry-run", "loop", *TRAIN)
    pod.codes(0)
    code, output, errors = pod.run("tpu_pod.sh", "loop", *TRAIN)
    assert code == 0, errors
    assert commands(pod.calls("gcloud")) == commands(planned.splitlines())
    assert "log of worker 0" in output and "log of worker 1" not in output
    for worker in (0, 1):
        assert pod.programs(worker) == [str(pod.folder / "shared"), "tpu", *TRAIN]
    mount = "--implicit-dirs --rename-dir-limit=200000 --only-dir=some/where bucket"
    assert pod.calls("gcsfuse") == [f"gcsfuse {mount} {pod.folder}/shared"] * 2


def test_a_loop_goes_on_after_a_stop_and_with_a_new_slice_after_preemption(pod):
    pod.codes(75, "preempted", 0)
    code, _, errors = pod.run("tpu_pod.sh", "loop", *TRAIN)
    assert code == 0, errors
    for worker in (0, 1):
        assert pod.programs(worker) == [str(pod.folder / "shared"), "tpu", *TRAIN] * 3
    kinds = [line.split()[4] for line in pod.calls("gcloud")]
    assert [kind for kind in kinds if kind in ("create", "delete")] == ["create", "delete", "create"]
    assert len(pod.calls("gcsfuse")) == 4


@pytest.mark.parametrize("ended, expected", [(0, 0), (2, 2), (1, 1), (134, 1)])
def test_a_loop_ends_with_the_program(pod, ended, expected):
    pod.codes(ended, 0)
    assert pod.run("tpu_pod.sh", "loop", *TRAIN)[0] == expected
    assert pod.programs() == [str(pod.folder / "shared"), "tpu", *TRAIN]


def test_run_tells_a_stop_from_an_end(pod):
    pod.run("tpu_pod.sh", "up")
    pod.codes(75, 0)
    code, _, errors = pod.run("tpu_pod.sh", "run", *TRAIN)
    assert code == 75 and "the same command goes on" in errors
    assert pod.run("tpu_pod.sh", "logs")[0] == 75
    assert pod.run("tpu_pod.sh", "run", *TRAIN)[0] == 0


def test_up_takes_the_slice_that_is_there_and_down_deletes_it(pod):
    for _ in range(2):
        assert pod.run("tpu_pod.sh", "up")[0] == 0
    assert sum(" create " in line for line in pod.calls("gcloud")) == 1
    assert pod.run("tpu_pod.sh", "down")[0] == 0
    assert not (pod.folder / "state").exists()


def test_stop_signals_the_program_which_saves(pod):
    pod.run("tpu_pod.sh", "up")
    saves = "#!/usr/bin/env bash\ntrap 'exit 75' TERM\ntouch started\nfor _ in {1..300}; do sleep 0.1; done\n"
    for worker in (0, 1):
        (pod.folder / f"worker-{worker}" / "srsjax" / "launch" / "local.sh").write_text(saves)
    running = pod.start("tpu_pod.sh", "run", *TRAIN)
    while not (pod.folder / "shared" / "started").exists():
        assert running.poll() is None
    _, output, _ = pod.run("tpu_pod.sh", "status")
    assert output == "ctr is READY\nsrsjax-status running\nsrsjax-status running\n"
    assert pod.run("tpu_pod.sh", "run", "train", "--config", "other.py")[0] == 1  # busy
    assert pod.run("tpu_pod.sh", "stop")[0] == 0
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75, errors


def test_without_the_storage_nothing_is_started(pod):
    pod.run("tpu_pod.sh", "up")
    for worker in (0, 1):
        (pod.folder / f"worker-{worker}" / "mounted").unlink()
    pod.codes(0)
    code, _, errors = pod.run("tpu_pod.sh", "run", *TRAIN)
    assert code == 1 and "nothing is mounted there" in errors
    assert pod.programs() == []


def test_a_share_is_mounted_as_one(pod):
    assert pod.run("tpu_pod.sh", "up", SRSJAX_STORAGE="10.0.0.2:/share")[0] == 0
    assert pod.calls("mount ") == [f"mount -t nfs -o rw\\,hard 10.0.0.2:/share {pod.folder}/shared"] * 2


def test_a_failed_question_makes_no_slice(pod):
    pod.tool("gcloud", "echo ERROR: you are not logged in >&2; exit 1")
    code, _, errors = pod.run("tpu_pod.sh", "up")
    assert code == 1 and "not logged in" in errors
    assert not any(" create " in line for line in pod.calls())


@pytest.mark.parametrize(
    "arguments, settings, said",
    [
        (("upp",), {}, "no subcommand upp, expected up, run"),
        (("run", "trian"), {}, "no command trian, expected train"),
        (("run",), {}, "run: expected a command"),
        (("up", "train"), {}, "up: expected no arguments, found train"),
        (("up",), {"SRSJAX_ZONE": ""}, "SRSJAX_ZONE is not set"),
        (("up",), {"SRSJAX_STORAGE": "runs"}, "SRSJAX_STORAGE=runs: expected gs://"),
        (("up",), {"SRSJAX_PROVISIONING": "cheap"}, "SRSJAX_PROVISIONING=cheap: expected on-demand"),
        (("loop", "train", "--run_dir", "/tmp/run"), {}, "/tmp/run: expected a path in the shared storage"),
        (("loop", "train", "--run_dir=gs://b/run"), {}, "--run_dir=gs://b/run: expected a path in the shared storage"),
        (("loop", "train", "--run_dir", "../run"), {}, "../run: expected a path in the shared storage"),
        (("loop", "train", "--run_dir", "/mnt/srsjax/../run"), {}, "expected a path in the shared storage"),
    ],
)
def test_wrong_arguments_are_one_line(pod, arguments, settings, said):
    code, output, errors = pod.run("tpu_pod.sh", *arguments, **settings)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("srsjax: ") and said in errors
    assert pod.calls() == []


def test_help_needs_nothing(pod):
    code, output, errors = pod.run("tpu_pod.sh", "--help", SRSJAX_TPU="")
    assert code == 0 and "loop train --config ctr.py" in output and errors == ""
