#!/usr/bin/env python3
"""The main job on real input: an annotated pod in, a Secret out, on a real API server, from one command (make demo).

Starts a control plane and an emulator of AWS Secrets Manager, applies rbac/, and runs the agent with a token as the
DaemonSet's pods have it. There is no kubelet, so pods are created already bound to the agent's node, and do not start.

Usage: demo.py AGENT      (the agent's program; KEEP=1 keeps everything running until Ctrl-C)
"""
import base64
import http.client
import json
import os
import pathlib
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

PROJECT = pathlib.Path(__file__).resolve().parent.parent
NODE, SYSTEM, NAMESPACE = "demo-node", "jasm-system", "team-a"
PATH, SECRET = "/prod/codnod/config", "app-credentials"
# Made up; what a platform engineer would have put into AWS Secrets Manager.
SOURCE = {"DB_HOST": "db.internal", "DB_USER": "codnod", "DB_PASSWORD": "not-a-real-password"}
POLICY = f"""rules:
  - namespaces: [{NAMESPACE}]
    serviceAccounts: ["*"]
    providers: [aws-secretsmanager]
    paths: ["/prod/codnod/*"]
"""
ANNOTATION = f"provider: aws-secretsmanager\npath: {PATH}\nsecretName: {SECRET}\n"
WAIT_SECONDS = 30


def say(text=""):
    print(text, flush=True)


class Failed(Exception):
    pass


class Api:
    """One connection to the API server as an administrator."""

    def __init__(self, env):
        url = urllib.parse.urlsplit(env["API_SERVER"])
        self.token = env["ADMIN_TOKEN"]
        self.connection = http.client.HTTPSConnection(url.hostname, url.port, context=ssl.create_default_context(cafile=env["CA_FILE"]))

    def ask(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        reply = self.connection.getresponse()
        content = json.loads(reply.read())
        if reply.status == 404:
            return None
        if reply.status >= 400:
            raise Failed(f"{method} {path}: {content.get('message')}")
        return content

    def create(self, path, kind, version, metadata, **rest):
        return self.ask("POST", path, {"apiVersion": version, "kind": kind, "metadata": metadata, **rest})


def wait_for(what, attempt, pause=0.1):
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        found = attempt()
        if found:
            return found
        time.sleep(pause)
    raise Failed(f"waited {WAIT_SECONDS} s for {what}")


def start_control_plane(folder):
    """Starts etcd, the API server and the emulator; they end when the pipe to up.sh closes."""
    program = subprocess.Popen([PROJECT / "tests/control-plane/up.sh", folder], stdin=subprocess.PIPE)
    while not (folder / "env").exists():
        if program.poll() is not None:
            raise Failed("the control plane did not start; its own message is above")
        time.sleep(0.1)
    return program, dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines())


def kubectl(env, *arguments):
    command = [pathlib.Path(env["ASSETS"]) / "kubectl", "--kubeconfig", env["KUBECONFIG"], *arguments]
    done = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True)
    if done.returncode != 0:
        raise Failed(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def put_source(env):
    """Stores the secret in the emulator, as `aws secretsmanager create-secret` would."""
    body = json.dumps({"Name": PATH, "SecretString": json.dumps(SOURCE), "ClientRequestToken": os.urandom(16).hex()})
    request = urllib.request.Request(env["MOTO_URL"], body.encode(), {
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": "secretsmanager.CreateSecret",
        "Authorization": "AWS4-HMAC-SHA256 Credential=demo/20260101/us-east-1/secretsmanager/aws4_request, SignedHeaders=host, Signature=0",
    })
    urllib.request.urlopen(request).read()


def agent_identity(api, folder, env):
    """A node, an agent pod on it, and a kubeconfig with a token bound to both, as the kubelet would give it."""
    api.create("/api/v1/nodes", "Node", "v1", {"name": NODE})
    container = {"name": "agent", "image": "jasm", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = api.create(f"/api/v1/namespaces/{SYSTEM}/pods", "Pod", "v1", {"name": "jasm-agent"}, spec={
        "nodeName": NODE, "serviceAccountName": "jasm-agent", "securityContext": security, "containers": [container]})
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "jasm-agent", "uid": pod["metadata"]["uid"]}
    token = api.create(f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/jasm-agent/token", "TokenRequest",
                       "authentication.k8s.io/v1", {}, spec={"boundObjectRef": bound, "expirationSeconds": 3600})
    token_file, kubeconfig = folder / "agent-token", folder / "agent-kubeconfig"
    token_file.write_text(token["status"]["token"])
    kubeconfig.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "agent",
        "contexts": [{"name": "agent", "context": {"cluster": "demo", "user": "agent", "namespace": SYSTEM}}],
        "clusters": [{"name": "demo", "cluster": {"server": env["API_SERVER"], "certificate-authority": env["CA_FILE"]}}],
        "users": [{"name": "agent", "user": {"tokenFile": str(token_file)}}],
    }))
    return kubeconfig


def start_agent(program, folder, kubeconfig, env):
    policy, log = folder / "policy.yaml", folder / "agent.log"
    policy.write_text(POLICY)
    listen = "127.0.0.1:" + free_port()
    agent = subprocess.Popen([program], stderr=log.open("w"), env={
        "NODE_NAME": NODE, "KUBECONFIG": str(kubeconfig), "JASM_POLICY_FILE": str(policy), "JASM_LISTEN": listen,
        "JASM_PROVIDERS_FILE": str(folder / "providers.yaml"),
        "AWS_ENDPOINT_URL": env["MOTO_URL"], "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"})

    def ready():
        if agent.poll() is not None:
            raise Failed(f"the agent ended with {agent.returncode}:\n{log.read_text()}")
        try:
            return urllib.request.urlopen(f"http://{listen}/readyz", timeout=2).status == 200
        except OSError:
            return False

    wait_for("the agent to be ready", ready)
    return agent, listen


def free_port():
    import socket
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


def create_pod(api):
    """Creates the annotated pod and waits for its Secret; returns the Secret and the milliseconds between."""
    api.create("/api/v1/namespaces", "Namespace", "v1", {"name": NAMESPACE})
    wait_for("the namespace's service account", lambda: api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"))
    volumes = [{"name": "credentials", "secret": {"secretName": SECRET}}]
    mounts = [{"name": "credentials", "mountPath": "/credentials"}]
    created = time.monotonic()
    api.create(f"/api/v1/namespaces/{NAMESPACE}/pods", "Pod", "v1",
               {"name": "web", "annotations": {"jasm.codnod.io/secret-sync": ANNOTATION}},
               spec={"nodeName": NODE, "volumes": volumes, "containers": [{"name": "web", "image": "web", "volumeMounts": mounts}]})
    secret = wait_for("the Secret", lambda: api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}"), pause=0.002)
    return secret, (time.monotonic() - created) * 1000


def compare(secret):
    found = {key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()}
    for key in sorted(SOURCE.keys() | found.keys()):
        equal = SOURCE.get(key) == found.get(key)
        say(f"    {key:<12} {'equal to the source' if equal else 'NOT EQUAL to the source'}")
    if found != SOURCE:
        raise Failed("the Secret differs from the source")


def event_of_pod(api):
    def find():
        events = api.ask("GET", f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")
        return next((event for event in events["items"] if event.get("reason") == "SecretSyncSuccess"), None)

    return wait_for("the Event on the pod", find)


def show(api, env, secret, millis):
    say("\nThe pod (kubectl get pod web -o yaml, shortened):")
    meta = api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/pods/web")["metadata"]
    say(f"    metadata:\n      name: {meta['name']}\n      namespace: {meta['namespace']}\n      annotations:")
    for key, value in meta["annotations"].items():
        say(f"        {key}: |")
        say("\n".join(f"          {line}" for line in value.splitlines()))
    event = event_of_pod(api)
    say(f"\nThe Event on it:\n    {event['type']}  {event['reason']}  {event['note']}")
    say(f"\nThe Secret {NAMESPACE}/{SECRET}, as the agent wrote it:")
    compare(secret)
    say(f"\nFrom the request that creates the pod to the Secret: {millis:.0f} ms")
    said = subprocess.run([pathlib.Path(env["ASSETS"]) / "kubectl", "--kubeconfig", env["KUBECONFIG"], "auth", "can-i", "get", "secrets",
                           "--as", f"system:serviceaccount:{SYSTEM}:jasm-agent", "-n", NAMESPACE], text=True, capture_output=True)
    say(f"May the agent read Secrets (kubectl auth can-i get secrets --as ...jasm-agent)? {said.stdout.strip()}")


def keep(env, folder, listen):
    say(f"""
Everything keeps running until Ctrl-C. In another terminal:
    export KUBECONFIG={env['KUBECONFIG']} PATH={env['ASSETS']}:$PATH
    kubectl describe pod web -n {NAMESPACE}
    kubectl get secret {SECRET} -n {NAMESPACE} -o yaml
    curl http://{listen}/metrics
    tail -f {folder}/agent.log                # the agent's log
    $EDITOR {folder}/policy.yaml              # who may have what; read again when it changes""")
    signal.pause()


def run(program, folder):
    say("Starting etcd, kube-apiserver and an emulator of AWS Secrets Manager ...")
    plane, env = start_control_plane(folder / "plane")
    agent = None
    try:
        api = Api(env)
        say("Applying rbac/: the agent's rights and its admission policies ...")
        api.create("/api/v1/namespaces", "Namespace", "v1", {"name": SYSTEM})
        kubectl(env, "apply", "-k", "rbac")
        wait_for("the namespace's service account", lambda: api.ask("GET", f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/default"))
        put_source(env)
        say("Starting the agent ...")
        agent, listen = start_agent(program, folder, agent_identity(api, folder, env), env)
        say("Creating an annotated pod on the agent's node ...")
        secret, millis = create_pod(api)
        show(api, env, secret, millis)
        if os.environ.get("KEEP") == "1":
            keep(env, folder, listen)
        say("\nThat was all; run `KEEP=1 make demo` to keep it running and look around with kubectl.")
    finally:
        if agent:
            agent.terminate()
            agent.wait()
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
