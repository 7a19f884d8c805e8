"""Makes the templates of the Helm chart from the Kustomize overlays; `make manifests` runs it.

The overlays are the one description; here is only which of their values a chart's user may set.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import yaml

DEPLOY: Final = Path(__file__).resolve().parent.parent
TEMPLATES: Final = DEPLOY / "helm" / "onnx-audit" / "templates"
KUBECTL: Final = DEPLOY.parent / ".tools" / "bin" / "kubectl"
NAMESPACE: Final = "onnx-audit"
HEAD: Final = "{{/* Made from deploy/kustomize by deploy/helm/generate.py. */ -}}\n"

Manifest = dict[str, Any]

BLOCKS: Final = {
    "settings": """\
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}""",
    "settings-alone": """\
{{- if .Values.settings }}
env:
{{- range $name, $value := .Values.settings }}
  - name: {{ $name }}
    value: {{ $value | quote }}
{{- end }}
{{- end }}""",
    "tls-env": """\
{{- if .Values.tlsSecret }}
- name: ONNX_AUDIT_TLS_CERT
  value: /tls/tls.crt
- name: ONNX_AUDIT_TLS_KEY
  value: /tls/tls.key
{{- end }}""",
    "tls-mount": """\
{{- if .Values.tlsSecret }}
- name: tls
  mountPath: /tls
  readOnly: true
{{- end }}""",
    "tls-volume": """\
{{- if .Values.tlsSecret }}
- name: tls
  secret:
    secretName: {{ .Values.tlsSecret }}
    defaultMode: 288
{{- end }}""",
}
"""Parts that are there only where values ask for them."""


def overlay(name: str) -> list[Manifest]:
    """What an overlay becomes, as kubectl applies it."""
    command = [KUBECTL, "kustomize", DEPLOY / "kustomize" / "overlays" / name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return list(yaml.safe_load_all(done.stdout))


def value(path: str) -> str:
    """A value in the place of a scalar."""
    return f"{{{{ .Values.{path} }}}}"


def tree(path: str) -> str:
    """A value in the place of a mapping; written out by `dump`."""
    return f"<tree {path}>"


def containers(manifest: Manifest) -> tuple[Manifest, list[Manifest]]:
    """The pod that a workload makes, and its containers; the first is the main one."""
    spec = manifest["spec"]
    template = (
        spec["jobTemplate"]["spec"]["template"] if "jobTemplate" in spec else spec["template"]
    )
    pod = template["spec"]
    return pod, [*pod["containers"], *pod.get("initContainers", [])]


def parametrize_pod(manifest: Manifest) -> None:
    """Images, settings, certificates and the store's secret."""
    pod, every = containers(manifest)
    pod["imagePullSecrets"] = tree("imagePullSecrets")
    for container in every:
        tag = "cudaTag" if container["image"].endswith("-cuda") else "tag"
        container["image"] = f"{value('image.repository')}:{value(f'image.{tag}')}"
        for variable in container.get("env", []):
            secret = variable.get("valueFrom", {}).get("secretKeyRef", {})
            if secret:
                secret["name"] = value("storeSecret")
        for source in container.get("envFrom", []):
            source["secretRef"]["name"] = value("storeSecret")
        if "env" in container:
            container["env"].append("<block settings>")
        else:
            container["<block settings-alone>"] = None
    if manifest["metadata"]["labels"]["app.kubernetes.io/component"] == "server":
        pod["containers"][0]["env"].append("<block tls-env>")
        pod["containers"][0]["volumeMounts"].append("<block tls-mount>")
        pod["volumes"].append("<block tls-volume>")


def parametrize(manifest: Manifest) -> str:
    """Puts expressions in the place of values; returns the condition for the whole, or ""."""
    manifest["metadata"]["namespace"] = "{{ .Release.Namespace }}"
    kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest.get("spec", {})
    if kind in ("Deployment", "StatefulSet", "CronJob"):
        parametrize_pod(manifest)
    match kind, name:
        case "StatefulSet", "onnx-audit":
            containers(manifest)[1][0]["resources"] = tree("single.resources")
            claim = spec["volumeClaimTemplates"][0]["spec"]
            claim["resources"]["requests"]["storage"] = value("single.storage.size")
            claim["<if single.storage.className>"] = "storageClassName"
        case "Deployment", _:
            containers(manifest)[1][0]["resources"] = tree("server.resources")
        case "StatefulSet", _:
            containers(manifest)[1][0]["resources"] = tree("worker.resources")
            spec["<if worker.replicas>"] = "replicas"
        case "HorizontalPodAutoscaler", _:
            spec["minReplicas"] = value("server.minReplicas")
            spec["maxReplicas"] = value("server.maxReplicas")
        case "CronJob", _:
            spec["schedule"] = "{{ .Values.gc.schedule | quote }}"
        case "ScaledObject", _:
            spec["maxReplicaCount"] = value("keda.maxReplicas")
            for trigger in spec["triggers"]:
                metadata = trigger["metadata"]
                metadata["serverAddress"] = value("keda.serverAddress")
                metadata["query"] = metadata["query"].replace(
                    f'"{NAMESPACE}"', '"{{ .Release.Namespace }}"'
                )
            return "keda.enabled"
        case (("ServiceMonitor" | "PodMonitor"), _):
            return "monitoring"
    return ""


def dump(manifest: Manifest) -> str:
    """YAML in which the placeholders have become template code."""
    text = yaml.safe_dump(manifest, sort_keys=False, width=10_000)
    # An expression stands for a value of any type: the quotes of YAML would make it a string.
    text = re.sub(r"'(\{\{ [^']* \}\}(?::\{\{ [^']* \}\})?)'", r"\1", text)
    replacements: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"^( *)(?:- )?<block ([\w-]+)>(?:: null)?$", lambda m: indent(BLOCKS[m[2]], m[1])),
        (
            r"^( *)(\w+): <tree ([\w.]+)>$",
            lambda m: (
                f"{m[1]}{{{{- with .Values.{m[3]} }}}}\n{m[1]}{m[2]}:\n"
                f"{m[1]}  {{{{- toYaml . | nindent {len(m[1]) + 2} }}}}\n{m[1]}{{{{- end }}}}"
            ),
        ),
        (
            r"^( *)<if ([\w.]+)>: (\w+)$",
            lambda m: (
                f"{m[1]}{{{{- with .Values.{m[2]} }}}}\n{m[1]}{m[3]}: {{{{ . }}}}\n"
                f"{m[1]}{{{{- end }}}}"
            ),
        ),
    ]
    for pattern, replacement in replacements:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def indent(block: str, by: str) -> str:
    """A block of lines, each moved to the right."""
    return "\n".join(by + line for line in block.splitlines())


def template(mode: str) -> str:
    """The template of one mode."""
    parts: Iterable[Manifest] = (m for m in overlay(mode) if m["kind"] != "Namespace")
    text = HEAD + f'{{{{- if eq .Values.mode "{mode}" }}}}\n'
    for manifest in parts:
        condition = parametrize(manifest)
        body = "---\n" + dump(manifest)
        text += f"{{{{- if .Values.{condition} }}}}\n{body}{{{{- end }}}}\n" if condition else body
    return text + "{{- end }}\n"


def main() -> None:
    """Writes the templates."""
    for mode in ("single", "fleet"):
        (TEMPLATES / f"{mode}.yaml").write_text(template(mode))


if __name__ == "__main__":
    main()
