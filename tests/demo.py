#!/usr/bin/env python3
"""The main job on real input: annotated pods in, Secrets out, on a real API server, from one command (make demo).

Starts a control plane, an emulator of AWS Secrets Manager and Parameter Store, and a real Vault; applies rbac/, and runs
the agent with a token as the DaemonSet's pods have it. Three pods on one node each ask another store. There is no
kubelet, so pods are created already bound to the agent's node, and do not start.

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
# Made up: what a platform engineer would have put into each store, and the annotation by which a pod asks for it.
PODS = [
    {"name": "web", "provider": "aws-secretsmanager", "path": "/prod/team-a/config", "secret": "app-credentials",
     "data": {"DB_HOST": "db.internal", "DB_USER": "codnod", "DB_PASSWORD": "not-a-real-password"}},
    {"name": "worker", "provider": "aws-ssm", "path": "/prod/team-a/worker/*", "secret": "worker-settings",
     "data": {"LOG_LEVEL": "info", "QUEUE_URL": "https://queue.internal/jobs", "QUEUE_TOKEN": "not-a-real-token"}},
    {"name": "report", "provider": "vault", "path": "prod/team-a/report", "secret": "report-database",
     "data": {"user": "report", "password": "not-a-real-password-either", "port": "5432"}},
]
POLICY = f"""rules:
  - namespaces: [{NAMESPACE}]
    serviceAccounts: ["*"]
    providers: [aws-secretsmanager, aws-ssm]
    paths: ["/prod/{{namespace}}/**"]
  - namespaces: [{NAMESPACE}]
    serviceAccounts: ["*"]
    providers: [vault]
    paths: ["prod/{{namespace}}/**"]
"""
# The servers of the demo listen on the loopback address alone, and have no TLS.
PROVIDERS = """providers:
  - {name: aws-secretsmanager, kind: aws-secretsmanager, allowInsecure: true}
  - {name: aws-ssm, kind: aws-ssm, allowInsecure: true}
  - {name: vault, kind: vault, allowInsecure: true, address: "%s", auth: {tokenFile: %s}}
"""
VAULT_POLICY = 'path "secret/data/prod/*" { capabilities = ["read"] }'
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


def annotation(pod):
    return f"provider: {pod['provider']}\npath: {pod['path']}\nsecretName: {pod['secret']}\n"


def post(url, body, headers=None):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})
    return json.loads(urllib.request.urlopen(request, timeout=10).read() or "{}")


def ask_aws(env, service, target, body):
    """One call to the emulator, as the `aws` command line makes it."""
    signed = f"Credential=demo/20260101/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": target, "Authorization": f"AWS4-HMAC-SHA256 {signed}"}
    return post(env["MOTO_URL"], body, headers)


def fill_stores(env, vault):
    """Puts each pod's values where it asks for them."""
    for pod in PODS:
        if pod["provider"] == "aws-secretsmanager":
            body = {"Name": pod["path"], "SecretString": json.dumps(pod["data"]), "ClientRequestToken": os.urandom(16).hex()}
            ask_aws(env, "secretsmanager", "secretsmanager.CreateSecret", body)
        elif pod["provider"] == "aws-ssm":
            for name, value in pod["data"].items():
                body = {"Name": pod["path"].rstrip("*") + name, "Value": value, "Type": "SecureString"}
                ask_aws(env, "ssm", "AmazonSSM.PutParameter", body)
        else:
            vault.ask("secret/data/" + pod["path"], {"data": pod["data"]})


class Vault:
    """A real Vault core with its storage in memory. It ends with SIGTERM, or when this program does."""

    def __init__(self):
        built = subprocess.run([PROJECT / "tests/control-plane/build.sh", "vault"], stdout=subprocess.PIPE, text=True)
        if built.returncode != 0:
            raise Failed("Vault was not built; the reason is above")
        program = pathlib.Path(built.stdout.split()[-1]) / "vault"
        leash = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        self.process = subprocess.Popen([*leash, program], stdout=subprocess.PIPE, text=True)
        ready = json.loads(self.process.stdout.readline() or "{}")
        if not ready:
            raise Failed("Vault did not start; its own message is above")
        self.url, self.root = ready["url"], ready["root_token"]

    def ask(self, path, body):
        return post(f"{self.url}/v1/{path}", body, {"X-Vault-Token": self.root})

    def set_up(self):
        """A key/value engine, and a token that may read what its policy says."""
        self.ask("sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        self.ask("sys/policies/acl/jasm", {"policy": VAULT_POLICY})
        wait_for("Vault's key/value engine", lambda: self.writes("secret/data/ready"))
        return self.ask("auth/token/create", {"policies": ["jasm"]})["auth"]["client_token"]

    def writes(self, path):
        try:
            return self.ask(path, {"data": {}})
        except OSError:
            return None

    def end(self):
        self.process.terminate()
        self.process.wait()


def agent_identity(api, folder, env, node=NODE):
    """A node, an agent pod on it, and a kubeconfig with a token bound to both, as the kubelet would give it."""
    api.create("/api/v1/nodes", "Node", "v1", {"name": node})
    container = {"name": "agent", "image": "jasm", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = api.create(f"/api/v1/namespaces/{SYSTEM}/pods", "Pod", "v1", {"name": f"jasm-agent-{node}"}, spec={
        "nodeName": node, "serviceAccountName": "jasm-agent", "securityContext": security, "containers": [container]})
    bound = {"kind": "Pod", "apiVersion": "v1", "name": f"jasm-agent-{node}", "uid": pod["metadata"]["uid"]}
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


def start_agent(program, folder, kubeconfig, env, vault, token):
    policy, providers, token_file, log = (folder / name for name in ["policy.yaml", "providers.yaml", "vault-token", "agent.log"])
    policy.write_text(POLICY)
    token_file.write_text(token)
    providers.write_text(PROVIDERS % (vault.url, token_file))
    listen = "127.0.0.1:" + free_port()
    agent = subprocess.Popen([program], stderr=log.open("w"), env={
        "NODE_NAME": NODE, "KUBECONFIG": str(kubeconfig), "JASM_POLICY_FILE": str(policy), "JASM_LISTEN": listen,
        "JASM_PROVIDERS_FILE": str(providers),
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


def create_pod(api, pod):
    """Creates the annotated pod and waits for its Secret; returns the Secret and the milliseconds between."""
    volumes = [{"name": "credentials", "secret": {"secretName": pod["secret"]}}]
    mounts = [{"name": "credentials", "mountPath": "/credentials"}]
    created = time.monotonic()
    api.create(f"/api/v1/namespaces/{NAMESPACE}/pods", "Pod", "v1",
               {"name": pod["name"], "annotations": {"jasm.codnod.io/secret-sync": annotation(pod)}},
               spec={"nodeName": NODE, "volumes": volumes, "containers": [{"name": "app", "image": "app", "volumeMounts": mounts}]})
    secret = wait_for("the Secret", lambda: api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/{pod['secret']}"), pause=0.002)
    return secret, (time.monotonic() - created) * 1000


def compare(pod, secret):
    found = {key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()}
    for key in sorted(pod["data"].keys() | found.keys()):
        equal = pod["data"].get(key) == found.get(key)
        say(f"    {key:<12} {'equal to the source' if equal else 'NOT EQUAL to the source'}")
    if found != pod["data"]:
        raise Failed(f"the Secret {pod['secret']} differs from its source")


def event_of(api, pod):
    def find():
        events = api.ask("GET", f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")["items"]
        mine = (event for event in events if event["regarding"]["name"] == pod["name"])
        return next((event for event in mine if event.get("reason") == "SecretSyncSuccess"), None)

    return wait_for("the Event on the pod", find)


def show(api, pod, secret, millis):
    meta = api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['name']}")["metadata"]
    say(f"\nPod {meta['namespace']}/{meta['name']}, its annotation:")
    say("\n".join(f"    {line}" for line in meta["annotations"]["jasm.codnod.io/secret-sync"].splitlines()))
    event = event_of(api, pod)
    say(f"  the Event on it:\n    {event['type']}  {event['reason']}  {event['note']}")
    say(f"  the Secret {NAMESPACE}/{pod['secret']}, {millis:.0f} ms after the request that creates the pod:")
    compare(pod, secret)


def show_rights(env):
    said = subprocess.run([pathlib.Path(env["ASSETS"]) / "kubectl", "--kubeconfig", env["KUBECONFIG"], "auth", "can-i", "get", "secrets",
                           "--as", f"system:serviceaccount:{SYSTEM}:jasm-agent", "-n", NAMESPACE], text=True, capture_output=True)
    say(f"\nMay the agent read Secrets (kubectl auth can-i get secrets --as ...jasm-agent)? {said.stdout.strip()}")


def keep(env, folder, listen):
    say(f"""
Everything keeps running until Ctrl-C. In another terminal:
    export KUBECONFIG={env['KUBECONFIG']} PATH={env['ASSETS']}:$PATH
    kubectl describe pod web -n {NAMESPACE}
    kubectl get secrets -n {NAMESPACE} -o yaml
    curl http://{listen}/metrics
    tail -f {folder}/agent.log                # the agent's log
    $EDITOR {folder}/policy.yaml              # who may have what; read again when it changes""")
    signal.pause()


def run(program, folder):
    say("Starting etcd, kube-apiserver, an emulator of AWS, and Vault ...")
    plane, env = start_control_plane(folder / "plane")
    agent = vault = None
    try:
        vault = Vault()
        token = vault.set_up()
        api = Api(env)
        say("Applying rbac/: the agent's rights and its admission policies ...")
        for namespace in [SYSTEM, NAMESPACE]:
            api.create("/api/v1/namespaces", "Namespace", "v1", {"name": namespace})
        kubectl(env, "apply", "-k", "rbac")
        for namespace in [SYSTEM, NAMESPACE]:
            account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
            wait_for("the namespace's service account", lambda path=account: api.ask("GET", path))
        fill_stores(env, vault)
        say("Starting the agent ...")
        agent, listen = start_agent(program, folder, agent_identity(api, folder, env), env, vault, token)
        say("Creating three annotated pods on the agent's node, one for each store ...")
        for pod in PODS:
            show(api, pod, *create_pod(api, pod))
        show_rights(env)
        if os.environ.get("KEEP") == "1":
            keep(env, folder, listen)
        say("\nThat was all; run `KEEP=1 make demo` to keep it running and look around with kubectl.")
    finally:
        if agent:
            agent.terminate()
            agent.wait()
        if vault:
            vault.end()
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
