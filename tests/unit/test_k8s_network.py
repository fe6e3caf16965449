"""Who reaches the pods of k8s/, and whether policies and monitors select pods that there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.unit.test_k8s_checks import RENDERED, containers, of_kind, overlays, templates


@overlays
def test_network_policies_select_our_pods_and_cover_them(name: str) -> None:
    """By our own labels alone: the operator adds ray.io/cluster, ray.io/group and ray.io/node-type when it makes the pods."""
    labels = {role: template["metadata"]["labels"] for role, template in templates(name)}
    for role, found in labels.items():
        assert found == {"app.kubernetes.io/part-of": "mmvp-ray", "app.kubernetes.io/component": role}
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(name, "NetworkPolicy")}
    known = {"head", "worker", "submitter", "launcher"}
    for spec in policies.values():
        for selector in [spec["podSelector"], *pod_selectors(spec)]:
            assert set(components(selector)) <= known
        assert any(matches(spec["podSelector"], found) for found in labels.values()) or name == "base"
    deny = policies["mmvp-ray-deny"]
    assert deny["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in deny and "egress" not in deny
    assert all(matches(deny["podSelector"], found) for found in labels.values())


@overlays
def test_only_we_the_operator_and_prometheus_come_in(name: str) -> None:
    ports = {port["containerPort"] for role, one in containers(name) if role == "head" for port in one["ports"]}
    for policy in of_kind(name, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], "a rule without `from` lets everyone in"
            for peer in rule["from"]:
                assert "ipBlock" not in peer
                space = peer.get("namespaceSelector")
                if space is not None:
                    (origin,) = space["matchLabels"].values()
                    assert origin in ("kuberay-system", "monitoring")
                    assert {port["port"] for port in rule["ports"]} <= ports


@overlays
def test_pod_monitors_meet_pods_and_ports(name: str) -> None:
    open_to_prometheus = {
        port["port"]
        for policy in of_kind(name, "NetworkPolicy")
        if policy["metadata"]["name"] == "mmvp-ray-prometheus"
        for rule in policy["spec"]["ingress"]
        for port in rule["ports"]
    }
    for monitor in RENDERED["monitoring"]:
        found = [
            template
            for _, template in templates(name)
            if matches(monitor["spec"]["selector"], template["metadata"]["labels"])
        ]
        assert found
        for template in found:
            ports = {
                port["name"]: port["containerPort"] for one in template["spec"]["containers"] for port in one["ports"]
            }
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                assert ports[endpoint["port"]] in open_to_prometheus


def pod_selectors(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for rule in spec.get("ingress", []):
        yield from (peer["podSelector"] for peer in rule["from"] if "namespaceSelector" not in peer)
    for rule in spec.get("egress", []):
        yield from (peer["podSelector"] for peer in rule.get("to", []) if "podSelector" in peer)


def components(selector: dict[str, Any]) -> list[str]:
    label = "app.kubernetes.io/component"
    found = [value for key, value in selector.get("matchLabels", {}).items() if key == label]
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In" and one["key"] == label
        found += one["values"]
    return found


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return exact and all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))
