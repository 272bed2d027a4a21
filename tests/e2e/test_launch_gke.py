"""`launch/gke.sh`: the manifests it renders, field by field, and what it asks of kubectl (a stand-in)."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml
from launch_cases import CHECKOUT, TRICKY, Cluster, undocumented

KUBECTL = """
case $1 in
  apply) cat >"$FAKE/manifest" ;;
  logs) echo "log of host 0" ;;
  delete) rm -f "$FAKE/state" ;;
esac
case $* in
  "get pods"*) [[ ! -f $FAKE/state ]] || echo pod/ctr-workers-0-0-abcde ;;
  *terminalState*) [[ ! -f $FAKE/state ]] || { [[ -f $FAKE/manifest ]] && cat "$FAKE/state"; } ;;
  *conditions*) cat "$FAKE/reason" ;;
esac
"""
# https://kubernetes.io/docs/reference/kubectl/generated/
DOCUMENTED = {
    "kubectl apply": {"--filename"},
    "kubectl get": {"--output", "--selector", "--field-selector", "--ignore-not-found"},
    "kubectl logs": {"--selector", "--container", "--tail", "--follow"},
    "kubectl delete": {"--filename", "--ignore-not-found"},
}

# The fields that the templates use, as the APIs name them; a type is a JSON type, a set its values, `...` after a
# type any number of keys. JobSet: api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset (v0.12).
# Jobs and pods: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/ and pod-v1/.
TEXTS = {...: str}
FAILURE_RULE = {
    "name": str,
    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
    "onJobFailureReasons": [{"PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded"}],
    "onJobFailureMessagePatterns": [str],
    "targetReplicatedJobs": [str],
}
POD_FAILURE_RULE = {
    "action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "onExitCodes": {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]},
    "onPodConditions": [{"type": str, "status": {"True", "False", "Unknown"}}],
}
CONTAINER = {
    "name": str,
    "image": str,
    "args": [str],
    "workingDir": str,
    "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
    "ports": [{"containerPort": int}],
    "resources": {"requests": {...: int}, "limits": {...: int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
VOLUME = {
    "name": str,
    "csi": {"driver": str, "volumeAttributes": TEXTS},
    "persistentVolumeClaim": {"claimName": str},
    "emptyDir": {"medium": str},
}
POD = {
    "restartPolicy": {"Never", "OnFailure"},
    "terminationGracePeriodSeconds": int,
    "serviceAccountName": str,
    "securityContext": {"runAsUser": int, "runAsGroup": int, "fsGroup": int},
    "nodeSelector": TEXTS,
    "containers": [CONTAINER],
    "volumes": [VOLUME],
}
JOB = {
    "completionMode": {"Indexed", "NonIndexed"},
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [POD_FAILURE_RULE]},
    "template": {"metadata": {"annotations": TEXTS}, "spec": POD},
}
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": str, "annotations": TEXTS},
    "spec": {
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "failurePolicy": {"maxRestarts": int, "rules": [FAILURE_RULE]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}
TPU = {"SRSJAX_ACCELERATOR": "tpu-v6e-slice", "SRSJAX_TOPOLOGY": "4x4", "SRSJAX_HOSTS": "4"}
GPU = {"SRSJAX_ACCELERATOR": "nvidia-h100-80gb", "SRSJAX_HOSTS": "2", "SRSJAX_STORAGE": "my-claim"}
TRAIN = ("train", "--config", "ctr.py", "--title", TRICKY, "--note", "two\n\tlines __NAME__")


@pytest.fixture
def gke(tmp_path):
    cluster = Cluster(tmp_path, kubectl=KUBECTL)
    cluster.environment |= {
        "SRSJAX_NAME": "ctr",
        "SRSJAX_IMAGE": "us-docker.pkg.dev/p/srsjax/srsjax:tpu",
        "SRSJAX_STORAGE": "gs://bucket/some/where",
    }
    return cluster


def faults(value, expected, where: str = "") -> list[str]:
    """Fields that are unknown or of the wrong type."""
    if isinstance(expected, set):
        return [] if value in expected else [f"{where}: {value!r}"]
    if isinstance(expected, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r}"]
        return [fault for i, one in enumerate(value) for fault in faults(one, expected[0], f"{where}[{i}]")]
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value!r}"]
        found = []
        for key, one in value.items():
            known = expected.get(key, expected.get(...))
            found += [f"{where}.{key}: unknown"] if known is None else faults(one, known, f"{where}.{key}")
        return found
    return [] if type(value) is expected else [f"{where}: {value!r}"]


def manifest(gke: Cluster, settings: dict, *arguments: str) -> dict:
    code, output, errors = gke.run("gke.sh", "manifest", *(arguments or TRAIN), **settings)
    assert (code, errors) == (0, "")
    return yaml.safe_load(output)


def job_and_pod(manifest: dict) -> tuple[dict, dict]:
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, job["template"]["spec"]


@pytest.mark.parametrize("settings", [TPU, GPU, TPU | {"SRSJAX_SPOT": "yes"}, GPU | {"SRSJAX_STORAGE": "gs://b"}])
def test_a_manifest_has_known_fields_of_the_right_types(gke, settings):
    assert faults(manifest(gke, settings), JOBSET) == []


@pytest.mark.parametrize("template", ["gke-tpu.yaml", "gke-gpu.yaml"])
def test_every_misspelt_field_of_a_template_is_a_fault(gke, template):
    settings = TPU if "tpu" in template else GPU
    path = gke.root / "launch" / template
    text = path.read_text()
    fields = set(re.findall(r"([a-zA-Z]+):", re.sub(r"#.*", "", text))) & set(names(JOBSET))
    assert len(fields) > 35
    for field in fields:
        path.write_text(re.sub(rf"\b{field}:", f"{field}s:", text))
        assert any(f".{field}s: unknown" in fault for fault in faults(manifest(gke, settings, "train"), JOBSET)), field


def names(schema) -> list[str]:
    """All fields of a schema."""
    if isinstance(schema, list):
        return names(schema[0])
    if not isinstance(schema, dict):
        return []
    return [name for key, one in schema.items() for name in [key, *names(one)] if isinstance(name, str)]


def test_a_tpu_slice(gke):
    rendered = manifest(gke, TPU)
    job, pod = job_and_pod(rendered)
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    container = pod["containers"][0]
    assert container["resources"] == {"requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4}}
    assert "env" not in container  # GKE tells JAX
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    options = "implicit-dirs,uid=1000,gid=1000,rename-dir-limit=200000,only-dir=some/where"
    volume = {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {"bucketName": "bucket", "mountOptions": options},
    }
    assert pod["volumes"] == [{"name": "shared", "csi": volume}]
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"] == "/mnt/srsjax"


def test_gpu_nodes_are_told_of_each_other(gke):
    rendered = manifest(gke, GPU | {"SRSJAX_SPOT": "yes"})
    job, pod = job_and_pod(rendered)
    container = pod["containers"][0]
    variables = {one["name"]: one.get("value") or one["valueFrom"] for one in container["env"]}
    # JOBSET-REPLICATEDJOB-JOB-POD.SUBDOMAIN, as JobSet names pods.
    host = f"{rendered['metadata']['name']}-{rendered['spec']['replicatedJobs'][0]['name']}-0-0"
    port = container["ports"][0]["containerPort"]
    assert variables["SRSJAX_COORDINATOR"] == f"{host}.{rendered['spec']['network']['subdomain']}:{port}"
    assert variables["SRSJAX_NUM_PROCESSES"] == str(job["parallelism"]) == "2"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert variables["SRSJAX_PROCESS_ID"] == {"fieldRef": {"fieldPath": index}}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["volumes"][0] == {"name": "shared", "persistentVolumeClaim": {"claimName": "my-claim"}}


@pytest.mark.parametrize(
    "message, reason, expected",
    [
        # As the Job controller words it: https://kubernetes.io/docs/tasks/job/pod-failure-policy/
        ("Container srsjax for pod n/p failed with exit code 2 matching FailJob rule at index 0", 2, "FailJobSet"),
        ("Container srsjax for pod n/p failed with exit code 75 matching FailJob rule at index 0", 75, "ignored"),
        ("Pod n/p has condition DisruptionTarget matching FailJob rule at index 1", None, "ignored"),
        ("Job has reached the specified backoff limit", 1, "counted"),
    ],
)
@pytest.mark.parametrize("settings", [TPU, GPU])
def test_what_follows_an_exit_code(gke, settings, message, reason, expected):
    rendered = manifest(gke, settings)
    job, pod = job_and_pod(rendered)
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # the first failure ends the Job
    codes, disruption = job["podFailurePolicy"]["rules"]
    matched = reason in codes["onExitCodes"]["values"] or reason is None
    assert codes["action"] == disruption["action"] == "FailJob"
    assert codes["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    why = "PodFailurePolicy" if matched else "BackoffLimitExceeded"
    action = next(
        (
            rule["action"]
            for rule in rendered["spec"]["failurePolicy"]["rules"]
            if why in rule["onJobFailureReasons"]
            and any(re.search(one, message) for one in rule.get("onJobFailureMessagePatterns", [""]))
        ),
        "RestartJobSet",
    )
    actions = {"ignored": "RestartJobSetAndIgnoreMaxRestarts", "counted": "RestartJobSet"}
    assert action == actions.get(expected, expected)
    assert pod["terminationGracePeriodSeconds"] == 600


def test_arguments_reach_the_program_as_they_were_given(gke, tmp_path):
    args = job_and_pod(manifest(gke, TPU))[1]["containers"][0]["args"]
    # Kubernetes replaces $(NAME) and makes $$ one $.
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", " ".join(args).replace("$$", ""))
    args = [one.replace("$$", "$") for one in args]
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", (CHECKOUT / "launch/Dockerfile").read_text(), re.M).group(1))
    gke.tool("python", 'printf "%s\\0" "$@"')
    ended = subprocess.run([*entry, *args], env=gke.environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split("\0")[:-1] == ["-m", "srsjax.train", *TRAIN[1:]]


@pytest.mark.parametrize(
    "state, reason, expected",
    [
        ("Completed", "", 0),
        ("Failed", "FailJobSetFailurePolicyAction", 2),
        ("Failed", "ReachedMaxRestarts", 1),
    ],
)
def test_run_does_what_the_dry_run_printed_and_ends_with_the_program(gke, state, reason, expected):
    _, planned, _ = gke.run("gke.sh", "--dry-run", "run", *TRAIN, **TPU)
    (gke.folder / "state").write_text(state)
    (gke.folder / "reason").write_text(reason)
    code, output, _ = gke.run("gke.sh", "run", *TRAIN, **TPU)
    assert code == expected and "log of host 0" in output
    text, commands = planned.split("<<'END'\n", 1)[1].split("\nEND\n", 1)
    assert (gke.folder / "manifest").read_text() == text + "\n"
    calls = gke.calls()
    assert calls[1] == planned.split(" <<'END'")[0] and "terminalState" in calls[0]
    assert calls[2:5] == commands.splitlines()
    assert undocumented(calls, DOCUMENTED) == []
    assert undocumented(["kubectl apply --filname=-"], DOCUMENTED) == ["--filname"]


def test_a_finished_program_of_that_name_makes_way(gke):
    (gke.folder / "state").write_text("Failed")
    (gke.folder / "manifest").touch()
    gke.tool("kubectl", KUBECTL.replace('"$FAKE/manifest" ;;', '"$FAKE/manifest"; echo Completed >"$FAKE/state" ;;'))
    assert gke.run("gke.sh", "run", *TRAIN, **TPU)[0] == 0
    assert gke.calls()[1] == "kubectl delete jobset ctr"
    assert gke.run("gke.sh", "status", **TPU)[0] == gke.run("gke.sh", "stop", **TPU)[0] == 0
    assert gke.calls()[-1] == "kubectl delete jobset ctr"
    assert undocumented(gke.calls(), DOCUMENTED) == []


@pytest.mark.parametrize(
    "arguments, settings, said",
    [
        (("runn",), {}, "no subcommand runn, expected run"),
        (("run", "trian"), {}, "no command trian, expected train"),
        (("logs", "train"), {}, "logs: expected no arguments, found train"),
        (("run", "train", "--run_dir", "/home/me"), {}, "/home/me: expected a path in the shared storage"),
        (("run", "train"), {"SRSJAX_NAME": "My_Run"}, "SRSJAX_NAME=My_Run: expected small letters"),
        (("run", "train"), {"SRSJAX_IMAGE": ""}, "SRSJAX_IMAGE is not set"),
        (("run", "train"), {"SRSJAX_HOSTS": "0"}, "SRSJAX_HOSTS=0: expected a whole number"),
        (("run", "train"), {"SRSJAX_TOPOLOGY": ""}, "SRSJAX_TOPOLOGY=: expected that of the slice"),
        (("run", "train"), {"SRSJAX_ACCELERATOR": "v6e"}, "SRSJAX_ACCELERATOR=v6e: expected a label"),
        (("run", "train"), {"SRSJAX_STORAGE": "/data"}, "SRSJAX_STORAGE=/data: expected gs://"),
    ],
)
def test_wrong_arguments_are_one_line(gke, arguments, settings, said):
    code, output, errors = gke.run("gke.sh", *arguments, **(TPU | settings))
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("srsjax: ") and said in errors
    assert gke.calls() == []


def test_help_needs_nothing(gke):
    code, output, errors = gke.run("gke.sh", "--help", SRSJAX_NAME="")
    assert code == 0 and "run train --config ctr.py" in output and errors == ""
