#!/usr/bin/env python3
"""Central mode on real input, from one command (make demo MODE=central): three namespaces and two nodes' agents on a real API
server ask for one secret of Secrets Manager and two parameters. Each source is fetched once and has one master; replicas stand
where pods asked; a change at the source arrives everywhere with one new pod; replicas whose source is gone are taken away.

Usage: demo_central.py AGENT      (the agent's program; KEEP=1 keeps everything running until Ctrl-C)
"""
import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from demo import Api, Failed, SYSTEM, agent_identity, ask_aws, free_port, kubectl, say, start_control_plane, wait_for

MASTERS, NODES, TEAMS = "jasm-masters", ["node-1", "node-2"], ["team-a", "team-b", "team-c"]
# Made up.
SECRET, OLD, NEW = "prod/database", {"user": "app", "password": "not-a-real-password"}, {"user": "app", "password": "changed"}
PARAMETERS = [("/prod/log-level", "String", "info"), ("/prod/api-token", "SecureString", "not-a-real-token")]
POLICY = f"""rules:
  - {{namespaces: {json.dumps(TEAMS)}, serviceAccounts: ["*"], providers: ["*"], paths: ["prod/**", "/prod/**"]}}
"""
PROVIDERS = """providers:
  - {name: aws-secretsmanager, kind: aws-secretsmanager, allowInsecure: true}
  - {name: aws-ssm, kind: aws-ssm, allowInsecure: true}
"""
# How much older than its pod a value may be: the pods of the next seconds take what is there.
FRESHNESS = 10
ANNOTATION = f"""secrets:
  - {{provider: aws-secretsmanager, path: {SECRET}, secretName: database}}
  - {{provider: aws-ssm, path: {PARAMETERS[0][0]}, secretName: settings, dataKey: LOG_LEVEL}}
  - {{provider: aws-ssm, path: {PARAMETERS[1][0]}, secretName: api, dataKey: TOKEN}}
"""


class Agent:
    """The agent of one node."""

    def __init__(self, program, folder, api, env, node):
        self.folder = folder / node
        self.folder.mkdir()
        policy, providers, log = (self.folder / name for name in ["policy.yaml", "providers.yaml", "agent.log"])
        policy.write_text(POLICY)
        providers.write_text(PROVIDERS)
        self.listen = "127.0.0.1:" + free_port()
        self.process = subprocess.Popen([program], stderr=log.open("w"), env={
            "NODE_NAME": node, "KUBECONFIG": str(agent_identity(api, self.folder, env, node)), "JASM_LISTEN": self.listen,
            "JASM_POLICY_FILE": str(policy), "JASM_PROVIDERS_FILE": str(providers), "JASM_MODE": "central", "JASM_FRESHNESS": f"{FRESHNESS}s",
            "AWS_ENDPOINT_URL": env["MOTO_URL"], "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"})

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"an agent ended with {self.process.returncode}:\n{(self.folder / 'agent.log').read_text()}")
        try:
            return urllib.request.urlopen(f"http://{self.listen}/readyz", timeout=2).status == 200
        except OSError:
            return False

    def fetches(self):
        """Requests to stores so far, by the agent's metric."""
        text = urllib.request.urlopen(f"http://{self.listen}/metrics", timeout=2).read().decode()
        lines = (line for line in text.splitlines() if line.startswith("jasm_provider_requests_total"))
        return sum(int(line.split()[-1]) for line in lines)

    def end(self):
        self.process.terminate()
        self.process.wait()


def fill_stores(env):
    body = {"Name": SECRET, "SecretString": json.dumps(OLD), "ClientRequestToken": os.urandom(16).hex()}
    ask_aws(env, "secretsmanager", "secretsmanager.CreateSecret", body)
    for name, kind, value in PARAMETERS:
        ask_aws(env, "ssm", "AmazonSSM.PutParameter", {"Name": name, "Value": value, "Type": kind})


def create_pod(api, team, node, name):
    container = {"name": "app", "image": "app"}
    api.create(f"/api/v1/namespaces/{team}/pods", "Pod", "v1",
               {"name": name, "annotations": {"jasm.codnod.io/secret-sync": ANNOTATION}},
               spec={"nodeName": node, "containers": [container]})


def objects_of(api, namespace, label):
    """Secrets and ConfigMaps with a label, as lines."""
    lines = []
    for kind, plural in [("Secret", "secrets"), ("ConfigMap", "configmaps")]:
        for one in api.ask("GET", f"/api/v1/namespaces/{namespace}/{plural}?labelSelector={label}")["items"]:
            labels = one["metadata"]["labels"]
            shown = next(f"{key.split('/')[1]}={labels[key]}" for key in [label, "jasm.codnod.io/source"] if key in labels)
            lines.append(f"    {kind:<10} {namespace}/{one['metadata']['name']:<32} {shown}")
    return lines


def password(api, team):
    secret = api.ask("GET", f"/api/v1/namespaces/{team}/secrets/database")
    return secret and base64.b64decode(secret["data"]["password"]).decode()


def show(api, agents, pods):
    """All replicas and masters, and how often the stores were asked."""
    say(f"\nMasters in {MASTERS}, one for each source:")
    masters = objects_of(api, MASTERS, "jasm.codnod.io/source-kind")
    say("\n".join(masters))
    say("\nReplicas, where pods asked:")
    for team in TEAMS:
        replicas = objects_of(api, team, "jasm.codnod.io/replicated-from")
        say("\n".join(replicas))
        if len(replicas) != 3:
            raise Failed(f"{len(replicas)} replicas in {team}, not 3")
    fetches = sum(agent.fetches() for agent in agents)
    say(f"\n{pods} pods asked for 3 sources each; requests to the stores: {fetches}")
    if (len(masters), fetches) != (3, 3):
        raise Failed(f"{len(masters)} masters and {fetches} requests to the stores, not 3 and 3")


def update(api, env):
    """A new value at the store: the first pod that needs a newer one brings it to all."""
    say(f"\nChanging {SECRET} at the store; then, after the {FRESHNESS} s for which a value is fresh, one new pod in {TEAMS[0]} ...")
    body = {"SecretId": SECRET, "SecretString": json.dumps(NEW), "ClientRequestToken": os.urandom(16).hex()}
    ask_aws(env, "secretsmanager", "secretsmanager.PutSecretValue", body)
    time.sleep(FRESHNESS + 1)
    started = time.monotonic()
    create_pod(api, TEAMS[0], NODES[0], "newcomer")
    for team in TEAMS:
        wait_for(f"the new value in {team}", lambda team=team: password(api, team) == NEW["password"])
        say(f"    {team}/database has the new value, {(time.monotonic() - started) * 1000:.0f} ms after that pod's creation")


def clean_up(program, folder, api, env):
    """A janitor takes away what has no source any more."""
    say(f"\nDeleting {PARAMETERS[1][0]} at the store, and starting a janitor (here it waits 3 s, not 10 minutes, between two looks) ...")
    ask_aws(env, "ssm", "AmazonSSM.DeleteParameter", {"Name": PARAMETERS[1][0]})
    token = api.create(f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/jasm-janitor/token", "TokenRequest",
                       "authentication.k8s.io/v1", {}, spec={"expirationSeconds": 3600})["status"]["token"]
    kubeconfig, log = folder / "janitor-kubeconfig", folder / "janitor.log"
    text = (folder / NODES[0] / "agent-kubeconfig").read_text()
    config = json.loads(text)
    config["users"][0]["user"] = {"token": token}
    kubeconfig.write_text(json.dumps(config))
    janitor = subprocess.Popen([program, "janitor", "--every", "1s", "--confirm-after", "3s", "--max-per-minute", "600"], stderr=log.open("w"), env={
        "KUBECONFIG": str(kubeconfig), "JASM_LISTEN": "127.0.0.1:" + free_port(),
        "JASM_PROVIDERS_FILE": str(folder / NODES[0] / "providers.yaml"), "AWS_ENDPOINT_URL": env["MOTO_URL"],
        "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"})
    try:
        for team in TEAMS:
            wait_for(f"the end of the orphan in {team}", lambda team=team: api.ask("GET", f"/api/v1/namespaces/{team}/secrets/api") is None)
            say(f"    {team}/api is gone")
        wait_for("the end of its master", lambda: len(objects_of(api, MASTERS, "jasm.codnod.io/source-kind")) == 2)
        say("    its master is gone")
        if not all(password(api, team) for team in TEAMS):
            raise Failed("a replica is gone whose source is there")
        say("    all others are there")
    except Failed as failure:
        raise Failed(f"{failure}; the janitor's log:\n{log.read_text()}") from failure
    finally:
        janitor.terminate()
        janitor.wait()


def keep(env, folder, agents):
    say(f"""
Everything keeps running until Ctrl-C. In another terminal:
    export KUBECONFIG={env['KUBECONFIG']} PATH={env['ASSETS']}:$PATH
    kubectl get secrets,configmaps -A -l jasm.codnod.io/managed-by=jasm --show-labels
    kubectl get configmaps -n {MASTERS} -l jasm.codnod.io/record=replicas -o yaml    # who uses what
    curl http://{agents[0].listen}/metrics
    tail -f {folder}/*/agent.log""")
    signal.pause()


def run(program, folder):
    say("Starting etcd, kube-apiserver and an emulator of AWS ...")
    plane, env = start_control_plane(folder / "plane")
    agents = []
    try:
        api = Api(env)
        say("Applying the rights and policies of central mode, with the namespace of the masters ...")
        for namespace in [SYSTEM, *TEAMS]:
            api.create("/api/v1/namespaces", "Namespace", "v1", {"name": namespace})
        kubectl(env, "apply", "-k", "tests/layers/central-rights")
        for namespace in [SYSTEM, *TEAMS]:
            account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
            wait_for("the namespace's service account", lambda path=account: api.ask("GET", path))
        fill_stores(env)
        say("Starting the agents of two nodes ...")
        for node in NODES:
            agents.append(Agent(program, folder, api, env, node))
            wait_for("the agent to be ready", agents[-1].ready)
        say("Creating an annotated pod in each of three namespaces, on both nodes in turn ...")
        for number, team in enumerate(TEAMS):
            create_pod(api, team, NODES[number % 2], "app")
            wait_for("the replicas", lambda team=team: len(objects_of(api, team, "jasm.codnod.io/replicated-from")) == 3)
        show(api, agents, len(TEAMS))
        update(api, env)
        clean_up(program, folder, api, env)
        if os.environ.get("KEEP") == "1":
            keep(env, folder, agents)
        say("\nThat was all; run `KEEP=1 make demo MODE=central` to keep it running and look around with kubectl.")
    finally:
        for agent in agents:
            agent.end()
        plane.stdin.close()
        plane.wait()


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Python leaves SIGINT ignored where the shell that started it did.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jasm-demo-"))
    try:
        run(pathlib.Path(sys.argv[1]).resolve(), folder)
    except Failed as failure:
        sys.exit(f"demo: error: {failure}")
    except KeyboardInterrupt:
        say("\nending")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
