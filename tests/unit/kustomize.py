"""What `kubectl kustomize` renders, for the part of it that k8s/ uses; anything else is an error, never passed over.

test_k8s_kustomize.py holds it against the real one where kubectl is installed.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

FIELDS = {
    "apiVersion", "kind", "namespace", "resources", "components", "images", "configMapGenerator", "generatorOptions", "labels",
    "patches",
}  # fmt: skip
CLUSTER_SCOPED = {"Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}

Resource = dict[str, Any]


class KustomizeError(Exception):
    """A kustomization that this renderer does not understand, or that is wrong."""


def render(folder: Path) -> list[Resource]:
    """The resources of the kustomization in `folder`, in no particular order."""
    return _layer(folder, [])


def load_all(path: Path) -> list[Any]:
    """All documents of a YAML file; a key that stands twice is an error."""
    return list(yaml.load_all(path.read_text(), Loader=_StrictLoader))


class _StrictLoader(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(keys) > len(set(keys)):
            raise KustomizeError(f"a key stands twice {node.start_mark}: {keys}")
        return super().construct_mapping(node, deep)


def _layer(folder: Path, resources: list[Resource]) -> list[Resource]:
    path = folder / "kustomization.yaml"
    if not path.is_file():
        raise KustomizeError(f"no kustomization.yaml in {folder}")
    (spec,) = load_all(path)
    _only(spec, FIELDS, path)
    expected = (
        "kustomize.config.k8s.io/v1alpha1" if spec.get("kind") == "Component" else "kustomize.config.k8s.io/v1beta1"
    )
    if spec.get("kind") not in ("Kustomization", "Component") or spec.get("apiVersion") != expected:
        raise KustomizeError(f"{path}: kind and apiVersion do not go together")
    for name in spec.get("resources", []):
        resources = resources + _resource(folder, name)
    for generator in spec.get("configMapGenerator", []):
        resources = _generate(folder, generator, spec.get("generatorOptions", {}), resources)
    for name in spec.get("components", []):
        resources = _layer(_inside(folder, name, is_folder=True), resources)
    for patch in spec.get("patches", []):
        resources = _patch(folder, patch, resources)
    if "namespace" in spec:
        resources = [_in_namespace(one, spec["namespace"]) for one in resources]
    for label in spec.get("labels", []):
        _only(label, {"pairs"}, path)
        resources = [_merged(one, {"metadata": {"labels": label["pairs"]}}) for one in resources]
    for image in spec.get("images", []):
        _only(image, {"name", "newName", "newTag"}, path)
        resources = [_with_image(one, image) for one in resources]
    identities = [_identity(one) for one in resources]
    if len(set(identities)) < len(identities):
        raise KustomizeError(f"{path}: two resources of one name: {sorted(identities)}")
    return resources


def _resource(folder: Path, name: str) -> list[Resource]:
    if (folder / name).is_dir():
        return _layer(_inside(folder, name, is_folder=True), [])
    return [one for one in load_all(_inside(folder, name, is_folder=False)) if one is not None]


def _inside(folder: Path, name: str, *, is_folder: bool) -> Path:
    path = (folder / name).resolve()
    if is_folder:
        return path
    # kustomize reads files only in and below the folder of the kustomization.
    if not path.is_file() or not path.is_relative_to(folder.resolve()):
        raise KustomizeError(f"{name} is no file in {folder}")
    return path


def _generate(
    folder: Path, generator: dict[str, Any], options: dict[str, Any], resources: list[Resource]
) -> list[Resource]:
    _only(generator, {"name", "envs", "literals", "files", "behavior"}, folder)
    if options != {"disableNameSuffixHash": True}:
        raise KustomizeError(f"{folder}: generatorOptions other than disableNameSuffixHash: true are not rendered")
    data: dict[str, str] = {}
    for name in generator.get("files", []):
        data[Path(name).name] = _inside(folder, name, is_folder=False).read_text()
    for name in generator.get("envs", []):
        lines = _inside(folder, name, is_folder=False).read_text().splitlines()
        data |= dict(line.split("=", 1) for line in lines if line.strip() and not line.lstrip().startswith("#"))
    data |= dict(literal.split("=", 1) for literal in generator.get("literals", []))
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
    behavior = generator.get("behavior", "create")
    if behavior == "create":
        return [*resources, made]
    if behavior != "merge":
        raise KustomizeError(f"{folder}: behavior {behavior} is not rendered")
    found = [one for one in resources if one["kind"] == "ConfigMap" and one["metadata"]["name"] == generator["name"]]
    if len(found) != 1:
        raise KustomizeError(f"{folder}: no ConfigMap {generator['name']} to merge into")
    return [_merged(one, {"data": data}) if one is found[0] else one for one in resources]


def _patch(folder: Path, patch: dict[str, Any], resources: list[Resource]) -> list[Resource]:
    _only(patch, {"path", "target", "options"}, folder)
    _only(patch["target"], {"kind", "name"}, folder)
    options = patch.get("options", {})
    _only(options, {"allowKindChange", "allowNameChange"}, folder)
    (operations,) = load_all(_inside(folder, patch["path"], is_folder=False))
    if not isinstance(operations, list):
        raise KustomizeError(f"{folder}/{patch['path']}: only JSON patches are rendered")
    targets = [
        one
        for one in resources
        if all(
            value == (one["kind"] if key == "kind" else one["metadata"]["name"])
            for key, value in patch["target"].items()
        )
    ]
    if not targets:
        raise KustomizeError(f"{folder}: nothing is patched by {patch['path']}")
    patched = []
    for one in resources:
        if any(one is target for target in targets):
            before, one = one, apply_json_patch(one, operations)
            if not options.get("allowKindChange"):
                one["kind"] = before["kind"]
            if not options.get("allowNameChange"):
                one["metadata"]["name"] = before["metadata"]["name"]
        patched.append(one)
    return patched


def apply_json_patch(document: Any, operations: list[dict[str, Any]]) -> Any:
    """RFC 6902: add, remove, replace, copy and move."""
    root = {"": copy.deepcopy(document)}
    for operation in operations:
        kind = operation.get("op")
        wanted = {"add": {"value"}, "replace": {"value"}, "remove": set(), "copy": {"from"}, "move": {"from"}}.get(kind)
        if wanted is None or set(operation) != {"op", "path", *wanted}:
            raise KustomizeError(f"no such operation: {operation}")
        value = operation.get("value")
        if kind in ("copy", "move"):
            holder, key = _walk(root, operation["from"])
            value = copy.deepcopy(_at(holder, key))
        if kind == "move":
            _remove(*_walk(root, operation["from"]))
        if kind == "remove":
            _remove(*_walk(root, operation["path"]))
            continue
        holder, key = _walk(root, operation["path"])
        if kind == "replace":
            _at(holder, key)
        value = copy.deepcopy(value)
        if isinstance(holder, dict):
            holder[key] = value
        elif kind == "replace":
            holder[int(key)] = value
        else:
            holder.insert(len(holder) if key == "-" else int(key), value)
    return root[""]


def _walk(root: Any, pointer: str) -> tuple[Any, str]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    holder = root
    for part in parts[:-1]:
        holder = _at(holder, part)
    return holder, parts[-1]


def _at(holder: Any, key: str) -> Any:
    try:
        return holder[key] if isinstance(holder, dict) else holder[int(key)]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise KustomizeError(f"a patch looks for {key!r}, where there is none") from error


def _remove(holder: Any, key: str) -> None:
    _at(holder, key)
    del holder[key if isinstance(holder, dict) else int(key)]


def _in_namespace(resource: Resource, namespace: str) -> Resource:
    if resource["kind"] == "Namespace":
        return _merged(resource, {"metadata": {"name": namespace}})
    if resource["kind"] in CLUSTER_SCOPED:
        return resource
    return _merged(resource, {"metadata": {"namespace": namespace}})


def _merged(resource: Resource, more: dict[str, Any]) -> Resource:
    result = dict(resource)
    for key, value in more.items():
        result[key] = _merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def _with_image(node: Any, image: dict[str, str]) -> Any:
    # kustomize looks for containers wherever they are, in custom resources too.
    if isinstance(node, list):
        return [_with_image(one, image) for one in node]
    if not isinstance(node, dict):
        return node
    result = {key: _with_image(value, image) for key, value in node.items()}
    for key in ("containers", "initContainers"):
        for container in result.get(key) or []:
            if isinstance(container, dict) and re.split("[:@]", container.get("image", ""))[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return result


def _identity(resource: Resource) -> tuple[str, str, str]:
    return resource["apiVersion"], resource["kind"], resource["metadata"]["name"]


def _only(mapping: dict[str, Any], known: set[str], where: Path) -> None:
    unknown = sorted(set(mapping) - known)
    if unknown:
        raise KustomizeError(f"{where}: {', '.join(unknown)} is not rendered; known: {', '.join(sorted(known))}")
